"""What the options of vLLM, SGLang and TensorRT-LLM for speculation mean: one `SpeculativeConfig`, or one clear error.

`--speculative-config` takes an object with vLLM's keys, or with `decoding_type` and those that go with it. Single flags
(vLLM's `--spec-...`, SGLang's `--speculative-...`) say parts of the same. Everything becomes a table of fields and where
each was said, in which a second word for a field must agree with the first; then the method's rules are checked.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..scheduler.messages import SpeculativeConfig, SpeculativeMethod

PLACE = "--speculative-config"
MOST_TOKENS = 128
LEAVE_OUT = "leave it out"


class SpeculativeError(ValueError):
    """What was asked for cannot be; one line with the field, the value and the way out."""


@dataclass(frozen=True)
class Rules:
    """What a method needs: whether it is built, a checkpoint of its own, and how many tokens if nobody says."""

    available: bool
    needs_model: bool
    default_tokens: int


METHODS: dict[SpeculativeMethod, Rules] = {
    "ngram": Rules(available=True, needs_model=False, default_tokens=8),
    "eagle": Rules(available=True, needs_model=True, default_tokens=4),
    "eagle3": Rules(available=True, needs_model=True, default_tokens=4),
    "mtp": Rules(available=True, needs_model=False, default_tokens=1),
    "draft_model": Rules(available=False, needs_model=True, default_tokens=4),
}
# Other names, in lower case. vLLM has a name for each family's MTP layers; they all mean those of the checkpoint.
METHOD_NAMES: dict[str, SpeculativeMethod] = {
    **{method: method for method in METHODS},
    "[ngram]": "ngram",
    "ngram_gpu": "ngram",
    "suffix": "ngram",
    "nextn": "mtp",
    "standalone": "draft_model",
}
# TensorRT-LLM's decoding_type, in lower case.
TYPES: dict[str, SpeculativeMethod] = {"eagle": "eagle3", "mtp": "mtp", "ngram": "ngram"}
TYPE_NAMES = "Eagle, MTP or NGram"
TYPE_DEFAULT_TOKENS = 4
TYPE_KEYS = (
    "decoding_type",
    "speculative_model_dir",
    "num_nextn_predict_layers",
    "max_draft_len",
    "eagle3_one_model",
)


@dataclass(frozen=True)
class Key:
    """One key of the object: its kind and its least value, and for a number its most."""

    kind: Literal["text", "int", "bool"]
    least: int = 0
    most: int | None = None


KEYS = {
    "method": Key("text"),
    "model": Key("text"),
    "num_speculative_tokens": Key("int", 1, MOST_TOKENS),
    "prompt_lookup_min": Key("int", 1),
    "prompt_lookup_max": Key("int", 1),
    "window": Key("int", 1024),
    "shared_pool": Key("int", 0),
    "adaptive": Key("bool"),
    "decoding_type": Key("text"),
    "speculative_model_dir": Key("text"),
    "num_nextn_predict_layers": Key("int", 1),
    "max_draft_len": Key("int", 1, MOST_TOKENS),
    "eagle3_one_model": Key("bool"),
}
# Keys of vLLM's whose one value here is this; any other is refused with the reason.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "draft_tensor_parallel_size": ((1,), "the drafter runs on the one device of the server"),
    "parallel_drafting": ((False,), "drafts are made one token after the other"),
    "rejection_sample_method": (
        ("standard",),
        "drafts are accepted so that outputs are those of the model alone",
    ),
    "draft_sample_method": (("greedy", "probabilistic"), "a draft changes no output"),
    "use_heterogeneous_vocab": ((False,), "drafter and model have one vocabulary"),
    "enable_adaptive_verification": ((False,), "lengths follow acceptance already, see adaptive"),
    "disable_padded_drafter_batch": ((False, True), "batches are ragged"),
}
# Keys of vLLM's that say what is decided otherwise here.
REFUSED = {
    "quantization": "the drafter's checkpoint says how it is quantised",
    "max_model_len": "the drafter reads as far as the model does",
    "num_speculative_tokens_per_batch_size": "lengths follow the measured cost of a step",
    "disable_by_batch_size": "lengths follow the measured cost of a step, 0 included",
    "suffix_decoding_max_tree_depth": "contexts may be of any length: use prompt_lookup_max to bound them, and",
    "suffix_decoding_max_cached_requests": "use shared_pool, a number of tokens, and",
    "suffix_decoding_max_spec_factor": "lengths follow what is accepted",
    "suffix_decoding_min_token_prob": "lengths follow what is accepted",
}


@dataclass(frozen=True)
class Said:
    """A value and where it was said, as an error shows it."""

    value: Any
    place: str

    def __str__(self) -> str:
        return f"{self.place} {shown(self.value)}"


def resolve(config: Mapping[str, Any], flags: Mapping[str, tuple[str, Any]]) -> SpeculativeConfig | None:
    """What the object of `--speculative-config` and single flags ask for; None if there is nothing of either.

    `flags` is the name of a field of the object, or one of SGLang's below -> (flag as it was typed, value):
    `num_steps`, `num_draft_tokens` and `eagle_topk` (a chain of n draft tokens is n steps of top-k 1 and, with the
    token before it, n + 1 tokens to verify).

    Raises:
        SpeculativeError: a field is missing, unknown, out of range, contradictory, or its method is not built yet.
    """
    if not config and not flags:
        return None
    said = {
        name: Said(checked(name, value), f"{PLACE}: {name}")
        for name, value in config.items()
        if known(name, value)
    }
    if any(name in TYPE_KEYS for name in said):
        said = translated(said)
    for name, value in chains(flags):
        before = said.get(name)
        if before is not None and same_word(name, before.value) != same_word(name, value.value):
            raise SpeculativeError(f"{value} contradicts {before}: keep one of them")
        said.setdefault(name, value)
    return assembled(said, TYPE_DEFAULT_TOKENS if "decoding_type" in config else None)


def known(name: str, value: Any) -> bool:
    """Whether the key says something; an error for one that is not known or says what cannot be."""
    if name in KEYS:
        return value is not None
    if name in FIXED:
        values, reason = FIXED[name]
        if value is not None and not any(value == one and type(value) is type(one) for one in values):
            raise SpeculativeError(f"{PLACE}: {name} {shown(value)}: {reason}: {LEAVE_OUT}")
        return False
    if name in REFUSED:
        if value is None:
            return False
        reason = REFUSED[name]
        raise SpeculativeError(
            f"{PLACE}: {name} {shown(value)}: {reason}{' ' if reason.endswith(' and') else ': '}{LEAVE_OUT}"
        )
    close = difflib.get_close_matches(name, [*KEYS, *FIXED, *REFUSED], 1, 0.6)
    way_out = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(KEYS)}"
    raise SpeculativeError(f"{PLACE}: {name}: unknown key; {way_out}")


def checked(name: str, value: Any) -> Any:
    """The value, if it is of the key's kind and range."""
    key = KEYS[name]
    place = f"{PLACE}: {name} {shown(value)}"
    if key.kind == "bool":
        if not isinstance(value, bool):
            raise SpeculativeError(f"{place}: expected true or false")
    elif key.kind == "text":
        if not isinstance(value, str) or not value:
            raise SpeculativeError(f"{place}: expected text")
    elif not isinstance(value, int) or isinstance(value, bool):
        raise SpeculativeError(f"{place}: expected a whole number")
    elif value < key.least or (key.most is not None and value > key.most):
        bound = f" and at most {key.most}" if key.most is not None else ""
        raise SpeculativeError(f"{place}: must be at least {key.least}{bound}")
    return value


