"""Adapters: a bottleneck behind the attention and one behind the MLP of every layer (Houlsby et al., arXiv 1902.00751).

y + up(gelu(down(y))); the way up starts at zero, so that step 0 is the base model.
"""

from __future__ import annotations

from edgempi.finetune.techniques.linear import Bottleneck, Product
from edgempi.finetune.techniques.providers import Tuned
from edgempi.ops.linear import Linear

BEHIND = {"attention.out": "attention", "mlp.down": "mlp"}
"""The linears that an adapter follows, and the part of its name."""


class Adapter(Tuned):
    """The frozen model, with bottlenecks behind the linears that write to the residual stream."""

    def linear(self, *stems: str) -> Linear:
        """The frozen linear, with what is trained behind it."""
        base = super().linear(*stems)
        unit, place = stems[0].rsplit(".", 2)[0], ".".join(stems[0].split(".")[-2:])
        if place not in BEHIND:
            return base
        name = f"{unit}.{BEHIND[place]}.adapter"
        return Bottleneck(base, self._half(f"{name}.down"), self._half(f"{name}.up"))

    def _half(self, name: str) -> Product:
        weight, bias = (self.drawn(f"{name}.{kind}", zero=name.endswith("up")) for kind in ("weight", "bias"))
        return Product([weight], [bias], self.learning_kernel)
