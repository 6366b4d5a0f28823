"""Fields that rule tokens out or end an answer that goes round in circles: checked, and brought to token ids."""

from __future__ import annotations

from msgspec.structs import replace

from ...scheduler.messages import GrammarSpec, RepetitionDetection, SamplingParams
from ..limits import LimitOptions
from ..text.tokenizer import Tokenizer
from .errors import bad_request, shown
from .protocol import GenerationRequest

MIN_COUNT = 2  # one copy repeats nothing
MAX_COUNT = 2**16  # more copies than an answer of any context holds


def check_token_rules(limits: LimitOptions, request: GenerationRequest) -> None:
    """What can be said without a tokenizer. Raises a 400."""
    for index, word in enumerate(request.bad_words or ()):
        if len(word) > limits.max_bad_word_chars:
            raise bad_request(
                f"bad_words[{index}]",
                f"{len(word)} characters are more than this server allows, {limits.max_bad_word_chars} "
                "(--max-bad-word-chars)",
            )
    repetition_detection(limits, request)


def repetition_detection(limits: LimitOptions, request: GenerationRequest) -> RepetitionDetection | None:
    """vLLM's rules: a largest size of 0 turns it off, a smallest of 0 means 1, at least two copies. Raises a 400."""
    fields, name = request.repetition_detection, "repetition_detection"
    if fields is None or fields.max_pattern_size == 0:
        return None
    if fields.max_pattern_size > limits.max_repetition_pattern:
        raise bad_request(
            f"{name}.max_pattern_size",
            f"{fields.max_pattern_size} tokens are more than this server looks for, "
            f"{limits.max_repetition_pattern} (--max-repetition-pattern)",
        )
    if fields.min_pattern_size > fields.max_pattern_size:
        raise bad_request(
            f"{name}.min_pattern_size",
            f"{fields.min_pattern_size} is more than max_pattern_size, {fields.max_pattern_size}",
        )
    if not MIN_COUNT <= fields.min_count <= MAX_COUNT:
        raise bad_request(
            f"{name}.min_count", f"must lie between {MIN_COUNT} and {MAX_COUNT}, got {fields.min_count}"
        )
    return RepetitionDetection(
        max_pattern_size=fields.max_pattern_size,
        min_pattern_size=max(1, fields.min_pattern_size),
        min_count=fields.min_count,
    )


def with_token_rules(
    params: SamplingParams,
    request: GenerationRequest,
    *,
    limits: LimitOptions,
    tokenizer: Tokenizer,
    vocab_size: int,
    grammar: GrammarSpec | None,
) -> SamplingParams:
    """`params` and what the request rules out. Raises a 400 for ids the model lacks and rules that leave nothing."""
    allowed = sorted(set(request.allowed_token_ids or ()))
    if allowed and allowed[-1] >= vocab_size:
        raise bad_request(
            "allowed_token_ids", f"token {allowed[-1]} is outside the vocabulary of {vocab_size} tokens"
        )
    if allowed and grammar is not None:
        raise bad_request(
            "allowed_token_ids", "excludes a constraint on the form of the output: one of the two"
        )
    bad_words: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(request.bad_words or ()):
        sequences = tokenizer.word_sequences(word)
        if not sequences:
            raise bad_request(f"bad_words[{index}]", f"{shown(word)} has no token in this model's vocabulary")
        # What holds an id that the model lacks cannot come anyway.
        bad_words.update(dict.fromkeys(each for each in sequences if max(each) < vocab_size))
    refuse_rules_that_leave_nothing(allowed, bad_words, params)
    return replace(
        params,
        allowed_token_ids=allowed,
        bad_words=[list(word) for word in bad_words],
        repetition_detection=repetition_detection(limits, request),
    )


def refuse_rules_that_leave_nothing(
    allowed: list[int], bad_words: dict[tuple[int, ...], None], params: SamplingParams
) -> None:
    if not allowed:
        return
    left = set(allowed) - {word[0] for word in bad_words if len(word) == 1}
    if not left:
        raise bad_request("bad_words", "every one of the allowed_token_ids is a bad word: nothing may come")
    if params.min_tokens and left <= set(params.stop_token_ids):
        raise bad_request(
            "min_tokens", "all that allowed_token_ids leaves would end the answer: nothing may come before"
        )
