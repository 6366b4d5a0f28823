"""May a request's grammar be used? Asked of the grammar process, and remembered.

A check is one grammar that some requests wait for. It is sent to the living incarnation of the grammar process, and
again to the next one if that dies; meanwhile its requests wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import OrderedDict

import msgspec

from ...scheduler.grammar_messages import (
    CheckGrammar,
    ForgetChecks,
    GrammarGreeting,
    GrammarVerdict,
    ToGrammar,
    decode_from_grammar,
    encode_grammar,
)
from ...scheduler.messages import GrammarSpec
from ..metrics.catalogue import Metrics
from .router import Router

log = logging.getLogger(__name__)

GRAMMAR = b"grammar"
MAX_PROVEN = 16_384  # sound grammars that are remembered, by digest: 2 MiB
# What a check may take beyond the compiler's own limit: the process may be starting, or have others to do first.
START_ALLOWANCE_S = 30.0
RETRY_AFTER_S = 5.0


class GrammarRefused(Exception):
    """This grammar cannot be used; `message` is one line that says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class GrammarUnavailable(Exception):
    """Whether this grammar can be used cannot be told now; `message` is one line."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class Check:
    """A grammar whose verdict is awaited by at least one request."""

    __slots__ = ("check_id", "key", "spec", "waiters")

    def __init__(self, check_id: int, key: bytes, spec: GrammarSpec) -> None:
        self.check_id = check_id
        self.key = key
        self.spec = spec
        self.waiters: set[asyncio.Future[GrammarVerdict]] = set()


class Grammars:
    """This front end's grammars. `compile_timeout_s` is the limit of the grammar process itself."""

    def __init__(self, *, router: Router, metrics: Metrics, compile_timeout_s: float) -> None:
        self._router = router
        router.listen(GRAMMAR, self._receive)
        self._metrics = metrics
        self._patience_s = compile_timeout_s + START_ALLOWANCE_S
        self._identity: bytes | None = None
        self._incarnation = 0
        self._proven: OrderedDict[bytes, None] = OrderedDict()
        self._checks: dict[bytes, Check] = {}
        self._by_id: dict[int, Check] = {}
        # Ids continue from a random place: a verdict meant for a dead predecessor must not meet one of ours.
        self._next_id = random.SystemRandom().getrandbits(48)
        self._ended: str | None = None

    async def check(self, spec: GrammarSpec) -> None:
        """Returns once `spec` is known to be sound. Raises `GrammarRefused` and `GrammarUnavailable`."""
        self._metrics.count("sglang:num_grammar")
        key = digest(spec)
        if key in self._proven:
            self._proven.move_to_end(key)
            self._metrics.count("sglang:num_grammar_cache_hit")
            return
        if self._ended is not None:
            raise GrammarUnavailable(self._ended, RETRY_AFTER_S)
        verdict = await self._ask(key, spec)
        if verdict.outcome == "ok":
            return
        if verdict.outcome == "unavailable":
            raise GrammarUnavailable(verdict.message, verdict.retry_after_s)
        timed_out = verdict.outcome == "timeout"
        self._metrics.count("sglang:num_grammar_timeout" if timed_out else "sglang:num_grammar_aborted")
        raise GrammarRefused(verdict.message)

    def end(self, reason: str) -> None:
        """Whoever waits for a verdict, or comes later, gets `GrammarUnavailable`."""
        self._ended = reason
        for check in self._checks.values():
            for waiter in check.waiters:
                if not waiter.done():
                    waiter.set_exception(GrammarUnavailable(reason, RETRY_AFTER_S))

    async def _ask(self, key: bytes, spec: GrammarSpec) -> GrammarVerdict:
        check = self._checks.get(key) or self._begin(key, spec)
        waiter: asyncio.Future[GrammarVerdict] = asyncio.get_running_loop().create_future()
        check.waiters.add(waiter)
        self._metrics.count("sglang:num_grammar_queue_reqs")
        try:
            async with asyncio.timeout(self._patience_s):
                return await waiter
        except TimeoutError:
            raise GrammarUnavailable(
                f"the grammar was not checked within {self._patience_s:g} s: the server is busy or starting",
                RETRY_AFTER_S,
            ) from None
        except asyncio.CancelledError:
            self._metrics.count("sglang:num_grammar_aborted")
            raise
        finally:
            self._metrics.count("sglang:num_grammar_queue_reqs", -1.0)
            check.waiters.discard(waiter)
            if not check.waiters and self._by_id.get(check.check_id) is check:
                self._remove(check)
                self._send(ForgetChecks([check.check_id]))

    def _begin(self, key: bytes, spec: GrammarSpec) -> Check:
        self._next_id += 1
        check = Check(self._next_id, key, spec)
        self._checks[key] = self._by_id[check.check_id] = check
        self._send(CheckGrammar(check.check_id, spec))
        return check

    def _remove(self, check: Check) -> None:
        del self._checks[check.key], self._by_id[check.check_id]

    def _send(self, message: ToGrammar) -> None:
        """What cannot be sent waits for the next greeting."""
        if self._identity is not None and not self._router.closed:
            self._router.send(self._identity, encode_grammar(message))

    # ---------------------------------------------------------------------------------------------- messages in

    def _receive(self, identity: bytes, frame: bytes) -> None:
        try:
            message = decode_from_grammar(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("dropped a message of %d bytes from %r: %s", len(frame), identity, error)
            return
        if isinstance(message, GrammarGreeting):
            self._on_greeting(identity, message)
        else:
            self._on_verdict(message)

    def _on_greeting(self, identity: bytes, greeting: GrammarGreeting) -> None:
        if greeting.incarnation < self._incarnation:
            return  # of one that was replaced meanwhile
        self._identity, self._incarnation = identity, greeting.incarnation
        for check in self._checks.values():
            self._send(CheckGrammar(check.check_id, check.spec))

    def _on_verdict(self, verdict: GrammarVerdict) -> None:
        check = self._by_id.get(verdict.check_id)
        if check is None:
            return
        self._remove(check)
        if verdict.seconds is not None:
            self._metrics.observe("sglang:grammar_compilation_time_seconds", verdict.seconds)
        elif verdict.outcome != "unavailable":
            self._metrics.count("sglang:num_grammar_cache_hit", len(check.waiters))
        if verdict.outcome == "ok":
            self._proven[check.key] = None
            if len(self._proven) > MAX_PROVEN:
                self._proven.popitem(last=False)
        for waiter in check.waiters:
            if not waiter.done():
                waiter.set_result(verdict)


def digest(spec: GrammarSpec) -> bytes:
    """A grammar may have many kilobytes; what is remembered of it has 16 bytes."""
    return hashlib.blake2b(msgspec.msgpack.encode(spec), digest_size=16).digest()
