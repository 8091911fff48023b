from __future__ import annotations

from edgempi.config.describe import describe_keys, did_you_mean


def test_every_key_is_described_in_order() -> None:
    keys = {key.name: key for key in describe_keys()}
    assert next(iter(keys)) == "task.name"
    assert keys["cluster.devices.NAME.speed"].type == "float"
    assert keys["wire.dtype"].type == "WireDtype | None"
    assert keys["cluster.lab.time_scale"].type == "float", "of a group that may be null"
    assert keys["model.revision"].meaning.startswith("The hub revision")


def test_did_you_mean() -> None:
    assert did_you_mean("hybird", ["tensor", "hybrid"]) == "Perhaps you meant hybrid"
    assert did_you_mean("xyz", ["tensor", "hybrid"]) == ""
