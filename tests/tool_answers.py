"""Answers with tool calls as each family of models writes them, and what they say."""

from __future__ import annotations

from typing import NamedTuple

from penstock.server.parsing.events import CallArguments, CallStart, Content, Event
from penstock.server.parsing.interface import ToolSchema

WEATHER = ToolSchema(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
            "options": {"type": "object"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["city"],
    },
)
TIME = ToolSchema("get_time", {"type": "object", "properties": {}})
TOOLS = [WEATHER, TIME]


class Sample(NamedTuple):
    """An answer's text and its events, neighbours joined."""

    text: str
    events: list[Event]


def said(text: str) -> list[Event]:
    return [Content(text)]


def calls(*named: tuple[str, str] | tuple[str, str, str]) -> list[Event]:
    """(name, arguments[, id]) of every call, in order."""
    events: list[Event] = []
    for number, (name, arguments, *ids) in enumerate(named):
        events.append(CallStart(number, name, ids[0] if ids else None))
        if arguments:
            events.append(CallArguments(number, arguments))
    return events


PARIS = '{"city": "Paris"}'
RICH = '{"city": "Zürich \\"12\\"\\n😀 \\u00e9", "options": {"a": [1, {"b": "}]"}], "c": null}}'
W, T = "get_weather", "get_time"

HERMES = [
    Sample(
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        calls((W, PARIS)),
    ),
    Sample(
        'Both.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>',
        [*said("Both."), *calls((W, PARIS), (T, "{}"))],
    ),
    Sample(
        f'<tool_call>{{"name": "get_weather", "arguments": {RICH}}}</tool_call>',
        calls((W, RICH)),
    ),
    Sample('<tool_call>\n{"name": "get_time"}\n</tool_call>\n', calls((T, "{}"))),
    Sample(
        'A \n<tool_call>\n{"arguments": {"city": "Paris"}, "name": "get_weather"}\n</tool_call>\n\nB</tool_call>',
        [*said("A "), *calls((W, PARIS)), *said("\n\nB")],
    ),
    Sample(
        '<tool_call>{"name": "unheard_of", "arguments": {"x": "</tool_call>"}}</tool_call>',
        calls(("unheard_of", '{"x": "</tool_call>"}')),
    ),
    Sample('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Pa', calls((W, '{"city": "Pa'))),
    Sample('<tool_call>\n{"name": "get_we', said('<tool_call>\n{"name": "get_we')),
    Sample("  <tool_call>\nno JSON</tool_call> ", said("  <tool_call>\nno JSON</tool_call> ")),
    Sample(
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
        said('<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
    ),
    Sample(
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}</tool_call>done',
        [*calls((W, PARIS)), *said("done")],
    ),
    Sample(
        '<tool_call>{"name": "get_weather", "arguments": {"city": [1}}}</tool_call>',
        [*calls((W, '{"city": [1')), *said("}}}")],
    ),
    Sample("a < b <tool_ <tool_call", said("a < b <tool_ <tool_call")),
]

LLAMA = [
    Sample('{"name": "get_weather", "parameters": {"city": "Paris"}}', calls((W, PARIS))),
    Sample(
        '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}; '
        '{"name": "get_time", "parameters": {}}',
        calls((W, PARIS), (T, "{}")),
    ),
    Sample(
        f' \n{{"name": "unheard_of", "arguments": {RICH}}}',
        calls(("unheard_of", RICH)),
    ),
    Sample(
        'Sure: {"name": "get_weather", "parameters": {"city": "Paris"}} There.',
        [*said("Sure: "), *calls((W, PARIS)), *said(" There.")],
    ),
    Sample('{"name": "Bob", "age": 33}', said('{"name": "Bob", "age": 33}')),
    Sample('Say {"name": "f", "parameters": {}}', said('Say {"name": "f", "parameters": {}}')),
    Sample('{"name": "get_time"}', said('{"name": "get_time"}')),
    Sample('{"name": "get_weather", "parameters": {"ci', calls((W, '{"ci'))),
    Sample("x = {}; y = {1: {2}}", said("x = {}; y = {1: {2}}")),
    Sample("<|python_tag|>print(1)", said("<|python_tag|>print(1)")),
]

