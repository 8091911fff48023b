"""Samples and their keys, batches of them, and the order they come in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edgempi.errors import UserError
from edgempi.finetune.data.causal import Answers
from edgempi.finetune.data.collate import collate
from edgempi.finetune.data.examples import Completion, Labelled, Loaded, Tally
from edgempi.finetune.data.glue import MRPC
from edgempi.finetune.data.order import batches, order, rows_of_ranks
from edgempi.finetune.data.packing import pack, unpack
from edgempi.finetune.data.samples import Sample, template_fingerprint, tokenise, tokenizer_fingerprint
from edgempi.finetune.data.templates import Classify, TextToText
from edgempi.plan.spec import Embedding
from unit.finetune.data.tokenizers_made import words
from unit.plan.specs import classifier, decoder, rich

PAIRS = (
    Labelled(("the car", "a boat"), 1), Labelled(("the car near the river", "a boat"), 0),
    Labelled(("the car", "a boat"), 1),
)  # fmt: skip
PROMPTS = (Completion("one two", "yes"), Completion("one", "yes no"), Completion("one two three", "no"))


def _loaded(*examples: Labelled | Completion) -> Loaded:
    return Loaded("rows", examples, tuple(range(2, 2 + len(examples))), Tally())


def test_keys_name_content_template_and_tokenizer() -> None:
    bert = words("bert")
    first, second, third = (s.key for s in tokenise(_loaded(*PAIRS), Classify(), bert).samples)
    assert first == third != second
    assert len(bytes.fromhex(first)) == 16
    others = {
        first,
        tokenise(_loaded(replace(PAIRS[0], label=0)), Classify(), bert).samples[0].key,
        tokenise(_loaded(Labelled(("the car a boat",), 1)), Classify(), bert).samples[0].key,
        tokenise(_loaded(PAIRS[0]), Classify(max_length=64), bert).samples[0].key,
        tokenise(_loaded(PAIRS[0]), TextToText(MRPC, 0), bert).samples[0].key,
        tokenise(_loaded(PAIRS[0]), Classify(), words("t5")).samples[0].key,
    }
    assert len(others) == 6


def test_fingerprints_hold_over_processes_and_calls() -> None:
    # Written down once: a change here means that every cache of before is of no use, which raises VERSION.
    assert template_fingerprint(Classify()) == "18a5817ae3aeaabdcd1fa299d526134b"
    bert = words("bert")
    before = tokenizer_fingerprint(bert)
    bert("the car near the river", truncation=True, max_length=4, padding="max_length")
    assert tokenizer_fingerprint(bert) == before == tokenizer_fingerprint(words("bert"))
    chat = words("chat")
    before = tokenizer_fingerprint(chat)
    chat.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(chat) != before


def test_what_is_cut_is_counted_and_nothing_left_is_said() -> None:
    found = tokenise(_loaded(*PAIRS), Classify(max_length=8), words("bert"))
    assert found.tally.as_dict() == {"cut to 8 tokens": {"rows": 1, "first_lines": [3]}}
    with pytest.raises(UserError, match=r"rows: nothing to learn .3 rows: an answer left out.*line 2, 3, 4"):
        tokenise(_loaded(*PROMPTS), Answers(max_length=1), words("chat"))


def test_ids_that_the_model_has_no_row_for_are_named() -> None:
    bert, chat, t5 = words("bert"), words("chat"), words("t5")
    wide, narrow = Embedding(len(bert), 8, types=2), Embedding(bert.convert_tokens_to_ids("car"), 8, types=2)
    encoder = classifier()
    assert encoder.enc is not None
    fits, small, untyped = (
        replace(encoder, enc=replace(encoder.enc, embedding=embedding))
        for embedding in (wide, narrow, replace(wide, types=1))
    )
    found = tokenise(_loaded(*PAIRS), Classify(), bert, fits)
    assert [s.key for s in found.samples] == [s.key for s in tokenise(_loaded(*PAIRS), Classify(), bert).samples]
    highest = max(bert("the car", "a boat")["input_ids"])
    assert highest >= narrow.vocabulary
    said = rf"rows, line 2: token '{bert.convert_ids_to_tokens(highest)}' has the id {highest}; the model has rows for "
    with pytest.raises(UserError, match=said + rf"ids below {narrow.vocabulary}\. Use the tokenizer"):
        tokenise(_loaded(*PAIRS), Classify(), bert, small)
    with pytest.raises(UserError, match=r"line 2: token type 1; the model has types below 1"):
        tokenise(_loaded(*PAIRS), Classify(), bert, untyped)
    with pytest.raises(UserError, match=r"line 2: token '\w+' has the id \d+; the model has rows for ids below 17"):
        tokenise(_loaded(*PROMPTS), Answers(), chat, decoder())
    # What is only to be written counts too.
    last = replace(rich(), start_token=0)
    assert last.enc is not None and last.dec is not None
    unlike = replace(last, enc=replace(last.enc, embedding=Embedding(len(t5), 8)))
    with pytest.raises(UserError, match=r"line 2: token 'yes' has the id"):
        tokenise(_loaded(Completion("one", "yes")), TextToText(None, 0), t5, unlike)


def test_targets_are_what_a_mean_loss_divides_by() -> None:
    assert [s.targets for s in tokenise(_loaded(*PAIRS), Classify(), words("bert")).samples] == [1, 1, 1]
    answers = Answers(prompt_as_chat=False)
    assert [s.targets for s in tokenise(_loaded(*PROMPTS), answers, words("chat")).samples] == [2, 3, 2]
    pairs = tokenise(_loaded(*PROMPTS), TextToText(None, 0), words("t5")).samples
    assert [s.targets for s in pairs] == [2, 3, 2]
    # Without a prompt the first token of a decoder is never predicted.
    empty = tokenise(_loaded(Completion("", "yes")), answers, words("t5")).samples
    assert [(s.tokens, s.targets) for s in empty] == [(2, 1)]


def test_batches_are_padded_to_their_own_longest_row() -> None:
    samples = tokenise(_loaded(*PAIRS), Classify(), words("bert")).samples
    rows = collate(samples, pad=0)
    ids, real = rows.batch.enc_ids, rows.batch.enc_padding
    assert ids is not None
    assert real is not None
    assert ids.shape == real.shape == (3, 10)
    assert real.sum(1).tolist() == [7, 10, 7]
    assert (ids[~real] == 0).all()
    assert rows.labels.tolist() == [1, 0, 1]
    assert rows.labels.dtype == ids.dtype == torch.int64
    assert rows.targets == 3
    first = collate(samples, pad=0, rows=(0, 1))
    assert first.batch.enc_ids is not None
    assert first.batch.enc_ids.shape == (1, 7)
    assert first.batch.enc_padding is None
    none = collate(samples, pad=0, rows=(1, 1))
    assert none.batch.enc_ids is not None
    assert none.batch.enc_ids.shape == (0, 0)
    assert (none.labels.shape, none.keys, none.targets) == ((0,), (), 0)


def test_labels_of_tokens_are_padded_with_what_is_not_learned() -> None:
    samples = tokenise(_loaded(*PROMPTS), Answers(prompt_as_chat=False), words("chat")).samples
    rows = collate(samples, pad=3)
    assert rows.batch.dec_ids is not None
    assert rows.batch.dec_padding is not None
    assert (rows.labels[~rows.batch.dec_padding] == -100).all()
    learned = rows.labels != -100
    assert (rows.labels[learned] == rows.batch.dec_ids[learned]).all()
    assert rows.targets == int((rows.labels[:, 1:] != -100).sum()) == 7
    scores = tokenise(_loaded(Labelled(("a", "b"), 2.5)), Classify(), words("bert")).samples
    assert collate(scores, pad=0).labels.tolist() == [2.5]
    with pytest.raises(UserError, match=r"all rows of a batch have enc_ids types labels:0f"):
        collate([*scores, samples[0]], pad=0)


def test_losses_are_those_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    t5, chat = words("t5"), words("chat")
    small = {"vocab_size": len(t5), "num_heads": 2, "num_layers": 1, "d_model": 16, "d_kv": 8, "d_ff": 16}
    two = T5ForConditionalGeneration(T5Config(**small, decoder_start_token_id=0)).eval()
    rows = collate(tokenise(_loaded(*PROMPTS), TextToText(None, 0), t5).samples, pad=0)
    given = {"input_ids": rows.batch.enc_ids, "attention_mask": rows.batch.enc_padding}
    logits = two(**given, decoder_input_ids=rows.batch.dec_ids).logits
    ours = F.cross_entropy(logits.transpose(1, 2), rows.labels, reduction="sum") / rows.targets
    assert ours.item() == pytest.approx(two(**given, labels=rows.labels).loss.item(), rel=1e-6)

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    one = LlamaForCausalLM(LlamaConfig(vocab_size=len(chat), **shape)).eval()
    rows = collate(tokenise(_loaded(*PROMPTS), Answers(), chat).samples, pad=0)
    found = one(input_ids=rows.batch.dec_ids, attention_mask=rows.batch.dec_padding, labels=rows.labels)
    ours = F.cross_entropy(found.logits[:, :-1].transpose(1, 2), rows.labels[:, 1:], reduction="sum") / rows.targets
    assert ours.item() == pytest.approx(found.loss.item(), rel=1e-6)


def test_samples_survive_packing() -> None:
    made: list[tuple[Sample, ...]] = [
        tokenise(_loaded(*PAIRS), Classify(), words("bert")).samples,
        tokenise(_loaded(Labelled(("a", "b"), 2.5), Labelled(("a",), 1.0)), Classify(), words("bert")).samples,
        tokenise(_loaded(*PROMPTS), Answers(), words("chat")).samples,
        tokenise(_loaded(*PROMPTS), TextToText(None, 0), words("t5")).samples,
    ]
    for samples in made:
        again = unpack(pack(samples))
        assert [s.key for s in again] == [s.key for s in samples]
        for one, other in zip(samples, again, strict=True):
            for name in ("labels", "enc_ids", "dec_ids", "types"):
                mine, its = getattr(one, name), getattr(other, name)
                assert (mine is None) == (its is None)
                if mine is not None:
                    assert mine.dtype == its.dtype
                    assert mine.shape == its.shape
                    assert (mine == its).all()
    assert unpack(pack([])) == ()


def test_the_order_is_the_same_everywhere() -> None:
    # Written down once, so that no platform, library or later version sees rows in another order.
    assert order(0, 0, 8).tolist() == [0, 1, 6, 3, 5, 4, 2, 7]
    assert order(7, 2, 8).tolist() == [6, 1, 5, 0, 2, 4, 3, 7]
    assert order(0, 0, 0).tolist() == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**63), st.integers(0, 1000), st.integers(1, 300))
def test_every_epoch_sees_every_row_once_in_an_order_of_its_own(seed: int, epoch: int, n: int) -> None:
    found = order(seed, epoch, n)
    assert sorted(found.tolist()) == list(range(n))
    if n > 20:
        assert (found != order(seed, epoch + 1, n)).any()
        assert (found != order(seed + 1, epoch, n)).any()


def test_neighbouring_rows_part() -> None:
    places = np.argsort(order(3, 1, 10_000))
    assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.03


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 32), st.lists(st.floats(0, 9), min_size=1, max_size=5))
def test_ranks_share_each_batch_whatever_their_number(n: int, size: int, weights: list[float]) -> None:
    if not sum(weights) > 0:
        return
    seen = []
    for batch in batches(order(1, 0, n), size):
        for start, stop in rows_of_ranks(len(batch), weights):
            seen += batch[start:stop].tolist()
    assert seen == order(1, 0, n).tolist()


def test_a_run_goes_on_where_it_stopped() -> None:
    whole = [batch.tolist() for batch in batches(order(1, 0, 23), 5)]
    assert [batch.tolist() for batch in batches(order(1, 0, 23), 5, skip=3)] == whole[3:]
    with pytest.raises(UserError, match=r"batch size: 0"):
        list(batches(order(1, 0, 23), 0))
