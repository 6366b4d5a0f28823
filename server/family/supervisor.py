"""Starts the processes of the family, restarts what dies, and stops them in order.

Front ends are stopped first: they finish what runs. Then engines and what works in the background. Nothing here
blocks except the one wait of the loop; without events the supervisor sleeps.
"""

from __future__ import annotations

import enum
import logging
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...scheduler.messages import FamilyStatus
from .child import LONGEST_BACK_OFF_S, BackOff, Child, ChildSpec, ChildState, cause
from .signals import Signals

if TYPE_CHECKING:
    from .link import FamilyLink

log = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_BAD_CONFIGURATION = 2  # of a child: starting it again cannot help, it has said why in one line
# What never worked is tried again once, in case the cause passes; nobody waits for it yet, so then the user is told.
RESTARTS_BEFORE_SERVING = 1
QUICK_RESTARTS = 8  # of others than engines within the window, before they slow down to the longest back-off
QUICK_RESTART_WINDOW_S = 60.0
GRACE_S = 5.0  # between SIGTERM (or the end of the drain) and SIGKILL


@dataclass(frozen=True)
class Family:
    """What to run: engines (index = engine id) and front ends (index = front end id) with their ZMQ endpoints.

    What is in the `background` is started once the front ends serve, so that it delays nothing; whatever becomes of
    it, the others go on.
    """

    engines: Sequence[ChildSpec]
    frontends: Sequence[ChildSpec]
    endpoints: Sequence[str]
    background: Sequence[ChildSpec] = ()


@dataclass(frozen=True)
class Limits:
    """How patient the supervisor is. Seconds."""

    shutdown_timeout_s: float = 30.0
    engine_restart_limit: int = 5
    engine_restart_window_s: float = 300.0
    grace_s: float = GRACE_S


class Phase(enum.Enum):
    STARTING = "starting"  # not every front end has served yet
    SERVING = "serving"
    DRAINING = "draining"  # front ends finish what runs
    STOPPING = "stopping"  # engines and the background end
    ENDED = "ended"


LEGAL = {
    Phase.STARTING: {Phase.SERVING, Phase.DRAINING},
    Phase.SERVING: {Phase.DRAINING},
    Phase.DRAINING: {Phase.STOPPING, Phase.ENDED},
    Phase.STOPPING: {Phase.ENDED},
    Phase.ENDED: set[Phase](),
}