PYTHONIC = [
    Sample("[get_weather(city='Paris')]", calls((W, PARIS))),
    Sample(
        '<|python_start|>[get_weather(city="Paris"), get_time()]<|python_end|>',
        calls((W, PARIS), (T, "{}")),
    ),
    Sample(
        "[get_weather(city='a\"\\'\\n\\x41\\u00e9😀\\/\\d', days=-1_000, metric=True, note=None,"
        " tags=['x', \"y\",], options={'k': {'l': [1.5, .5, 1e3, []]}})]",
        calls(
            (
                W,
                '{"city": "a\\"\'\\nA\\u00e9😀/\\\\d", "days": -1000, "metric": true, "note": null,'
                ' "tags": ["x", "y"], "options": {"k": {"l": [1.5, 0.5, 1e3, []]}}}',
            )
        ),
    ),
    Sample(
        "[f(x-y=1, **{'a b': [2,], \"c\": None}, **{}, d=4)]",
        calls(("f", '{"x-y": 1, "a b": [2], "c": null, "d": 4}')),
    ),
    Sample("[f(**{}, a=1, **{})]", calls(("f", '{"a": 1}'))),
    Sample("[f(**{}, oops)]", [*calls(("f", "{}")), *said(", oops)]")]),
    Sample("[f(a=1, **{'b", calls(("f", '{"a": 1, "b'))),
    Sample("[f(a=1, b", calls(("f", '{"a": 1'))),
    Sample("[f(**{'a': 1 2})]", [*calls(("f", '{"a": 1')), *said("2})]")]),
    Sample("[get_time()] Done.", [*calls((T, "{}")), *said(" Done.")]),
    Sample("[get_weather(city='''a'b''', days=2)]", calls((W, '{"city": "a\'b", "days": 2}'))),
    Sample("[1, 2] and [f(a=1)]", said("[1, 2] and [f(a=1)]")),
    Sample("[f(x)](http://f)", said("[f(x)](http://f)")),
    Sample("[f(a==1)]", said("[f(a==1)]")),
    Sample("[get_weather(city='Par", calls((W, '{"city": "Par'))),
    Sample("[get_weather(city='Paris', oops)]", [*calls((W, PARIS)), *said(", oops)]")]),
    Sample("[get_weather(city=Paris)]", [*calls((W, '{"city": ')), *said(")]")]),
    Sample("[get_time(), 3]", [*calls((T, "{}")), *said(", 3]")]),
    Sample("[get_ti", said("[get_ti")),
]

MISTRAL = [
    Sample('[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]', calls((W, PARIS))),
    Sample(
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}, '
        '{"name": "get_time", "arguments": {}}]',
        calls((W, PARIS), (T, "{}")),
    ),
    Sample(
        'Both.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get_time[ARGS]{}',
        [*said("Both."), *calls((W, PARIS), (T, "{}"))],
    ),
    Sample(f"[TOOL_CALLS]get_weather[CALL_ID]abc123XYZ[ARGS]{RICH}", calls((W, RICH, "abc123XYZ"))),
    Sample('[TOOL_CALLS]get_weather{"city": "Paris"} Done.', [*calls((W, PARIS)), *said(" Done.")]),
    Sample('[TOOL_CALLS]get_weather[ARGS]{"city": "Pa', calls((W, '{"city": "Pa'))),
    Sample("[TOOL_CALLS]get_wea", said("[TOOL_CALLS]get_wea")),
    Sample("[TOOL_CALLS] [1, 2]", said("[TOOL_CALLS] [1, 2]")),
    Sample(
        '[TOOL_CALLS][{"name": "get_time", "arguments": {}}, 7]',
        [*calls((T, "{}")), *said(", 7]")],
    ),
    Sample("An [ARGS] and [TOOL_ C", said("An [ARGS] and [TOOL_ C")),
]

