"""How much there is to do: the passes that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass

from edgempi.plan.spec import ModelSpec


@dataclass(frozen=True)
class Workload:
    """The passes to plan for.

    Attributes:
        rows: sequences at once.
        tokens: of the stack that the head reads.
        memory_tokens: of the encoder, where there are two stacks.
        new_tokens: to be written after them; sizes the key-value cache.
    """

    rows: int = 1
    tokens: int = 128
    memory_tokens: int = 0
    new_tokens: int = 0

    def of(self, spec: ModelSpec, stack: str) -> int:
        """Tokens of one stack."""
        return self.tokens if stack == spec.last else self.memory_tokens

    def writes(self, spec: ModelSpec) -> bool:
        """Whether tokens are written: then the head is asked for one token of each row."""
        return spec.generates and self.new_tokens > 0
