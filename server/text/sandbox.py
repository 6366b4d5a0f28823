"""Jinja for templates that came with a checkpoint: sandboxed, and bounded in time, steps and size.

A template is a program. The sandbox keeps it from everything but the values it is given; the budget keeps it from
taking the server's time and memory. Loops, literal text and `~` are rewritten when a template is compiled so that
they spend from the budget of the rendering that runs; operators, filters and methods that can make something large
out of something small are checked before they run.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_SOURCE_CHARS = 1 << 20
MAX_INTEGER_BITS = 4096
STEPS_PER_LOOK = 256  # at the clock
GROWING = frozenset(
    {"center", "expandtabs", "indent", "ljust", "rjust", "wordwrap", "zfill", "batch", "slice"}
)
EACH, LITERAL, JOINED = "penstock each", "penstock literal", "penstock joined"
LONG_WIDTH = re.compile(r"\d{7,}|\*")


class TemplateLimit(Exception):
    """A template took more than it may; the message says what and which option allows more."""


class Budget:
    """What one rendering may still take."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._deadline = time.monotonic() + seconds
        self._steps = 0
        self._written = 0

    def step(self) -> None:
        self._steps += 1
        if self._steps % STEPS_PER_LOOK == 0 and time.monotonic() > self._deadline:
            raise TemplateLimit(f"it takes longer than {self._seconds:g} s (--template-timeout)")

    def write(self, size: int) -> None:
        """`size` more characters of text were made."""
        self._written += size
        if self._written > self._max_bytes:
            raise too_large(self._max_bytes)
        self.step()


def too_large(limit: int) -> TemplateLimit:
    return TemplateLimit(f"it makes more than {limit} characters of text (--max-template-bytes)")


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates whose every rendering runs `within` a budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *, seconds: float, max_bytes: int, **options: Any) -> None:
        super().__init__(finalize=self._written, **options)
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._running = threading.local()
        self.filters = {name: self._checked(name, call) for name, call in self.filters.items()}
        self.filters |= {EACH: self._each, LITERAL: self._literal, JOINED: self._joined}

    def render(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        """Raises `TemplateLimit`, and whatever the template raises."""
        budget = Budget(self._seconds, self._max_bytes)
        self._running.budget = budget
        try:
            return "".join(template.root_render_func(template.new_context(variables)))
        except MemoryError:
            raise too_large(self._max_bytes) from None
        finally:
            self._running.budget = None

    def add_filter(self, name: str, call: Callable[..., Any]) -> None:
        self.filters[name] = self._checked(name, call)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE_CHARS:
            raise jinja2.TemplateSyntaxError(
                f"it is longer than {MAX_SOURCE_CHARS} characters", 1, name, filename
            )
        parsed = Spending(self).visit(super()._parse(source, name, filename))
        assert isinstance(parsed, nodes.Template)
        return parsed

    # ------------------------------------------------------------------------------------- called by compiled templates

    # Filters are called without the sandbox's checks; being given the context keeps them from being run as constants.

    @jinja2.pass_context
    def _each(self, context: Context, values: Iterable[Any]) -> Iterator[Any]:
        """What a loop runs over."""
        budget: Budget = self._running.budget
        for value in values:
            budget.step()
            yield value

    @jinja2.pass_context
    def _literal(self, context: Context, text: str) -> str:
        self._running.budget.write(len(text))
        return text

    @jinja2.pass_context
    def _joined(self, context: Context, *parts: Any) -> str:
        """`a ~ b`."""
        texts = [part if isinstance(part, str) else str(part) for part in parts]
        self._check(sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            __self._check_growth(__obj.__name__, owner, args, kwargs)
        budget = __self._budget()
        if budget is not None:
            budget.step()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(other, int):
                    self._check(len(one) * other)
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, type(left)):
            self._check(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            self._check_growth("format", left, (), {})
        elif (
            operator == "**"
            and isinstance(left, int)
            and isinstance(right, int)
            and left.bit_length() * right > MAX_INTEGER_BITS
        ):
            raise TemplateLimit(f"{operator} makes too large a number")
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > MAX_INTEGER_BITS:
            raise TemplateLimit(f"{operator} makes too large a number")
        return result

    # ------------------------------------------------------------------------------------------------------ the checks

    def _budget(self) -> Budget | None:
        """None while a template is compiled, which evaluates constants."""
        return getattr(self._running, "budget", None)

    def _written(self, value: Any) -> Any:
        budget = self._budget()
        if budget is not None:
            budget.write(len(value) if isinstance(value, str) else len(str(value)))
        return value

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise too_large(self._max_bytes)
        budget = self._budget()
        if budget is not None:
            budget.write(size)

    def _checked(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)  # keeps what tells jinja to pass the context or the environment
        def checked(*args: Any, **kwargs: Any) -> Any:
            values = [value for value in args if not isinstance(value, (Context, jinja2.Environment))]
            if values:
                self._check_growth(name, values[0], tuple(values[1:]), kwargs)
            result = call(*args, **kwargs)
            if isinstance(result, str):
                self._check(len(result))
            return result

        return checked

    def _check_growth(self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a method or filter runs that may make much more than it was given."""
        given = (*args, *kwargs.values())
        if name in GROWING:
            lines = value.count("\n") + 1 if isinstance(value, str) else 1
            for number in given:
                if isinstance(number, int):
                    self._check(number * lines)
                elif isinstance(number, str):
                    self._check(len(number) * lines)
        elif name in ("format", "format_map") and isinstance(value, str):
            if LONG_WIDTH.search(value):
                raise too_large(self._max_bytes)
            self._check(value.count("%") + value.count("{") + sum(len(str(item)) for item in given))
        elif name == "join":
            separator, items = (value, given[:1]) if isinstance(value, str) and args else ("", (value,))
            if not isinstance(value, str) and given and isinstance(given[0], str):
                separator = given[0]
            for several in items:
                if isinstance(several, (list, tuple, str)):
                    size = sum(len(item) if isinstance(item, str) else 1 for item in several)
                    self._check(size + len(separator) * len(several))
        elif name == "replace" and isinstance(value, str) and len(args) >= 2:
            old, new = str(args[0]), str(args[1])
            self._check(len(value) + value.count(old) * len(new))


class Spending(NodeTransformer):
    """Rewrites loops, literal text and `~` into calls that spend from the budget."""

    def __init__(self, environment: LimitedEnvironment) -> None:
        self._environment = environment

    def _through(
        self, name: str, first: nodes.Node, others: list[nodes.Expr], at: nodes.Node
    ) -> nodes.Filter:
        call = nodes.Filter(first, name, others, [], None, None, lineno=at.lineno)
        call.set_environment(self._environment)
        return call

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._through(EACH, node.iter, [], node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._through(JOINED, node.nodes[0], node.nodes[1:], node)

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return self._through(LITERAL, nodes.Const(node.data, lineno=node.lineno), [], node)
