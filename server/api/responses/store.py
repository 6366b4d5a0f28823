"""Responses that clients may come back to: files in the family's private directory, least recently used ones go first.

Files, because a request may reach any front end of the family and each must find what another has stored. They are
readable by this user alone and end with the server. A response belongs to the API key that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ...config import ResponseStoreOptions
from .items import Item

log = logging.getLogger(__name__)

ID = re.compile(r"resp_[0-9a-f]{48}", re.ASCII)
ENTRY, RUNNING, LOCK = ".json", ".running-", "lock"
UNFINISHED = ("queued", "in_progress")
# The store is looked through when this share of its limits has been written since the last time.
SWEEP_SHARE = 16
T = TypeVar("T")


def new_response_id() -> str:
    return f"resp_{secrets.token_hex(24)}"


class StoredResponse(msgspec.Struct, kw_only=True):
    """A response with the items that it answered: `history` from the responses before it, then its own `input`."""

    tenant: str
    response: dict[str, Any]
    history: list[Item]
    input: list[Item]

    @property
    def conversation(self) -> list[Item]:
        """Everything up to the end of this response, for the next one."""
        return [*self.history, *self.input, *self.response["output"]]

    @property
    def unfinished(self) -> bool:
        return self.response["status"] in UNFINISHED


class ResponseStore:
    """Bounded by bytes, by entries and by the time since an entry was last used.

    Every front end has one on the same `directory`; without a directory nothing is stored. The limits hold for all
    together: each of the `num_writers` may add a small share of them before it looks at the whole.
    """

    def __init__(self, directory: Path | None, options: ResponseStoreOptions, num_writers: int) -> None:
        enabled = options.responses_store_size > 0 and options.responses_store_entries > 0
        self._directory = directory if enabled else None
        self._options = options
        self._num_writers = num_writers
        self._new_bytes = 0
        self._new_entries = 0
        if self._directory is not None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def enabled(self) -> bool:
        return self._directory is not None

    # -------------------------------------------------------------------------------------------------- for endpoints

    async def put(self, stored: StoredResponse) -> None:
        """Store a finished response. A full disk is logged, and the response is not there later."""
        await self._in_thread(lambda: self._write(stored))

    async def get(self, id: str, tenant: str) -> StoredResponse | None:
        """None for a response that never was, has gone, or is another's."""
        return await self._in_thread(lambda: self._read(id, tenant))

    async def delete(self, id: str, tenant: str) -> bool:
        """False where `get` gives None. A response that is still being made is cancelled."""

        def delete() -> bool:
            if self._directory is None:
                return False
            with self._locked():
                if self._read(id, tenant) is None:
                    return False
                self._stop_running(id)
                self._path(id).unlink(missing_ok=True)
                return True

        return await self._in_thread(delete)

    async def begin(self, stored: StoredResponse, writer: int) -> None:
        """Store a response that front end `writer` is going to make in the background."""

        def begin() -> None:
            self._running_path(stored.response["id"], writer).touch(mode=0o600)
            self._write(stored)

        await self._in_thread(begin)

    async def end(self, stored: StoredResponse, writer: int) -> None:
        """What came of it; not if it was cancelled or deleted meanwhile."""

        def end() -> None:
            running = self._running_path(stored.response["id"], writer)
            with self._locked():
                if running.exists():
                    self._write(stored)
                    running.unlink()

        await self._in_thread(end)

    async def cancel(self, id: str, tenant: str) -> StoredResponse | None:
        """Mark it as cancelled if it is not finished; then `still_running` of its writer no longer names it."""

        def cancel() -> StoredResponse | None:
            if self._directory is None:
                return None
            with self._locked():
                stored = self._read(id, tenant)
                if stored is not None and stored.unfinished:
                    self._stop_running(id)
                    stored.response["status"] = "cancelled"
                    self._write(stored)
                return stored

        return await self._in_thread(cancel)

    async def still_running(self, writer: int) -> set[str]:
        """The ids of this writer's background responses that nobody has cancelled."""
        return await self._in_thread(lambda: {path.stem for path in self._running_of(writer)})

    async def fail_abandoned(self, writer: int, error: dict[str, Any]) -> None:
        """For a writer that starts: what its predecessor had not finished will never be."""

        def fail() -> None:
            for running in self._running_of(writer):
                with self._locked(), contextlib.suppress(OSError, msgspec.DecodeError):
                    running.unlink()
                    path = self._path(running.stem)
                    stored = msgspec.json.decode(path.read_bytes(), type=StoredResponse)
                    stored.response |= {"status": "failed", "error": error}
                    self._write(stored)

        if self._directory is not None:
            await self._in_thread(fail)

    # ------------------------------------------------------------------------------------------------- in a thread

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    def _path(self, id: str) -> Path:
        assert self._directory is not None
        return self._directory / f"{id}{ENTRY}"

    def _running_path(self, id: str, writer: int) -> Path:
        assert self._directory is not None
        return self._directory / f"{id}{RUNNING}{writer}"

    def _running_of(self, writer: int) -> list[Path]:
        assert self._directory is not None
        return list(self._directory.glob(f"*{RUNNING}{writer}"))

    def _stop_running(self, id: str) -> None:
        assert self._directory is not None
        for path in self._directory.glob(f"{id}{RUNNING}*"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """What reads and then writes does it alone, among threads and processes."""
        assert self._directory is not None
        lock = os.open(self._directory / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self, id: str, tenant: str) -> StoredResponse | None:
        if self._directory is None or not ID.fullmatch(id):
            return None
        path = self._path(id)
        try:
            if time.time() - path.stat().st_mtime > self._options.responses_store_ttl:
                path.unlink(missing_ok=True)
                return None
            stored = msgspec.json.decode(path.read_bytes(), type=StoredResponse)
            if stored.tenant != tenant:
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        return stored

    def _write(self, stored: StoredResponse) -> None:
        """Whole or not at all: readers never see half a file."""
        path = self._path(stored.response["id"])
        data = msgspec.json.encode(stored)
        if len(data) > self._options.responses_store_size // 2:
            log.warning(
                "a response of %d bytes is not stored: --responses-store-size is too small", len(data)
            )
            return
        self._make_room(len(data))
        new = path.with_suffix(f".{secrets.token_hex(8)}")
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            new.replace(path)
        except OSError as error:
            log.warning("a response could not be stored: %s", error)
            new.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        options = self._options
        self._new_bytes += size
        self._new_entries += 1
        share = SWEEP_SHARE * self._num_writers
        if (
            self._new_bytes * share < options.responses_store_size
            and self._new_entries * share < options.responses_store_entries
        ):
            return
        self._new_bytes = self._new_entries = 0
        self._sweep(
            max_bytes=options.responses_store_size * (SWEEP_SHARE - 1) // SWEEP_SHARE - size,
            max_entries=options.responses_store_entries * (SWEEP_SHARE - 1) // SWEEP_SHARE - 1,
        )

    def _sweep(self, *, max_bytes: int, max_entries: int) -> None:
        """Remove what has expired, and the least recently used of the rest until it is within the bounds."""
        assert self._directory is not None
        entries = []
        with os.scandir(self._directory) as found:
            for entry in found:
                if entry.name.endswith(ENTRY):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        entries.append((status.st_mtime_ns, status.st_size, entry.path))
        entries.sort(reverse=True)
        oldest_ns = time.time_ns() - int(self._options.responses_store_ttl * 1e9)
        kept_bytes = 0
        for index, (used_ns, size, path) in enumerate(entries):
            kept_bytes += size
            if used_ns < oldest_ns or kept_bytes > max_bytes or index >= max_entries:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
