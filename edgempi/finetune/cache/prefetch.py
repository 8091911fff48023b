"""Reading ahead: samples of a known order are fetched in the background while the caller computes.

Only bytes are fetched (read, checked); decoding is the caller's, so that no second thread computes beside it and what
waits is small.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from edgempi.finetune.cache.found import Found
from edgempi.finetune.cache.store import ActivationCache


class Prefetch:
    """The samples of an order, fetched at most `ahead` before they are asked for.

    Args:
        cache: where they are.
        order: the samples as they will be asked for; read in the background, as far as `ahead` needs.
        ahead: the most samples that wait.
        layers: what is wanted of each; all by default.

    Use it as a context, or call `close`: it ends the thread, at once. An error while reading is raised by `__next__`
    in the place of the sample that it concerns.
    """

    def __init__(
        self, cache: ActivationCache, order: Iterable[int], ahead: int, layers: Iterable[str] | None = None
    ) -> None:
        if ahead < 1:
            raise ValueError(f"{ahead} samples ahead: at least one")
        self._cache, self._order, self._ahead = cache, order, ahead
        self._layers = None if layers is None else tuple(layers)
        self._waiting: deque[Found] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self._thread = threading.Thread(target=self._fetch, name="edgempi-prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Found]:
        return self

    def __next__(self) -> Found:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._closed)
            if self._waiting:
                found = self._waiting.popleft()
                self._changed.notify_all()
                return found
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopIteration

    def take(self, count: int) -> list[Found]:
        """The next `count` samples, fewer at the end of the order."""
        return list(islice(self, count))

    def close(self) -> None:
        """Stop reading, and wait until the thread has ended; what was fetched is dropped."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    def _room(self) -> bool:
        """Wait until one more may wait; False where there is no more to do."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < self._ahead or self._closed)
            return not self._closed

    def _fetch(self) -> None:
        try:
            for sample in self._order:
                if not self._room():
                    return
                found = self._cache.get(sample, self._layers)
                with self._changed:
                    if not self._closed:
                        self._waiting.append(found)
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
