"""MiniMax M2: <invoke name="..."> with one tag a parameter, all calls in one <minimax:tool_call>."""

from __future__ import annotations

from .evidence import speaks_for
from .xml_call import XmlFormat, XmlWire
from .xml_grammar import ParameterTags

BEGIN, END = "<minimax:tool_call>", "</minimax:tool_call>"


class MinimaxM2Format(XmlFormat):
    names = ("minimax_m2", "minimax-m2")
    markers = (BEGIN, END)
    wire = XmlWire(
        around=(BEGIN, END),
        shared=True,
        call=('<invoke name="', '">', "</invoke>"),
        parameters=ParameterTags(
            begin='<parameter name="',
            opened={'">': None},
            end="</parameter>",
        ),
        lead="\n",
        gap="\n",
    )

    def matches(self, model_type: str, template: str) -> bool:
        return speaks_for(template, model_type, marker=BEGIN, types=("minimax_m2",))
