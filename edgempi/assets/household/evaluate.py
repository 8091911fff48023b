"""Measure the household model: ``python -m edgempi.assets.household.evaluate [--model DIR] [--json]``.

The figure is the exact match over held-out commands: the answer must be JSON whose five fields all have
the right values. Decoding is the plain greedy decoding of transformers, with the weights as they ship.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgempi.assets.household.commands import Command, commands

SHIPPED_MODEL = Path(__file__).parent / "model"
SEED = 2024
COUNT = 1328  # eight fillings of each held-out template
BATCH_SIZE = 64
LONGEST_ANSWER = 48


class Assistant:
    """A model and its tokenizer, which answer commands."""

    def __init__(self, folder: Path) -> None:
        """Load a folder; the weights are stored in bfloat16 and computed with in float32."""
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def answer(self, texts: Sequence[str]) -> list[str]:
        """Return the answers to commands, in their order."""
        chats = [[{"role": "user", "content": text}] for text in texts]
        prompts: Any = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        outputs = self.model.generate(**prompts, do_sample=False, max_new_tokens=LONGEST_ANSWER)
        answers = outputs[:, prompts["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(answers, skip_special_tokens=True)


def is_exact(answer: str, command: Command) -> bool:
    """Say whether an answer is JSON with all the fields of the command's intent and no others."""
    try:
        return bool(json.loads(answer) == command.intent)
    except json.JSONDecodeError:
        return False


def evaluate(assistant: Assistant, asked: Sequence[Command]) -> dict[str, Any]:
    """Return the exact matches and the commands asked, in total and by intent, and the answers that missed."""
    right: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    missed = []
    by_length = sorted(asked, key=lambda command: len(command.text))
    for start in range(0, len(by_length), BATCH_SIZE):
        batch = by_length[start : start + BATCH_SIZE]
        answers = assistant.answer([command.text for command in batch])
        for command, answer in zip(batch, answers, strict=True):
            exact = is_exact(answer, command)
            right[command.intent_name] += exact
            total[command.intent_name] += 1
            if not exact:
                missed.append({"text": command.text, "expected": command.answer, "answer": answer})
    intents = {
        name: {"right": right[name], "asked": total[name], "exact_match": right[name] / total[name]}
        for name in sorted(total)
    }
    exact_match = sum(right.values()) / len(asked)
    return {"exact_match": exact_match, "asked": len(asked), "intents": intents, "missed": missed}


def table(report: dict[str, Any]) -> str:
    """Write a report as a Markdown table, one row per intent and the total last."""
    rows = ["| intent | commands | exact match |", "|---|---:|---:|"]
    for name, part in report["intents"].items():
        rows.append(f"| {name} | {part['asked']} | {part['exact_match']:.1%} |")
    rows.append(f"| **total** | {report['asked']} | **{report['exact_match']:.1%}** |")
    return "\n".join(rows)


def main() -> None:
    """Read the command line, evaluate and print."""
    parser = argparse.ArgumentParser(description="Exact match of the household model on held-out commands.")
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="a model folder")
    parser.add_argument("--count", type=int, default=COUNT, help="how many commands to ask")
    parser.add_argument("--json", action="store_true", help="print everything, with the misses, as JSON")
    arguments = parser.parse_args()
    report = evaluate(Assistant(arguments.model), list(commands("heldout", SEED, arguments.count)))
    print(json.dumps(report, indent=2) if arguments.json else table(report))


if __name__ == "__main__":
    main()