V3_CALL = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>".replace(
    "{}", "%s"
)
V31_CALL = "<｜tool▁call▁begin｜>%s<｜tool▁sep｜>%s<｜tool▁call▁end｜>"
V3_BEGIN, V3_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"

DEEPSEEK_V3 = [
    Sample(V3_BEGIN + V3_CALL % (W, PARIS) + V3_END, calls((W, PARIS))),
    Sample(
        f"Both.{V3_BEGIN}{V3_CALL % (W, PARIS)}\n{V3_CALL % (T, '{}')}{V3_END} End",
        [*said("Both."), *calls((W, PARIS), (T, "{}")), *said(" End")],
    ),
    Sample(V3_BEGIN + V3_CALL % (W, RICH) + V3_END, calls((W, RICH))),
    Sample(V3_CALL % (W, PARIS), calls((W, PARIS))),
    Sample(V3_BEGIN + (V3_CALL % (W, PARIS))[:60], calls((W, PARIS[:1]))),
    Sample(V3_BEGIN + "nothing" + V3_END, said(V3_BEGIN + "nothing" + V3_END)),
    Sample(V3_BEGIN + (V3_CALL % (W, "text")), said(V3_BEGIN + (V3_CALL % (W, "text")))),
    Sample("a <｜tool▁calls<｜tool", said("a <｜tool▁calls<｜tool")),
]

DEEPSEEK_V31 = [
    Sample(V3_BEGIN + V31_CALL % (W, PARIS) + V3_END, calls((W, PARIS))),
    Sample(
        f"Both.{V3_BEGIN}{V31_CALL % (W, PARIS)}{V31_CALL % (T, '{}')}{V3_END}",
        [*said("Both."), *calls((W, PARIS), (T, "{}"))],
    ),
    Sample(V3_BEGIN + V31_CALL % (W, RICH) + V3_END, calls((W, RICH))),
    Sample(V3_BEGIN + "<｜tool▁call▁begin｜>get_wea", said(V3_BEGIN + "<｜tool▁call▁begin｜>get_wea")),
    Sample(V3_BEGIN + V31_CALL % ("", "{}"), said(V3_BEGIN + V31_CALL % ("", "{}"))),
    Sample(
        V3_BEGIN + V31_CALL % (W, '{"city": <') + V3_END,
        [*calls((W, '{"city": ')), *said("<")],
    ),
]

D = "｜DSML｜"


def dsml(block: str, *invokes: str) -> str:
    return f"<{D}{block}>\n" + "".join(invoke + "\n" for invoke in invokes) + f"</{D}{block}>"


def invoke(name: str, *parameters: tuple[str, str, str]) -> str:
    inner = "".join(
        f'<{D}parameter name="{key}" string="{is_text}">{value}</{D}parameter>\n'
        for key, is_text, value in parameters
    )
    return f'<{D}invoke name="{name}">\n{inner}</{D}invoke>'


def deepseek_dsml(block: str) -> list[Sample]:
    return [
        Sample(dsml(block, invoke(W, ("city", "true", "Paris"))), calls((W, PARIS))),
        Sample(
            "Both.\n\n"
            + dsml(block, invoke(W, ("city", "true", "Paris"), ("days", "false", "3")), invoke(T)),
            [*said("Both."), *calls((W, '{"city": "Paris", "days": 3}'), (T, "{}"))],
        ),
        Sample(
            dsml(
                block,
                invoke(
                    W,
                    ("city", "true", '5 "é"\n\\ '),
                    ("options", "false", f'{{"a": "</{D}parameter>", "b": [1]}}'),
                ),
            ),
            calls((W, f'{{"city": "5 \\"é\\"\\n\\\\ ", "options": {{"a": "</{D}parameter>", "b": [1]}}}}')),
        ),
        Sample(
            dsml(
                block, invoke("unheard_of", ("x", "true", "1"), ("y", "false", "1"), ("z", "false", "oops"))
            ),
            calls(("unheard_of", '{"x": "1", "y": 1, "z": "oops"}')),
        ),
        Sample(
            dsml(block, invoke(W, ("city", "true", "Paris"))).partition("is<")[0], calls((W, '{"city": "Par'))
        ),
        Sample(f"<{D}{block}>\nnone", said(f"<{D}{block}>\nnone")),
        Sample(f'<{D}invoke name="get_time">', said(f'<{D}invoke name="get_time">')),
    ]


