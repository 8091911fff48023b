"""The one door for a person: `edgempi TASK [overrides]`.

The parent composes the configuration once, lets the task prepare, freezes both to the run's folder, and starts one
mpirun over them; it never imports MPI. Where a launcher started this process as a rank, no folder is made: rank 0
composes, and the ranks meet in `worker.py`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import edgempi
from edgempi.cluster.launcher import launched_rank
from edgempi.cluster.mpirun import find_mpirun, launch_command
from edgempi.cluster.start import StoppedError, run_to_the_end
from edgempi.config.check import check_config
from edgempi.config.describe import did_you_mean
from edgempi.config.files import write_atomic
from edgempi.config.frozen import freeze
from edgempi.config.schema import Config
from edgempi.errors import UserError
from edgempi.lab.session import place_for
from edgempi.report import FAILED, USER_ERROR, deliver
from edgempi.tasks import SUMMARIES, load_task
from edgempi.usage import overview, task_help

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    rank = launched_rank(os.environ)
    try:
        request = _parse(words)
        if request.help or request.version or request.cfg:
            return 0 if rank else _show(request)
        if rank is not None:
            return _run_as_rank(request)
        return _run_as_parent(request)
    except UserError as error:
        if not rank:
            _say_error(error)
        return USER_ERROR
    except StoppedError as stop:
        print(f"edgempi: {stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.rpartition(" ")[2]
        flags = [flag for action in self._actions for flag in action.option_strings]
        raise UserError(
            "command line", value=message, rule="options start with two dashes, overrides are key=value",
            remedy=(unknown.startswith("-") and did_you_mean(unknown, flags)) or "See edgempi --help",
        )  # fmt: skip


def _parse(words: list[str]) -> argparse.Namespace:
    words, command = _split_command(words)
    parser = _Parser("edgempi", add_help=False, allow_abbrev=False)
    for names in (("--help", "-h"), ("--version",), ("--json",), ("--multirun", "-m"), ("--resolve",)):
        parser.add_argument(*names, action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-dir")
    parser.add_argument("words", nargs="*")
    request = parser.parse_intermixed_args(words)
    request.task, *request.overrides = request.words or [None]
    if request.task is None:
        request.help = not request.version or request.help
    elif request.task not in SUMMARIES:
        raise UserError(
            "task", value=request.task, rule=f"the first word is one of {', '.join(SUMMARIES)}",
            remedy=did_you_mean(request.task, SUMMARIES) or "See edgempi --help",
        )  # fmt: skip
    request.command = command
    if command and request.task != "lab":
        raise UserError(
            "command line", value="-- " + shlex.join(command), rule="only edgempi lab run takes a command",
            remedy="See edgempi --help",
        )  # fmt: skip
    if request.task == "lab" and request.overrides and "=" not in request.overrides[0]:
        request.overrides[0] = f"task.action={request.overrides[0]}"
    for override in request.overrides:
        if override.startswith("task="):
            raise UserError(
                "override", value=override, rule=f"the task is {request.task} already, by the first word",
                remedy=f"Say edgempi {override.removeprefix('task=')}",
            )  # fmt: skip
    if request.json:
        request.overrides.append("output.json=true")
    return request


def _split_command(words: list[str]) -> tuple[list[str], list[str]]:
    """Our own words, and the command of somebody else's that follows `--`."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def _show(request: argparse.Namespace) -> int:
    if request.version:
        print(f"edgempi {edgempi.__version__}")
    elif request.task is None:
        print(overview(), end="")
    elif request.help:
        from edgempi.config.load import group_options

        print(task_help(request.task, group_options()), end="")
    else:
        _through_hydra(request)
    return 0


def _run_as_rank(request: argparse.Namespace) -> int:
    if request.multirun:
        raise UserError(
            "--multirun", value="under an MPI launcher", rule="its ranks are already started, for one job",
            remedy="Leave the launcher out: edgempi starts one mpirun for each job",
        )  # fmt: skip
    from edgempi.worker import work

    return work(lambda size: _prepare_for(request, size))


def _prepare_for(request: argparse.Namespace, size: int) -> str:
    """The frozen job for the ranks that a launcher has started; on rank 0."""
    from edgempi.config.load import compose

    cluster = ("cluster=", "cluster.ranks=", "cluster.devices", "+cluster.devices")
    described = any(override.startswith(cluster) for override in request.overrides)
    # Where the command line leaves the cluster open, it is the ranks at hand.
    ranks = [] if described else [f"cluster.ranks={size}"]
    config = compose([f"task={request.task}", *ranks, *request.overrides], request.config_dir)
    check_config(config)
    return freeze(config, load_task(config.task.name).prepare(config))


