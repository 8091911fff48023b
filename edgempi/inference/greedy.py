"""Greedy decoding with a key-value cache, under any plan.

Each step exchanges only the winners: every device offers the best of its own rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgempi.comm import Group, World
from edgempi.comm.wire import EXACT
from edgempi.errors import UserError
from edgempi.inference.runner import Runner
from edgempi.parallel.batch import Batch
from edgempi.parallel.outputs import Output
from edgempi.plan.layout import Region


def generate(
    runner: Runner,
    prompts: Tensor,
    max_new_tokens: int,
    on_token: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Continue the prompts until each has met a stop token, or `max_new_tokens` are written.

    Collective: every rank, same arguments; every rank returns the same.

    Args:
        runner: a loaded model that generates.
        prompts: (B, S) token ids, rows of equal length; the encoder's input of an encoder-decoder.
        max_new_tokens: the bound.
        on_token: called with each step's tokens (B).

    Returns:
        (B, new tokens) ids; rows that stopped earlier go on with the pad token.

    Raises:
        UserError: the model does not generate, or the text would outgrow its positions.
    """
    spec = runner.spec
    if not spec.generates:
        raise UserError(
            "model", value=spec.family, rule="text is written by decoders with a language-model head",
            remedy="Use a causal or sequence-to-sequence language model",
        )  # fmt: skip
    B = len(prompts)
    starts = prompts if spec.enc is None else torch.full((B, 1), spec.start_token or 0)
    first = Batch(dec_ids=starts) if spec.enc is None else Batch(enc_ids=prompts, dec_ids=starts)
    check_length(runner, starts.shape[1] + max_new_tokens - 1)
    caches = runner.new_caches(B, starts.shape[1] + max_new_tokens)
    pad = spec.pad_token if spec.pad_token is not None else (spec.stop_tokens or (0,))[0]
    stops = torch.tensor(spec.stop_tokens, dtype=torch.long)
    running = torch.ones(B, dtype=torch.bool)
    written: list[Tensor] = []
    batch, phase = first, "prefill"
    while len(written) < max_new_tokens and bool(running.any()):
        assert batch.dec_ids is not None
        last = torch.full((B,), batch.dec_ids.shape[1] - 1)
        outputs = runner.forward(batch, phase, caches, last)
        tokens = torch.where(running, winners(runner.world, runner.group, outputs), pad)
        written.append(tokens)
        running &= ~torch.isin(tokens, stops)
        if on_token is not None:
            on_token(tokens)
        batch, phase = replace(first, dec_ids=tokens[:, None]), "decode"
    return torch.stack(written, dim=1)


def check_length(runner: Runner, tokens: int) -> None:
    """Refuse a sequence that the model's positions do not reach."""
    limit = runner.spec.max_tokens
    if limit is not None and tokens > limit:
        raise UserError(
            "sequence length", value=f"{tokens} tokens with what is to be written",
            rule=f"the model has positions for {limit}", remedy="Shorten the request or lower data.max_new_tokens",
        )  # fmt: skip


def winners(world: World, group: Group, outputs: Sequence[Mapping[str, Output]]) -> Tensor:
    """The most likely token of each row (B), on every rank; the lower id where two are equal. Collective: every rank.

    Args:
        world: all ranks.
        group: the ranks of this rank's stage.
        outputs: of a pass that asked for one token of each row.
    """
    found = []
    for output in outputs:
        logits = output["logits"]
        B, _, V = logits.shape
        best = None
        with world.traffic.within("next token"):
            if logits.tensor is not None:
                best = _best(logits.tensor[:, 0], logits.layout[world.rank].columns[0])
                if any(box.columns != (0, V) for box in logits.layout.values()):
                    offers = group.all_gather(best, [1] * group.size, EXACT)
                    best = offers[torch.arange(B), offers[:, :, 0].argmax(dim=1)][:, None]
                best = best[:, :, 1:]
            # Where several devices hold a row's winner, the first one's counts: a near tie may fall out otherwise on
            # another processor, and ranks that disagree about a token would wait for each other for ever.
            holders = {box.rows: device for device, box in reversed(list(logits.layout.items()))}
            source = {device: Region(rows, (0, 1), (0, 1)) for rows, device in holders.items()}
            target = {device: Region((0, B), (0, 1), (0, 1)) for device in range(world.size)}
            tokens, pending = world.transfer(best, source, target, torch.float64)
            pending.wait()
        assert tokens is not None
        found.append(tokens[:, 0, 0].long())
    return torch.cat(found)


def _best(logits_BV: Tensor, first: int) -> Tensor:
    """(B, 1, 2): the largest own logit of each row and its id; minus infinity where the share is empty."""
    B, V = logits_BV.shape
    if not V:
        return torch.tensor([-torch.inf, 0.0], dtype=torch.float64).expand(B, 1, 2).contiguous()
    values, ids = logits_BV.double().max(dim=1)
    return torch.stack((values, (ids + first).double()), dim=-1)[:, None]
