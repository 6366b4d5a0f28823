"""Which grammars are compiled, which wait, and who is told: the work of the grammar process between its messages.

A grammar asked for by many is compiled once. At most `MAX_ATTEMPTS` are compiled at a time, the others wait in the
order in which they came; beyond `MAX_WAITING` the answer is to come back later.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from ...scheduler.grammar_messages import CheckGrammar, GrammarVerdict
from ...scheduler.messages import GrammarSpec
from .attempt import Attempt, Limits, Verdict
from .verdicts import Verdicts, digest

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 8
MAX_WAITING = 256
RETRY_AFTER_S = 1.0


class Asker(NamedTuple):
    frontend_id: int
    check_id: int


class Job:
    """A grammar without a verdict yet; `attempt` once its turn has come."""

    __slots__ = ("askers", "attempt", "key", "spec")

    def __init__(self, key: bytes, spec: GrammarSpec) -> None:
        self.key = key
        self.spec = spec
        self.askers: dict[Asker, None] = {}  # in the order in which they asked
        self.attempt: Attempt | None = None


class Checks:
    """`tell` sends a verdict to a front end. `compile_spec` runs in forked children."""

    def __init__(
        self,
        compile_spec: Callable[[GrammarSpec], object],
        limits: Limits,
        tell: Callable[[int, GrammarVerdict], None],
    ) -> None:
        self._compile_spec = compile_spec
        self._limits = limits
        self._tell = tell
        self._verdicts = Verdicts()
        self._jobs: dict[bytes, Job] = {}
        self._waiting: OrderedDict[bytes, Job] = OrderedDict()
        self._running: list[Job] = []
        self._leaving: list[Attempt] = []  # their verdict is known
        self._asked: dict[Asker, Job] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for a verdict."""
        return not self._asked

    @property
    def descriptors(self) -> list[int]:
        """What becomes readable when `advance` is to be called."""
        return [attempt.fd for attempt in self._attempts if attempt.fd is not None]

    @property
    def _attempts(self) -> list[Attempt]:
        return [job.attempt for job in self._running if job.attempt is not None]

    @property
    def due(self) -> float | None:
        """When `advance` is to be called at the latest, in monotonic seconds; None if only an event brings work."""
        return min((attempt.due for attempt in self._attempts if attempt.due is not None), default=None)

    def ask(self, frontend_id: int, message: CheckGrammar) -> None:
        """A verdict is told at once if it is known, else when it is."""
        asker = Asker(frontend_id, message.check_id)
        key = digest(message.spec)
        known = self._verdicts.get(key, time.monotonic())
        if known is not None:
            self._answer(asker, known, seconds=None)
            return
        job = self._jobs.get(key)
        if job is None:
            if len(self._waiting) >= MAX_WAITING:
                self.refuse(asker, f"{MAX_WAITING} grammars wait to be compiled already")
                return
            job = self._jobs[key] = self._waiting[key] = Job(key, message.spec)
        job.askers[asker] = None
        self._asked[asker] = job

    def refuse(self, asker: Asker, reason: str) -> None:
        """Tell somebody to come back later."""
        message = GrammarVerdict(
            check_id=asker.check_id, outcome="unavailable", message=reason, retry_after_s=RETRY_AFTER_S
        )
        self._tell(asker.frontend_id, message)

    def forget(self, askers: list[Asker]) -> None:
        """They wait no longer. What nobody waits for is not begun; what has begun is of use to the next one."""
        for asker in askers:
            job = self._asked.pop(asker, None)
            if job is None:
                continue
            del job.askers[asker]
            if not job.askers and self._waiting.pop(job.key, None) is not None:
                del self._jobs[job.key]

    def forget_frontend(self, frontend_id: int) -> None:
        self.forget([asker for asker in self._asked if asker.frontend_id == frontend_id])

    def advance(self) -> None:
        """Tell the verdicts that children have come to, and begin what may begin."""
        now = time.monotonic()
        running, self._running = self._running, []
        for job in running:
            attempt = job.attempt
            assert attempt is not None
            verdict = attempt.verdict()
            if verdict is None:
                attempt.press(now)
                self._running.append(job)
            else:
                self._finish(job, verdict, now)
                self._leaving.append(attempt)
        self._see_off()
        while self._waiting and len(self._running) < MAX_ATTEMPTS:
            _, job = self._waiting.popitem(last=False)
            self._begin(job)

    def close(self) -> None:
        """Kill what runs."""
        for attempt in (*self._attempts, *self._leaving):
            attempt.close()
        self._running.clear()
        self._leaving.clear()

    def _see_off(self) -> None:
        leaving, self._leaving = self._leaving, []
        for attempt in leaving:
            if attempt.has_left():
                attempt.close()
            else:
                self._leaving.append(attempt)

    def _begin(self, job: Job) -> None:
        try:
            job.attempt = Attempt(self._compile_spec, job.spec, self._limits)
        except OSError as error:
            log.error("no process can be started to compile a grammar: %s", error)
            del self._jobs[job.key]
            for asker in job.askers:
                del self._asked[asker]
                self.refuse(asker, "the machine has no room to compile a grammar")
        else:
            self._running.append(job)

    def _finish(self, job: Job, verdict: Verdict, now: float) -> None:
        del self._jobs[job.key]
        self._verdicts.put(job.key, verdict, now)
        if verdict.outcome in ("timeout", "memory", "crash"):
            log.warning("a grammar of kind %s was refused: %s", job.spec.kind, verdict.message)
        seconds: float | None = verdict.seconds
        for asker in job.askers:
            del self._asked[asker]
            self._answer(asker, verdict, seconds)
            seconds = None

    def _answer(self, asker: Asker, verdict: Verdict, seconds: float | None) -> None:
        message = GrammarVerdict(
            check_id=asker.check_id, outcome=verdict.outcome, message=verdict.message, seconds=seconds
        )
        self._tell(asker.frontend_id, message)
