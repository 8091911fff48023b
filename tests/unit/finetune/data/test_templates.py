"""Labelled texts for encoders and encoder-decoders: what is written, what is cut."""

from __future__ import annotations

from typing import Any

import pytest

from edgempi.errors import UserError
from edgempi.finetune.data.examples import Completion, Example, Labelled, Tally, Text
from edgempi.finetune.data.glue import MRPC, SST2, STSB
from edgempi.finetune.data.samples import IGNORED, Encoded, Place, Template
from edgempi.finetune.data.templates import Classify, TextToText, label_text
from unit.finetune.data.tokenizers_made import words, written


def _encode(template: Template, tokenizer: Any, example: Example) -> tuple[list[Encoded], Tally]:
    tally = Tally()
    return template.encode(example, tokenizer, Place("rows, line 3", lambda reason: tally.note(reason, 3))), tally


def test_pairs_are_joined_as_the_tokenizer_joins_them() -> None:
    bert = words("bert")
    (row,), tally = _encode(Classify(), bert, Labelled(("the car", "a boat sold"), 1))
    assert written(bert, row.enc_ids) == "[CLS] the car [SEP] a boat sold [SEP]"
    assert row.types == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (row.labels, row.dec_ids, tally.rows) == (1, None, {})
    (row,), _ = _encode(Classify(), bert, Labelled(("the car",), None))
    assert (written(bert, row.enc_ids), row.labels) == ("[CLS] the car [SEP]", -1)


def test_the_longer_text_of_a_pair_is_cut() -> None:
    bert = words("bert")
    pair = Labelled(("the car near the river is cold", "a boat"), 0)
    (row,), tally = _encode(Classify(max_length=9), bert, pair)
    assert written(bert, row.enc_ids) == "[CLS] the car near the [SEP] a boat [SEP]"
    assert tally.as_dict() == {"cut to 9 tokens": {"rows": 1, "first_lines": [3]}}
    assert len(_encode(Classify(max_length=12), bert, pair)[0][0].enc_ids or ()) == 12
    assert not _encode(Classify(max_length=12), bert, pair)[1].rows


def test_a_row_has_room_for_a_token_of_each_text() -> None:
    bert = words("bert")  # [CLS] a [SEP] b [SEP]
    pair, single = Labelled(("the car", "a boat"), 1), Labelled(("the car near the river",), 1)
    (row,), _ = _encode(Classify(max_length=5), bert, pair)
    assert written(bert, row.enc_ids) == "[CLS] the [SEP] a [SEP]"
    for length in (1, 2, 3, 4):
        with pytest.raises(UserError, match=rf"max_tokens: {length}; beside the 3 .*each text needs one. Set it to 5"):
            _encode(Classify(max_length=length), bert, pair)
    (row,), _ = _encode(Classify(max_length=3), bert, single)
    assert written(bert, row.enc_ids) == "[CLS] the [SEP]"
    with pytest.raises(UserError, match=r"max_tokens: 2; beside the 2 that the tokenizer adds, the text needs one"):
        _encode(Classify(max_length=2), bert, single)
    with pytest.raises(UserError, match=r"max_tokens: 1; beside the 1 that the tokenizer adds"):
        _encode(TextToText(None, 0, max_length=1), words("t5"), Completion("the car", "yes"))
    with pytest.raises(UserError, match=r"max_tokens: 1; beside the 1 that the tokenizer adds"):
        _encode(Classify(max_length=1, stack="dec"), words("chat"), pair)


def test_a_decoder_reads_the_texts_one_after_the_other() -> None:
    chat = words("chat")
    (row,), tally = _encode(Classify(max_length=4, stack="dec"), chat, Labelled(("the car", "a boat"), 0))
    assert written(chat, row.dec_ids) == "<s> the car a"
    assert (row.enc_ids, row.types, tally.rows) == (None, None, {"cut to 4 tokens": 1})


def test_text_to_text_as_t5_writes_it() -> None:
    t5 = words("t5")
    (row,), _ = _encode(TextToText(MRPC, decoder_start=0), t5, Labelled(("the car", "a boat"), 1))
    assert written(t5, row.enc_ids) == "mrpc sentence1: the car sentence2: a boat </s>"
    assert isinstance(row.labels, list)
    assert written(t5, row.labels) == "equivalent </s>"
    assert written(t5, row.dec_ids) == "<pad> equivalent"
    (row,), _ = _encode(TextToText(STSB, decoder_start=1), t5, Labelled(("the car", "a boat"), 3.75))
    assert isinstance(row.labels, list)
    assert (written(t5, row.labels), row.dec_ids) == ("3.8 </s>", [1, row.labels[0]])
    (row,), _ = _encode(TextToText(MRPC, decoder_start=0), t5, Labelled(("the car", "a boat"), None))
    assert row.labels == [IGNORED]


@pytest.mark.parametrize(
    ("score", "said"),
    [(0.0, "0.0"), (5.0, "5.0"), (3.8, "3.8"), (3.9, "4.0"), (2.5, "2.4"), (2.7, "2.8"), (0.1, "0.0"), (4.91, "5.0")],
)
def test_scores_are_rounded_to_the_nearest_fifth(score: float, said: str) -> None:
    assert label_text(STSB, score) == said


def test_answers_are_read_back() -> None:
    stsb, mrpc = TextToText(STSB, 0), TextToText(MRPC, 0)
    assert [stsb.read_answer(text) for text in (" 3.8", "5.0", "7", "equivalent", "", "nan")] == [
        3.8,
        5,
        -1,
        -1,
        -1,
        -1,
    ]
    assert [mrpc.read_answer(text) for text in ("equivalent ", "not_equivalent", "equiv", "")] == [1, 0, -1, -1]
    assert [TextToText(SST2, 0).read_answer(label_text(SST2, label)) for label in (0, 1)] == [0, 1]


def test_a_long_source_is_cut_and_a_long_target_left_out() -> None:
    t5 = words("t5")
    prompts = TextToText(None, decoder_start=0, max_length=4, max_target_length=3)
    (row,), tally = _encode(prompts, t5, Completion("the car near the river", "a boat"))
    assert (written(t5, row.enc_ids), written(t5, row.dec_ids)) == ("the car near </s>", "<pad> a boat")
    assert tally.rows == {"cut to 4 tokens": 1}
    rows, tally = _encode(prompts, t5, Completion("the car", "a boat sold"))
    assert (rows, tally.rows) == ([], {"left out: the target is longer than 3 tokens": 1})


def test_templates_refuse_rows_that_they_are_not_for() -> None:
    t5 = words("t5")
    cases: list[tuple[Template, Example]] = [
        (Classify(), Text("a")), (TextToText(MRPC, 0), Completion("a", "b")), (TextToText(None, 0), Text("a")),
    ]  # fmt: skip
    for template, example in cases:
        with pytest.raises(UserError, match=r"rows, line 3: a row of kind (Text|Completion); the template"):
            _encode(template, t5, example)