class Supervisor:
    """One run of a family. `on_serving` is called once, when every front end has said that it serves; `on_drain`
    once, when no further connection is to be accepted."""

    def __init__(
        self,
        family: Family,
        limits: Limits,
        *,
        on_serving: Callable[[], None],
        on_drain: Callable[[], None],
    ) -> None:
        self._limits = limits
        self._endpoints = family.endpoints
        self._on_serving = on_serving
        self._on_drain = on_drain
        self._engines = [
            Child(spec, BackOff(limits.engine_restart_limit, limits.engine_restart_window_s))
            for spec in family.engines
        ]
        self._frontends = [patient_child(spec) for spec in family.frontends]
        self._later = family.background
        self._background: list[Child] = []
        self._phase = Phase.STARTING
        self._deadline: float | None = None  # of the phase; what still runs then is killed
        self._serving: set[int] = set()
        self._failed: dict[int, FamilyStatus] = {}  # engine id -> why it was given up
        self._exit_status = 0

    def run(self) -> int:
        """Run the family until it is stopped by a signal or cannot start; the exit status of the command.

        0 after an orderly stop, 1 if an engine was given up, 2 if a process refused its configuration, 128 + the
        signal's number if a second signal cut the drain short. No child is alive when this returns.
        """
        with Signals() as signals:
            try:
                self._start_due()
                self._link = connect(self._endpoints, signals.fileno())
                while self._phase is not Phase.ENDED:
                    self._round(signals)
            finally:
                for child in self._children():
                    child.kill_and_wait()
        self._link.close()
        return self._exit_status

    def _round(self, signals: Signals) -> None:
        self._link.wait(self._time_left())
        for number in signals.take():
            self._on_signal(signal.Signals(number))
        if self._phase is Phase.ENDED:
            return
        self._take_messages()
        self._reap()
        self._advance()
        self._start_due()

    def _children(self) -> list[Child]:
        return [*self._engines, *self._frontends, *self._background]

    def _time_left(self) -> float | None:
        """Seconds until something is due; None if only an event can bring work."""
        times = [child.due for child in self._children() if child.state is ChildState.WAITING]
        if self._deadline is not None:
            times.append(self._deadline)
        return max(0.0, min(times) - time.monotonic()) if times else None

    # ------------------------------------------------------------------------------------------------------ starting

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children():
            if child.state is ChildState.WAITING and child.due <= now:
                first = child.incarnation == 0
                try:
                    child.start()
                except (OSError, subprocess.SubprocessError) as error:
                    log.error("%s cannot be started: %s", child.spec.name, error)
                if child in self._frontends and not first:
                    self._greet_again(self._frontends.index(child))

    def _greet_again(self, frontend_id: int) -> None:
        """Tell a restarted front end what its predecessor knew."""
        self._link.reconnect(frontend_id)
        for status in self._failed.values():
            self._link.send(frontend_id, status)

    def _take_messages(self) -> None:
        for frontend_id, _ in self._link.receive():
            self._serving.add(frontend_id)
        if self._phase is Phase.STARTING and len(self._serving) == len(self._frontends):
            self._move(Phase.SERVING)
            self._on_serving()
            self._background = [patient_child(spec) for spec in self._later]

    # -------------------------------------------------------------------------------------------------------- deaths

    def _reap(self) -> None:
        for engine_id, child in enumerate(self._engines):
            status = child.ended()
            if status is not None:
                self._engine_ended(engine_id, child, status)
        for child in self._frontends:
            status = child.ended()
            if status is not None:
                self._frontend_ended(child, status)
        for child in self._background:
            status = child.ended()
            if status is not None:
                self._background_ended(child, status)

    def _engine_ended(self, engine_id: int, child: Child, status: int) -> None:
        if self._phase is Phase.STOPPING:
            child.give_up()
            return
        if status == EXIT_BAD_CONFIGURATION:
            self._give_up_engine(engine_id, child, status, "it cannot run with its configuration")
            return
        now = time.monotonic()
        starting = self._phase is Phase.STARTING
        if starting and child.back_off.used >= RESTARTS_BEFORE_SERVING:
            self._give_up_engine(engine_id, child, status, cause(status))
            return
        delay = child.back_off.next_delay(now)
        if delay is None:
            limit, window = child.back_off.limit, self._limits.engine_restart_window_s
            reason = f"{cause(status)} after {limit} restarts within {window:g} s"
            self._give_up_engine(engine_id, child, status, reason)
            return
        child.wait_until(now + delay)
        log.warning(
            "%s ended (%s): restart %d of %d %s%s",
            child.spec.name,
            cause(status),
            child.back_off.used,
            RESTARTS_BEFORE_SERVING if starting else child.back_off.limit,
            f"in {delay:g} s" if delay else "at once",
            "" if starting else "; streams wait for it",
        )
        self._link.broadcast(FamilyStatus(engine_id, child.incarnation, "restarting", cause(status)))

    def _give_up_engine(self, engine_id: int, child: Child, status: int, reason: str) -> None:
        child.give_up()
        self._failed[engine_id] = FamilyStatus(engine_id, child.incarnation, "failed", reason)
        self._link.broadcast(self._failed[engine_id])
        if self._phase is Phase.STARTING:
            if status != EXIT_BAD_CONFIGURATION:
                log.error("%s could not be started: %s", child.spec.name, reason)
            self._drain(EXIT_BAD_CONFIGURATION if status == EXIT_BAD_CONFIGURATION else EXIT_FAILED)
            return
        self._exit_status = EXIT_FAILED
        log.error(
            "%s is given up: %s; /health answers 503 until the server is stopped", child.spec.name, reason
        )

    def _frontend_ended(self, child: Child, status: int) -> None:
        if self._phase in (Phase.DRAINING, Phase.STOPPING):
            child.give_up()
            return
        if self._phase is Phase.STARTING:
            refused = status == EXIT_BAD_CONFIGURATION
            if refused or child.back_off.used >= RESTARTS_BEFORE_SERVING:
                if not refused:
                    log.error("%s could not be started: %s", child.spec.name, cause(status))
                child.give_up()
                self._drain(EXIT_BAD_CONFIGURATION if refused else EXIT_FAILED)
                return
        self._restart(child, status)

    def _background_ended(self, child: Child, status: int) -> None:
        if self._phase is Phase.STOPPING:
            child.give_up()
        else:
            self._restart(child, status)

    def _restart(self, child: Child, status: int) -> None:
        """However often it ends, it is started again, at first at once."""
        now = time.monotonic()
        delay = child.back_off.next_delay(now)
        delay = LONGEST_BACK_OFF_S if delay is None else delay
        child.wait_until(now + delay)
        log.warning(
            "%s ended (%s): restart %s",
            child.spec.name,
            cause(status),
            f"in {delay:g} s" if delay else "at once",
        )

    # ------------------------------------------------------------------------------------------------------ stopping

    def _on_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGCHLD:
            return
        if self._phase in (Phase.STARTING, Phase.SERVING):
            log.info("%s: stopping, running requests get %g s", number.name, self._limits.shutdown_timeout_s)
            self._drain(self._exit_status)
        elif number is not signal.SIGHUP:  # a closing terminal is no second order
            log.warning("%s again: stopping at once", number.name)
            self._exit_status = 128 + number
            for child in self._children():
                child.kill_and_wait()
            self._move(Phase.ENDED)

    def _drain(self, exit_status: int) -> None:
        self._exit_status = exit_status
        if self._phase is Phase.DRAINING:
            return
        in_order = exit_status == 0 or self._phase is Phase.SERVING  # else it never served: nothing to finish
        self._move(Phase.DRAINING)
        self._deadline = time.monotonic() + self._limits.shutdown_timeout_s + self._limits.grace_s
        self._on_drain()
        for child in self._frontends:
            child.terminate() if in_order else child.abandon()

    def _advance(self) -> None:
        """Go on to the next phase of stopping when everything of this one is gone or out of time."""
        if self._phase is Phase.DRAINING and self._all_gone(self._frontends):
            self._move(Phase.STOPPING)
            self._deadline = time.monotonic() + self._limits.grace_s
            for child in (*self._engines, *self._background):
                child.terminate()
        if self._phase is Phase.STOPPING and self._all_gone([*self._engines, *self._background]):
            self._move(Phase.ENDED)

    def _all_gone(self, children: Sequence[Child]) -> bool:
        """Whether all of them have ended; what is out of time is killed, and seen to have ended in the next round."""
        left = [child for child in children if child.state is not ChildState.GONE]
        if left and self._deadline is not None and time.monotonic() >= self._deadline:
            for child in left:
                log.warning("%s does not end: killed", child.spec.name)
                child.kill()
            self._deadline = None
        return not left

    def _move(self, phase: Phase) -> None:
        assert phase in LEGAL[self._phase], (self._phase, phase)
        self._phase = phase


def patient_child(spec: ChildSpec) -> Child:
    """One that is never given up."""
    return Child(spec, BackOff(QUICK_RESTARTS, QUICK_RESTART_WINDOW_S))


def connect(endpoints: Sequence[str], wakeup_fd: int) -> FamilyLink:
    """The link; zmq is loaded only now, while the children already start."""
    from .link import FamilyLink

    return FamilyLink(endpoints, wakeup_fd)