def glm_call(gap: str, name: str, *pairs: tuple[str, str]) -> str:
    inner = "".join(
        f"{gap}<arg_key>{key}</arg_key>{gap}<arg_value>{value}</arg_value>" for key, value in pairs
    )
    return f"<tool_call>{name}{inner}{gap}</tool_call>"


def glm(gap: str) -> list[Sample]:
    def call(name: str, *pairs: tuple[str, str]) -> str:
        return glm_call(gap, name, *pairs)

    return [
        Sample(call(W, ("city", "Paris")), calls((W, PARIS))),
        Sample(
            "Both.\n" + call(W, ("city", "Paris"), ("days", "3")) + "\n" + call(T),
            [*said("Both."), *calls((W, '{"city": "Paris", "days": 3}'), (T, "{}"))],
        ),
        Sample(
            call(W, ("city", ' 5 "é"\n'), ("options", '{"a": "</arg_value>"}'), ("note", "null"), ("tags", '["x"]')),
            calls((W, '{"city": " 5 \\"é\\"\\n", "options": {"a": "</arg_value>"}, "note": null, "tags": ["x"]}')),
        ),
        Sample(
            call("unheard_of", ("x", "12"), ("y", "a b"), ("z", '{"k": 1}'), ("n", "NaN"), ("e", "-1e9999")) + " End",
            [
                *calls(("unheard_of", '{"x": 12, "y": "a b", "z": {"k": 1}, "n": "NaN", "e": -1e9999}')),
                *said(" End"),
            ],
        ),
        Sample(call(W, ("city", "Paris"))[: -len(gap + "ris</arg_value>" + gap + "</tool_call>")],
               calls((W, '{"city": "Pa' if not gap else '{"city": "P'))),
        Sample(
            call(W, ("city", "Paris"), ("options", '{"a": "b')) + call(T),
            calls((W, '{"city": "Paris", "options": "{\\"a\\": \\"b"}'), (T, "{}")),
        ),
        Sample("<tool_call>what is this?", said("<tool_call>what is this?")),
        Sample("<tool_call>get_wea", said("<tool_call>get_wea")),
        Sample(f"{call(W, ('city', 'Paris'))[:-12]}oops</tool_call>", [*calls((W, PARIS)), *said(gap + "oops")]),
    ]  # fmt: skip


KIMI_BEGIN, KIMI_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
KIMI_CALL = "<|tool_call_begin|>%s<|tool_call_argument_begin|>%s<|tool_call_end|>"

KIMI = [
    Sample(
        KIMI_BEGIN + KIMI_CALL % ("functions.get_weather:0", PARIS) + KIMI_END,
        calls((W, PARIS, "functions.get_weather:0")),
    ),
    Sample(
        f"Both. {KIMI_BEGIN}{KIMI_CALL % ('functions.get_weather:0', PARIS)}"
        f"{KIMI_CALL % ('functions.get_time:1', '{}')}{KIMI_END}",
        [
            *said("Both. "),
            *calls((W, PARIS, "functions.get_weather:0"), (T, "{}", "functions.get_time:1")),
        ],
    ),
    Sample(KIMI_BEGIN + KIMI_CALL % (" a.b:7 ", f" {RICH} ") + KIMI_END, calls(("a.b", RICH, "a.b:7"))),
    Sample(
        KIMI_BEGIN + (KIMI_CALL % ("functions.get_time:0", '{"a": 1')).partition("1<")[0],
        calls((T, '{"a": ', "functions.get_time:0")),
    ),
    Sample(KIMI_BEGIN + "nothing" + KIMI_END, said(KIMI_BEGIN + "nothing" + KIMI_END)),
    Sample("<|tool_call_begin|>f g", said("<|tool_call_begin|>f g")),
]


