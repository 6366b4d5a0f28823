"""GLM 4.5 to 4.7 and 5: <tool_call>name and pairs of <arg_key> and <arg_value>, on lines of their own up to 4.6."""

from __future__ import annotations

from .evidence import speaks_for
from .xml_call import XmlFormat, XmlWire
from .xml_grammar import ParameterTags

BEGIN, END = "<tool_call>", "</tool_call>"
CLOSE_UP = "</arg_key><arg_value>"  # how the templates since 4.7 describe the format
TAGS = ParameterTags(
    begin="<arg_key>",
    opened={"</arg_key>": None},
    value="<arg_value>",
    end="</arg_value>",
)


class Glm45Format(XmlFormat):
    names: tuple[str, ...] = ("glm45", "glm")
    markers = (BEGIN, END, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    wire = XmlWire(call=(BEGIN, "", END), parameters=TAGS, lead="\n", gap="\n")

    def matches(self, model_type: str, template: str) -> bool:
        return speaks_for(
            template, model_type, marker=TAGS.begin, types=("glm4_moe", "glm4v_moe"), without=(CLOSE_UP,)
        )


class Glm47Format(Glm45Format):
    names = ("glm47",)
    wire = XmlWire(call=(BEGIN, "", END), parameters=TAGS, lead="\n", gap="")

    def matches(self, model_type: str, template: str) -> bool:
        return speaks_for(template, model_type, marker=CLOSE_UP, types=("glm4_moe_lite", "glm_moe_dsa"))
