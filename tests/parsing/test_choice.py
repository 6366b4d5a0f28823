"""Which formats a model gets: by option, under both projects' names, or told from its files."""

from __future__ import annotations

import pytest
from penstock.server.options.parse import OptionError, parse
from penstock.server.parsing.choice import choose
from penstock.server.parsing.harmony import HarmonyTools

QWEN3 = (
    "<tool_call>{{ tool }}</tool_call>{% if not enable_thinking %}<think>\n\n</think>{% endif %}{{ tools }}"
)


def names(tools: str, reasoning: str, model_type: str = "qwen3", template: str = QWEN3) -> tuple[str, str]:
    found = choose(tools, reasoning, model_type=model_type, template=template)
    return (
        found.tools.names[0] if found.tools else "",
        found.reasoning.names[0] if found.reasoning else "",
    )


def test_auto_tells_both_from_type_and_template() -> None:
    assert names("auto", "auto") == ("hermes", "qwen3")
    assert names("auto", "auto", template="{{ messages }}") == ("hermes", "")
    assert names("auto", "auto", "gpt_oss", "<|start|><|channel|>") == ("openai", "openai_gptoss")


def test_none_takes_nothing_apart() -> None:
    assert names("none", "none") == ("", "")
    assert names("none", "qwen3-thinking") == ("", "qwen3")


def test_a_name_wins_over_what_the_template_says() -> None:
    assert names("llama3", "deepseek-r1") == ("llama3_json", "deepseek_r1")


def test_channels_are_for_calls_as_well() -> None:
    assert isinstance(choose("hermes", "gpt-oss", model_type="x", template="").tools, HarmonyTools)


@pytest.mark.parametrize("flag", ["--tool-call-parser", "--reasoning-parser"])
def test_an_unknown_name_is_refused_at_the_start_with_the_known_ones(flag: str) -> None:
    with pytest.raises(OptionError, match=r"auto, none, .*qwen") as refused:
        parse([flag, "nonsense"])
    assert f"{flag} nonsense" in str(refused.value)


def test_vllms_switch_for_tools_is_taken_and_changes_nothing() -> None:
    with_it, without = parse(["--enable-auto-tool-choice"]), parse([])
    assert with_it.config.parsing == without.config.parsing
