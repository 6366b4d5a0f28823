"""`python -m penstock.engine.grammar CONFIG.json`: the process that says which grammars can be used.

It compiles nothing itself: each grammar is tried in a forked child, so that nothing a client sends can stop, crash
or fill this process, let alone the engine or a front end. Without work it sleeps.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import msgspec

from ...scheduler.grammar_messages import CheckGrammar, GrammarConfig
from ...scheduler.messages import GrammarSpec
from .attempt import Limits
from .checks import Asker, Checks
from .link import GrammarLink

log = logging.getLogger(__name__)

NICE = 5  # its children's too: the engine goes first, but a client waits for the verdict
# A forked child has only the thread that forked: nothing may rely on a pool of others.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class GrammarProcess:
    """Messages in, verdicts out, until SIGTERM; then whoever waits gets a verdict still.

    `useless` says why no grammar can be compiled for this model, if that is so.
    """

    def __init__(self, link: GrammarLink, checks: Checks, useless: str | None) -> None:
        self._link = link
        self._checks = checks
        self._useless = useless
        self._stopping = False

    def run(self) -> None:
        link, checks = self._link, self._checks
        try:
            while not (self._stopping and checks.is_idle):
                due = checks.due
                link.wait(None if due is None else max(0.0, due - time.monotonic()), checks.descriptors)
                if signal.SIGTERM in link.take_wakes():
                    self._stopping = True
                for frontend_id in link.take_gone():
                    checks.forget_frontend(frontend_id)
                self._take_messages()
                checks.advance()
        finally:
            checks.close()

    def _take_messages(self) -> None:
        for frontend_id, message in self._link.receive():
            if not isinstance(message, CheckGrammar):
                self._checks.forget([Asker(frontend_id, check_id) for check_id in message.check_ids])
            elif self._useless or self._stopping:
                reason = self._useless or "the server is shutting down"
                self._checks.refuse(Asker(frontend_id, message.check_id), reason)
            else:
                self._checks.ask(frontend_id, message)


def load(config: GrammarConfig) -> Callable[[GrammarSpec], None]:
    """What children run: it compiles for the served model's vocabulary, and tries the result."""
    from ..model_config import read_model_config
    from .compile import Compiler
    from .rehearsal import rehearse
    from .vocabulary import token_vocabulary

    vocab_size = read_model_config(config.model_dir, config.hf_overrides).vocab_size
    compiler = Compiler(token_vocabulary(Path(config.tokenizer_dir), vocab_size))

    def try_out(spec: GrammarSpec) -> None:
        rehearse(compiler.compile(spec))

    try_out(GrammarSpec("json"))  # whatever is loaded at first use is loaded once, and not in every child
    return try_out


def never(spec: GrammarSpec) -> None:
    raise AssertionError("nothing is compiled without a vocabulary")


def run(config: GrammarConfig) -> None:
    logging.basicConfig(
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname)s grammar process: %(message)s",
        stream=sys.stderr,
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    compile_spec: Callable[[GrammarSpec], None] = never
    useless: str | None = None
    try:
        compile_spec = load(config)
    except Exception as error:  # told to everybody who asks
        useless = f"structured output is not available: {error}"
        log.error("%s", useless)
    link = GrammarLink(config.frontends, config.incarnation or time.time_ns())
    signal.set_wakeup_fd(link.wake_writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, let_it_wake)
    checks = Checks(compile_spec, Limits(config.compile_timeout_s, config.compile_memory_bytes), link.tell)
    # Children share this memory until someone writes to it: the collector must not.
    gc.collect()
    gc.freeze()
    try:
        GrammarProcess(link, checks, useless).run()
    finally:
        signal.set_wakeup_fd(-1)
        link.close()


def let_it_wake(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor speaks."""


def main() -> None:
    os.nice(NICE)
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    run(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=GrammarConfig))
    sys.stderr.flush()
    os._exit(0)  # nothing is left to release, and torch takes a while to find that out


if __name__ == "__main__":
    main()
