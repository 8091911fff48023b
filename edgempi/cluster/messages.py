"""What reaches a person of the ranks' standard error: why a job ended, said once.

A failing rank reports and aborts the job. Another one may have reported before the abort reaches it, and the MPI adds
notices of its own that say less; the parent lets only the first report through.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_REPORT = re.compile(r"\[rank (\d+) on ")
_FRAME = "-" * 74  # around a notice of Open MPI
_NOTICES = ("exited with non-zero status", "MPI_ABORT was invoked", '"abort"')
_PEER = re.compile(r"unexpectedly disconnected.*Peer host:\s*(\S+)", re.DOTALL)
"""In a notice of Open MPI's; others follow as its abort closes more connections, and accuse the innocent."""
_FATAL = re.compile(r"(\[[^]]+\]) \*\*\* (An error occurred in Socket closed)?")
"""How Open MPI's error handler begins its lines, and its first where a peer is gone; the launcher knows more then."""
_NOISE = (
    "application called MPI_Abort(",  # MPICH
    " seconds before aborting",  # Open MPI's delay, see mpirun.py
    "plm:ssh: Warning: setpgid",  # Open MPI, where its agent was quicker than the launcher
)


def rank_report(rank: int, host: str, text: str) -> str:
    """A rank's report of its failure, every line with the rank and its host."""
    return "\n".join(f"[rank {rank} on {host}] {line}" for line in text.splitlines())


def is_report(line: str) -> bool:
    """Whether the line is of a rank that says why it fails."""
    return _REPORT.match(line) is not None


def said_once(lines: Iterable[str]) -> Iterator[str]:
    """The lines of mpirun's standard error that tell something new; the MPI's notice of a killed rank does."""
    reporter: str | None = None
    said: set[str] = set()
    for line in _without_notices(lines):
        report = _REPORT.match(line)
        if report:
            reporter = reporter or report[1]
        if (report and report[1] != reporter) or line in said:
            continue
        if line.startswith("edgempi: "):
            said.add(line)
        yield line


def _without_notices(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    lost: str | None = None
    closed: set[str] = set()
    for line in lines:
        line = line.replace("\0", "")  # Open MPI ends a notice with one
        framed = line.strip() == _FRAME
        if held or framed:
            held.append(line)
            if framed and len(held) > 1:
                peer = _PEER.search("".join(held))
                if peer and lost is None:
                    lost = peer[1]
                    yield f"edgempi: the rank on {lost} is gone: its connection closed\n"
                elif not peer and not any(phrase in text for text in held for phrase in _NOTICES):
                    yield from held
                held = []
        elif fatal := _FATAL.match(line):
            closed |= {fatal[1]} if fatal[2] else set()
            if fatal[1] not in closed:
                yield line
        elif line and not any(noise in line for noise in _NOISE):
            yield line
    yield from held