def qwen_call(name: str, *pairs: tuple[str, str]) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in pairs)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


QWEN3_CODER = [
    Sample(qwen_call(W, ("city", "Paris")), calls((W, PARIS))),
    Sample(
        "Both.\n" + qwen_call(W, ("city", "Paris"), ("days", "3")) + "\n" + qwen_call(T),
        [*said("Both."), *calls((W, '{"city": "Paris", "days": 3}'), (T, "{}"))],
    ),
    Sample(
        qwen_call(
            W,
            ("city", '\n5 <b>"é"</b>\n'),
            ("metric", "True"),
            ("options", "{'a': \"'\", 'b': [None]}"),
            ("note", "null"),
            ("tags", '["</parameter>"]'),
        ),
        calls(
            (
                W,
                '{"city": "\\n5 <b>\\"é\\"</b>\\n", "metric": true, "options": {"a": "\'", "b": [null]},'
                ' "note": null, "tags": ["</parameter>"]}',
            )
        ),
    ),
    Sample(
        "<function=get_weather><parameter=city>Paris</parameter></function> End",
        [*calls((W, PARIS)), *said(" End")],
    ),
    Sample(
        qwen_call("unheard_of", ("x", "1"), ("y", "one"), ("days", "")) + qwen_call(W, ("days", "three")),
        calls(("unheard_of", '{"x": 1, "y": "one", "days": ""}'), (W, '{"days": "three"}')),
    ),
    Sample(qwen_call(W, ("city", "Paris")).partition("aris")[0], calls((W, '{"city": "P'))),
    Sample(qwen_call(W, ("options", '{"a": 1}')).partition('": 1')[0], calls((W, '{"options": {"a'))),
    Sample(qwen_call(W, ("city", "Paris")).partition("nction>\n</")[0], calls((W, PARIS[:-1]))),
    Sample(
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</tool_call>\nEnd",
        [*calls((W, PARIS)), *said("\nEnd")],
    ),
    Sample(
        "<function=get_weather><parameter=city>Paris</parameter> oops</function>",
        [*calls((W, PARIS)), *said(" oops")],
    ),
    Sample("<tool_call>\n<function>", said("<tool_call>\n<function>")),
    Sample("<tool_call>\n<function=get_wea", said("<tool_call>\n<function=get_wea")),
    Sample("<tool_call>\n<function=a b>x", said("<tool_call>\n<function=a b>x")),
]


def minimax_invoke(name: str, *pairs: tuple[str, str]) -> str:
    inner = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in pairs)
    return f'<invoke name="{name}">\n{inner}</invoke>\n'


MINIMAX = [
    Sample(
        f"<minimax:tool_call>\n{minimax_invoke(W, ('city', 'Paris'))}</minimax:tool_call>", calls((W, PARIS))
    ),
    Sample(
        f"Both.\n<minimax:tool_call>\n{minimax_invoke(W, ('city', 'Paris'), ('days', '3'))}{minimax_invoke(T)}"
        "</minimax:tool_call>\n",
        [*said("Both."), *calls((W, '{"city": "Paris", "days": 3}'), (T, "{}"))],
    ),
    Sample(
        "<minimax:tool_call>"
        + minimax_invoke(W, ("city", '\n"é" 😀\\'), ("options", '{"a": "</parameter>"}'), ("metric", "false"))
        + "</minimax:tool_call>",
        calls((W, '{"city": "\\n\\"é\\" 😀\\\\", "options": {"a": "</parameter>"}, "metric": false}')),
    ),
    Sample(
        f"<minimax:tool_call>\n{minimax_invoke(W, ('city', 'Paris'))}</minimax:tool_call>"[:75],
        calls((W, '{"city": "Pari')),
    ),
    Sample("<minimax:tool_call>\nnone", said("<minimax:tool_call>\nnone")),
    Sample('<invoke name="get_time">', said('<invoke name="get_time">')),
    Sample("<minimax:tool_call", said("<minimax:tool_call")),
]

