"""What a run spends on what: seconds and bytes by account (a phase, the switch between two, evaluation, saving)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median

from edgempi.comm import World


@dataclass
class Spent:
    """What one account took.

    Attributes:
        seconds: of wall time; of the slowest rank where ranks are taken together.
        waited_s: of them, with nothing to do but wait for others; of all ranks together.
        bytes_sent: of all ranks together.
        updates: of the trained tensors.
        samples: that were trained on.
        median_s: of an update, what comes before it in its epoch included; of the slowest rank. The first update of a
            run is slower by far, and a mean over few would tell of nothing else.
    """

    seconds: float = 0.0
    waited_s: float = 0.0
    bytes_sent: int = 0
    updates: int = 0
    samples: int = 0
    median_s: float = 0.0


class Ledger:
    """One rank's accounts; one of them is charged at a time.

    Args:
        world: whose traffic is counted.
        account: charged first.
        clock: gives seconds.
    """

    def __init__(self, world: World, account: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.account = account
        self.spent: defaultdict[str, Spent] = defaultdict(Spent)
        self._updates: defaultdict[str, list[float]] = defaultdict(list)
        self._world, self._clock = world, clock
        self._mark = self._now()

    @property
    def own(self) -> Spent:
        """The account that is charged now, up to its last booking."""
        return self.spent[self.account]

    def turn(self, account: str) -> None:
        """Book what has passed, and charge another account from now on."""
        now = self._now()
        own = self.own
        own.seconds += now[0] - self._mark[0]
        own.waited_s += now[1] - self._mark[1]
        own.bytes_sent += now[2] - self._mark[2]
        self._mark, self.account = now, account

    @contextmanager
    def within(self, account: str) -> Iterator[None]:
        """Charge an account for what happens inside."""
        outer = self.account
        self.turn(account)
        try:
            yield
        finally:
            self.turn(outer)

    def trained(self, updates: int, samples: int) -> None:
        """Note what was trained in the account that is charged now, and book its time."""
        own, before = self.own, self.own.seconds
        own.updates += updates
        own.samples += samples
        self.turn(self.account)
        self._updates[self.account].append(own.seconds - before)

    def update_s(self) -> dict[str, float]:
        """Seconds of an update, of the accounts that have some."""
        return {name: spent.seconds / spent.updates for name, spent in self.spent.items() if spent.updates}

    def together(self) -> dict[str, Spent]:
        """The accounts over all ranks, in the order in which they were first charged. Collective: every rank."""
        self.turn(self.account)
        for name, taken in self._updates.items():
            self.spent[name].median_s = median(taken)
        accounts = [
            {name: Spent(**found) for name, found in rank.items()}
            for rank in self._world.all_gather_json({name: asdict(spent) for name, spent in self.spent.items()})
        ]
        total = {name: Spent(updates=spent.updates, samples=spent.samples) for name, spent in accounts[0].items()}
        for name, spent in total.items():
            parts = [rank[name] for rank in accounts if name in rank]
            spent.seconds = max(part.seconds for part in parts)
            spent.median_s = max(part.median_s for part in parts)
            spent.waited_s = sum(part.waited_s for part in parts)
            spent.bytes_sent = sum(part.bytes_sent for part in parts)
        return total

    def _now(self) -> tuple[float, float, int]:
        traffic = self._world.traffic
        return self._clock(), sum(traffic.waited_s.values()), sum(traffic.bytes_sent.values())
