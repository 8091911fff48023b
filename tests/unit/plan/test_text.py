"""A program as text: the same after it is written and read, and plain about what an edited one lacks."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given

from edgempi.errors import UserError
from edgempi.plan.plan import Program
from edgempi.plan.spec import ModelSpec
from edgempi.plan.text import program_from_dict, program_from_yaml, program_to_dict, program_to_yaml
from unit.plan.specs import programs


@given(programs())
def test_round_trip(made: tuple[ModelSpec, Program]) -> None:
    program = made[1]
    assert program_from_yaml(program_to_yaml(program)) == program
    assert program_from_dict(json.loads(json.dumps(program_to_dict(program)))) == program


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("phases: {}", "its first line says format: edgempi program 1"),
        ("[1, 2]", "program file: list"),
        ("a: [1", "it is YAML"),
        ("format: edgempi program 1", "KeyError: 'phases'"),
        ("format: edgempi program 1\nphases: {prefill: {stages: [{units: [head]}]}}", "'modes'"),
        ("format: edgempi program 1\nphases: {prefill: {stages: 3}}", "TypeError"),
        ("format: edgempi program 1\nphases: {prefill: {stages: [], colour: red}}", "colour"),
        (
            "format: edgempi program 1\nphases: {prefill: {stages: [{units: [head], devices: [0], modes: hybird}]}}",
            "hybird",
        ),
    ],
)
def test_what_is_no_program(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        program_from_yaml(text)
    assert said in str(caught.value)


@given(programs())
def test_it_is_plain_yaml(made: tuple[ModelSpec, Program]) -> None:
    assert yaml.safe_load(program_to_yaml(made[1]))["format"] == "edgempi program 1"
