"""The quotas that calibration finds on a simulated machine, whose quota gives a little less than it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgempi.errors import UserError
from edgempi.lab import calibrate as calibrating
from edgempi.lab.calibrate import NEAR, calibrate, recalibrate
from edgempi.lab.cgroups import GROUP, Cgroups
from edgempi.lab.layout import LabDevice, Lan

FULL_FLOPS = 100e9


class Machine:
    """Probes whose rates follow from the quotas in the files."""

    def __init__(self, groups: Cgroups, loss: float) -> None:
        self.groups, self.loss, self.asked, self.speed = groups, loss, 0, 1.0

    def rates(self, hosts: Sequence[str], seconds: float) -> dict[str, float]:
        self.asked += 1
        return {host: self._cores(host) * FULL_FLOPS * self.speed for host in hosts}

    def _cores(self, host: str) -> float:
        group = self.groups.cpu / GROUP / host
        quota_us = group / "cpu.cfs_quota_us"
        if not quota_us.exists() or quota_us.read_text() == "-1":
            return 1.0
        quota, period = (int((group / f"cpu.cfs_{what}_us").read_text()) for what in ("quota", "period"))
        return quota / period * (1 - self.loss)


def _machine(folder: Path, monkeypatch: pytest.MonkeyPatch, lan: Lan, loss: float, cores: int = 2) -> Machine:
    groups = Cgroups(1, folder, folder)
    groups.create(lan.hosts)
    for host in lan.hosts:
        (folder / GROUP / host / "memory.stat").write_text("total_rss 1000\n")
    machine = Machine(groups, loss)

    @contextmanager
    def probes(hosts: Sequence[str]) -> Iterator[Machine]:
        yield machine

    monkeypatch.setattr(calibrating, "probes", probes)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    return machine


def _lan(*flops: float) -> Lan:
    return Lan(tuple(LabDevice(f"d{n}", f"10.0.0.{n}", rate, None) for n, rate in enumerate(flops)), 1e8)


@pytest.mark.parametrize(("loss", "asked"), [(0.0, 2), (0.05, 3)])
def test_quotas_are_corrected_until_the_rates_are_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float, asked: int
) -> None:
    lan = _lan(60e9, 30e9, 15e9)
    machine = _machine(tmp_path, monkeypatch, lan, loss)
    found = calibrate(lan, machine.groups)
    assert (found.full_flops, found.baseline_bytes, machine.asked) == (FULL_FLOPS, 1000, asked)
    for device in lan.devices:
        assert found.flops[device.host] == pytest.approx(device.flops, rel=NEAR)
        assert found.cores[device.host] == pytest.approx(device.flops / FULL_FLOPS / (1 - loss), rel=NEAR)


@pytest.mark.parametrize("speed", [0.8, 0.99, 1.25])
def test_a_machine_whose_speed_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: float) -> None:
    """The devices are found slower or faster than they shall be, and are right again afterwards."""
    lan = _lan(60e9, 30e9)
    machine = _machine(tmp_path, monkeypatch, lan, 0.0)
    known = calibrate(lan, machine.groups)
    machine.speed = speed
    found, now = recalibrate(lan, machine.groups, known)
    for device in lan.devices:
        assert found[device.host] == pytest.approx(speed * device.flops, rel=1e-3)
        assert now.flops[device.host] == pytest.approx(device.flops, rel=NEAR)
        assert machine.rates([device.host], 1)[device.host] == pytest.approx(device.flops, rel=NEAR), "its quota is set"
    assert (now.cores == known.cores) == (speed == 0.99)


def test_quotas_stay_where_a_probe_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lan = _lan(30e9)
    machine = _machine(tmp_path, monkeypatch, lan, 0.0)
    known = calibrate(lan, machine.groups)

    def fail(hosts: Sequence[str], seconds: float) -> dict[str, float]:
        raise UserError("probe", value="ended", rule="it measures", remedy="see above")

    monkeypatch.setattr(machine, "rates", fail)
    with pytest.raises(UserError):
        recalibrate(lan, machine.groups, known)
    monkeypatch.undo()
    assert machine.rates(["d0"], 1)["d0"] == pytest.approx(30e9, rel=NEAR)


def test_a_machine_that_is_busy_is_not_corrected_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lan = _lan(30e9)
    machine = _machine(tmp_path, monkeypatch, lan, loss=0.8)
    found = calibrate(lan, machine.groups)
    assert found.flops["d0"] < 15e9, "said as it is"
    assert machine.asked < 10


@pytest.mark.parametrize(
    ("flops", "cores"),
    [((95e9,), 2), ((70e9, 70e9, 70e9), 2), ((50e9, 50e9), 1)],
    ids=["one device above a core", "together above the machine", "on one core"],
)
def test_a_machine_that_is_too_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flops: tuple[float, ...], cores: int
) -> None:
    lan = _lan(*flops)
    machine = _machine(tmp_path, monkeypatch, lan, 0.0, cores)
    with pytest.raises(UserError, match=r"cluster\.lab\.time_scale: .* Divide it by 1\.[0-9]+ or more"):
        calibrate(lan, machine.groups)
