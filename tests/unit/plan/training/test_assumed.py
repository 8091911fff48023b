"""Times that nobody measured: in proportion to the arithmetic and the devices' speeds."""

from __future__ import annotations

import pytest

from edgempi.cluster.profile import ClusterProfile, Device, Link
from edgempi.errors import UserError
from edgempi.plan.training.assumed import FLOPS_PER_S, assumed_times, spoken, with_links
from edgempi.plan.training.flops import sample_flops
from edgempi.plan.training.measured import training_costs
from edgempi.plan.training.technique import Technique, Tuning
from edgempi.plan.workload import Workload
from unit.plan.training.models import t5

T5_LARGE = t5(24, 1024, 16, 4096)
WORK = Workload(1, 8, 128)


@pytest.mark.parametrize("technique", Technique)
def test_the_whole_model_takes_its_operations(technique: Technique) -> None:
    tuning, cluster = Tuning(technique), ClusterProfile((Device("a", "h", 1.0), Device("b", "h", 4.0)))
    times = assumed_times(T5_LARGE, tuning, WORK, cluster, "adamw")
    costs = training_costs(T5_LARGE, tuning, WORK, times)
    slow, fast = (costs.both(device, (0, costs.size)).seconds(3) for device in (0, 1))
    # The first layer of a stack stands for those inside it, so what is left out there counts once.
    assert slow == pytest.approx(3 * sample_flops(T5_LARGE, tuning, WORK).both / FLOPS_PER_S, rel=1e-2)
    assert slow == pytest.approx(4 * fast)
    assert ("cached" in times[0].layers) == (technique is Technique.parallel_adapter)


def test_devices_without_speed_and_links_that_are_known() -> None:
    cluster = ClusterProfile((Device("a", "h", 1.0), Device("b", "h", 0.0)))
    with pytest.raises(UserError, match="speed of b: 0"):
        assumed_times(T5_LARGE, Tuning(Technique.full), WORK, cluster, "sgd")
    made = with_links(cluster)
    assert [(link.source, link.target) for link in made.links] == [(0, 1), (1, 0)]
    known = ClusterProfile(cluster.devices, (Link(0, 1, 0.0, 5.0), Link(1, 0, 0.0, 5.0)))
    assert with_links(known) is known
    assert spoken(cluster).endswith("10 GFLOP/s times the devices' speeds (1, 0), links of 1 Gbit/s.")
    assert spoken(known).endswith("speeds (1, 0), links as measured.")
    assert spoken(ClusterProfile(cluster.devices[:1])).endswith("speeds (1).")
