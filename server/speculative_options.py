"""Speculation: the options, as vLLM and SGLang spell them, and the one configuration that they mean."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from ..scheduler.messages import SpeculativeConfig
from .options.values import Option
from .speculative import MOST_TOKENS, resolve

Positive: TypeAlias = Annotated[int, Meta(ge=1)]


class SpeculativeOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Speculation"""

    speculative_config: Annotated[
        dict[str, Any],
        Option(
            "JSON object that turns on speculation. vLLM's keys: method (ngram, eagle, eagle3, mtp), model, "
            "num_speculative_tokens, prompt_lookup_min, prompt_lookup_max; beside them window, shared_pool and "
            "adaptive. Or decoding_type (Eagle, MTP, NGram), speculative_model_dir, num_nextn_predict_layers, "
            "max_draft_len, eagle3_one_model.",
            aliases=("-sc",),
            metavar="JSON",
        ),
    ] = {}
    spec_method: Annotated[
        str | None,
        Option(
            "How tokens are drafted: `ngram` = from the request's own text, and from its `prediction`; `eagle` "
            "and `eagle3` = by a head with a checkpoint of its own; `mtp` = by the checkpoint's next-token layers.",
            aliases=("--speculative-algorithm", "--speculative-algo"),
            metavar="METHOD",
        ),
    ] = None
    spec_model: Annotated[
        str | None,
        Option(
            "The drafter's checkpoint, where the method has one: a local directory or a Hugging Face id.",
            aliases=("--speculative-draft-model-path", "--speculative-draft-model"),
            metavar="MODEL",
        ),
    ] = None
    spec_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_TOKENS)] | None,
        Option("Most tokens of a draft.", aliases=("--speculative-num-steps",)),
    ] = None
    speculative_num_draft_tokens: Annotated[
        Annotated[int, Meta(ge=2, le=MOST_TOKENS + 1)] | None,
        Option("Most tokens to verify, the one before the draft included: --spec-tokens and one."),
    ] = None
    speculative_eagle_topk: Annotated[
        Positive | None, Option("Drafts are chains: 1 is the one value that there is.")
    ] = None
    ngram_prompt_lookup_min: Annotated[
        Positive | None,
        Option(
            "Shortest context that must have come before, in tokens. Default: 3.",
            aliases=("--speculative-ngram-min-match-window-size",),
        ),
    ] = None
    ngram_prompt_lookup_max: Annotated[
        Positive | None,
        Option(
            "Longest context that is compared, in tokens. Default: any number.",
            aliases=("--speculative-ngram-max-trie-depth",),
        ),
    ] = None
    speculative_adaptive: Annotated[
        bool | None,
        Option(
            "Make each draft as long as pays, often none at all; --no-speculative-adaptive makes all as long as they can "
            "be. Default: on."
        ),
    ] = None


# option -> what `resolve` calls it
NAMES = {
    "spec_method": "method",
    "spec_model": "model",
    "spec_tokens": "num_speculative_tokens",
    "speculative_num_draft_tokens": "num_draft_tokens",
    "speculative_eagle_topk": "eagle_topk",
    "ngram_prompt_lookup_min": "prompt_lookup_min",
    "ngram_prompt_lookup_max": "prompt_lookup_max",
    "speculative_adaptive": "adaptive",
}


def speculation(options: SpeculativeOptions) -> SpeculativeConfig | None:
    """What the options mean; None without speculation. Raises `SpeculativeError`."""
    flags = {
        name: ("--" + option.replace("_", "-"), getattr(options, option))
        for option, name in NAMES.items()
        if getattr(options, option) is not None
    }
    return resolve(options.speculative_config, flags)
