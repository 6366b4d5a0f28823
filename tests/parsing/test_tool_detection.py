"""`auto` finds the format of tool calls from what the chat template says and, where it says nothing, the model's type."""

from __future__ import annotations

import json

import pytest
from penstock.server.model_files import DEMO_DIR
from penstock.server.parsing.tools.registry import FORMATS, detect

# model type, what the template says of tools in its own way, the format
TEMPLATES = [
    (
        "qwen2",
        "{%- if tools %}{{- '# Tools' }} return a json object within <tool_call></tool_call> XML tags:\\n<tool_call>\\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>{% endif %}',
        "hermes",
    ),
    (
        "llama",
        "{% for tool in tools %}{{ tool | tojson }}{% endfor %} <tool_call>\\n"
        '{"arguments": <args-dict>, "name": <function-name>}\\n</tool_call>',
        "hermes",
    ),
    (
        "qwen3_moe",
        "{%- for tool in tools %}<function>{% endfor %} reply as <tool_call>\\n<function=example_function_name>\\n"
        "<parameter=example_parameter_1>\\nvalue_1\\n</parameter>\\n</function>\\n</tool_call>",
        "qwen3_coder",
    ),
    (
        "glm4_moe",
        "{% if tools %}<tool_call>{function-name}\\n<arg_key>{arg-key-1}</arg_key>\\n<arg_value>{arg-value-1}"
        "</arg_value>\\n</tool_call>{% endif %}",
        "glm45",
    ),
    (
        "glm4_moe",
        "{% if tools %}<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>"
        "</tool_call>{% endif %}",
        "glm47",
    ),
    (
        "deepseek_v3",
        "{%- for tool in message['tool_calls'] %}{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] +"
        " '<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' }}{% endfor %}",
        "deepseek_v3",
    ),
    (
        "deepseek_v3",
        "{%- for tool in message['tool_calls'] %}{{ '<｜tool▁call▁begin｜>' + tool['function']['name'] +"
        " '<｜tool▁sep｜>' + tool['function']['arguments'] + '<｜tool▁call▁end｜>' }}{% endfor %}",
        "deepseek_v31",
    ),
    (
        "deepseek_v32",
        "{% if tools %}<｜DSML｜function_calls>\\n<｜DSML｜invoke name={% endif %}",
        "deepseek_v32",
    ),
    ("deepseek_v4", "{% if tools %}<｜DSML｜tool_calls>\\n<｜DSML｜invoke name={% endif %}", "deepseek_v4"),
    (
        "kimi_k2",
        "<|tool_calls_section_begin|>{%- for tool_call in message['tool_calls'] -%}<|tool_call_begin|>"
        "{{ tool_call['id'] }}<|tool_call_argument_begin|>",
        "kimi_k2",
    ),
    (
        "minimax_m2",
        "{%- set toolcall_begin_token = '<minimax:tool_call>' -%}{% if tools %}<invoke name=\"tool-name-1\">",
        "minimax_m2",
    ),
    ("mistral", '{%- if tools %}{{- "[AVAILABLE_TOOLS]" }}{{- "[TOOL_CALLS][" }}{% endif %}', "mistral"),
    ("mistral3", '{{- "[TOOL_CALLS]" + name + "[ARGS]" + arguments }} {{ tools }}', "mistral"),
    (
        "llama",
        "{%- if tools is not none %} respond in the format "
        '{"name": function name, "parameters": dictionary of argument name and its value}.{% endif %}'
        ' {{- "<|python_tag|>" + tool_call.name }}',
        "llama3_json",
    ),
    (
        "llama4",
        "{%- if tools is not none %} put it in the format of [func_name1(params_name1=params_value1), func_name2(...)]"
        "<|python_start|>{% endif %}",
        "pythonic",
    ),
    ("gpt_oss", "{{- tools }}<|start|>assistant<|channel|>commentary to=functions.<|message|>", "openai"),
]


@pytest.mark.parametrize(("model_type", "template", "name"), TEMPLATES)
def test_template_tells_the_format_whatever_the_model_type(model_type: str, template: str, name: str) -> None:
    for believed in (model_type, "", "llama", "something_new"):
        found = detect(believed, template)
        assert found is not None
        assert found.names[0] == name
    assert [known.names[0] for known in FORMATS if known.matches("", template)] == [name]


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("qwen3", "hermes"),
        ("qwen3_next", "qwen3_coder"),
        ("glm4_moe", "glm45"),
        ("glm4_moe_lite", "glm47"),
        ("deepseek_v3", "deepseek_v31"),
        ("deepseek_v32", "deepseek_v32"),
        ("kimi_k2", "kimi_k2"),
        ("minimax_m2", "minimax_m2"),
        ("mistral", "mistral"),
    ],
)
def test_model_type_decides_where_the_template_says_nothing_of_tools(model_type: str, name: str) -> None:
    found = detect(model_type, "{% for message in messages %}{{ message.content }}{% endfor %}")
    assert found is not None
    assert found.names[0] == name


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ message.content }}{% endfor %}",
        "{% if tools %}<|tool_call|>[{{ tools | tojson }}]{% endif %}",
        "{% if tools %}<TOOLCALL>[{{ tools | tojson }}]</TOOLCALL>{% endif %}",
        "{% if tools %}<seed:tool_call>\\n<function=f>{% endif %}",
        "{% set ns = ']<]minimax[>[' %}{{ ns }}<tool_call>{{ tools }}",
    ],
)
def test_format_that_is_not_known_is_not_guessed(template: str) -> None:
    assert detect("llama", template) is None


def test_model_type_does_not_outweigh_a_template_with_tools_of_another_kind() -> None:
    assert detect("qwen3", "{% if tools %}<TOOLCALL>{{ tools }}{% endif %}") is None


def test_embedded_model_writes_hermes_calls() -> None:
    config = json.loads((DEMO_DIR / "config.json").read_text())
    template = json.loads((DEMO_DIR / "tokenizer_config.json").read_text())["chat_template"]
    found = detect(config["model_type"], template)
    assert found is not None
    assert found.names[0] == "hermes"
