"""The one entry under MPI: receive the frozen job from rank 0, run the task, end together.

`python -m edgempi.worker outputs/.../job.yaml` is what the parent starts; `cli.py` calls `work` directly where a
launcher started `edgempi` itself. The job comes as a file and not on standard input, because Open MPI 5's mpirun
keeps the end of its input from rank 0, and repeats parts of what is longer than 64 KB.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from edgempi.cluster.messages import rank_report
from edgempi.config.frozen import thaw
from edgempi.config.schema import Config
from edgempi.errors import UserError
from edgempi.models.allocator import use_huge_pages
from edgempi.report import FAILED, USER_ERROR, deliver
from edgempi.tasks import Job, load_task

if TYPE_CHECKING:
    from edgempi.comm import World

PREPARE_TIMEOUT_S = 1800.0
"""How long ranks wait for rank 0 to prepare the job: it may have a model to download."""
ROLL_CALL_S = 5.0
"""How long a stuck rank listens for the others, which are stuck for the same reason and at nearly the same time."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the frozen job of the file that the command line names."""
    words = list(sys.argv[1:] if argv is None else argv)
    return work(lambda size: _read_job(words))


def work(order: Callable[[int], str]) -> int:
    """Take part in a job until its end; return the exit status. Collective: every rank of the launcher calls.

    Args:
        order: called on rank 0 with the number of ranks; returns the frozen job, or raises `UserError`.
    """
    use_huge_pages()
    from edgempi.comm import open_world

    with open_world(PREPARE_TIMEOUT_S) as world:
        try:
            return _work(world, order)
        except BaseException as error:
            # The first to speak ends all. Lower ranks go first, so that what all ranks met is said once.
            time.sleep(min(0.2 * world.rank, 2.0))
            if isinstance(error, UserError):
                _say(f"edgempi: {error}")
                world.abort(USER_ERROR)
            _say(rank_report(world.rank, world.host, traceback.format_exc()))
            world.abort(FAILED)


def _work(world: World, order: Callable[[int], str]) -> int:
    answer = json.loads(world.broadcast_text(_answer(order, world.size) if world.leads else None))
    if "error" in answer:
        if world.leads:
            _say(f"edgempi: {answer['error']}")
        return USER_ERROR
    config, payload = thaw(answer["job"])
    task = load_task(config.task.name)
    if not hasattr(task, "run"):
        return deliver(task, config, payload) if world.leads else 0

    import torch

    world.timeout_s = config.cluster.timeout_s
    device = list(config.cluster.named_devices().values())[world.rank]
    torch.set_num_threads(device.threads or config.cluster.threads_per_rank)
    with redirect_stdout(sys.stderr if config.output.json else sys.stdout), _roll_call(world, config):
        result = task.run(Job(config, payload), world)
    return deliver(task, config, result) if world.leads else 0


@contextmanager
def _roll_call(world: World, config: Config) -> Iterator[None]:
    """Let an error of a rank that is stuck name those that are silent: who waits for whom may be a long chain."""
    from edgempi.comm import StuckError

    try:
        yield
    except StuckError as error:
        limit_s = min(config.cluster.timeout_s / 2, ROLL_CALL_S)
        hosts = [device.host for device in config.cluster.named_devices().values()]
        silent = [f"rank {rank} on {hosts[rank]}" for rank in world.silent(limit_s)]
        error.add_note(f"No word, {limit_s:.1f} s later, from: {', '.join(silent) or 'nobody, all are stuck'}")
        raise


def _answer(order: Callable[[int], str], size: int) -> str:
    # What is wrong with the job itself is known here, before any rank works: all can then leave in good order.
    try:
        text = order(size)
        _check_size(size, thaw(text)[0])
        return json.dumps({"job": text})
    except UserError as error:
        return json.dumps({"error": str(error)})


def _read_job(words: Sequence[str]) -> str:
    if len(words) != 1:
        raise UserError(
            "edgempi.worker", value=" ".join(words) or "no argument", rule="it takes one job.yaml",
            remedy="Start tasks with edgempi TASK, which writes that file and starts the ranks",
        )  # fmt: skip
    try:
        return Path(words[0]).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            "job file", value=f"{words[0]}: {error.strerror}", rule="rank 0 reads it on its own host",
            remedy="Start edgempi on the first device of the cluster, in a folder that exists there",
        ) from error  # fmt: skip


def _check_size(ranks: int, config: Config) -> None:
    devices = len(config.cluster.named_devices())
    if ranks != devices and hasattr(load_task(config.task.name), "run"):
        raise UserError(
            "MPI ranks", value=ranks, rule=f"the configuration has {devices} devices, one rank each",
            remedy=f"Start {devices} ranks, or set cluster.ranks={ranks}",
        )  # fmt: skip


def _say(text: str) -> None:
    # One write, so that the lines of several ranks do not mix.
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
