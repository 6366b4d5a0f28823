"""The grammars that requests need: compiled on threads of lowest priority, kept within a bound, each compiled once.

A request whose grammar is not there yet waits outside of the scheduler, so no batch ever waits for a compiler. The
grammar process has proved that compiling each of them ends in bounds.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from ...scheduler.arrays import Int32
from ...scheduler.messages import GrammarSpec
from .compile import Compiler, GrammarError
from .forced import Spelling
from .visible import VisibleTokens
from .vocabulary import VocabularyError, read_vocabulary

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar

log = logging.getLogger(__name__)

NUM_THREADS = 2  # a grammar that compiles for seconds must not hold up the others
LOWEST_PRIORITY = 19


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar, and the mask (int32 (words,)) of the tokens that are text to it.

    `counts_tokens`: it bounds a region in tokens, which xgrammar counts only where a mask was filled before each.
    `spelling` is that of its vocabulary.
    """

    compiled: CompiledGrammar
    visible: Int32
    num_bytes: int
    spelling: Spelling
    counts_tokens: bool = False


Key = TypeVar("Key")
Compile: TypeAlias = Callable[[GrammarSpec], Grammar]


class GrammarStore(Generic[Key]):
    """Grammars by their specification. Its methods are called by the engine's thread alone.

    Whoever `want`s a grammar is known by a key of its own choosing, and finds it in `settled` later if it has to be
    compiled first; `wake` is called (on a thread of the store) when there is something in it.
    """

    def __init__(
        self, open_compiler: Callable[[], Compile], *, capacity_bytes: int, wake: Callable[[], None]
    ) -> None:
        """`open_compiler` is called on a thread of the store before the first grammar is compiled."""
        self._open_compiler = open_compiler
        self._capacity_bytes = capacity_bytes
        self._wake = wake
        self._kept: OrderedDict[GrammarSpec, Grammar] = OrderedDict()  # the one used last comes last
        self._kept_bytes = 0
        self._wanted_by: dict[GrammarSpec, list[Key]] = {}
        # Shared with the threads.
        self._changed = threading.Condition()
        self._queue: deque[GrammarSpec] = deque()
        self._finished: deque[tuple[GrammarSpec, Grammar | str]] = deque()
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._compile: Compile | None = None
        self._opening = threading.Lock()

    def want(self, spec: GrammarSpec, key: Key) -> Grammar | None:
        """The grammar if it is there. If not, it is compiled, and `key` comes up in `settled` when that is done."""
        grammar = self._kept.get(spec)
        if grammar is not None:
            self._kept.move_to_end(spec)
            return grammar
        waiting = self._wanted_by.get(spec)
        if waiting is not None:
            waiting.append(key)
            return None
        self._wanted_by[spec] = [key]
        self._start_threads()
        with self._changed:
            self._queue.append(spec)
            self._changed.notify()
        return None

    def prepare(self) -> None:
        """Load what compiling takes, in the background: a second of Python that the first grammar then does not cost
        its own request, nor those that run beside it."""
        self._start_threads()

    def forgo(self, spec: GrammarSpec, key: Key) -> None:
        """`key` waits no longer. What nobody waits for is not compiled unless that has begun."""
        waiting = self._wanted_by[spec]
        waiting.remove(key)
        if not waiting:
            with self._changed:
                if spec in self._queue:
                    self._queue.remove(spec)
                    del self._wanted_by[spec]

    def settled(self) -> list[tuple[Key, Grammar | str]]:
        """Who waits no longer, each once: with the grammar, or with the reason why there is none."""
        result: list[tuple[Key, Grammar | str]] = []
        while self._finished:
            spec, outcome = self._finished.popleft()
            if isinstance(outcome, Grammar):
                self._keep(spec, outcome)
            result += ((key, outcome) for key in self._wanted_by.pop(spec))
        return result

    def close(self) -> None:
        """Let the threads end after what they are compiling; nothing is settled any more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    @property
    def num_bytes(self) -> int:
        """Of the grammars kept."""
        return self._kept_bytes

    def _keep(self, spec: GrammarSpec, grammar: Grammar) -> None:
        self._kept[spec] = grammar
        self._kept_bytes += grammar.num_bytes
        while self._kept_bytes > self._capacity_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.num_bytes

    # -------------------------------------------------------------------------------------------- on its own threads

    def _start_threads(self) -> None:
        while len(self._threads) < NUM_THREADS:
            thread = threading.Thread(target=self._run, name="grammars", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self) -> None:
        compile_grammar = self._open()
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._queue)
                if self._stopping:
                    return
                spec = self._queue.popleft()
            outcome: Grammar | str
            try:
                outcome = compile_grammar(spec)
            except GrammarError as error:
                outcome = str(error)
            except Exception as error:  # told to whoever waits for it
                log.exception("a grammar of kind %s could not be compiled", spec.kind)
                outcome = f"the grammar cannot be compiled: {error}"
            self._finished.append((spec, outcome))
            self._wake()

    def _open(self) -> Compile:
        """Once for all threads. At the usual priority: it is Python, and a thread that starves while it has the
        interpreter's lock would stop the engine."""
        with self._opening:
            if self._compile is None:
                try:
                    self._compile = self._open_compiler()
                except VocabularyError as error:
                    self._compile = refusal(str(error))
                except Exception as error:  # told to everybody who wants a grammar
                    log.exception("grammars cannot be used")
                    self._compile = refusal(f"grammars cannot be used: {error}")
            return self._compile


def refusal(reason: str) -> Compile:
    """Compiles nothing, for this reason."""

    def refuse(spec: GrammarSpec) -> Grammar:
        raise GrammarError(reason)

    return refuse


def open_compiler(tokenizer_dir: Path | None, vocab_size: int) -> Compile:
    """A compiler for this vocabulary; loads xgrammar and takes a second. Raises `VocabularyError`."""
    if tokenizer_dir is None:
        raise VocabularyError("the engine was given no tokenizer: grammars need its tokenizer.json")
    vocabulary = read_vocabulary(tokenizer_dir, vocab_size)
    info = vocabulary.info()
    compiler = Compiler(info)
    special = set(vocabulary.special.values())
    spelling = Spelling(
        [b"" if number in special else token for number, token in enumerate(info.decoded_vocab)]
    )
    textless = [number for number, token in enumerate(info.decoded_vocab) if not token]
    visible = VisibleTokens(vocabulary.special, [*info.stop_token_ids, *textless], vocab_size)

    def compile_grammar(spec: GrammarSpec) -> Grammar:
        compiled = compiler.compile(spec)
        return Grammar(
            compiled,
            visible.of(spec),
            compiled.memory_size_bytes + len(spec.text),
            spelling,
            counts_tokens='"max_tokens"' in spec.text,
        )

    return compile_grammar
