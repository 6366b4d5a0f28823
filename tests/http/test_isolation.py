"""--prefix-cache-scope: requests share a prefix-cache namespace exactly if their scope and their salts are the same."""

from __future__ import annotations

import httpx
import pytest
from http_family import MODEL, Family, family

KEYS = ["alpha-secret-key", "beta-secret-key"]


def salt(served: Family, headers: dict[str, str] | None = None, **body: object) -> str:
    """Under which namespace the engine is asked."""
    reply = served.client.post(
        "/v1/completions", json={"model": MODEL, "prompt": "Hello", "max_tokens": 1, **body}, headers=headers
    )
    assert reply.status_code == 200, reply.text
    return served.engine.seen.submits[-1].cache_salt


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def test_everybody_shares_by_default_and_a_salt_divides() -> None:
    with family(api_keys=KEYS) as served:
        assert salt(served, key(KEYS[0])) == salt(served, key(KEYS[1])) == ""
        assert salt(served, key(KEYS[0]), cache_salt="mine") == "mine"


def test_tenants_are_api_keys_and_their_salts_tell_nothing_of_the_keys() -> None:
    with family(api_keys=KEYS, prefix_cache_scope="tenant", cache_salt_secret="family secret") as served:
        first, second = salt(served, key(KEYS[0])), salt(served, key(KEYS[1]))
        assert first != second
        assert salt(served, key(KEYS[0])) == first
        assert salt(served, {"x-api-key": KEYS[0]}) == first
        assert salt(served, {"authorization": f"bearer  {KEYS[0]}"}) == first
        mine = {salt(served, key(name), cache_salt="mine") for name in KEYS}
        assert len(mine | {first, second}) == 4
        assert not any(name in each for name in KEYS for each in mine | {first, second})
    with family(api_keys=KEYS, prefix_cache_scope="tenant", cache_salt_secret="other secret") as served:
        assert salt(served, key(KEYS[0])) != first, "a hash without the secret could be guessed at"


def test_all_front_ends_of_a_family_give_a_tenant_the_same_salt() -> None:
    salts = []
    for _ in range(2):
        with family(api_keys=KEYS, prefix_cache_scope="tenant", cache_salt_secret="family secret") as served:
            salts.append(salt(served, key(KEYS[0])))
    assert salts[0] == salts[1]


def test_a_client_cannot_name_the_namespace_of_another_tenant() -> None:
    with family(api_keys=KEYS, prefix_cache_scope="tenant", cache_salt_secret="family secret") as served:
        victim = salt(served, key(KEYS[0]))
        assert salt(served, key(KEYS[1]), cache_salt=victim) not in (victim, f"{victim}/{victim}")
        refused = served.client.post(
            "/v1/completions",
            json={"model": MODEL, "prompt": "Hello", "cache_salt": f"{victim}/x"},
            headers=key(KEYS[1]),
        )
        assert refused.status_code == 400


def test_the_key_that_was_checked_is_the_key_that_names_the_tenant() -> None:
    with family(api_keys=KEYS, prefix_cache_scope="tenant", cache_salt_secret="family secret") as served:
        first = salt(served, key(KEYS[0]))
        assert salt(served, {**key(KEYS[0]), "x-api-key": KEYS[1]}) == first
        wrong = httpx.Headers([("Authorization", "Bearer guess"), ("x-api-key", KEYS[1])])
        assert served.client.get("/v1/models", headers=wrong).status_code == 401


@pytest.mark.parametrize("headers", [None, {"X-Request-Id": "the-same"}], ids=str)
def test_no_request_shares_with_another_but_its_own_choices_do(headers: dict | None) -> None:
    with family(prefix_cache_scope="request") as served:
        first, second = salt(served, headers), salt(served, headers)
        assert first != second
        assert min(len(first), len(second)) >= 32
        salt(served, headers, prompt=["Hello", "one"], n=2)
        own = {submit.cache_salt for submit in served.engine.seen.submits[-4:]}
        assert len(own) == 1
        assert own.isdisjoint({first, second})
        assert salt(served, headers, cache_salt="mine").endswith("/mine")
