"""The program of a rank: `python -m mpi.ranks_measure CELLS RESULTS ORACLE` measures the cells one after another.

Rank 0 appends a line per cell to RESULTS; the first cell that fails ends the job.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch

from edgempi.comm import open_world
from mpi.cell import Cell
from mpi.measures import MEASURES, Subject

WAIT_S = 30.0


def main(cells_file: str, results_file: str, oracle: str) -> None:
    """Measure all cells."""
    torch.set_num_threads(1)
    cells = [Cell(**fields) for fields in json.loads(Path(cells_file).read_text())]
    with open_world(WAIT_S) as world, Path(results_file).open("a") as results:
        for cell in cells:
            try:
                subject = Subject(world, cell, Path(oracle))
                value = MEASURES[cell.kind](subject)
                subject.close()
            except BaseException:
                sys.stderr.write(f"rank {world.rank} in {cell.kind} {cell}:\n{traceback.format_exc()}")
                sys.stderr.flush()
                world.abort(1)
            if world.rank == 0:
                results.write(json.dumps([cell.kind, str(cell), value]) + "\n")
                results.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
