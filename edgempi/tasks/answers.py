"""From tensors to what a person reads, by what stands on top of the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgempi.models.source import read_config, read_tokenizer
from edgempi.plan.spec import ModelSpec

BEST = 3
"""How many fillings of a mask are shown."""


def read_out(
    spec: ModelSpec, folder: Path, texts: Sequence[str], answers: Sequence[dict[str, Tensor]]
) -> list[dict[str, Any]]:
    """`answer` (a line of text) and what it was read from, in JSON types, for each request.

    Written text for models that generate, fillings for masked language models, labels with probabilities for
    classifiers, and for bare models the mean hidden state.
    """
    tokenizer = read_tokenizer(folder)
    if spec.generates:
        return [_written(tokenizer, answer["tokens"][0]) for answer in answers]
    if spec.head.vocabulary:
        pairs = zip(texts, answers, strict=True)
        return [_filled(tokenizer, list(tokenizer(text)["input_ids"]), answer["logits"][0]) for text, answer in pairs]
    if spec.head.rows:
        labels = read_config(folder).id2label
        return [_labelled(tokenizer, labels, text, a["logits"][0]) for text, a in zip(texts, answers, strict=True)]
    return [_embedded(answer["last_hidden_state"][0]) for answer in answers]


def _written(tokenizer: Any, ids: Tensor) -> dict[str, Any]:
    return {"answer": tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip(), "tokens": ids.tolist()}


def _filled(tokenizer: Any, ids: list[int], logits_SV: Tensor) -> dict[str, Any]:
    fillings = []
    for place in (i for i, token in enumerate(ids) if token == tokenizer.mask_token_id):
        odds, best = torch.softmax(logits_SV[place], dim=-1).topk(min(BEST, logits_SV.shape[-1]))
        words = [tokenizer.decode([token]).strip() for token in best.tolist()]
        fillings.append(dict(zip(words, odds.tolist(), strict=False)))
    said = "; ".join(", ".join(f"{word} {odds:.0%}" for word, odds in filling.items()) for filling in fillings)
    return {
        "answer": said or f"nothing to fill: write {tokenizer.mask_token} where a word is missing",
        "fill": fillings,
    }


def _labelled(tokenizer: Any, labels: dict[int, str], text: str, logits_SC: Tensor) -> dict[str, Any]:
    odds_SC = torch.softmax(logits_SC, dim=-1)
    best = [(labels[int(row.argmax())], float(row.max())) for row in odds_SC]
    if len(best) == 1:
        scores = {labels[i]: value for i, value in enumerate(odds_SC[0].tolist())}
        return {"answer": f"{best[0][0]} {best[0][1]:.0%}", "scores": scores}
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    said = " ".join(f"{token}/{label}" for token, (label, _) in zip(tokens, best, strict=True))
    return {"answer": said, "labels": [label for label, _ in best]}


def _embedded(hidden_SD: Tensor) -> dict[str, Any]:
    mean = hidden_SD.mean(dim=0)
    first = ", ".join(f"{value:.3f}" for value in mean[:3].tolist())
    said = f"mean of {len(hidden_SD)} hidden states: [{first}, ...], {len(mean)} wide"
    return {"answer": said, "embedding": mean.tolist()}
