"""`edgempi lab up|status|run|check|down`: the emulated LAN on this machine. It starts its ranks itself."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import Any

from rich.console import Console

from edgempi.cluster.mpirun import find_mpirun, launch_command
from edgempi.cluster.start import run_to_the_end
from edgempi.config.schema import Config, LabAction
from edgempi.errors import UserError
from edgempi.lab import state
from edgempi.lab.calibrate import agent_words
from edgempi.lab.cgroups import Cgroups
from edgempi.lab.check import check_lab
from edgempi.lab.layout import describe
from edgempi.lab.session import bring_up, find_remains, hold, place_for, tear_down
from edgempi.tasks.tables import size, table


def prepare(config: Config) -> dict[str, Any]:
    """Do it; the result says what is up afterwards, or how the command or the check ended."""
    action = config.task.action
    if config.task.command and action != LabAction.run:
        raise UserError(
            "command", value=shlex.join(config.task.command), rule=f"lab {action} takes none",
            remedy="Say edgempi lab run cluster=lab_a -- COMMAND",
        )  # fmt: skip
    return {"action": str(action), **_ACTIONS[action](config)}


def report(result: dict[str, Any], console: Console) -> None:
    """The devices that are up, with their limits."""
    if result["action"] == LabAction.run:
        for sentence in result.get("out_of_memory", []):
            console.print(f"edgempi: {sentence}", markup=False, highlight=False)
        return
    lab = result.get("lab")
    if lab is None:
        console.print(result["said"], markup=False)
        return
    link = lab["lan"]["link_bits_per_s"]
    rows = [
        [
            device["host"], device["address"], f"{lab['cores'][device['host']]:.1%}",
            f"{device['flops'] / 1e9:.2f}", f"{lab['flops'][device['host']] / 1e9:.2f}",
            "no limit" if device["memory_bytes"] is None else size(device["memory_bytes"]),
            "not shaped" if link is None else f"{link / 1e6:g} Mbit/s",
        ]
        for device in lab["lan"]["devices"]
    ]  # fmt: skip
    columns = ["device", "address", "of a core", "GFLOP/s", "measured", "memory", "link, each way"]
    console.print(table("Lab", columns, rows, words=2))
    if "findings" in result:
        rows = [
            [
                f["what"], f["host"], f"{f['nominal']:.2f} {f['unit']}", f"{f['measured']:.2f} {f['unit']}",
                f"{f['measured'] / f['nominal'] - 1:+.1%}", f["allowed"], "yes" if f["fine"] else "NO",
            ]
            for f in result["findings"]
        ]  # fmt: skip
        columns = ["property", "device", "nominal", "measured", "off by", "allowed", "fine"]
        console.print(table("Check", columns, rows, words=2))
    console.print(
        f"One core without a limit does {lab['full_flops'] / 1e9:.1f} GFLOP/s; a rank's imports take "
        f"{size(lab['baseline_bytes'])}, on top of the memory above.\n{result['said']}",
        markup=False, highlight=False,
    )  # fmt: skip


def FAILED(result: dict[str, Any]) -> bool:  # noqa: N802 - the task protocol's name
    """Whether the command failed, or the check found something."""
    return bool(result.get("status", 0))


def _up(config: Config) -> dict[str, Any]:
    lan = describe(config.cluster)
    with hold("lab up"):
        up = state.read_state()
        if up is not None and up.kept and up.lan == lan:
            return {"lab": up.as_dict(), "said": "It was up already."}
        if up is not None and up.kept:
            raise UserError(
                "lab", value="another one is up", rule="one lab at a time", remedy="edgempi lab down, first"
            )
        up = bring_up(lan, kept=True)
    return {"lab": up.as_dict(), "said": "It stays until edgempi lab down."}


def _status(config: Config) -> dict[str, Any]:
    up = state.read_state()
    user = state.holder()
    said = "Nobody uses it." if user is None else f"In use by {user}."
    if up is not None and up.flops and (up.kept or user):
        alive = Cgroups.of_machine().processes()
        return {"lab": up.as_dict(), "processes": alive, "said": f"{said} {len(alive)} processes run in it."}
    if user is not None:
        return {"lab": None, "said": f"A lab is being built or removed by {user}."}
    remains = find_remains()
    said = f"No lab is up, but remains of one: {', '.join(remains)}. edgempi lab down removes them."
    return {"lab": None, "remains": remains, "said": said if remains else "No lab is up."}


def _run(config: Config) -> dict[str, Any]:
    task, cluster = config.task, config.cluster
    if not task.command:
        raise UserError(
            "command", value="none", rule="lab run runs one", remedy="Say edgempi lab run cluster=lab_a -- COMMAND"
        )
    hosts = describe(cluster).hosts
    if task.device not in (None, *hosts):
        raise UserError("task.device", value=task.device, rule=f"it is one of {', '.join(hosts)}", remedy="Correct it")
    with place_for(cluster, "lab run") as place:
        if task.device is not None:
            return {"status": subprocess.run(agent_words(task.device, task.command), check=False).returncode}
        launch = launch_command(find_mpirun(), place.ranks(cluster), task.command)
        print(shlex.join(launch), file=sys.stderr, flush=True)
        status = run_to_the_end(place.command(launch))
        return {"status": status, "out_of_memory": place.out_of_memory()}


def _check(config: Config) -> dict[str, Any]:
    describe(config.cluster)
    with place_for(config.cluster, "lab check") as place:
        assert place.lab is not None
        found = check_lab(config.cluster, place)
    missed = [finding for finding in found["findings"] if not finding["fine"]]
    said = [f"{len(missed)} of {len(found['findings'])} figures are off." if missed else "The lab is honest."]
    return {"lab": place.lab.as_dict(), **found, "status": int(bool(missed)), "said": " ".join(said + found["advice"])}


def _down(config: Config) -> dict[str, Any]:
    with hold("lab down"):
        there = tear_down()
    return {"lab": None, "said": "The lab is down." if there else "No lab was up."}


_ACTIONS = {
    LabAction.up: _up,
    LabAction.status: _status,
    LabAction.run: _run,
    LabAction.check: _check,
    LabAction.down: _down,
}
