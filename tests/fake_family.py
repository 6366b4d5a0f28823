"""A family of small processes that speak the messages of engines and front ends, run by the real supervisor.

One more works in the background and speaks with nobody.

As a script it is one of these processes; tests use `running()`. Each process appends one line per event to a file:
`<name> started <pid> <incarnation>`, `<name> got SIGTERM`, `<name> heard restarting` and so on.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 20.0


# ------------------------------------------------------------------------------------------------ in the processes


def note(folder: Path, line: str) -> None:
    with (folder / "events").open("a") as events:
        events.write(line + "\n")


def run_supervisor(folder: Path, settings: dict) -> int:
    from penstock.server.family.child import ChildSpec
    from penstock.server.family.runtime_dir import runtime_dir
    from penstock.server.family.supervisor import Family, Limits, Supervisor
    from penstock.server.logs import set_up_logging

    set_up_logging("supervisor", "info")
    with runtime_dir() as directory:
        endpoints = [f"ipc://{directory}/frontend-{index}" for index in range(settings["num_frontends"])]

        def command(kind: str, index: int, incarnation: int) -> list[str]:
            told = {**settings, "endpoints": endpoints, "index": index, "incarnation": incarnation}
            return [sys.executable, __file__, kind, str(folder), json.dumps(told)]

        family = Family(
            engines=[ChildSpec("engine", functools.partial(command, "engine", 0))],
            frontends=[
                ChildSpec(f"front end {index}", functools.partial(command, "frontend", index))
                for index in range(len(endpoints))
            ],
            endpoints=endpoints,
            background=[ChildSpec("background", functools.partial(command, "background", 0))],
        )
        supervisor = Supervisor(
            family,
            Limits(**settings["limits"]),
            on_serving=lambda: note(folder, "supervisor serving"),
            on_drain=lambda: note(folder, "supervisor draining"),
        )
        return supervisor.run()


def on_sigterm(folder: Path, name: str, settings: dict) -> None:
    """Note it; end unless told to ignore it; with `hold`, only once that file is there."""

    def handler(number: int, frame: object) -> None:
        note(folder, f"{name} got SIGTERM")
        if settings.get("ignore_sigterm") == name.split()[0]:
            return
        while "hold" in settings and name.startswith("frontend") and not Path(settings["hold"]).exists():
            time.sleep(0.01)
        note(folder, f"{name} ends")
        os._exit(0)

    signal.signal(signal.SIGTERM, handler)


def run_engine(folder: Path, settings: dict) -> int:
    import zmq
    from penstock.scheduler.messages import EngineStatus, encode

    on_sigterm(folder, "engine", settings)
    note(folder, f"engine started {os.getpid()} {settings['incarnation']}")
    if "engine_exit" in settings:
        print("error: the model does not fit", file=sys.stderr)
        return settings["engine_exit"]
    context = zmq.Context()
    sockets = []
    for endpoint in settings["endpoints"]:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, f"engine:0:{settings['incarnation']}".encode())
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.connect(endpoint)
        sockets.append(socket)
    state = settings.get("engine_state", "ready")
    status = EngineStatus(engine_id=0, incarnation=settings["incarnation"], state=state)
    while True:
        for socket in sockets:
            socket.send(encode(status))
        time.sleep(0.05)


def run_background(folder: Path, settings: dict) -> int:
    on_sigterm(folder, "background", settings)
    note(folder, f"background started {os.getpid()} {settings['incarnation']}")
    if "background_exit" in settings:
        return settings["background_exit"]
    while True:
        signal.pause()


def run_frontend(folder: Path, settings: dict) -> int:
    import zmq
    from penstock.scheduler.messages import EngineStatus, FamilyStatus, Serving, decode_to_frontend, encode

    name = f"frontend {settings['index']}"
    on_sigterm(folder, name, settings)
    note(folder, f"{name} started {os.getpid()} {settings['incarnation']}")
    if "frontend_exit" in settings:
        return settings["frontend_exit"]
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.bind(settings["endpoints"][settings["index"]])
    told = False
    while True:
        _, frame = socket.recv_multipart()
        message = decode_to_frontend(frame)
        if isinstance(message, EngineStatus) and message.state == "ready" and not told:
            with contextlib.suppress(
                zmq.ZMQError
            ):  # the supervisor is not there yet: the next status tries again
                socket.send(b"supervisor", zmq.SNDMORE)  # raises if it is not there
                told = True
                # Noted before the message can leave: whoever hears it writes to the same list.
                note(folder, f"{name} serves")
                socket.send(encode(Serving(settings["index"], {})))
        elif isinstance(message, FamilyStatus):
            note(folder, f"{name} heard {message.state} of {message.incarnation}")


# ------------------------------------------------------------------------------------------------------- in the tests


@dataclass
class FakeFamily:
    """A running supervisor with fake children; `folder` holds the events, `temporary` its TMPDIR."""

    process: subprocess.Popen[bytes]
    folder: Path
    temporary: Path

    def events(self) -> list[str]:
        path = self.folder / "events"
        return path.read_text().splitlines() if path.exists() else []

    def count(self, beginning: str) -> int:
        return sum(line.startswith(beginning) for line in self.events())

    def pids(self, name: str) -> list[int]:
        """Process ids of every start of `name` ("" for all), oldest first."""
        starts = [line for line in self.events() if " started " in line and line.startswith(name)]
        return [int(line.split()[-2]) for line in starts]

    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    def wait_for(self, beginning: str, count: int = 1) -> None:
        """Until `count` events begin so."""
        deadline = time.monotonic() + LIMIT_S
        while self.count(beginning) < count:
            assert time.monotonic() < deadline, f"no {beginning!r} in {self.events()}\n{self.log()}"
            time.sleep(0.01)

    def wait(self) -> int:
        return self.process.wait(LIMIT_S)

    def none_alive(self) -> bool:
        """Whether every process of the family is gone, within a short while."""
        deadline = time.monotonic() + LIMIT_S
        while any(running_process(pid) for pid in self.pids("")):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def running_process(pid: int) -> bool:
    """Alive and no zombie (after its parent was killed, whoever inherits it may be slow to reap)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


@contextlib.contextmanager
def running(
    *, num_frontends: int = 1, limits: dict | None = None, **settings: object
) -> Iterator[FakeFamily]:
    """A supervisor with fake children; everything of it is killed at the end."""
    with tempfile.TemporaryDirectory() as name:
        folder, temporary = Path(name) / "events", Path(name) / "tmp"
        folder.mkdir()
        temporary.mkdir()
        family = start(
            folder, temporary, {"num_frontends": num_frontends, "limits": limits or {}, **settings}
        )
        try:
            yield family
        finally:
            family.process.kill()
            family.process.wait()
            for pid in family.pids(""):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def start(folder: Path, temporary: Path, settings: dict) -> FakeFamily:
    with (folder / "stderr").open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, __file__, "supervisor", str(folder), json.dumps(settings)],
            env={**os.environ, "TMPDIR": str(temporary)},
            stderr=stderr,
        )
    return FakeFamily(process, folder, temporary)


if __name__ == "__main__":
    run = {
        "supervisor": run_supervisor,
        "engine": run_engine,
        "frontend": run_frontend,
        "background": run_background,
    }[sys.argv[1]]
    sys.exit(run(Path(sys.argv[2]), json.loads(sys.argv[3])))
