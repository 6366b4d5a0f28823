"""Qwen3-Coder and Qwen 3.5: <function=name> with <parameter=key> tags, values on lines of their own."""

from __future__ import annotations

from .evidence import speaks_for
from .xml_call import XmlFormat, XmlWire
from .xml_grammar import ParameterTags


class Qwen3CoderFormat(XmlFormat):
    names = ("qwen3_coder", "qwen3_xml")
    markers = ("<tool_call>", "</tool_call>")
    wire = XmlWire(
        around=("<tool_call>", "</tool_call>"),
        bare=True,
        call=("<function=", ">", "</function>"),
        parameters=ParameterTags(begin="<parameter=", opened={">": None}, end="</parameter>", pad="\n"),
        lead="\n",
        gap="\n",
    )

    def matches(self, model_type: str, template: str) -> bool:
        return speaks_for(
            template,
            model_type,
            marker="<function=",
            types=("qwen3_next", "qwen3_5", "qwen3_5_moe"),
            without=("<seed:tool_call>",),
        )