def translated(said: dict[str, Said]) -> dict[str, Said]:
    """The fields that `decoding_type` and the keys that go with it mean."""
    ours = next((name for name in ("method", "model", "num_speculative_tokens") if name in said), None)
    theirs = next(name for name in TYPE_KEYS if name in said)
    if ours is not None:
        raise SpeculativeError(f"{said[ours]} and {theirs}: two ways to say the same: leave one of them out")
    if "decoding_type" not in said:
        raise SpeculativeError(f"{PLACE}: decoding_type is missing beside {theirs}: give {TYPE_NAMES}")
    kind = said["decoding_type"]
    method = TYPES.get(kind.value.lower())
    if method is None:
        raise SpeculativeError(f"{kind}: unknown: give {TYPE_NAMES}")
    needed = {"eagle3": "speculative_model_dir", "mtp": "num_nextn_predict_layers"}.get(method)
    for name, what in (
        ("speculative_model_dir", "a directory with the drafter's checkpoint"),
        ("num_nextn_predict_layers", "how many of the checkpoint's layers predict further tokens"),
        ("eagle3_one_model", ""),
    ):
        if name == needed and name not in said:
            raise SpeculativeError(f"{PLACE}: {name} is missing: decoding_type {kind.value} needs {what}")
        fits = name == needed or (name == "eagle3_one_model" and method == "eagle3")
        if name in said and not fits:
            raise SpeculativeError(
                f"{said[name]}: has no meaning with decoding_type {kind.value}: {LEAVE_OUT}"
            )
    fields = {name: value for name, value in said.items() if name not in TYPE_KEYS}
    fields["method"] = Said(method, kind.place)
    if "eagle3_one_model" in said and not said["eagle3_one_model"].value:
        raise SpeculativeError(
            f"{said['eagle3_one_model']}: drafter and model are always one program: leave it out or set it to true"
        )
    if method == "eagle3":
        fields["model"] = said["speculative_model_dir"]
    for name, means in (
        ("num_nextn_predict_layers", "num_nextn_predict_layers"),
        ("max_draft_len", "num_speculative_tokens"),
    ):
        if name in said:
            fields[means] = said[name]
    return fields


