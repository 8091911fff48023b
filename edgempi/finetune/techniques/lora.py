"""LoRA: factors of low rank beside q and v of every attention, cross-attention included (Hu et al., arXiv 2106.09685).

A starts as peft starts it and B at zero, so that step 0 is the base model.
"""

from __future__ import annotations

from edgempi.finetune.techniques.linear import Factors, LowRank
from edgempi.finetune.techniques.providers import Tuned
from edgempi.ops.linear import Linear


class LoRA(Tuned):
    """The frozen model, with low-rank products added to some linears' columns."""

    def linear(self, *stems: str) -> Linear:
        """The frozen linear, with what is trained beside it."""
        base, start = super().linear(*stems), 0
        factors: list[Factors] = []
        for stem in stems:
            stop = start + self.rows(f"{stem}.weight")
            if f"{stem}.lora.a" in self.trained:
                a, b = self.drawn(f"{stem}.lora.a"), self.drawn(f"{stem}.lora.b", zero=True)
                factors.append(Factors((start, stop), a, b))
            start = stop
        if not factors:
            return base
        return LowRank(base, factors, self.tuning.alpha / self.tuning.rank, self.learning_kernel)
