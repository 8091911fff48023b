"""What the planner says of a cell before it runs: its plan, or that no device has the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.workshop import CellError
from edgempi.cluster.known import known_profile
from edgempi.cluster.training_times import find_training, load_training
from edgempi.config.load import compose
from edgempi.errors import UserError
from edgempi.plan.planners import Forms
from edgempi.plan.spec import ModelSpec
from edgempi.plan.training.asked import kept_of, request_of, tuning_of, work_of
from edgempi.plan.training.assumed import assumed_times, with_links
from edgempi.plan.training.explain import explain_training
from edgempi.plan.training.measured import purpose_of
from edgempi.plan.training.pac import Job
from edgempi.plan.training.shortage import ShortageError
from edgempi.plan.training.systems import plan_system


def planned(words: Sequence[str], spec: ModelSpec, rows: int) -> dict[str, Any]:
    """The plan that `edgempi finetune` would make, for a model that writes its labels as text.

    Args:
        words: of its command line; with `cluster.profile` times are measured ones, without it assumed.
        spec: the model.
        rows: to train on.

    Returns:
        `misfit`, None or what is missing, then with `missing_bytes`; `told`, the plan in words and numbers
        (`plan.training.explain`), None where there is none.

    Raises:
        CellError: there is another reason against it.
    """
    config = compose(["task=finetune", *words])
    tuning, work = tuning_of(config.technique), work_of(config.finetune_data, spec)
    kept = kept_of(config.weights.dtype.value, config.optimizer, config.cache, spec)
    cluster = known_profile(config.cluster)
    if config.cluster.profile:
        measured = load_training(config.cluster.profile)
        times = find_training(measured, purpose_of(spec, tuning, work, kept)).devices
    else:
        times = assumed_times(spec, tuning, work, cluster, kept.optimizer)
    cluster = with_links(cluster)
    job = Job(config.finetune_data.batch, rows, config.optimizer.epochs)
    request, dtype = request_of(config.system, config.technique, config.cache), config.weights.dtype.value
    try:
        found = plan_system(request, spec, tuning, work, times, cluster, job, kept, Forms(dtype, dtype))
    except UserError as error:
        lack = error.__cause__
        if not isinstance(lack, ShortageError):
            raise CellError(f"edgempi finetune {' '.join(words)}: {error}") from error
        return {"misfit": str(error), "missing_bytes": lack.missing_bytes, "told": None}
    return {"misfit": None, "told": explain_training(found, cluster, job)}


def is_profiled(words: Sequence[str], spec: ModelSpec) -> bool:
    """Whether the file `cluster.profile` holds the times that this command line needs."""
    config = compose(["task=finetune", *words])
    kept = kept_of(config.weights.dtype.value, config.optimizer, config.cache, spec)
    purpose = purpose_of(spec, tuning_of(config.technique), work_of(config.finetune_data, spec), kept)
    return any(one.purpose == purpose for one in load_training(config.cluster.profile or ""))
