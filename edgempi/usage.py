"""What `--help` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgempi.config.describe import describe_keys
from edgempi.tasks import SUMMARIES

_COMMON = """\
Options:
  --help             this text; after a task: its groups and keys
  --json             the result as one JSON document on standard output
  --cfg job          print the configuration instead of running it
  --multirun         run once for each value: edgempi infer --multirun parallel=tensor,hybrid
  --config-dir DIR   a folder with groups of yours beside edgempi's, such as DIR/cluster/home.yaml
  --version          the version of edgempi
"""


def overview() -> str:
    """The tasks, and how to get on."""
    tasks = "\n".join(f"  {name:<10} {summary}" for name, summary in SUMMARIES.items())
    return f"""\
edgempi: pool the devices of a home or lab to run Transformer models together.

Usage: edgempi TASK [group=choice ...] [key=value ...] [options]

Tasks:
{tasks}

{_COMMON}
Examples:
  edgempi infer                                     the shipped assistant on 2 local ranks
  edgempi plan cluster=local4 parallel=tensor       who would own what
  edgempi plan planner=auto cluster.profile=p.yaml task.explain=true      the fastest plan, and why
  edgempi verify model.path=/a/folder cluster.ranks=3 planner=proportional planner.speeds=[2,1,1]
  mpirun -n 2 edgempi infer                         under a launcher of your own
  edgempi infer cluster=lab_f                       on three unequal devices of an emulated LAN
  edgempi finetune finetune_data=jsonl finetune_data.path=rows.jsonl      train the assistant on rows of yours
  edgempi lab up cluster=lab_c                      keep such a LAN up; then: lab status, check, down
  edgempi lab run cluster=lab_c -- hostname         a command of yours as its ranks

edgempi TASK --help lists the groups and keys.
"""


def task_help(task: str, groups: Mapping[str, Sequence[str]]) -> str:
    """A task's summary, the choices of the groups, and every key of the schema with its meaning."""
    choices = "\n".join(f"  {f'{name}=':<14} {', '.join(groups[name])}" for name in groups if name != "task")
    keys = []
    for key in describe_keys():
        keys.append(f"  {key.name:<36} {key.type}")
        keys += [f"      {line}" for line in key.meaning.splitlines()]
    listing = "\n".join(keys)
    return f"""\
edgempi {task}: {SUMMARIES[task]}.

Usage: edgempi {task} [group=choice ...] [key=value ...] [options]

Groups (each choice is a file of conf/):
{choices}

Keys:
{listing}

{_COMMON}"""
