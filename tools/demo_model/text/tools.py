"""Calling a tool with the right arguments, and answering from what it returned."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..split import Source, words
from . import arithmetic, facts, smalltalk
from .dialogue import Check, Exchange, Message, Tool, assistant, casual, user
from .lexicon import COLOURS, FOODS, OBJECTS, WEEKDAYS, article, clock_time, code, person, town

Value = str | int


@dataclass(frozen=True)
class Request:
    """A tool, what the user says, the arguments that follow from it, and a result the tool may return."""

    tool: Tool
    says: str
    arguments: dict[str, Value]
    result: dict[str, Value]


def make_call(source: Source) -> Exchange:
    """A request that needs one tool of one to three, sometimes two calls, sometimes none."""
    rng = source.rng
    wanted = _request(source)
    if source.chance(0.1):
        plain: Exchange = rng.choice((smalltalk.make, arithmetic.make, facts.make))(source)
        return replace(plain, tools=_offered(source, [wanted.tool]))
    requests = [wanted]
    says = casual(source, wanted.says)
    if source.chance(0.3) and "weather" in wanted.tool["function"]["name"]:
        ((key, first),) = wanted.arguments.items()
        second = town(source)
        if first != second:
            requests.append(replace(wanted, arguments={key: second}))
            both = f"{first} and {second}"
            says = source.phrase(
                (
                    "[What is|What's|How is] the weather in {x}?",
                    "[Tell me|Check] the weather in {x}.",
                    "Weather in {x}[?|, please.]",
                ),
                ("How does the weather look in {x}?", "I need the weather for {x}."),
                x=both,
            )
    calls = [{"name": r.tool["function"]["name"], "arguments": r.arguments} for r in requests]
    messages = [user(says), _calling(calls)]
    return Exchange(messages, Check("calls", (json.dumps(calls),)), tools=_offered(source, [wanted.tool]))


def make_answer(source: Source) -> Exchange:
    """The answer from one or two tool results, or from an error."""
    wanted = _request(source)
    call = {"name": wanted.tool["function"]["name"], "arguments": wanted.arguments}
    messages: list[Message] = [user(casual(source, wanted.says)), _calling([call])]
    if source.chance(0.08):
        reason = source.rng.choice(
            (
                "not found",
                "timeout",
                "no access",
                "bad request",
                "service is down",
                "unknown name",
                "not available",
            )
        )
        messages += [_result({"error": reason}), assistant(f"Sorry, the tool failed: {reason}.")]
        return Exchange(messages, Check("all", (reason,)), tools=_offered(source, [wanted.tool]))
    parts = [f"the {key.replace('_', ' ')} is {value}" for key, value in wanted.result.items()]
    said = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    messages += [_result(wanted.result), assistant(said[0].upper() + said[1:] + ".")]
    want = tuple(str(value) for value in wanted.result.values())
    return Exchange(messages, Check("all", want), tools=_offered(source, [wanted.tool]))


def _calling(calls: list[dict[str, Any]]) -> Message:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": call} for call in calls],
    }


def _result(value: dict[str, Value]) -> Message:
    return {"role": "tool", "content": json.dumps(value)}


def _offered(source: Source, tools: list[Tool]) -> list[Tool]:
    offered = list(tools)
    for _ in range(source.rng.choice((0, 0, 1, 1, 2))):
        other = _request(source).tool
        if other["function"]["name"] not in {tool["function"]["name"] for tool in offered}:
            offered.append(other)
    source.rng.shuffle(offered)
    return [_described(tool) if source.chance(0.2) else tool for tool in offered]


def _described(tool: Tool) -> Tool:
    """`tool` with a description of each parameter, as many clients send it."""
    function = tool["function"]
    properties = {
        key: {**schema, "description": f"The {key} to use"}
        for key, schema in function["parameters"]["properties"].items()
    }
    return {
        "type": "function",
        "function": {**function, "parameters": {**function["parameters"], "properties": properties}},
    }


def _tool(name: str, description: str, /, **properties: str) -> Tool:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def _request(source: Source) -> Request:
    if source.chance(0.5):
        return _generic(source)
    return source.rng.choice(_KNOWN)(source)


_CONDITIONS = ("sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear", "stormy")


def _weather(source: Source) -> Request:
    city = town(source)
    says = source.phrase(
        (
            "[What is|What's|How is] the weather [like |]in {c}?",
            "[Tell me|Check|Look up] the weather in {c}.",
            "Is it [raining|sunny|cold|warm|hot] in {c}?",
            "Weather in {c}[?|, please.]",
            "What is the temperature in {c}?",
            "Do I need [an umbrella|a coat] in {c}?",
        ),
        ("How does the weather look in {c}?", "I need the weather for {c}."),
        c=city,
    )
    result: dict[str, Value] = {
        "temperature": source.rng.randint(-15, 40),
        "condition": source.rng.choice(_CONDITIONS),
    }
    name = source.rng.choice(("get_weather", "get_weather", "get_current_weather", "weather"))
    key = source.rng.choice(("city", "city", "location", "place"))
    return Request(_tool(name, "Get the weather of a city", **{key: "string"}), says, {key: city}, result)


def _clock(source: Source) -> Request:
    city = town(source)
    says = source.phrase(
        (
            "What time is it in {c}[ now|]?",
            "[Tell me|Check] the time in {c}.",
            "[What is|What's] the [local |current |]time in {c}?",
        ),
        ("Which time do they have in {c}?", "I need the time in {c}."),
        c=city,
    )
    return Request(
        _tool("get_time", "Get the local time of a city", city="string"),
        says,
        {"city": city},
        {"time": clock_time(source)},
    )


def _calculator(source: Source) -> Request:
    rng = source.rng
    a, b = source.draw(lambda: (rng.randint(100, 9999), rng.randint(100, 9999)))
    sign = rng.choice("+-*/")
    expression = f"{a} {sign} {b}"
    says = source.phrase(
        (
            "[What is|What's] {x}?",
            "[Compute|Calculate|Work out] {x}.",
            "How much is {x}?",
            "Use the calculator for {x}.",
        ),
        ("I need the result of {x} from the tool.", "Please calculate {x} with the tool."),
        x=expression,
    )
    result: dict[str, Value] = {"result": {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]}
    return Request(
        _tool("calculate", "Compute an expression", expression="string"),
        says,
        {"expression": expression},
        result,
    )


def _email(source: Source) -> Request:
    name = person(source)
    topic = source.rng.choice((*OBJECTS, *FOODS))
    says = source.phrase(
        (
            "[Send|Write] an email to {n} about the {t}.",
            "Email {n} about the {t}.",
            "[Can|Could] you email {n} about the {t}?",
            "Send {n} an email about the {t}.",
        ),
        ("{n} needs an email about the {t}.", "Please let {n} get an email about the {t}."),
        n=name,
        t=topic,
    )
    return Request(
        _tool("send_email", "Send an email", to="string", subject="string"),
        says,
        {"to": name, "subject": topic},
        {"status": source.rng.choice(("sent", "queued", "delivered"))},
    )


def _stock(source: Source) -> Request:
    item = source.rng.choice(OBJECTS)
    count = source.rng.randint(1, 60)
    says = source.phrase(
        (
            "[Order|Buy] {k} of the {i}.",
            "[I want|I need|I'd like] to [order|buy] the {i}, {k} pieces.",
            "[Can|Could] you order {k} pieces of the {i}?",
            "Order the {i}, quantity {k}.",
        ),
        ("Please get me {k} pieces of the {i}.", "Place an order for the {i}, {k} pieces."),
        i=item,
        k=count,
    )
    return Request(
        _tool("order_item", "Order an item", item="string", quantity="integer"),
        says,
        {"item": item, "quantity": count},
        {"order": code(source), "price": source.rng.randint(5, 900)},
    )


def _reminder(source: Source) -> Request:
    time, thing = clock_time(source), source.rng.choice(OBJECTS)
    says = source.phrase(
        (
            "Remind me of the {i} at {t}.",
            "[Set|Create|Make] a reminder for the {i} at {t}.",
            "At {t}, remind me of the {i}.",
            "I need a reminder at {t} for the {i}.",
        ),
        ("Do not let me forget the {i} at {t}.", "Please remind me at {t} about the {i}."),
        i=thing,
        t=time,
    )
    return Request(
        _tool("set_reminder", "Set a reminder", text="string", time="string"),
        says,
        {"text": thing, "time": time},
        {"status": source.rng.choice(("set", "saved"))},
    )


def _train(source: Source) -> Request:
    origin, target = town(source), town(source)
    says = source.phrase(
        (
            "[Find|Look up|Show me] [a train|trains] from {a} to {b}.",
            "When is the next train from {a} to {b}?",
            "I [want|need] to go from {a} to {b} by train.",
            "Trains from {a} to {b}[?|, please.]",
        ),
        ("Which train goes from {a} to {b}?", "Get me from {a} to {b} by train."),
        a=origin,
        b=target,
    )
    arguments: dict[str, Value] = {"from": origin, "to": target}
    return Request(
        _tool("find_train", "Find a train", **{"from": "string", "to": "string"}),
        says,
        arguments,
        {"departure": clock_time(source), "platform": source.rng.randint(1, 20)},
    )


def _light(source: Source) -> Request:
    room = source.rng.choice(
        ("kitchen", "bedroom", "bathroom", "office", "garage", "hall", "garden", "attic", "cellar")
    )
    colour = source.rng.choice(COLOURS)
    says = source.phrase(
        (
            "[Make|Turn] the light in the {r} {c}.",
            "Set the {r} light to {c}.",
            "[Can|Could] you make the {r} light {c}?",
            "I want {c} light in the {r}.",
        ),
        ("Let the {r} have {c} light.", "Please change the light of the {r} to {c}."),
        r=room,
        c=colour,
    )
    return Request(
        _tool("set_light", "Set the colour of a light", room="string", color="string"),
        says,
        {"room": room, "color": colour},
        {"status": "done"},
    )


def _convert(source: Source) -> Request:
    amount = source.rng.randint(5, 999)
    a, b = source.rng.sample(("dollars", "euros", "pounds", "yen", "francs", "pesos", "rupees", "kronor"), 2)
    says = source.phrase(
        (
            "[Convert|Change] {n} {a} [to|into] {b}.",
            "How many {b} are {n} {a}?",
            "[What is|What's] {n} {a} in {b}?",
            "{n} {a} in {b}[?|]",
        ),
        ("Please turn {n} {a} into {b}.", "If I have {n} {a}, how many {b} do I get?"),
        n=amount,
        a=a,
        b=b,
    )
    arguments: dict[str, Value] = {"amount": amount, "from": a, "to": b}
    return Request(
        _tool("convert_currency", "Convert money", **{"amount": "integer", "from": "string", "to": "string"}),
        says,
        arguments,
        {"amount": source.rng.randint(5, 9999), "currency": b},
    )


def _search(source: Source) -> Request:
    words = " ".join(
        source.draw(lambda: tuple(source.rng.sample((*OBJECTS, *FOODS), source.rng.choice((1, 2, 3)))))
    )
    says = source.phrase(
        (
            "[Search|Look] for {q}.",
            "Search the web for {q}.",
            "[Find|Look up] {q} [online|on the web].",
            'Search for "{q}".',
            "[Google|Web search] {q}.",
        ),
        ("What does the web say about {q}?", "Please do a web search for {q}."),
        q=words,
    )
    return Request(
        _tool("search", "Search the web", query="string"),
        says,
        {"query": words},
        {"title": words, "results": source.rng.randint(0, 500)},
    )


def _user_record(source: Source) -> Request:
    number = source.draw(lambda: source.rng.randint(100, 99999))
    says = source.phrase(
        (
            "[Show|Get|Find|Look up] [the |]user {n}.",
            "Who is user {n}?",
            "[What is|What's] the name of user {n}?",
            "Get user number {n}.",
            "Tell me about user {n}.",
        ),
        ("Which user has the id {n}?", "I need the record of user {n}."),
        n=number,
    )
    return Request(
        _tool("get_user", "Get a user by id", id="integer"),
        says,
        {"id": number},
        {"name": person(source), "city": town(source)},
    )


def _order_status(source: Source) -> Request:
    number = code(source)
    says = source.phrase(
        (
            "Where is [my |]order {n}?",
            "[Track|Check] [my |]order {n}.",
            "[What is|What's] the status of order {n}?",
            "Has order {n} arrived?",
        ),
        ("How far along is order {n}?", "Please look where order {n} is."),
        n=number,
    )
    return Request(
        _tool("track_order", "Track an order", order="string"),
        says,
        {"order": number},
        {
            "status": source.rng.choice(("shipped", "packed", "delivered", "lost", "late")),
            "place": town(source),
        },
    )


_KNOWN: tuple[Callable[[Source], Request], ...] = (
    _weather,
    _weather,
    _clock,
    _calculator,
    _email,
    _stock,
    _reminder,
    _train,
    _light,
    _convert,
    _search,
    _user_record,
    _order_status,
)

_VERBS = words(
    "find book cancel check create delete open close start stop rent sell print move clean share update "
    "read save list fix paint pack lock hire park pay join"
)
_NOUNS = words(
    "hotel taxi flight table ticket song movie room recipe invoice file photo report task note account "
    "door window garage garden printer playlist course class event team bus boat bike desk parcel letter "
    "document folder page project contract appointment loan game"
)


def _generic(source: Source) -> Request:
    """A tool named verb_noun with one to three arguments, requested by verb, noun and argument phrases."""
    rng = source.rng
    verb, noun = source.draw(lambda: (rng.choice(_VERBS), rng.choice(_NOUNS)))
    slots: dict[str, tuple[str, Value, str]] = {
        "city": (rng.choice((" in {v}",)), town(source), "string"),
        "name": (rng.choice((" for {v}",)), person(source), "string"),
        "time": (" at {v}", clock_time(source), "string"),
        "day": (" on {v}", source.rng.choice(WEEKDAYS), "string"),
        "number": (" with number {v}", rng.randint(1, 999), "integer"),
        "code": (" with code {v}", code(source), "string"),
        "color": (" in {v}", source.rng.choice(COLOURS), "string"),
        "size": (" of size {v}", rng.choice(("small", "medium", "large", "tiny", "huge")), "string"),
    }
    if source.chance(0.5):
        del slots["city"]
    else:
        del slots["color"]
    keys = rng.sample(list(slots), rng.choice((1, 1, 2, 2, 3)))
    spoken = rng.sample(keys, len(keys))
    tail = "".join(slots[key][0].replace("{v}", str(slots[key][1])) for key in spoken)
    says = source.phrase(
        (
            "{V} [the|a] {n}{t}.",
            "[Can|Could] you {v} [the|a] {n}{t}?",
            "I [want|need|would like] to {v} [the|a] {n}{t}.",
            "Please {v} [the|a] {n}{t}.",
            "Help me {v} [the|a] {n}{t}.",
            "[Let us|Let's|You must|You should|We need to|I must] {v} [the|a] {n}{t}.",
            "[Now|Today|Next|Then] {v} [the|a] {n}{t}[, please.|.]",
            "I'd like you to {v} the {n}{t}.",
            "{V} {n}{t}.",
            "[The plan is|My wish is|Our job is|The idea is|It would be nice|Your task is|I was told"
            "|Do not forget] to {v} [the|a] {n}{t}.",
            "[Come on,|Well,|Listen:|Quick:|First,] {v} the {n}{t}[ now| today|].",
        ),
        ("I have to {v} the {n}{t}.", "Go and {v} the {n}{t} for me.", "It is time to {v} the {n}{t}."),
        V=verb.capitalize(),
        v=verb,
        n=noun,
        t=tail,
    ).replace(" a a", " an a")
    tool = _tool(
        f"{verb}_{noun}", f"{verb.capitalize()} {article(noun)}", **{key: slots[key][2] for key in keys}
    )
    arguments = {key: slots[key][1] for key in keys}
    outcomes: dict[str, Value] = {
        "status": rng.choice(("ok", "done", "confirmed", "waiting", "full", "ready", "closed", "booked")),
        "id": rng.randint(1, 9999),
        "price": rng.randint(1, 999),
        "code": code(source),
        "time": clock_time(source),
        "name": person(source),
        "total": rng.randint(0, 500),
        "place": town(source),
    }
    chosen = rng.sample(list(outcomes), rng.choice((1, 2, 2, 3)))
    return Request(tool, says, arguments, {key: outcomes[key] for key in chosen})
