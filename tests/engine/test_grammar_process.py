"""The grammar process as front ends see it: a verdict for every grammar, whatever the grammar does."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import psutil
import pytest
from grammar_process import INCARNATION, GrammarProcess, grammar_process, wait_until

# Compiles for seconds: long enough to be caught in the act.
SLOW = "|".join(f"[a-z]{{{count},}}x{count}" for count in range(1, 300))
# Compiles in a millisecond, but the mask of its first token is never done.
ENDLESS = 'root ::= s\ns ::= s s s | [a-z ] | ""'
# Every level doubles what the compiler makes of it.
HUNGRY = '{"type":"array","items":' * 3000 + "{}" + "}" * 3000


@pytest.fixture(scope="module")
def running() -> Iterator[GrammarProcess]:
    with grammar_process(num_frontends=2) as process:
        yield process


def slow(name: str) -> str:
    """A slow grammar that nobody has asked for yet."""
    return f"{name}|{SLOW}"


def test_sound_grammars_of_every_kind_are_accepted(running: GrammarProcess) -> None:
    frontend = running.frontends[0]
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": {"type": "integer"}}}
    for kind, text in {
        "json": "",
        "json_schema": '{"type": "object", "properties": {"a": {"type": "integer"}}}',
        "regex": "[0-9]{3}",
        "ebnf": 'root ::= "a" | "b"',
        "lark": 'start: "a" | "b"',
        "structural_tag": json.dumps(tag),
    }.items():
        verdict = frontend.check(kind, text)
        assert (verdict.outcome, verdict.message) == ("ok", "")
        assert verdict.seconds is not None
        assert verdict.seconds > 0


def many_tools(count: int) -> str:
    """Calls of one of `count` tools, each with a schema of its own."""
    tags = []
    for number in range(count):
        fields = {f"field_{number}_{index}": {"type": "string"} for index in range(6)}
        row = {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": ["string", "null"]}},
            "required": ["a"],
            "additionalProperties": False,
        }
        schema = {
            "type": "object",
            "properties": {
                **fields,
                "kind": {"enum": [f"kind {value}" for value in range(8)]},
                "rows": {"type": "array", "items": row},
            },
            "required": [f"field_{number}_0", "kind"],
            "additionalProperties": False,
        }
        tags.append(
            {
                "type": "tag",
                "begin": f'<tool_call>\n{{"name": "tool_{number}", "arguments": ',
                "content": {"type": "json_schema", "json_schema": schema},
                "end": "}\n</tool_call>",
            }
        )
    calls = {"type": "tags_with_separator", "tags": tags, "separator": "\n", "at_least_one": True}
    return json.dumps({"type": "structural_tag", "format": calls})


def test_the_schemas_of_128_tools_are_accepted(running: GrammarProcess) -> None:
    """In the time that one grammar may take: a cold compilation of so many took others tens of seconds."""
    verdict = running.frontends[0].check("structural_tag", many_tools(128))
    assert (verdict.outcome, verdict.message) == ("ok", "")


def test_a_defect_is_refused_with_its_reason(running: GrammarProcess) -> None:
    verdict = running.frontends[0].check("json_schema", '{"type": "objx"}')
    assert (verdict.outcome, verdict.message) == ("refused", 'Unsupported type "objx"')


def test_a_grammar_known_to_one_front_end_is_known_to_the_other(running: GrammarProcess) -> None:
    first, second = running.frontends
    assert first.check("regex", "known [0-9]").seconds is not None
    verdict = second.check("regex", "known [0-9]")
    assert (verdict.outcome, verdict.seconds) == ("ok", None)


def test_one_grammar_in_flight_for_two_front_ends_is_one_child(running: GrammarProcess) -> None:
    first, second = running.frontends
    one, child = running.ask_and_freeze(first, slow("shared"))
    two = second.ask("regex", slow("shared"))
    assert second.check("regex", "ask after that").outcome == "ok"  # so the one before has been read
    wait_until(lambda: running.children() == [child], "one child alone")
    child.kill()
    verdicts = [first.verdict(one), second.verdict(two)]
    assert [verdict.outcome for verdict in verdicts] == ["crash", "crash"]
    assert "SIGKILL" in verdicts[0].message
    assert [verdict.seconds is None for verdict in verdicts] == [False, True]


def test_a_pathological_grammar_delays_nobody_else(running: GrammarProcess) -> None:
    first, second = running.frontends
    stuck, child = running.ask_and_freeze(first, slow("stuck"))
    for frontend in (first, second):
        assert frontend.check("regex", f"quick {id(frontend)}").outcome == "ok"
    assert stuck not in first.verdicts
    child.kill()
    assert first.verdict(stuck).outcome == "crash"


def test_too_much_memory_is_a_verdict(running: GrammarProcess) -> None:
    verdict = running.frontends[0].check("json_schema", HUNGRY)
    assert verdict.outcome == "memory"
    assert "256 MiB" in verdict.message


def test_nonsense_is_dropped_and_the_process_goes_on(running: GrammarProcess) -> None:
    frontend = running.frontends[0]
    for frame in (b"", b"\xc1", b"\x81\xa4type\xa5check", b"\x00" * 10_000):
        frontend.send(frame)
    assert frontend.check("regex", "after nonsense").outcome == "ok"
    assert "dropped a message" in running.log.read_text()


def test_a_front_end_that_comes_back_is_greeted_again_and_its_old_checks_are_forgotten(
    running: GrammarProcess,
) -> None:
    _, child = running.ask_and_freeze(running.frontends[1], slow("of a dead front end"))
    frontend = running.restart_frontend(1)
    assert frontend.greeted().incarnation == INCARNATION
    assert frontend.check("regex", "of the new one").outcome == "ok"
    child.kill()
    assert frontend.check("regex", "of the new one, again").outcome == "ok"
    assert len(frontend.verdicts) == 2


def test_compiling_and_following_have_a_time_limit_and_leave_no_child() -> None:
    with grammar_process(compile_timeout_s=0.5) as running:
        frontend = running.frontends[0]
        for kind, text in (("regex", SLOW), ("ebnf", ENDLESS)):
            verdict = frontend.check(kind, text)
            assert verdict.outcome == "timeout"
            assert "0.5 s (--grammar-compile-timeout)" in verdict.message
        wait_until(lambda: not running.children(), "the children to be gone")


def test_no_child_survives_a_killed_grammar_process() -> None:
    with grammar_process() as running:
        _, child = running.ask_and_freeze(running.frontends[0], SLOW)
        running.process.kill()
        running.process.wait()
        _, alive = psutil.wait_procs([child], timeout=20)
        assert not alive


def test_sigterm_gives_those_who_wait_their_verdict_and_then_ends_it() -> None:
    with grammar_process() as running:
        (frontend,) = running.frontends
        asked, child = running.ask_and_freeze(frontend, SLOW)
        running.process.send_signal(signal.SIGTERM)
        late = frontend.ask("regex", "late")
        while frontend.verdict(late).outcome == "ok":  # asked before the signal was heard
            late = frontend.ask("regex", f"late {late}")
        assert "shutting down" in frontend.verdict(late).message
        child.kill()
        assert frontend.verdict(asked).outcome == "crash"
        assert running.process.wait(20) == 0


def test_without_a_usable_tokenizer_everybody_is_told_so(tmp_path) -> None:
    with grammar_process(tokenizer_dir=str(tmp_path)) as running:
        verdict = running.frontends[0].check("json")
        assert verdict.outcome == "unavailable"
        assert "tokenizer.json" in verdict.message
