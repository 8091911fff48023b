"""What a field must be: checks that end in one line for the user."""

from __future__ import annotations

from edgempi.errors import UserError


def require(right: bool, what: str, value: object, rule: str, remedy: str) -> None:
    """Raise a `UserError` unless it is right."""
    if not right:
        raise UserError(what, value=value, rule=rule, remedy=remedy)


def at_least(least: int, what: str, value: int | None) -> None:
    """Raise a `UserError` where a number is given and too small."""
    require(value is None or value >= least, what, value, f"at least {least}", f"Set it to {least} or more")
