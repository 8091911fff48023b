"""The commands of the household assistant and the model that ships with them."""

from __future__ import annotations

import json
import random
import struct
from collections import defaultdict

import pytest

from edgempi.assets.household.clock import spoken_time
from edgempi.assets.household.commands import (
    FIELDS,
    commands,
    fill,
    frames,
    load_templates,
    may_train_on,
    shared_frames,
    split_of,
    templates_of,
)
from edgempi.assets.household.evaluate import SEED, SHIPPED_MODEL, Assistant, evaluate
from edgempi.assets.household.grammar import compose
from edgempi.assets.household.numbers import in_words
from edgempi.assets.household.variety import vary


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant(SHIPPED_MODEL)


def test_same_seed_gives_same_commands():
    assert list(commands("train", 3, 50)) == list(commands("train", 3, 50))
    assert list(commands("train", 3, 50)) != list(commands("train", 4, 50))


def test_templates_are_many_distinct_and_in_10_to_20_intents():
    texts = [template.text for template in load_templates()]
    assert len(texts) >= 200
    assert len(texts) == len(set(texts))
    assert 10 <= len({template.intent_name for template in load_templates()}) <= 20


def test_about_a_fifth_is_held_out_and_every_intent_is_in_both_splits():
    assert 0.15 < len(templates_of("heldout")) / len(load_templates()) < 0.25
    names = [{template.intent_name for template in templates_of(split)} for split in ("train", "heldout")]
    assert names[0] == names[1]
    with pytest.raises(ValueError, match="validation"):
        templates_of("validation")


def test_split_depends_on_the_text_alone():
    assert split_of("turn on the {room} light") == split_of("turn on the {room} light")
    assert {split_of(f"say {word}") for word in range(100)} == {"train", "heldout"}


def test_frames_count_a_slot_as_one_word_and_ignore_marks():
    assert frames("It's dark, in the {room}?") == {("its", "dark", "in", "the", "_")}
    assert frames("turn on the {appliance}") == set()


def test_splits_share_no_frame():
    assert shared_frames() == set()


def test_variety_never_shows_a_heldout_frame_and_keeps_the_meaning():
    siblings = defaultdict(list)
    for template in templates_of("train"):
        siblings[template.intent_name, template.fields].append(template)
    rng = random.Random(5)
    for template in templates_of("train"):
        varied = vary(template, siblings[template.intent_name, template.fields], rng)
        assert may_train_on(varied.text)
        intent = fill(varied, rng).intent
        assert intent["action"] == dict(template.fields)["action"]


def test_training_may_use_neither_a_heldout_template_nor_a_frame_of_one():
    for template in templates_of("heldout"):
        assert not may_train_on(template.text)
        if frames(template.text):
            assert not may_train_on(f"please {template.text} today")
    assert all(may_train_on(template.text) for template in templates_of("train"))


def test_grammar_speaks_of_every_intent_and_only_of_these():
    rng = random.Random(2)
    phrasings = [compose(rng) for _ in range(3000)]
    known = {(template.intent_name, template.fields) for template in load_templates()}
    assert {(phrasing.intent_name, phrasing.fields) for phrasing in phrasings} == known
    for phrasing in phrasings:
        text = fill(phrasing, rng).text
        assert "<" not in text and "{" not in text and "  " not in text
    assert len({phrasing.text for phrasing in phrasings}) > 2000


def test_every_intent_has_the_five_fields_in_order():
    for split in ("train", "heldout"):
        for command in commands(split, 1, 1000):
            assert tuple(json.loads(command.answer)) == FIELDS
            assert command.intent["device"] and command.intent["action"]
            assert "{" not in command.text


@pytest.mark.parametrize(
    ("number", "words"), [(7, "seven"), (20, "twenty"), (45, "forty five"), (180, "one hundred and eighty")]
)
def test_numbers_in_words(number, words):
    assert in_words(number) == words


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("ten", "10:00"),
        ("half past seven in the evening", "19:30"),
        ("quarter to eight in the evening", "19:45"),
        ("7 pm", "19:00"),
        ("noon", "12:00"),
        ("midnight", "00:00"),
    ],
)
def test_times_of_day(said, meant):
    rng = random.Random(0)
    heard = dict(spoken_time(rng) for _ in range(40_000))
    assert heard[said] == meant


def test_no_time_has_two_meanings():
    rng = random.Random(0)
    meanings = defaultdict(set)
    for said, meant in (spoken_time(rng) for _ in range(20_000)):
        meanings[said].add(meant)
    assert {said: meant for said, meant in meanings.items() if len(meant) > 1} == {}


def test_shipped_model_is_small_and_bfloat16():
    assert sum(path.stat().st_size for path in SHIPPED_MODEL.iterdir()) <= 8_000_000
    config = json.loads((SHIPPED_MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 4)
    with (SHIPPED_MODEL / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}


def test_tokenizer_gives_back_any_text(assistant):
    for text in ["Turn it ON, please!", '{"device":"light","room":null}', "19.5 °C – naïve\n\tgrüße 灯"]:
        assert assistant.tokenizer.decode(assistant.tokenizer.encode(text, add_special_tokens=False)) == text


def test_chat_template_ends_at_the_last_command(assistant):
    def ids(*contents):
        chat = [{"role": role, "content": content} for role, content in contents]
        return assistant.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)

    prompt = assistant.tokenizer.decode(ids(("user", "lights on")))
    assert prompt == "<|begin|><|user|> lights on<|assistant|>"
    history = [("system", "be brief"), ("user", "lights on"), ("assistant", "{}"), ("user", "lights on")]
    assert ids(*history) == ids(("user", "lights on"))


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ("it's too dark in the kitchen", ("light", "kitchen", "on", None, None)),
        (
            "turn the heating in the bedroom down to 19 at ten",
            ("heating", "bedroom", "set", 19, "10:00"),
        ),
    ],
)
def test_shipped_model_understands_the_examples(assistant, text, intent):
    assert json.loads(assistant.answer([text])[0]) == dict(zip(FIELDS, intent, strict=True))


def test_shipped_model_matches_heldout_commands(assistant):
    twice_each = list(commands("heldout", SEED, 2 * len(templates_of("heldout"))))
    assert evaluate(assistant, twice_each)["exact_match"] >= 0.95
