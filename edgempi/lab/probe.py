"""The program that measures a device from inside: `python -m edgempi.lab.probe`, asked and answering line by line.

It says `ready` once it has imported what a rank imports; then each line it reads is a number of seconds, and its answer
is the GEMM rate over them, in FLOP/s, of edgempi's own linear: (284, 1024) x (4096, 1024), the up-projection of
BERT-Large at the mean length of Galaxy's data.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from edgempi.models.allocator import use_huge_pages

ROWS, OUTPUTS, INPUTS = 284, 4096, 1024


def main() -> None:
    """Answer until the input ends."""
    use_huge_pages()
    import torch

    # For its imports alone: what a rank holds before it has loaded anything counts as the runtime's, not the model's.
    import edgempi.parallel.executor  # noqa: F401

    torch.set_num_threads(1)
    print("ready", flush=True)
    work = None
    for line in sys.stdin:
        work = work or _product()
        print(_rate(work, float(line)), flush=True)


def _product() -> Callable[[], object]:
    import torch

    from edgempi.ops.linear import Linear, pick_route

    linear = Linear(torch.randn(OUTPUTS, INPUTS), None, pick_route(torch.float32))
    x = torch.randn(ROWS, INPUTS)
    linear(x)
    return lambda: linear(x)


def _rate(work: Callable[[], object], seconds: float) -> float:
    done, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        work()
        done += 1
    return done * 2 * ROWS * OUTPUTS * INPUTS / taken


if __name__ == "__main__":
    main()
