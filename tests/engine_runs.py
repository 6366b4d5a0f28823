"""Driving the engine's parts without processes: raw logits of a checkpoint, and requests through scheduler and runner."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from penstock.engine import kv_pool
from penstock.engine.batch import BatchBuilder
from penstock.engine.build import Built, attention_spec, choose, load_model, load_ops
from penstock.engine.grammar.store import Compile
from penstock.engine.model_config import read_model_config
from penstock.kernels.select import select_attention
from penstock.scheduler.messages import EngineConfig, EngineLoad, KVCacheDType, SamplingParams
from penstock.scheduler.plan import RowLogprobs, StepPlan
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler


def engine_logits(
    model_dir: Path,
    tokens: list[int],
    backend: str,
    chunk: int = 1_000,
    kv_cache_dtype: KVCacheDType = "auto",
) -> torch.Tensor:
    """(len(tokens), vocab_size) float32 logits of one sequence, prefilled in chunks through paged KV."""
    config = EngineConfig(
        model_dir=str(model_dir),
        attention_backend=backend,
        kv_cache_dtype=kv_cache_dtype,
        page_size=4,
        device="cpu",
        num_threads=1,
    )
    model_config = read_model_config(model_dir)
    choices, length, count = choose(config, model_config), 512, 128
    groups = kv_pool.group_layers(model_config, length)
    attention = [
        select_attention(backend, choices.device, attention_spec(config, model_config, choices, window))
        for window in groups.windows
    ]
    with torch.inference_mode():
        ops = load_ops(backend, choices, lambda phase, fraction: None)
        model, _ = load_model(
            config, model_config, choices, ops, attention, groups, length, lambda fraction: None
        )
        pages = (count,) * len(groups.windows)
        kv = kv_pool.allocate(
            model_config, groups, pages, page_size=4, dtype=choices.kv_dtype, device=choices.device
        )
        buffer = torch.zeros((3, length), dtype=torch.int32)
        buffer[1, : len(tokens)] = torch.tensor(tokens)
        # Pages in no order: a back end that ignores the table gives other logits.
        table = (
            torch.randperm(count, generator=torch.Generator().manual_seed(1)).int().expand(3, -1).contiguous()
        )
        builder = BatchBuilder(buffer, [table] * len(pages), kv)
        rows = []
        for start in range(0, len(tokens), chunk):
            size = min(chunk, len(tokens) - start)
            plan = StepPlan(
                step=0,
                slots=np.array([1], np.int32),
                starts=np.array([start], np.int32),
                lens=np.array([size], np.int32),
                sample=np.array([False]),
                num_decode_rows=0,
                num_tokens=size,
            )
            batch, _ = builder.build(plan)
            for each, planned in zip(attention, batch.attention, strict=True):
                each.plan(planned)
            rows.append(model.logits(model.forward(batch)).float())
        return torch.cat(rows)


@dataclass
class Served:
    """What came out of a run: output tokens per request (in order), log probabilities, and the final load."""

    outputs: list[list[int]]
    requests: list[Request]
    logprobs: list[list[RowLogprobs]]
    load: EngineLoad
    plans: list[StepPlan] = field(default_factory=list)


def serve(
    built: Built,
    prompts: list[list[int]],
    sampling: SamplingParams | list[SamplingParams],
    *,
    steps_in_flight: int = 2,
    arrive_every: int = 0,
    num_prompt_tokens: list[int] | None = None,
    compile_grammar: Compile | None = None,
    predictions: list[list[int]] | None = None,
) -> Served:
    """Run prompts through a new scheduler and the runner to their end, `check()` after every commit.

    `arrive_every` n adds one request every n steps instead of all at once. `num_prompt_tokens` says how much of each
    prompt is one; the rest is output that an earlier run produced. `compile_grammar` is for samplings with a grammar.
    `predictions` are what the users of the requests expect (nothing, where one is empty).
    """
    scheduler = Scheduler(built.scheduler_config)
    assert scheduler.num_slots <= built.runner.num_slots
    each = sampling if isinstance(sampling, list) else [sampling] * len(prompts)
    counts = num_prompt_tokens or [len(prompt) for prompt in prompts]
    requests = [
        Request(
            key=i,
            tokens=np.array(prompt, np.int32),
            num_prompt_tokens=count,
            sampling=how,
            grammar=compile_grammar(how.grammar) if compile_grammar and how.grammar else None,
            prediction=np.array(predicted, np.int32) if predicted else None,
            arrival=i,
        )
        for i, (prompt, count, how, predicted) in enumerate(
            zip(prompts, counts, each, predictions or [[]] * len(prompts), strict=True)
        )
    ]
    waiting = deque(requests)
    logprobs: list[list[RowLogprobs]] = [[] for _ in requests]
    plans: list[StepPlan] = []
    in_flight: deque = deque()
    step = 0
    while waiting or in_flight or scheduler.has_work():
        step += 1
        while waiting and (not arrive_every or step % arrive_every == 0):
            scheduler.add(waiting.popleft())
            if arrive_every:
                break
        plan = scheduler.plan(float(step))
        if plan is not None:
            plans.append(plan)
            in_flight.append((plan, built.runner.launch(plan)))
        if len(in_flight) == steps_in_flight or (in_flight and plan is None):
            oldest, handle = in_flight.popleft()
            outcome = scheduler.commit(oldest, handle.result(), float(step))
            for request, row in outcome.logprobs:
                logprobs[request.key].append(row)
            scheduler.check()
    outputs = [request.tokens[request.num_prompt_tokens :].tolist() for request in requests]
    return Served(outputs, requests, logprobs, scheduler.load(), plans)
