"""The lab that measures all parametrised cells of the session."""

from __future__ import annotations

import pytest
import torch

from mpi.cell import Cell
from mpi.lab import Lab


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Knows every cell that the selected tests will ask for."""
    torch.set_num_threads(1)  # small tensors: on a shared core the threads of one operator only wait for each other
    parameters = (getattr(item, "callspec", None) for item in request.session.items)
    cells = [found for spec in parameters if spec and isinstance(found := spec.params.get("cell"), Cell)]
    return Lab(list(dict.fromkeys(cells)), tmp_path_factory.mktemp("lab"))
