"""Which drafter a configuration asks for: the one table of methods that need no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ..kernels.interface import Recorder
from ..scheduler.messages import SpeculativeConfig, SpeculativeMethod
from ..spec.interface import HostDrafter
from ..spec.ngram import NgramOptions, ngram_drafter
from .batch import DeviceSlots
from .draft_models.drafter import ModelDrafter, staging_buffers
from .draft_models.model import DraftModel
from .errors import ConfigurationError
from .kv_pool import DraftPages
from .speculation import Speculation
from .streams import open_stream

OpenSpeculation: TypeAlias = Callable[[DeviceSlots], Speculation]


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A drafter that is a model, with its part of the pages of a KV group."""

    model: DraftModel
    pages: DraftPages
    group: int
    page_size: int
    new_recorder: Callable[[], Recorder | None]


def open_speculation(
    config: SpeculativeConfig | None, num_slots: int, draft: LoadedDraft | None = None
) -> OpenSpeculation | None:
    """What drafts for `num_slots` slots; None if nothing is to. Raises ConfigurationError."""
    if config is None:
        return None
    if draft is not None:
        return lambda slots: Speculation(
            num_slots,
            open_model(config, draft, slots),
            max_draft_tokens=config.num_speculative_tokens,
            adaptive=config.adaptive,
        )
    make = DRAFTERS.get(config.method)
    if make is None:
        raise ConfigurationError(f"--speculative-config: method {config.method!r} is not available here")
    try:
        drafter = make(config, num_slots)
    except ValueError as error:
        raise ConfigurationError(f"--speculative-config: {error}") from None
    return lambda slots: Speculation(
        num_slots, drafter, max_draft_tokens=config.num_speculative_tokens, adaptive=config.adaptive
    )


def open_ngram(config: SpeculativeConfig, num_slots: int) -> HostDrafter:
    return ngram_drafter(
        num_slots,
        NgramOptions(
            min_match=config.prompt_lookup_min,
            max_match=config.prompt_lookup_max,
            window=config.window,
            shared_pool=config.shared_pool,
        ),
    )


def open_model(config: SpeculativeConfig, draft: LoadedDraft, slots: DeviceSlots) -> ModelDrafter:
    device: torch.device = slots.token_buffer.device
    return ModelDrafter(
        draft.model,
        draft.pages.kv,
        draft.pages.page_ends,
        slots.token_buffer,
        slots.page_tables[draft.group],
        page_size=draft.page_size,
        max_draft_tokens=config.num_speculative_tokens,
        stream=open_stream(device, staging_buffers(len(draft.model.modules))),
        new_recorder=draft.new_recorder,
    )


DRAFTERS: dict[SpeculativeMethod, Callable[[SpeculativeConfig, int], HostDrafter]] = {"ngram": open_ngram}
