"""What overlapped layers cost, worked out by hand: two devices alike, two tokens and two tiles each, one column wide.

A token's row takes 3 s through QKV, 1 s through the exit of attention, 2 s up and 2 s down an MLP of two columns.
"""

from __future__ import annotations

import pytest

from edgempi.cluster.profile import ClusterProfile, Device, DeviceTimes, ElementTime, LinearTime, Link
from edgempi.plan.plan import PRESETS, Plan, Stage
from edgempi.plan.schedule import UnitProgram, programs
from edgempi.plan.simulate import Ring
from edgempi.plan.spec import Embedding, Head, ModelSpec, Stack

FREE = ElementTime(0.0, 0.0)


def two_devices(way: str, tile_s: float, s_per_weight: float = 0.0) -> tuple[list[UnitProgram], Ring]:
    """Devices that share an encoder in a way, and their ring, which carries a tile in `tile_s`."""
    columns = 2 if way == "heads" else 4
    words = Embedding(vocabulary=2, width=1)
    stack = Stack(3, 1, 2, 2, 1, columns, "relu", words, norm_first=False, attention_scales=(1.0,) * 3)
    spec = ModelSpec("bert", stack, None, Head(), None)
    split = {"enc": (2, 2)} if way == "hybrid" else {}
    stage = Stage(spec.units, (0, 1), PRESETS[way], {"enc": (1, 1)}, split, (1, 1), (1.0, 1.0))
    times = DeviceTimes(LinearTime(0.0, 0.5, s_per_weight), FREE, FREE)
    links = [Link(0, 1, 0.0, 32 / tile_s), Link(1, 0, 0.0, 32 / tile_s)]
    profile = ClusterProfile(tuple(Device(name, "h", times=times) for name in "ab"), tuple(links), "fp32")
    plan = Plan((stage,), overlap="ring", subtiles=2)
    return programs(plan, spec, stage, profile, 1, {"enc": (0, 4)}), Ring(links, [0.0, 0.0])


def test_a_tile_goes_through_a_whole_mlp_while_the_next_sum_is_on_its_way() -> None:
    # Sums arrive at 17 and 21 s; awaiting both first would give 29 s.
    devices, ring = two_devices("heads", tile_s=4.0)
    ring.run([device.layer("enc") for device in devices])
    assert ring.now == [16.0, 16.0]
    ring.run([device.end() for device in devices])
    assert ring.now == [25.0, 25.0]
    assert ring.spent[0].exposed == {"attention": 1.0}


def test_a_tile_leaves_for_the_next_layer_before_the_next_one_is_worked_on() -> None:
    # At 21 s, so that both are there when the own QKV ends at 31 s; with sums awaited first it all ends at 58 s.
    devices, ring = two_devices("heads", tile_s=4.0)
    for _ in range(2):
        ring.run([device.layer("enc") for device in devices])
    ring.run([device.end() for device in devices])
    assert ring.now == [50.0, 50.0]


def test_tiles_that_are_here_together_read_weights_once() -> None:
    devices, ring = two_devices("heads", tile_s=1.0, s_per_weight=1.0)
    ring.run([device.layer("enc") for device in devices])
    ring.run([device.end() for device in devices])
    qkv, leave, mlp = 2 * 3 + 3, (1 + 1) + (1 + 1) + (2 + 1), 2 * 4 + 4
    assert ring.spent[0].compute == {"attention": 2 * qkv + leave, "mlp": mlp}
    assert ring.now == [37.0, 37.0]


def test_sums_of_attention_are_awaited_where_a_split_mlp_begins() -> None:
    # Sums at 16.5 and 20 s; their link carries the MLP's tiles until 23.5 and 27, under the own tokens' up until 24.
    devices, ring = two_devices("hybrid", tile_s=3.5)
    ring.run([device.layer("enc") for device in devices])
    assert ring.now == [36.0, 36.0]
    assert ring.spent[0].exposed == {"attention": 4.0}


@pytest.mark.parametrize("way", ["heads", "hybrid"])
def test_a_layer_s_sums_are_the_next_unit_s_to_await(way: str) -> None:
    devices, ring = two_devices(way, tile_s=30.0)
    ring.run([device.layer("enc") for device in devices])
    assert all(device.waits for device in devices)
    before = list(ring.now)
    ring.run([device.norm("enc") for device in devices])
    assert not any(device.waits for device in devices)
    assert all(now > then for now, then in zip(ring.now, before, strict=True))
