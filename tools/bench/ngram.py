"""What drafting from texts costs: `python -m tools.bench.ngram`, `--help` for its options.

A line per kind of text and number of requests, each request with `--context` tokens behind it: microseconds per request
and step (its new tokens taken in, a draft made, the Python of the call included), medians; milliseconds to take in the
whole prompt; bytes per token. `python` in the last columns is the same without compiled code, on one request. At the end,
what choosing draft lengths and learning from the outcome costs per step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from penstock.kernels.cpu.library import load
from penstock.spec.adaptive import DraftLengths
from penstock.spec.ngram import NUM_SOURCES, NgramDrafter, NgramOptions

Int32 = npt.NDArray[np.int32]


def words(random: np.random.Generator, length: int) -> Int32:
    """Words as often as in a language (Zipf), many of them in phrases that come again."""
    vocabulary = 50_000
    phrases = [(random.zipf(1.2, random.integers(4, 40)) - 1) % vocabulary for _ in range(200)]
    pieces: list[npt.NDArray[np.int64]] = []
    while sum(map(len, pieces)) < length:
        new = (random.zipf(1.2, 30) - 1) % vocabulary
        pieces += [new, phrases[int(random.integers(len(phrases)))]]
    return np.concatenate(pieces)[:length].astype(np.int32)


def copied(random: np.random.Generator, length: int) -> Int32:
    """A text, then the same again."""
    half = words(random, (length + 1) // 2)
    return np.concatenate([half, half])[:length]


def two_tokens(random: np.random.Generator, length: int) -> Int32:
    """Of two tokens at random: the most contexts that a text can have."""
    return random.integers(0, 2, length).astype(np.int32)


def one_token(random: np.random.Generator, length: int) -> Int32:
    """The same token again and again: the longest contexts."""
    return np.zeros(length, np.int32)


KINDS: dict[str, Callable[[np.random.Generator, int], Int32]] = {
    "words": words,
    "copied": copied,
    "two tokens": two_tokens,
    "one token": one_token,
}


def steps(drafter: NgramDrafter, texts: list[Int32], at: int, num_steps: int, most: int) -> Iterator[float]:
    """Seconds of each step; the requests say what their texts say."""
    slots = np.arange(len(texts), dtype=np.int32)
    limits, places = np.full(len(texts), most, np.int32), np.full(len(texts), at)
    drafter.propose(slots, limits)
    for step in range(num_steps):
        counts = np.full(len(texts), 1 + step % 4, np.int32)
        said = np.concatenate([text[p : p + c] for text, p, c in zip(texts, places, counts, strict=True)])
        places += counts
        begin = time.perf_counter()
        drafter.extend(slots, counts, said)
        drafter.propose(slots, limits)
        yield time.perf_counter() - begin


def measure(
    texts: list[Int32], context: int, num_steps: int, most: int, *, compiled: bool
) -> tuple[float, ...]:
    """(microseconds per request and step, milliseconds to take in one prompt, bytes per token)."""
    drafter = NgramDrafter(len(texts), NgramOptions(window=4 * context), compiled=compiled)
    prompts = []
    for slot, text in enumerate(texts):
        begin = time.perf_counter()
        drafter.start(slot, text[:context])
        drafter.ingest(context)
        prompts.append(time.perf_counter() - begin)
    taken = list(steps(drafter, texts, context, num_steps, most))
    return (
        1e6 * float(np.median(taken)) / len(texts),
        1e3 * float(np.median(prompts)),
        drafter.memory_bytes(0) / context,
    )


def lengths(requests: int, most: int, num_steps: int) -> tuple[float, float]:
    """Microseconds of a step's choice of lengths for so many requests, all with drafts, and of taking in the outcome."""
    random = np.random.default_rng(0)
    adaptive = DraftLengths(requests, most, NUM_SOURCES)
    slots, limits = np.arange(requests, dtype=np.int32), np.full(requests, most, np.int32)
    sources = random.integers(0, NUM_SOURCES, requests).astype(np.int32)
    chosen, taken = [], []
    for _ in range(num_steps):
        begin = time.perf_counter()
        lens = adaptive.choose(slots, limits, lambda tokens: 1e-2 + 1e-5 * tokens, sources=sources)
        chosen.append(time.perf_counter() - begin)
        accepted = np.minimum(random.integers(0, most + 1, requests), lens).astype(np.int32)
        begin = time.perf_counter()
        adaptive.observe(slots, lens, accepted, sources)
        taken.append(time.perf_counter() - begin)
    return 1e6 * float(np.median(chosen)), 1e6 * float(np.median(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--context", type=int, default=32768, help="tokens behind each request")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--draft", type=int, default=8, help="most tokens of a draft")
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    if load() is None:
        parser.error("the CPU kernels cannot be built here")
    print(f"{arguments.context} tokens of context, drafts of {arguments.draft}")
    print(
        f"{'text':12} {'requests':>8} {'us/request/step':>16} {'prompt ms':>10} {'bytes/token':>12} "
        f"{'python us':>10} {'ms':>7}"
    )
    length = arguments.context + 4 * arguments.steps
    for name, kind in KINDS.items():
        slower = measure(
            [kind(np.random.default_rng(0), length)],
            arguments.context,
            arguments.steps,
            arguments.draft,
            compiled=False,
        )
        for requests in arguments.requests:
            texts = [kind(np.random.default_rng(seed), length) for seed in range(requests)]
            each, prompt, size = measure(
                texts, arguments.context, arguments.steps, arguments.draft, compiled=True
            )
            print(
                f"{name:12} {requests:8} {each:16.2f} {prompt:10.2f} {size:12.0f} {slower[0]:10.0f} {slower[1]:7.0f}",
                flush=True,
            )
    for requests in arguments.requests:
        choice, outcome = lengths(requests, arguments.draft, 10 * arguments.steps)
        print(f"draft lengths of {requests} requests: {choice:.0f} us to choose, {outcome:.0f} us to learn")


if __name__ == "__main__":
    main()
