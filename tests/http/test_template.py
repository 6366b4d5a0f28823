"""Checkpoints' chat templates run in a sandbox and say no in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from penstock.server.text.template import ChatTemplate, TemplateError, find_sources
from penstock.server.text.tokenizer import Tokenizer
from tiny_tokenizer import byte_level

USER = [{"role": "user", "content": "Grüße & <b>"}]


def render(source: str, messages: list[dict] = USER, **options: object) -> str:
    return ChatTemplate({"default": source}, {"bos_token": "<s>"}).render(
        messages,
        **{
            "tools": None,
            "add_generation_prompt": True,
            "continue_final_message": False,
            "variables": {},
            **options,
        },
    )


def test_blocks_leave_no_blank_lines_and_json_is_not_escaped() -> None:
    source = "{% for m in messages %}\n  {% if true %}\n{{ m | tojson }}\n  {% endif %}\n{% endfor %}\n"
    assert render(source) == '{"role": "user", "content": "Grüße & <b>"}\n'


def test_generation_marks_loop_controls_and_special_tokens_work() -> None:
    text = "{% generation %}{{ m.content[:3] }}{% endgeneration %}"
    source = "{{ bos_token }}{% for m in messages %}" + text + "{% break %}{% endfor %}"
    assert render(source, USER * 2) == "<s>Grü"
    assert render("{{ strftime_now('%Y') }}").isdigit()


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.__init__.__globals__ }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{{ raise_exception('only users may speak') }}",
        "{{ messages[9].content }}",
        "{{ 1 / 0 }}",
    ],
)
def test_what_goes_wrong_in_a_template_is_one_kind_of_error(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source + "{{ undefined.attribute }}")


def test_continuing_the_last_message_cuts_behind_its_text() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[/]{% endfor %}"
    messages = [*USER, {"role": "assistant", "content": "The answer is "}]
    text = render(source, messages, add_generation_prompt=False, continue_final_message=True)
    assert text == "[user]Grüße & <b>[/][assistant]The answer is"


def test_templates_are_found_where_checkpoints_keep_them(tmp_path: Path) -> None:
    plain = Tokenizer(byte_level(), {"chat_template": "P"})
    named = Tokenizer(
        byte_level(),
        {"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]},
    )
    assert find_sources(None, [tmp_path], plain) == {"default": "P"}
    assert find_sources(None, [tmp_path], Tokenizer(byte_level())) == {}
    template = ChatTemplate(find_sources(None, [tmp_path], named), {})
    options = {"add_generation_prompt": True, "continue_final_message": False, "variables": {}}
    assert template.render(USER, tools=None, **options) == "D"
    assert template.render(USER, tools=[{}], **options) == "T"
    (tmp_path / "chat_template.jinja").write_text("F")
    assert find_sources(None, [tmp_path], plain) == {"default": "F"}
    assert find_sources("O", [tmp_path], plain) == {"default": "O"}
