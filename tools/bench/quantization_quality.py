"""What quantisation costs in quality: `python -m tools.bench.quantization_quality`.

The embedded model on held-out dialogues: perplexity of the reference answers, how often the likeliest token is that of
bfloat16, and the mean Kullback-Leibler divergence from bfloat16's distribution in thousandths of a nat (over the answers'
tokens); with `--score N`, how many of N held-out questions of each kind it answers rightly, decoding greedily. Any other
model (`--model DIR`): the relative error of the logits of random tokens, and the same two distances.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from penstock.engine import kv_pool
from penstock.engine.batch import BatchBuilder
from penstock.engine.build import attention_spec, create_runner, load_model
from penstock.engine.choices import choose
from penstock.engine.loading import load_ops
from penstock.engine.model_config import read_model_config
from penstock.kernels.select import select_attention
from penstock.scheduler.messages import EngineConfig, QuantizationScheme, SamplingParams
from penstock.scheduler.plan import StepPlan
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler
from tokenizers import Tokenizer

from ..demo_model.checks import passes
from ..demo_model.packing import Packer
from ..demo_model.render import render
from ..demo_model.text import KINDS, held_out_questions

EMBEDDED = Path(__file__).resolve().parents[2] / "server" / "demo_model"
SCHEMES: tuple[QuantizationScheme | None, ...] = (None, "int8", "int4")
MAX_LENGTH = 1024
PAGE_SIZE = 16
MAX_NEW_TOKENS = 320  # as tools/demo_model/score.py


class Logits:
    """The engine's own model and kernels, one sequence at a time."""

    def __init__(self, model_dir: Path, scheme: QuantizationScheme | None) -> None:
        config = EngineConfig(
            model_dir=str(model_dir), dtype="bfloat16", device="cpu", quantization=scheme, page_size=PAGE_SIZE
        )
        model_config = read_model_config(model_dir)
        choices = choose(config, model_config)
        groups = kv_pool.group_layers(model_config, MAX_LENGTH)
        self._attention = [
            select_attention("auto", choices.device, attention_spec(config, model_config, choices, window))
            for window in groups.windows
        ]
        ops = load_ops("auto", choices, lambda phase, fraction: None)
        self._model, self.weight_bytes = load_model(
            config, model_config, choices, ops, self._attention, groups, MAX_LENGTH, lambda fraction: None
        )
        count = MAX_LENGTH // PAGE_SIZE
        pages = (count,) * len(groups.windows)
        kv = kv_pool.allocate(
            model_config, groups, pages, page_size=PAGE_SIZE, dtype=choices.dtype, device=choices.device
        )
        self._tokens = torch.zeros((1, MAX_LENGTH), dtype=torch.int32)
        table = torch.arange(count, dtype=torch.int32)[None]
        self._builder = BatchBuilder(self._tokens, [table] * len(pages), kv)
        self.vocab_size = model_config.vocab_size

    def __call__(self, tokens: list[int]) -> torch.Tensor:
        """(len(tokens), vocab_size) float32."""
        self._tokens[0, : len(tokens)] = torch.tensor(tokens)
        plan = StepPlan(
            step=0,
            slots=np.zeros(1, np.int32),
            starts=np.zeros(1, np.int32),
            lens=np.array([len(tokens)], np.int32),
            sample=np.array([False]),
            num_decode_rows=0,
            num_tokens=len(tokens),
        )
        batch, _ = self._builder.build(plan)
        for each, planned in zip(self._attention, batch.attention, strict=True):
            each.plan(planned)
        return self._model.logits(self._model.forward(batch)).float()


class Distance:
    """How far distributions are from those of bfloat16, and from the tokens that really follow."""

    def __init__(self) -> None:
        self._loss = self._divergence = 0.0
        self._same = self._count = 0

    def add(self, logits: torch.Tensor, exact: torch.Tensor, following: torch.Tensor | None) -> None:
        """Logits (n, vocab_size) of both, and the tokens (n,) after them."""
        ours, theirs = logits.log_softmax(-1), exact.log_softmax(-1)
        if following is not None:
            self._loss -= float(ours.gather(1, following[:, None]).sum())
        self._divergence += float((theirs.exp() * (theirs - ours)).sum())
        self._same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        self._count += len(logits)

    def row(self, *, perplexity: bool) -> str:
        first = f"perplexity {math.exp(self._loss / self._count):.4f}   " if perplexity else ""
        return (
            f"{first}likeliest token as in bfloat16 {100 * self._same / self._count:6.2f} %   "
            f"divergence {1000 * self._divergence / self._count:8.3f} mnat   ({self._count} tokens)"
        )


