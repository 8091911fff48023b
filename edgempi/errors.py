"""The one exception a person is meant to read."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake the user can mend: shown as one line, without a traceback, and ends the job with exit status 2.

    Args:
        what: the thing that is wrong, with the name of the device, file or option it concerns.
        value: what was found.
        rule: what would have been right.
        remedy: what to do about it.
    """

    def __init__(self, what: str, *, value: object, rule: str, remedy: str) -> None:
        self.what, self.value, self.rule, self.remedy = what, value, rule, remedy
        super().__init__(f"{what}: {value}; {rule}. {remedy}.")
