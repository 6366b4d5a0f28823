"""A checkpoint's template can neither reach out of its values nor take the server's time or memory."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import jinja2
import pytest
from penstock.server.text.template import ChatTemplate, TemplateError

MESSAGES = [{"role": "user", "content": "hello"}]

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__'] }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ ('%s' | attr('format')).__globals__ }}",
    "{{ messages.append({'role': 'user'}) }}",
    "{{ messages[0].update(role='system') }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}{{ os }}",
]

TIME_EATERS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a * b %}{% endfor %}{% endfor %}",
]

MEMORY_EATERS = [
    "{{ 'x' * 10000000000 }}",
    "{{ [0] * 10000000000 }}",
    "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
    "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x | replace('a', 'aa') %}{% endfor %}",
    "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
    "{% set x %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = x %}{% endfor %}",
    "{% macro m() %}{% for a in range(99999) %}{% for b in range(99999) %}"
    + "y" * 1000
    + "{% endfor %}{% endfor %}{% endmacro %}{{ m() }}",
    "{{ 'x'.center(10000000000) }}",
    "{{ 'x' | center(10000000000) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ 'x'.join(['y' * 10000000, 'z' * 10000000, 'z' * 50000000]) }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 'x\n' | indent(10000000000) }}",
]


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """So that a hole makes the test fail and not the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def render(source: str, seconds: float = 0.5) -> str:
    template = ChatTemplate({"default": source}, {}, seconds=seconds, max_bytes=1 << 20)
    return template.render(
        MESSAGES, tools=None, add_generation_prompt=True, continue_final_message=False, variables={}
    )


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_reaches_nothing_but_its_values(source: str) -> None:
    try:
        text = render(source)
    except TemplateError:
        text = ""  # refused
    assert text == ""  # or undefined
    assert MESSAGES == [{"role": "user", "content": "hello"}]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("source", TIME_EATERS)
def test_a_template_that_takes_too_long_is_stopped(source: str) -> None:
    with pytest.raises(TemplateError, match="--template-timeout"):
        render(source)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("source", MEMORY_EATERS)
def test_a_template_that_makes_too_much_is_stopped(source: str, bounded_memory: None) -> None:
    with pytest.raises(TemplateError, match=r"--max-template-bytes|too large a number|--template-timeout"):
        render(source, seconds=5)


def test_a_template_that_is_itself_too_long_is_refused() -> None:
    with pytest.raises(jinja2.TemplateSyntaxError, match="longer than"):
        render("x" * (2 << 20))


def test_the_next_rendering_has_a_budget_of_its_own() -> None:
    template = ChatTemplate(
        {"default": "{% for m in messages %}{{ m.content }}{% endfor %}"}, {}, max_bytes=2048
    )
    for _ in range(3):
        text = template.render(
            [{"role": "user", "content": "a" * 1500}],
            tools=None,
            add_generation_prompt=False,
            continue_final_message=False,
            variables={},
        )
        assert text == "a" * 1500


def test_loops_know_their_length_and_their_end() -> None:
    source = (
        "{% for m in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}"
    )
    assert render(source) == "1/3,2/3,3/3"
