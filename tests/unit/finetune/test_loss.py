"""Where the head reads, and what the loss sums."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from edgempi.finetune.data.collate import Rows
from edgempi.finetune.data.samples import IGNORED
from edgempi.finetune.loss import loss_of, places
from edgempi.parallel.batch import Batch
from edgempi.plan.spec import Head
from unit.plan.specs import classifier, decoder, rich

IDS = torch.arange(4, 12).view(2, 4)
PADDING = torch.tensor([[True, True, True, True], [True, True, False, False]])
LABELS = torch.tensor([[IGNORED, 7, 8, IGNORED], [IGNORED, 9, IGNORED, IGNORED]])


def test_a_decoder_says_the_next_token() -> None:
    spec, rows = decoder(), Rows(Batch(dec_ids=IDS, dec_padding=PADDING), LABELS, ("a", "b"), 3)
    read = places(spec, rows)
    assert list(zip(read.rows.tolist(), read.tokens.tolist(), read.targets.tolist(), strict=True)) == [
        (0, 0, 7), (0, 1, 8), (1, 0, 9),
    ]  # fmt: skip
    logits = torch.randn(3, 17, generator=torch.Generator().manual_seed(0))
    found = loss_of(spec, rows, read, logits)
    assert torch.equal(found.total, F.cross_entropy(logits, read.targets, reduction="sum"))
    answers = torch.full_like(LABELS, IGNORED)
    answers[LABELS != IGNORED] = logits.argmax(1)
    assert torch.equal(found.outputs, answers)


def test_a_decoder_behind_an_encoder_is_shifted_already() -> None:
    spec, rows = rich(), Rows(Batch(enc_ids=IDS, dec_ids=IDS, dec_padding=PADDING), LABELS, ("a", "b"), 3)
    read = places(spec, rows)
    assert list(zip(read.rows.tolist(), read.tokens.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 1)]
    found = loss_of(spec, rows, read, torch.zeros(3, 17))
    assert (found.outputs != IGNORED).tolist() == (LABELS != IGNORED).tolist()


def test_labels_are_read_at_one_token() -> None:
    batch = Batch(enc_ids=IDS, enc_padding=PADDING)
    first = places(classifier(), Rows(batch, torch.tensor([0, 2]), ("a", "b"), 2))
    assert first.tokens.tolist() == [0, 0]
    last_spec = replace(decoder(), head=Head(rows=3, select="last"))
    rows = Rows(Batch(dec_ids=IDS, dec_padding=PADDING), torch.tensor([0, 2]), ("a", "b"), 2)
    assert places(last_spec, rows).tokens.tolist() == [3, 1]
    whole = Rows(Batch(dec_ids=IDS), torch.tensor([0, 2]), ("a", "b"), 2)
    assert places(last_spec, whole).tokens.tolist() == [3, 3]


def test_a_hidden_label_adds_nothing() -> None:
    spec, logits = classifier(), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    batch = Batch(enc_ids=IDS)
    rows = Rows(batch, torch.tensor([1, -1]), ("a", "b"), 2)
    found = loss_of(spec, rows, places(spec, rows), logits)
    assert torch.isclose(found.total, F.cross_entropy(logits[:1], torch.tensor([1])))
    assert torch.equal(found.outputs, logits)


def test_a_score_of_minus_one_is_none_that_is_hidden() -> None:
    spec, scores = replace(classifier(), head=replace(classifier().head, rows=1)), torch.tensor([[0.5], [2.0]])
    known = Rows(Batch(enc_ids=IDS), torch.tensor([-1.0, 1.0]), ("a", "b"), 2)
    found = loss_of(spec, known, places(spec, known), scores)
    assert found.total.item() == 1.5**2 + 1
    assert found.outputs.tolist() == [0.5, 2.0]
    hidden = Rows(Batch(enc_ids=IDS), torch.tensor([-1, -1]), ("a", "b"), 2)
    assert loss_of(spec, hidden, places(spec, hidden), scores).total.item() == 0
