"""Earlier turns reach each model's template in the form that it reads."""

from __future__ import annotations

import json

import pytest
from penstock.server.api.conversation import render
from penstock.server.api.errors import ApiError
from penstock.server.api.protocol import ChatRequest
from penstock.server.text.template import ChatTemplate

CALL_ID = "call_0123456789abcdefghijklmn"
CALL = {"id": CALL_ID, "type": "function", "function": {"name": "look_up", "arguments": '{"q": "é"}'}}
TURNS = [
    {"role": "user", "content": "Look it up"},
    {"role": "assistant", "content": None, "reasoning_content": "Hm", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": CALL_ID, "content": [{"type": "text", "text": "found"}]},
]
SHOW = "{{ messages | tojson }}"


def rendered(source: str, messages: list[dict] = TURNS, **options: object) -> str:
    return render(ChatTemplate({"default": source}, {}), ChatRequest(messages=messages, **options))


def seen(source: str = SHOW, messages: list[dict] = TURNS) -> list[dict]:
    """The messages as a template of this text gets them."""
    return json.loads(rendered("{# " + source.replace(SHOW, "") + " #}" + SHOW, messages))


def test_arguments_are_objects_content_is_text_and_results_have_names() -> None:
    _, said, result = seen()
    assert said["tool_calls"][0]["function"]["arguments"] == {"q": "é"}
    assert said["content"] == ""
    assert said["reasoning_content"] == "Hm"
    assert (result["content"], result["name"], result["tool_call_id"]) == ("found", "look_up", CALL_ID)


def test_vllms_name_for_the_thinking_is_understood() -> None:
    turn = {"role": "assistant", "content": "Yes", "reasoning": "Hm"}
    (message,) = seen(messages=[turn])
    assert message["reasoning_content"] == "Hm"


def test_a_template_that_joins_arguments_gets_them_as_text() -> None:
    call = "{{ 'args:' + t['function']['arguments'] + '.' }}"
    source = "{% for m in messages %}{% for t in m.tool_calls %}" + call + "{% endfor %}{% endfor %}"
    assert rendered(source) == 'args:{"q":"é"}.'


def test_a_template_that_knows_calls_by_null_content_gets_null() -> None:
    source = "{% for m in messages %}{% if m['content'] is none %}CALLS{% endif %}{% endfor %}"
    assert rendered(source) == "CALLS"


def test_ids_of_a_foreign_form_are_brought_to_the_length_that_the_template_takes() -> None:
    source = "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    _, said, result = seen(source)
    assert said["tool_calls"][0]["id"] == result["tool_call_id"]
    assert len(result["tool_call_id"]) == 9
    assert result["tool_call_id"].isalnum()
    assert result["name"] == "look_up"


def test_harmony_gets_thinking_beside_calls_but_not_beside_content() -> None:
    _, said, _ = seen("{{ message.thinking }}")
    assert said["thinking"] == "Hm"
    (spoken,) = seen(
        "{{ message.thinking }}", [{"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}]
    )
    assert "thinking" not in spoken


@pytest.mark.parametrize("effort", ["none", "low"])
def test_no_effort_switches_thinking_off_in_the_template(effort: str) -> None:
    source = "{{ enable_thinking is defined }} {{ thinking is defined }} {{ reasoning_effort }}"
    off = effort == "none"
    assert rendered(source, reasoning_effort=effort) == f"{off} {off} {effort}"


def test_effort_and_switch_may_not_contradict_each_other() -> None:
    with pytest.raises(ApiError, match="contradicts chat_template_kwargs"):
        rendered(SHOW, reasoning_effort="none", chat_template_kwargs={"thinking": True})
    rendered(SHOW, reasoning_effort="none", chat_template_kwargs={"thinking": False})
