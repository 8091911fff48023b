"""Train the household model from nothing: ``python -m edgempi.assets.household.train --out DIR``.

The run is seeded and uses two processor cores, one worker on each. It learns the tokenizer and the
weights from varied training templates and from the grammar, watches the loss on training templates that
it keeps aside, and never sees a held-out template. The folder appears under its name only when it is
complete.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from edgempi.assets.household.commands import Command, Template, fill, may_train_on, templates_of
from edgempi.assets.household.grammar import compose
from edgempi.assets.household.variety import vary
from edgempi.assets.household.vocabulary import CONTEXT_LENGTH, VOCABULARY_SIZE, train_tokenizer

SEED = 11
STEPS = 2800
COMPOSED_PART = 0.65
BATCH_SIZE = 32  # of each worker
WORKERS = 2
PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 100
TOKENIZER_COMMANDS = 30_000
VALIDATION_TEMPLATES = 30
REPORT_EVERY = 100
IGNORED = -100  # the label that the loss of transformers leaves out


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the shape of the model: 8 heads over 4 shared key-value heads, so that 4 ranks can split it."""
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=672,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def varied_commands(templates: Sequence[Template], rng: random.Random) -> Iterator[Command]:
    """Yield training commands without end: from the templates and from the grammar, freshly rewritten."""
    alike = defaultdict(list)
    for template in templates:
        alike[template.intent_name, template.fields].append(template)
    while True:
        for template in rng.sample(templates, len(templates)):
            while rng.random() < COMPOSED_PART:
                composed = compose(rng)
                if may_train_on(composed.text):
                    yield fill(vary(composed, alike[composed.intent_name, composed.fields], rng), rng)
            yield fill(vary(template, alike[template.intent_name, template.fields], rng), rng)


def batches(
    stream: Iterator[Command], tokenizer: PreTrainedTokenizerFast, size: int = BATCH_SIZE
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield token ids and labels, padded on the right; only the answer has labels.

    Eight batches are drawn at once and sorted by length, so that little is padded.
    """
    order = random.Random(0)
    while chunk := [encode(command, tokenizer) for command in islice(stream, 8 * size)]:
        chunk.sort(key=lambda pair: len(pair[0]))
        groups = [chunk[i : i + size] for i in range(0, len(chunk), size)]
        order.shuffle(groups)
        for group in groups:
            longest = len(max(group, key=lambda pair: len(pair[0]))[0])
            ids = torch.full((len(group), longest), tokenizer.pad_token_id)
            labels = torch.full((len(group), longest), IGNORED)
            for row, (tokens, prompt_length) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, prompt_length : len(tokens)] = torch.tensor(tokens[prompt_length:])
            yield ids, labels


def encode(command: Command, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    """Return the ids of the prompt and the answer, and the length of the prompt."""
    user = [{"role": "user", "content": command.text}]
    prompt = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    answer_ids = tokenizer.encode(command.answer + tokenizer.eos_token, add_special_tokens=False)
    return prompt_ids + answer_ids, len(prompt_ids)


def learning_rate_at(step: int, steps: int) -> float:
    """Return the share of the peak rate at a step: a straight rise, then half a cosine down to nothing."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)))


def train(out: Path, seed: int = SEED, steps: int = STEPS) -> None:
    """Train a tokenizer and a model and save them; the same seed on the same machine gives the same weights."""
    rng = random.Random(seed)
    templates = rng.sample(templates_of("train"), len(templates_of("train")))
    validation, training = templates[:VALIDATION_TEMPLATES], templates[VALIDATION_TEMPLATES:]
    samples = islice(varied_commands(training, rng), TOKENIZER_COMMANDS)
    tokenizer = train_tokenizer(text for command in samples for text in (f" {command.text}", command.answer))
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = f"file://{folder}/workers"
        start_processes(
            _work,
            (meeting_point, tokenizer, training, validation, out, seed, steps),
            WORKERS,
            start_method="spawn",
        )


def _work(
    rank: int,
    meeting_point: str,
    tokenizer: PreTrainedTokenizerFast,
    training: Sequence[Template],
    validation: Sequence[Template],
    out: Path,
    seed: int,
    steps: int,
) -> None:
    """Train on one worker's own commands, with the gradients averaged over the workers; the first one saves."""
    # The matrices are too small for threads to help, and one thread always adds up in the same order.
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=WORKERS)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(build_config(tokenizer))
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_at(step, steps))
    rng = random.Random(f"{seed} {rank}")
    checks = list(batches((fill(t, rng) for t in validation for _ in range(8)), tokenizer))
    started, recent = time.monotonic(), 0.0
    stream = islice(batches(varied_commands(training, rng), tokenizer), steps)
    for step, (ids, labels) in enumerate(stream, start=1):
        loss = parallel(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent += loss.item() / REPORT_EVERY
        if step % REPORT_EVERY == 0 and rank == 0:
            seconds = time.monotonic() - started
            print(
                f"step {step:5} of {steps}  loss {recent:.4f}  validation {mean_loss(model, checks):.4f}"
                f"  {seconds:5.0f} s",
                flush=True,
            )
            recent = 0.0
    if rank == 0:
        save(model.bfloat16(), tokenizer, out)
    torch.distributed.destroy_process_group()


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, checks: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the mean loss over batches."""
    return sum(model(input_ids=ids, labels=labels).loss.item() for ids, labels in checks) / len(checks)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a Hugging Face folder beside its place and move it there when it is complete."""
    model.generation_config.max_new_tokens = 64
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as parent:
        draft = Path(parent) / "model"
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft, save_jinja_files=False)
        if out.exists():
            os.replace(out, Path(parent) / "previous")
        for path in draft.iterdir():
            path.chmod(0o644)
        os.replace(draft, out)
    shutil.rmtree(parent, ignore_errors=True)


def main() -> None:
    """Read the command line, train and save."""
    parser = argparse.ArgumentParser(description="Train the household model.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    train(arguments.out, arguments.seed, arguments.steps)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