SAMPLES = {
    "hermes": HERMES,
    "llama3_json": LLAMA,
    "pythonic": PYTHONIC,
    "mistral": MISTRAL,
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v31": DEEPSEEK_V31,
    "deepseek_v32": deepseek_dsml("function_calls"),
    "deepseek_v4": deepseek_dsml("tool_calls"),
    "glm45": glm("\n"),
    "glm47": glm(""),
    "kimi_k2": KIMI,
    "qwen3_coder": QWEN3_CODER,
    "minimax_m2": MINIMAX,
}


def typical() -> dict[str, tuple[str, str]]:
    """By format: a call of look_up for 7 days "here", and an answer that calls it and then ring, without arguments."""
    here = '{"place": "here", "days": 7}'
    pairs = (("place", "here"), ("days", "7"))
    dsml_pairs = (("place", "true", "here"), ("days", "false", "7"))

    def hermes(name: str, arguments: str) -> str:
        return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'

    def llama(name: str, arguments: str) -> str:
        return f'{{"name": "{name}", "parameters": {arguments}}}'

    def listed(name: str, arguments: str) -> str:
        return f'{{"name": "{name}", "arguments": {arguments}}}'

    def minimax(*invokes: str) -> str:
        return f"<minimax:tool_call>\n{''.join(invokes)}</minimax:tool_call>"

    def kimi(*numbered: str) -> str:
        return KIMI_BEGIN + "".join(numbered) + KIMI_END

    def v3(*each: str) -> str:
        return V3_BEGIN + "\n".join(each) + V3_END

    def v31(*each: str) -> str:
        return V3_BEGIN + "".join(each) + V3_END

    first, second = "look_up", "ring"
    kimi_first = KIMI_CALL % ("functions.look_up:0", here)
    return {
        "hermes": (hermes(first, here), hermes(first, here) + "\n" + hermes(second, "{}")),
        "llama3_json": (llama(first, here), llama(first, here) + "; " + llama(second, "{}")),
        "pythonic": ('[look_up(place="here", days=7)]', '[look_up(place="here", days=7), ring()]'),
        "mistral": (
            f"[TOOL_CALLS]look_up[ARGS]{here}",
            f"[TOOL_CALLS] [{listed(first, here)}, {listed(second, '{}')}]",
        ),
        "deepseek_v3": (v3(V3_CALL % (first, here)), v3(V3_CALL % (first, here), V3_CALL % (second, "{}"))),
        "deepseek_v31": (
            v31(V31_CALL % (first, here)),
            v31(V31_CALL % (first, here), V31_CALL % (second, "{}")),
        ),
        "deepseek_v32": (
            "\n\n" + dsml("function_calls", invoke(first, *dsml_pairs)),
            dsml("function_calls", invoke(first, *dsml_pairs), invoke(second)),
        ),
        "deepseek_v4": (
            "\n\n" + dsml("tool_calls", invoke(first, *dsml_pairs)),
            dsml("tool_calls", invoke(first, *dsml_pairs), invoke(second)),
        ),
        "glm45": (
            glm_call("\n", first, *pairs),
            glm_call("\n", first, *pairs) + "\n" + glm_call("\n", second),
        ),
        "glm47": (glm_call("", first, *pairs), glm_call("", first, *pairs) + "\n" + glm_call("", second)),
        "kimi_k2": (kimi(kimi_first), kimi(kimi_first, KIMI_CALL % ("functions.ring:1", "{}"))),
        "qwen3_coder": (qwen_call(first, *pairs), f"{qwen_call(first, *pairs)}\n{qwen_call(second)}"),
        "minimax_m2": (
            minimax(minimax_invoke(first, *pairs)),
            minimax(minimax_invoke(first, *pairs), minimax_invoke(second)),
        ),
    }


TYPICAL = typical()