def _run_as_parent(request: argparse.Namespace) -> int:
    statuses = _through_hydra(request)
    return max(statuses, default=0)


def _through_hydra(request: argparse.Namespace) -> list[int]:
    """Let `hydra.main` compose; it calls back once per job. Returns the exit status of each."""
    import hydra

    from edgempi.config.load import CONFIG_ERRORS, CONFIG_MODULE, CONFIG_NAME, explain, register_schema

    statuses: list[int] = []

    def job(composed: DictConfig) -> None:
        statuses.append(FAILED)
        statuses[-1] = _run_job(composed, request)

    words = [f"task={request.task}", *request.overrides]
    for flag in ("multirun", "resolve"):
        words += [f"--{flag}"] if getattr(request, flag) else []
    for option in ("cfg", "package", "config-dir"):
        value = getattr(request, option.replace("-", "_"))
        words += [f"--{option}", value] if value else []
    register_schema()
    try:
        with _hydra_process(words):
            hydra.main(f"pkg://{CONFIG_MODULE}", CONFIG_NAME, version_base="1.3")(job)()
    except CONFIG_ERRORS as error:
        raise explain(error) from error
    except AssertionError as error:
        if statuses:  # the job's own trouble
            raise
        # OmegaConf's way to say that an override's key lies in something that is null.
        lab = [override for override in request.overrides if override.lstrip("+").startswith("cluster.lab.")]
        raise UserError(
            "override", value=" ".join(lab or request.overrides), rule="it sets a key of something that is null",
            remedy="cluster.lab is there for emulated devices: add cluster=lab_a, or another of lab_a .. lab_f",
        ) from error  # fmt: skip
    except OSError as error:
        if statuses:
            raise
        raise UserError(
            "run folder", value=f"{error.filename}: {error.strerror}", rule="job.yaml and result.json go there",
            remedy="Start in a folder where you may write, or set hydra.run.dir=FOLDER",
        ) from error  # fmt: skip
    return statuses


@contextmanager
def _hydra_process(words: Sequence[str]) -> Iterator[None]:
    """What `hydra.main` reads from the process: its arguments, and that errors shall reach us whole."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["edgempi", *words], "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


def _run_job(composed: DictConfig, request: argparse.Namespace) -> int:
    """One job from its composed configuration to its exit status."""
    from hydra.core.hydra_config import HydraConfig

    from edgempi.config.load import to_config

    run = HydraConfig.get()
    directory = Path(run.runtime.output_dir)
    if request.multirun:
        print(f"edgempi: job {run.job.num}: {run.job.override_dirname}", file=sys.stderr)
    try:
        config = to_config(composed)
        config = replace(config, output=replace(config.output, directory=str(directory)))
        if request.command:
            config = replace(config, task=replace(config.task, command=request.command))
        return _prepare_and_run(config, directory)
    except UserError as error:
        _say_error(error)
        with suppress(OSError):
            directory.rmdir()  # only if nothing was written into it
        return USER_ERROR


def _prepare_and_run(config: Config, directory: Path) -> int:
    check_config(config)
    task = load_task(config.task.name)
    payload = task.prepare(config)
    job = directory / "job.yaml"
    write_atomic(job, freeze(config, payload))
    if not hasattr(task, "run"):
        return deliver(task, config, payload)
    program = [sys.executable, "-m", "edgempi.worker", os.path.relpath(job)]
    with place_for(config.cluster, config.task.name) as place:
        launch = launch_command(find_mpirun(), place.ranks(config.cluster), program)
        print(shlex.join(launch), file=sys.stderr, flush=True)
        status = run_to_the_end(place.command(launch))
        starved = place.out_of_memory()
    for sentence in starved:
        print(f"edgempi: {sentence}", file=sys.stderr)
    if status not in (0, FAILED, USER_ERROR) and not starved:
        print(f"edgempi: a rank was lost (status {status}): killed, or out of memory?", file=sys.stderr)
    return status


def _say_error(error: UserError) -> None:
    print(f"edgempi: {error}", file=sys.stderr)
