"""From what a configuration names to rows and a task, and to what of it depends on the tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgempi.config.finetune import FinetuneDataConfig, SourceName
from edgempi.errors import UserError
from edgempi.finetune.data.chosen import choose, label_ids, labels_of, padding_of, task_of, template_for
from edgempi.finetune.data.glue import MRPC, STSB
from edgempi.finetune.data.samples import tokenise
from edgempi.finetune.data.task import Task
from edgempi.finetune.data.templates import Classify, TextToText
from unit.finetune.data.tokenizers_made import words
from unit.plan.specs import classifier, decoder, rich


def _table(path: Path, text: str, **more: Any) -> FinetuneDataConfig:
    path.write_text(text, encoding="utf-8")
    fields = {"path": str(path), "texts": ["text"], "label": "label", "task": None, **more}
    return FinetuneDataConfig(source=SourceName.table, **fields)


def test_a_score_is_asked_for_by_its_range(tmp_path: Path) -> None:
    text = "text,label\nthe car,0.5\na boat,4.75\nthe river,3\n"
    path = tmp_path / "rows.csv"
    with pytest.raises(UserError, match=r"fractions are scores, and no classes. Set finetune_data.score_range=\[0.5,4"):
        choose(_table(path, text), tmp_path)
    chosen = choose(_table(path, text, score_range=[0.0, 5.0]), tmp_path)
    assert chosen.task is not None and chosen.task.is_score
    assert chosen.task == task_of(_table(path, text, score_range=[0.0, 5.0]))
    assert labels_of(chosen.task, classifier()) == 1
    assert [example.label for example in chosen.train.examples] == [0.5, 4.75, 3.0]  # type: ignore[union-attr]
    assert tokenise(chosen.train, Classify(), words("bert")).samples[0].labels.dtype.kind == "f"
    with pytest.raises(UserError, match=r"line 3: score: '4.75'; it is a number from 0 to 4"):
        choose(_table(path, text, score_range=[0.0, 4.0]), tmp_path)
    named = choose(_table(path, text, labels=["0.5", "3", "4.75"]), tmp_path)
    assert [example.label for example in named.train.examples] == [0, 2, 1]  # type: ignore[union-attr]


def test_labels_beyond_those_of_the_training_rows_are_named(tmp_path: Path) -> None:
    held = tmp_path / "dev.csv"
    held.write_text("text,label\nthe car,2\n")
    config = _table(tmp_path / "rows.csv", "text,label\nthe car,0\na boat,1\n", validation=str(held))
    with pytest.raises(UserError, match=r"dev.csv, line 2: label: '2'; it is one of 0, 1"):
        choose(config, tmp_path)
    with pytest.raises(UserError, match=r"rows.csv, line 3: label: 'maybe'; it is one of 0, 1, no, yes"):
        choose(replace(_table(tmp_path / "rows.csv", "text,label\na,no\nb,maybe\n"), labels=["no", "yes"]), tmp_path)


def test_classes_that_are_written_alike_are_refused() -> None:
    t5 = words("t5")

    def ids(*labels: str, most: int = 16) -> list[list[int]]:
        task = Task("mood", ("text",), labels)
        return label_ids(task, TextToText(task, 0, max_target_length=most), t5)

    assert ids("yes", "no") == [t5.convert_tokens_to_ids([word, "</s>"]) for word in ("yes", "no")]
    # Words that the tokenizer does not know become one and the same token.
    with pytest.raises(UserError, match=r"classes: qwerty and uiop; classes that are written as text differ in their"):
        ids("yes", "qwerty", "uiop")
    with pytest.raises(UserError, match=r"max_target_tokens: 2; the class no no is written with 3 tokens. Set it to 3"):
        ids("yes", "no no", most=2)
    assert label_ids(MRPC, Classify(), t5) == []
    assert label_ids(STSB, TextToText(STSB, 0), t5) == []
    assert label_ids(None, TextToText(None, 0), t5) == []


def test_what_rows_are_padded_with() -> None:
    bert = words("bert")
    spec = decoder()  # 17 rows
    assert padding_of(replace(spec, pad_token=5), bert) == 5
    assert padding_of(spec, bert) == bert.pad_token_id == 0
    bert.pad_token = "no"
    assert bert.pad_token_id >= 17
    assert padding_of(replace(spec, stop_tokens=(4, 6)), bert) == 4
    assert padding_of(spec, bert) == bert.eos_token_id == 1
    assert padding_of(replace(spec, pad_token=-1, stop_tokens=(99,)), bert) == 1


def test_rows_find_their_template(tmp_path: Path) -> None:
    config = _table(tmp_path / "rows.csv", "text,label\nthe car,yes\na boat,no\n")
    chosen = choose(config, tmp_path)
    assert template_for(config, chosen, classifier()) == Classify(128, "enc")
    assert template_for(config, chosen, decoder()) == Classify(128, "dec")
    assert template_for(config, chosen, rich()) == TextToText(chosen.task, 1, 128, 16)
    chats = tmp_path / "rows.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    talk = FinetuneDataConfig(source=SourceName.jsonl, path=str(chats), task=None)
    with pytest.raises(UserError, match=r"chat; an encoder learns labels"):
        template_for(talk, choose(talk, tmp_path), classifier())
