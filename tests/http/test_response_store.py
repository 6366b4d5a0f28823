"""The store of responses, shared by the front ends of a family: who finds what, and what a dead one leaves behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from penstock.server.api.responses.store import ResponseStore, StoredResponse, new_response_id
from penstock.server.config import ResponseStoreOptions


def store_in(directory: Path, writers: int = 2, **options: Any) -> ResponseStore:
    return ResponseStore(directory, ResponseStoreOptions(**options), writers)


def entry(status: str = "completed", *, text: str = "Yes.", tenant: str = "me") -> StoredResponse:
    response = {"id": new_response_id(), "status": status, "output": [{"text": text}], "error": None}
    return StoredResponse(tenant=tenant, response=response, history=[{"n": 1}], input=[{"n": 2}])


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_what_one_front_end_stores_another_finds(tmp_path: Path) -> None:
    mine, other = store_in(tmp_path), store_in(tmp_path)
    stored = entry()
    run(mine.put(stored))
    found = run(other.get(stored.response["id"], "me"))
    assert found == stored
    assert found.conversation == [{"n": 1}, {"n": 2}, {"text": "Yes."}]
    assert run(other.get(stored.response["id"], "you")) is None
    assert not run(other.delete(stored.response["id"], "you"))
    assert run(other.delete(stored.response["id"], "me"))
    assert run(mine.get(stored.response["id"], "me")) is None


def test_a_cancelled_response_is_not_completed_afterwards(tmp_path: Path) -> None:
    maker, other = store_in(tmp_path), store_in(tmp_path)
    stored = entry("in_progress")
    id = stored.response["id"]
    run(maker.begin(stored, 0))
    assert run(maker.still_running(0)) == {id}
    assert run(other.still_running(1)) == set()
    assert run(other.cancel(id, "you")) is None
    assert run(other.cancel(id, "me")).response["status"] == "cancelled"
    assert run(maker.still_running(0)) == set()
    stored.response["status"] = "completed"
    run(maker.end(stored, 0))
    assert run(other.get(id, "me")).response["status"] == "cancelled"


def test_a_completed_response_is_not_cancelled_afterwards(tmp_path: Path) -> None:
    maker = store_in(tmp_path)
    stored = entry("in_progress")
    run(maker.begin(stored, 0))
    stored.response["status"] = "completed"
    run(maker.end(stored, 0))
    assert run(maker.cancel(stored.response["id"], "me")).response["status"] == "completed"


def test_a_deleted_response_does_not_come_back(tmp_path: Path) -> None:
    maker, other = store_in(tmp_path), store_in(tmp_path)
    stored = entry("in_progress")
    run(maker.begin(stored, 0))
    assert run(other.delete(stored.response["id"], "me"))
    run(maker.end(stored, 0))
    assert run(other.get(stored.response["id"], "me")) is None


def test_what_a_dead_front_end_was_making_has_failed(tmp_path: Path) -> None:
    dead, alive = entry("in_progress"), entry("in_progress")
    run(store_in(tmp_path).begin(dead, 1))
    run(store_in(tmp_path).begin(alive, 11))
    run(store_in(tmp_path).fail_abandoned(1, {"code": "server_error", "message": "died"}))
    failed = run(store_in(tmp_path).get(dead.response["id"], "me")).response
    assert (failed["status"], failed["error"]["message"]) == ("failed", "died")
    assert run(store_in(tmp_path).get(alive.response["id"], "me")).response["status"] == "in_progress"


def test_unused_responses_are_forgotten_after_their_time(tmp_path: Path) -> None:
    store = store_in(tmp_path, responses_store_ttl=3600.0)
    old, used = entry(), entry()
    for stored in (old, used):
        run(store.put(stored))
    (tmp_path / f"{old.response['id']}.json").touch()
    os.utime(tmp_path / f"{old.response['id']}.json", (0, 0))
    assert run(store.get(old.response["id"], "me")) is None
    assert run(store.get(used.response["id"], "me")) == used
    assert [path.stem for path in tmp_path.glob("*.json")] == [used.response["id"]]


def test_all_front_ends_together_keep_within_the_bytes(tmp_path: Path) -> None:
    limit = 64 << 10
    stores = [store_in(tmp_path, 3, responses_store_size=limit) for _ in range(3)]
    for number in range(200):
        run(stores[number % 3].put(entry(text="x" * (97 * number % 4000))))
        assert sum(path.stat().st_size for path in tmp_path.glob("*.json")) <= limit
    huge = entry(text="x" * limit)
    run(stores[0].put(huge))
    assert run(stores[0].get(huge.response["id"], "me")) is None
    assert len(list(tmp_path.glob("*.json"))) > 5


def test_a_full_disk_costs_the_entry_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    stored = entry()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        run(store.put(stored))
    assert "No space left" in caplog.text
    assert run(store.get(stored.response["id"], "me")) is None
    assert list(tmp_path.iterdir()) == []


def test_without_a_directory_or_room_nothing_is_stored(tmp_path: Path) -> None:
    for store in (
        ResponseStore(None, ResponseStoreOptions(), 1),
        store_in(tmp_path, responses_store_size=0),
        store_in(tmp_path, responses_store_entries=0),
    ):
        assert not store.enabled
        assert run(store.get(new_response_id(), "me")) is None
        assert run(store.cancel(new_response_id(), "me")) is None
        assert not run(store.delete(new_response_id(), "me"))
