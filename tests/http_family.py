"""A front end on a real socket, in a thread of the test process, with a fake engine and grammar process behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvloop
from fake_engine import FakeEngine, FakeSupervisor
from fake_grammar import FakeGrammar
from penstock.server.frontend import FrontEnd
from penstock.server.frontend_config import FrontEndConfig
from penstock.server.services import Services, build_services
from tiny_tokenizer import write_model
from tokenizers import Tokenizer

LIMIT_S = 10.0
MODEL = "tiny"


@dataclass
class Family:
    """A served fake. `client` speaks to the front end."""

    url: str
    endpoint: str
    engine: FakeEngine
    grammar: FakeGrammar
    supervisor: FakeSupervisor
    client: httpx.Client
    tokenizer: Tokenizer
    services: Services
    drain: Callable[[], None]
    ended: threading.Event
    loop: asyncio.AbstractEventLoop

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, prompt: list[int], count: int, seed: int = 0) -> str:
        """What the fake model says after `prompt`."""
        return self.tokenizer.decode(self.engine.expected(prompt, count, seed))

    def metric(self, name: str, **labels: str) -> float:
        return metric(self.client, name, **labels)

    def new_engine(self, incarnation: int, **options: Any) -> FakeEngine:
        self.engine = FakeEngine(self.engine.endpoints, incarnation=incarnation, **options)
        return self.engine.start()

    def new_grammar(self, incarnation: int) -> FakeGrammar:
        self.grammar = FakeGrammar(self.grammar.endpoints, incarnation=incarnation)
        return self.grammar.start()


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of the samples of that name which carry these labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    total = 0.0
    for line in client.get("/metrics").text.splitlines():
        if line.startswith((name + "{", name + " ")) and all(pair in line for pair in wanted):
            total += float(line.rpartition(" ")[2])
    return total


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {LIMIT_S} s for {what}"
        time.sleep(0.005)


def front_end_config(directory: Path, listening: socket.socket, **options: Any) -> FrontEndConfig:
    return FrontEndConfig(
        **{
            "frontend_id": 0,
            "incarnation": 1,
            "num_frontends": 1,
            "listen_fd": os.dup(listening.fileno()),
            "endpoint": f"ipc://{directory}/frontend-0",
            "model": str(directory),
            "model_dir": str(directory),
            "tokenizer_dir": str(directory),
            "served_model_names": [MODEL, "alias"],
            "generation_config_path": str(directory / "generation_config.json"),
            **options,
        }
    )


@contextlib.contextmanager
def family(
    *, engine: dict[str, Any] | None = None, generation: dict | None = None, wait: bool = True, **options: Any
) -> Iterator[Family]:
    """`options` go into the front end's configuration, `engine` into the fake; `wait` for readiness."""
    with (
        tempfile.TemporaryDirectory(prefix="pf") as folder,
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        directory = Path(folder)
        tokenizer = write_model(directory, generation=generation)
        config = front_end_config(directory, listening, **options)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        services = build_services(config, "1.2.3")
        loop = uvloop.new_event_loop()
        ended = threading.Event()
        front_end: list[FrontEnd] = []
        built = threading.Event()

        async def serve() -> None:
            front_end.append(FrontEnd(services, socket.socket(fileno=config.listen_fd), time.monotonic()))
            built.set()
            await front_end[0].run()

        def run() -> None:
            asyncio.set_event_loop(loop)
            try:
                loop.run_until_complete(serve())
            finally:
                loop.close()
                ended.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert built.wait(LIMIT_S)

        def drain() -> None:
            loop.call_soon_threadsafe(front_end[0].drain)

        fake = FakeEngine([config.endpoint], vocab_size=tokenizer.get_vocab_size(), **(engine or {}))
        grammar = FakeGrammar([config.endpoint])
        supervisor = FakeSupervisor(config.endpoint)
        client = httpx.Client(base_url=url, timeout=LIMIT_S)
        running = Family(
            url, config.endpoint, fake, grammar, supervisor, client, tokenizer, services, drain, ended, loop
        )
        if wait:
            fake.start()
            grammar.start()
            wait_until(lambda: client.get("/ready").status_code == 200, "the front end to be ready")
        try:
            yield running
        finally:
            client.close()
            if not ended.is_set():
                drain()
                drain()
            assert ended.wait(LIMIT_S), "the front end did not end"
            running.engine.stop() if running.engine._thread.ident else None
            running.grammar.stop()
            supervisor.close()