def chains(flags: Mapping[str, tuple[str, Any]]) -> Iterator[tuple[str, Said]]:
    """(field, what was said) for each flag, SGLang's three numbers as the one that they mean."""
    for name, (flag, value) in flags.items():
        if name == "num_steps":
            yield "num_speculative_tokens", Said(value, flag)
        elif name == "num_draft_tokens":
            if value < 2:
                raise SpeculativeError(
                    f"{flag} {value}: must be at least 2, the token before the draft included"
                )
            yield "num_speculative_tokens", Said(value - 1, f"{flag} {value}, that is a draft of")
        elif name == "eagle_topk":
            if value != 1:
                raise SpeculativeError(
                    f"{flag} {value}: drafts are chains, not trees: set it to 1 or leave it out"
                )
        else:
            yield name, Said(value, flag)


def same_word(name: str, value: Any) -> Any:
    """Two names of one method are the same word."""
    return METHOD_NAMES.get(str(value).lower(), value) if name == "method" else value


def assembled(said: dict[str, Said], default_tokens: int | None) -> SpeculativeConfig:
    """The configuration, if its fields go together. Without `default_tokens` the method has a default of its own."""
    if "method" not in said:
        model = said.get("model")
        if model is None or METHOD_NAMES.get(model.value.lower()) != "ngram":
            beside = f" beside {next(iter(said.values()))}" if said else ""
            raise SpeculativeError(f"{PLACE}: method is missing{beside}: give one of {', '.join(METHODS)}")
        said["method"] = said.pop("model")  # vLLM's older way to ask for it
    method = method_of(said["method"])
    rules = METHODS[method]
    model = said.get("model")
    if rules.needs_model and model is None:
        raise SpeculativeError(
            f"{PLACE}: model is missing: method {method} needs a directory or a Hugging Face id"
        )
    if model is not None and not rules.needs_model:
        raise SpeculativeError(f"{model}: method {method} has no model of its own: {LEAVE_OUT}")
    for name in ("prompt_lookup_min", "prompt_lookup_max", "window", "shared_pool"):
        if name in said and method != "ngram":
            raise SpeculativeError(f"{said[name]}: has no meaning with method {method}: {LEAVE_OUT}")
    values = {name: value.value for name, value in said.items()}
    layers = values.get("num_nextn_predict_layers")
    values.setdefault("num_speculative_tokens", layers or default_tokens or rules.default_tokens)
    longest = values.get("prompt_lookup_max")
    if "prompt_lookup_min" not in values and longest is not None:
        values["prompt_lookup_min"] = min(3, longest)
    if longest is not None and longest < values["prompt_lookup_min"]:
        raise SpeculativeError(
            f"{said['prompt_lookup_max']}: less than {said['prompt_lookup_min']}: raise the first or lower the second"
        )
    pool = said.get("shared_pool")
    if pool is not None and 0 < pool.value < 1024:
        raise SpeculativeError(f"{pool}: too few tokens to be of use: give at least 1024, or 0 for none")
    if not rules.available:
        built = [name for name, others in METHODS.items() if others.available]
        raise SpeculativeError(
            f"{said['method'].place}: method '{method}' is not available yet: use {' or '.join(built)}"
        )
    return SpeculativeConfig(**{**values, "method": method})


def method_of(said: Said) -> SpeculativeMethod:
    name = str(said.value).lower()
    if name in METHOD_NAMES:
        return METHOD_NAMES[name]
    if name.endswith("_mtp"):
        return "mtp"
    close = difflib.get_close_matches(name, METHOD_NAMES, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise SpeculativeError(f"{said}: unknown method: choose one of {', '.join(METHODS)}{hint}")


def shown(value: Any) -> str:
    """A value as part of an error line."""
    text = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)
    text = " ".join(text.split()) or "''"
    return text if len(text) <= 60 else text[:57] + "..."
