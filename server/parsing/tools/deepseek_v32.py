"""DeepSeek V3.2 and V4: <｜DSML｜invoke> with one tag a parameter, which tells a string from JSON."""

from __future__ import annotations

from .evidence import speaks_for
from .xml_call import XmlFormat, XmlWire
from .xml_grammar import ParameterTags

MARK = "｜DSML｜"


def wire(calls: str) -> XmlWire:
    """`calls` is the tag around all calls of an answer."""
    return XmlWire(
        around=(f"<{MARK}{calls}>", f"</{MARK}{calls}>"),
        shared=True,
        call=(f'<{MARK}invoke name="', '">', f"</{MARK}invoke>"),
        parameters=ParameterTags(
            begin=f'<{MARK}parameter name="',
            opened={'" string="true">': True, '" string="false">': False, '">': None},
            end=f"</{MARK}parameter>",
        ),
        lead="\n\n",
        gap="\n",
    )


class DeepseekV32Format(XmlFormat):
    names = ("deepseek_v32", "deepseekv32")
    markers = (MARK,)
    wire = wire("function_calls")

    def matches(self, model_type: str, template: str) -> bool:
        return speaks_for(
            template, model_type, marker=MARK, types=("deepseek_v32",), without=(f"{MARK}tool_calls>",)
        )


class DeepseekV4Format(XmlFormat):
    names = ("deepseek_v4", "deepseekv4")
    markers = (MARK,)
    wire = wire("tool_calls")

    def matches(self, model_type: str, template: str) -> bool:
        return speaks_for(template, model_type, marker=f"{MARK}tool_calls>", types=("deepseek_v4",))
