"""Text is cut at its first stop string, however it arrives, and nothing is held back that may be shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from penstock.server.text.stops import StopStrings

TEXT = st.text("ab.", max_size=30)
STOPS = st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=4)


def cut(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The slow and obvious way: the first position at which a stop string is complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(text=TEXT, stops=STOPS, include=st.booleans(), data=st.data())
def test_any_split_gives_the_same_cut(
    text: str, stops: list[str], include: bool, data: st.DataObject
) -> None:
    watch = StopStrings(stops, include=include)
    shown, matched, position = "", None, 0
    while position < len(text) and matched is None:
        size = data.draw(st.integers(1, 5))
        piece, matched = watch.push(text[position : position + size])
        shown += piece
        position += size
    if matched is None:
        shown += watch.flush()
    assert (shown, matched) == cut(text, stops, include)


@given(text=TEXT, stops=STOPS)
def test_only_what_could_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    watch = StopStrings(stops)
    shown, matched = watch.push(text)
    if matched is None:
        held = text[len(shown) :]
        assert text.startswith(shown)
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