def name_of(scheme: QuantizationScheme | None) -> str:
    return scheme or "bfloat16"


def compare_dialogues(each: int, seed: int) -> None:
    """The embedded model on the reference answers of held-out dialogues."""
    packer = Packer(Tokenizer.from_file(str(EMBEDDED / "tokenizer.json")), 0, ())
    dialogues = [packer.encode(d) for kind in KINDS for d in held_out_questions(kind, each, seed)]
    models = {scheme: Logits(EMBEDDED, scheme) for scheme in SCHEMES}
    distances = {scheme: Distance() for scheme in SCHEMES}
    for tokens in dialogues:
        if len(tokens) > MAX_LENGTH:
            continue
        answer = torch.from_numpy(packer.answer_mask(tokens))[1:]
        following = torch.tensor(tokens)[1:][answer]
        logits = {scheme: model(tokens)[:-1][answer] for scheme, model in models.items()}
        for scheme, distance in distances.items():
            distance.add(logits[scheme], logits[None], following)
    for scheme, distance in distances.items():
        print(f"{name_of(scheme):9} {distance.row(perplexity=True)}", flush=True)


def compare_logits(model_dir: Path, count: int, seed: int) -> None:
    """Any model on random tokens; one is loaded at a time."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = read_model_config(model_dir).vocab_size
    tokens = torch.randint(0, vocab_size, (count,), generator=generator).tolist()
    exact = torch.empty(0)
    for scheme in SCHEMES:
        model = Logits(model_dir, scheme)
        logits = model(tokens)
        exact = logits if scheme is None else exact
        error = float((logits - exact).norm() / exact.norm())
        distance = Distance()
        distance.add(logits, exact, None)
        print(
            f"{name_of(scheme):9} weights {model.weight_bytes / 2**20:6.0f} MiB   relative error of logits {error:.5f}   "
            f"{distance.row(perplexity=False)}",
            flush=True,
        )


@contextmanager
def answering(scheme: QuantizationScheme | None) -> Iterator[Any]:
    """A function from prompts (token ids) to greedy replies, run by the engine side by side."""
    built = create_runner(
        EngineConfig(
            model_dir=str(EMBEDDED), dtype="bfloat16", device="cpu", quantization=scheme, max_num_seqs=32
        )
    )
    stops = [0, 2]

    def replies(prompts: list[list[int]]) -> list[list[int]]:
        scheduler = Scheduler(built.scheduler_config)
        sampling = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0.0, stop_token_ids=stops)
        requests = [
            Request(
                key=key, tokens=np.array(prompt, np.int32), num_prompt_tokens=len(prompt), sampling=sampling
            )
            for key, prompt in enumerate(prompts)
        ]
        waiting = deque(requests)
        while waiting or scheduler.has_work():
            while waiting and scheduler.load().num_waiting < 8:
                scheduler.add(waiting.popleft())
            plan = scheduler.plan(0.0)
            if plan is not None:
                scheduler.commit(plan, built.runner.launch(plan).result(), 0.0)
        return [request.tokens[request.num_prompt_tokens :].tolist() for request in requests]

    try:
        yield replies
    finally:
        built.runner.close()


def compare_scores(each: int, seed: int) -> None:
    """Right answers to held-out questions, by greedy decoding."""
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    dialogues = [d for kind in KINDS for d in held_out_questions(kind, each, seed)]
    prompts = [
        tokenizer.encode(render(d.last.messages[:-1], d.last.tools, add_generation_prompt=True)).ids
        for d in dialogues
    ]
    for scheme in SCHEMES:
        with answering(scheme) as replies:
            texts = [tokenizer.decode(reply, skip_special_tokens=True) for reply in replies(prompts)]
        right = sum(passes(d.last.check, text.strip()) for d, text in zip(dialogues, texts, strict=True))
        print(f"{name_of(scheme):9} {right} of {len(dialogues)} right", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a model directory, in place of the embedded model")
    parser.add_argument("--each", type=int, default=20, help="dialogues of each kind")
    parser.add_argument("--score", type=int, default=0, metavar="N", help="questions of each kind to answer")
    parser.add_argument("--tokens", type=int, default=256, help="random tokens, with --model")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with torch.inference_mode():
        if args.model is not None:
            compare_logits(args.model, args.tokens, args.seed)
        else:
            compare_dialogues(args.each, args.seed)
    if args.score and args.model is None:
        compare_scores(args.score, args.seed)


if __name__ == "__main__":
    main()
