"""Mistakes that distributed Transformers are known for, each put in on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from edgempi.models import block, ends, stream
from edgempi.parallel import seams


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """Everything inside runs with the mistake (none for an empty name)."""
    with ExitStack() as patches:
        for owner, attribute, value in MUTATIONS[name]() if name else ():
            patches.enter_context(patch.object(owner, attribute, value))
        yield


def _bias_summed() -> list[tuple[object, str, object]]:
    def leave(self, y, linear):
        return self.sum(linear(y))

    return [(seams.GatherScatter, "leave", leave), (seams.AllReduce, "leave", leave)]


def _mask_of(**changed: object) -> Callable[[], list[tuple[object, str, object]]]:
    right = stream.build_mask

    def build_mask(queries, keys, causal, window, padding, bias):
        given = {"causal": causal, "window": window, "padding": padding, "bias": bias}
        return right(queries, keys, **{**given, **changed})

    return lambda: [(stream, "build_mask", build_mask)]


def _position_shifted() -> list[tuple[object, str, object]]:
    right = ends.position_ids
    return [(ends, "position_ids", lambda *about: right(*about) + 1)]


def _shard_from_zero() -> list[tuple[object, str, object]]:
    right = stream.Stream.rotary

    def rotary(self, span):
        return right(self, (0, span[1] - span[0]))

    return [(stream.Stream, "rotary", rotary)]


def _residual_dropped() -> list[tuple[object, str, object]]:
    def connect(self, x, norm, sublayer):
        return sublayer(x.map(norm)) if self._norm_first else sublayer(x).map(norm)

    return [(block.Block, "_connect", connect)]


MUTATIONS = {
    "bias added once per rank": _bias_summed,
    "padding mask dropped": _mask_of(padding=None),
    "causal mask dropped": _mask_of(causal=False),
    "window dropped": _mask_of(window=None),
    "relative bias dropped": _mask_of(bias=None),
    "position off by one": _position_shifted,
    "rotary angles of a shard from zero": _shard_from_zero,
    "residual dropped": _residual_dropped,
}
