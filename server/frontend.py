"""`python -m penstock.server.frontend CONFIG.json`: one front-end process, from its configuration to its last answer."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import jinja2
import msgspec
import uvloop

from .. import __version__
from ..scheduler.messages import EngineStatus, Serving
from .frontend_config import FrontEndConfig
from .http.app import build_app
from .http.server import HttpServer, inherited_socket
from .logs import set_up_logging
from .metrics.exposition import Exposition
from .metrics.loop_lag import LoopLag
from .metrics.processes import FamilyUsage
from .metrics.stats_line import StatsLine
from .requests.sequence import Failure
from .services import Services, build_services
from .text.tokenizer import TokenizerError

log = logging.getLogger(__name__)

EXIT_BAD_CONFIGURATION = 2
# What is still being written when the running requests have been ended gets this long to reach its clients.
LAST_WORDS_S = 3.0


class FrontEnd:
    """The HTTP server, the link to the engines, and their end."""

    def __init__(self, services: Services, listening: socket.socket, began: float) -> None:
        config = services.config
        self._services = services
        self._listening = listening
        startup = self._startup = {"front_end": time.monotonic() - began}
        exposition = Exposition(
            metrics=services.metrics,
            link=services.link,
            model_name=config.served_model_names[0],
            family=FamilyUsage(os.getppid()),
            startup=self._startup,
        )
        stats = StatsLine() if config.log_stats and config.frontend_id == 0 else None

        def on_status(status: EngineStatus) -> None:
            exposition.on_status(status)
            if status.state == "ready" and config.command_began_ns is not None:
                startup.setdefault("total", (time.time_ns() - config.command_began_ns) / 1e9)
            if stats is not None:
                stats.on_status(status)

        services.link.on_status = on_status
        self._loop_lag = LoopLag(services.metrics, lambda: services.link.num_outstanding > 0)
        self._http = HttpServer(
            build_app(services, exposition),
            limits=config.limits,
            root_path=config.root_path,
            ssl_keyfile=config.ssl_keyfile,
            ssl_certfile=config.ssl_certfile,
            grace_s=config.shutdown_timeout_s + LAST_WORDS_S,
        )

    async def run(self) -> None:
        """Serve until `drain`, and until the running requests are over."""
        link, router = self._services.link, self._services.router
        link.open()
        router.open()
        self._loop_lag.open()
        await self._services.background.open()
        try:
            serving = asyncio.create_task(self._http.serve(sockets=[self._listening]))
            while not self._http.started and not serving.done():
                await asyncio.sleep(0)
            link.announce_when_ready(Serving(self._services.config.frontend_id, self._startup))
            await serving
        finally:
            await self._services.background.close()
            self._loop_lag.close()
            link.close()
            router.close()
            self._services.tokenizer.close()

    def drain(self) -> None:
        """Take nothing new, let the running requests finish for a while, then end them with an error."""
        link = self._services.link
        if link.draining:
            self._end_requests("the server was told twice to stop")
            return
        link.draining = True
        log.info("draining: %d sequences are running", link.num_outstanding)
        asyncio.get_running_loop().call_later(
            self._services.config.shutdown_timeout_s, self._end_requests, "the server is shutting down"
        )
        self._http.stop()

    def _end_requests(self, reason: str) -> None:
        self._services.grammars.end(reason)
        self._services.link.fail_all(Failure(code="shutdown", message=reason))


async def serve(services: Services, listening: socket.socket, began: float) -> None:
    front_end = FrontEnd(services, listening, began)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, front_end.drain)
    gc.collect()
    gc.freeze()  # what was built at the start never becomes garbage: the collector need not look at it again
    await front_end.run()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    config = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=FrontEndConfig)
    began = time.monotonic() - (time.time_ns() - config.incarnation) / 1e9  # the interpreter's start included
    set_up_logging(f"front end {config.frontend_id}", config.log_level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        services = build_services(config, __version__)
    except TokenizerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_CONFIGURATION)
    except jinja2.TemplateSyntaxError as error:
        print(
            f"error: the chat template is not valid Jinja (line {error.lineno}): {error}",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(EXIT_BAD_CONFIGURATION)
    uvloop.run(serve(services, inherited_socket(config.listen_fd), began))


if __name__ == "__main__":
    main()
