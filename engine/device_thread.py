"""The thread that owns the device: work is handed to it in order and comes back as promises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Promise(Generic[T]):
    """The outcome of one piece of work."""

    __slots__ = ("_done", "_error", "_value")

    def __init__(self) -> None:
        self._done = threading.Lock()  # held until there is an outcome: lighter than an Event
        self._done.acquire()
        self._value: T | None = None
        self._error: BaseException | None = None

    def wait(self, timeout_s: float) -> bool:
        """Whether there is an outcome, after at most `timeout_s`."""
        if not self._done.acquire(timeout=timeout_s):
            return False
        self._done.release()
        return True

    @property
    def failed(self) -> bool:
        """Whether there is an outcome, and it is an error."""
        return self._error is not None

    def result(self) -> T:
        """Wait for the outcome; raises what the work raised."""
        with self._done:
            pass
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def _settle(self, value: T | None, error: BaseException | None) -> None:
        self._value, self._error = value, error
        self._done.release()


class DeviceThread:
    """Runs what is submitted, one piece after the other, under torch.inference_mode."""

    def __init__(self, name: str = "device") -> None:
        self._queue: SimpleQueue[tuple[Promise[Any], Callable[..., Any], tuple[Any, ...]] | None] = (
            SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[..., T], *args: Any) -> Promise[T]:
        """Queue `work(*args)` and return at once."""
        promise: Promise[T] = Promise()
        self._queue.put((promise, work, args))
        return promise

    def close(self) -> None:
        """Finish what is queued, then end."""
        self._queue.put(None)
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            promise, work, args = item
            try:
                value = work(*args)
            except BaseException as error:  # handed to whoever waits for it
                promise._settle(None, error)
            else:
                promise._settle(value, None)
            del item, promise, work, args  # else they live until the next piece comes
