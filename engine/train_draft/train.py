"""The training run: from a job to a trained, measured and exported head, in the order things happen."""

from __future__ import annotations

import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import torch

from ...scheduler.messages import EngineConfig, SamplingParams
from ..errors import ConfigurationError
from ..model_config import read_model_config
from . import checkpoint
from .build import build_head
from .evaluate import Acceptance, right_drafts, walk
from .export import export
from .generate import Say, Stopped, Stopping, answered
from .heads import DraftHead
from .job import TrainJob
from .loss import Tally, chain_loss
from .target import FrozenTarget
from .token_sets import Reading, TokenSet, read_set

WARMUP_SHARE = 0.03
MAX_GRAD_NORM = 1.0
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
# The rate that published heads of hidden size 4096 are trained with, and more the narrower the head is.
LEARNING_RATE_TIMES_WIDTH = 0.4
LEARNING_RATES = (1e-4, 2e-3)
# What must be the same for a resumed run to end as the uninterrupted one.
SAME = (
    "method",
    "model_dir",
    "seed",
    "num_steps",
    "batch_tokens",
    "max_length",
    "learning_rate",
    "num_speculative_tokens",
    "draft_vocab_size",
    "aux_layers",
)


def train(job: TrainJob, say: Say, stopping: Stopping) -> list[Acceptance]:
    """All of it; what the finished head was found to do. `stopping` is asked between steps.

    Raises ConfigurationError for what the user can mend, and Stopped.
    """
    config = EngineConfig(
        model_dir=job.model_dir, device=job.device, num_threads=job.num_threads, seed=job.seed
    )
    max_length = FrozenTarget.longest(config, job.max_length)
    texts, held_out = gather(job, config, max_length, say, stopping)
    target = FrozenTarget(config, max_length)
    run = Run(job, target, build_head(job, target, texts), texts, say)
    run.go(stopping)
    written = export(job, run.head, target)
    say("wrote " + ", ".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in written))
    return measure(job, run.head, target, held_out, run.dtype, say)


def gather(
    job: TrainJob, config: EngineConfig, max_length: int, say: Say, stopping: Stopping
) -> tuple[TokenSet, TokenSet]:
    """(what is trained on, held-out prompts with the model's greedy answers)."""
    folder = Path(job.texts_dir)

    def how(index: int) -> SamplingParams:
        temperature = job.temperature if index % 2 else 0.0
        return SamplingParams(
            max_tokens=job.max_new_tokens,
            temperature=temperature,
            seed=index,
            stop_token_ids=job.stop_token_ids,
        )

    vocab_size = read_model_config(job.model_dir).vocab_size
    for name in ("texts", "prompts", "eval"):
        check_tokens(read_set(folder, name), vocab_size)
    engine = msgspec.structs.replace(config, max_model_len=max_length)
    own = answered(folder, "prompts", engine, how, max_length, say, stopping)
    held_out = answered(folder, "eval", engine, lambda index: how(2 * index), max_length, say, stopping)
    texts = read_set(folder, "texts").and_also(own).cut(max_length)
    if not len(texts):
        raise ConfigurationError(
            "no text has as many as three tokens to train on: give more with --text or --from-model"
        )
    total, wanted = len(texts.tokens), int(texts.wanted.sum())
    say(f"{len(texts)} texts of {total} tokens, {wanted} of them to be drafted; {len(held_out)} held out")
    return texts, held_out.cut(max_length)


def check_tokens(texts: TokenSet, vocab_size: int) -> None:
    largest = int(texts.tokens.max(initial=0))
    if largest >= vocab_size:
        raise ConfigurationError(
            f"the tokenizer gives token {largest}, the model has {vocab_size} tokens: is it the tokenizer of "
            "another model?"
        )


def measure(
    job: TrainJob, head: DraftHead, target: FrozenTarget, held_out: TokenSet, dtype: torch.dtype, say: Say
) -> list[Acceptance]:
    """Acceptance on the held-out prompts, for drafts of 1 .. num_speculative_tokens."""
    if not len(held_out):
        say("no prompts are held out: nothing to measure")
        return []
    count = job.num_speculative_tokens
    right = right_drafts(head, target, held_out, count, job.batch_tokens, dtype)
    found = [walk(held_out, right, k) for k in range(1, count + 1)]
    for each in found:
        rates = " ".join(f"{rate:.3f}" for rate in each.rates)
        say(
            f"held out, greedy, {each.num_drafts} drafts: {each.mean_length:.3f} tokens per verification, "
            f"acceptance per position {rates} ({len(held_out)} prompts, {each.steps} verifications)"
        )
    return found


class Run:
    """Weights, optimizer and place in the texts."""

    def __init__(
        self, job: TrainJob, target: FrozenTarget, head: DraftHead, texts: TokenSet, say: Say
    ) -> None:
        self.head = head
        # Products in the target's precision; weights, optimizer and losses in float32.
        self.dtype = target.choices.dtype
        self.step = 0
        self._job, self._target, self._say = job, target, say
        self._path = Path(job.work_dir) / f"{job.method}.safetensors"
        self._reading = Reading(texts, job.batch_tokens, job.seed)
        self._rate = job.learning_rate or default_rate(target.config.hidden_size)
        decayed = [p for p in head.parameters() if p.dim() == 2]
        others = [p for p in head.parameters() if p.dim() != 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
            lr=self._rate,
            betas=BETAS,
        )
        self._same = {**{name: getattr(job, name) for name in SAME}, "texts": Path(job.texts_dir).name}
        if job.resume and self._path.is_file():
            self._load()

    def go(self, stopping: Stopping) -> None:
        """Train to the last step, with a checkpoint now and then, at the end and before `Stopped`."""
        job, tally, tokens = self._job, Tally.of(self._job.num_speculative_tokens), 0
        seconds: deque[float] = deque(maxlen=200)
        rates: deque[float] = deque(maxlen=200)
        saved = time.monotonic()
        if not self.step:
            size = sum(p.numel() for p in self.head.parameters())
            self._say(f"training {job.method}, {size / 1e6:.2f} million weights, rate {self._rate:.2g}")
        while self.step < job.num_steps:
            if stopping():
                self._save()
                self._say(f"stopped at step {self.step}; go on with --resume")
                raise Stopped
            begin = time.monotonic()
            found, count = self._one()
            seconds.append(time.monotonic() - begin)
            rates.append(count / seconds[-1])
            tally.add(found)
            tokens += count
            if self.step % job.report_every == 0 or self.step == job.num_steps:
                self._report(tally, statistics.median(rates), statistics.median(seconds))
                tally = Tally.of(job.num_speculative_tokens)
            if time.monotonic() - saved > job.save_every_s:
                self._save()
                saved = time.monotonic()
        self._save()

    def _one(self) -> tuple[Tally, int]:
        """One update; what was found, and how many tokens were read."""
        batch = self._reading.found.batch(self._reading.next(), self._target.device)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * schedule(self.step, self._job.num_steps)
        loss, tally = chain_loss(self.head, self._target, batch, self._job.num_speculative_tokens, self.dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return tally, int(batch.lengths.sum())

    def _report(self, tally: Tally, tokens_per_s: float, step_s: float) -> None:
        """Medians, so that a process that stood still for a while does not take them along."""
        left = step_s * (self._job.num_steps - self.step)
        losses = (tally.loss / tally.chains.clamp(min=1)).tolist()
        accepted = " ".join(f"{rate:.3f}" for rate in tally.acceptance())
        self._say(
            f"step {self.step}/{self._job.num_steps} loss {losses[0]:.4f} acceptance {accepted} "
            f"{tokens_per_s:.0f} tokens/s, {duration(left)} left"
        )

    def _save(self) -> None:
        facts: dict[str, Any] = {
            "step": self.step,
            "epoch": self._reading.epoch,
            "index": self._reading.index,
            "same": self._same,
        }
        checkpoint.save(self._path, self.head, self._optimizer, facts)

    def _load(self) -> None:
        facts = checkpoint.load(self._path, self.head, self._optimizer)
        checkpoint.check_same(self._path, facts["same"], self._same)
        self.step = facts["step"]
        self._reading = Reading(
            self._reading.found, self._job.batch_tokens, self._job.seed, facts["epoch"], facts["index"]
        )
        self._say(f"resumed at step {self.step}")


def schedule(step: int, num_steps: int) -> float:
    """Linear warm-up, then linearly to zero."""
    warmup = max(1, round(WARMUP_SHARE * num_steps))
    return min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup), 1.0)


def default_rate(hidden_size: int) -> float:
    low, high = LEARNING_RATES
    return min(high, max(low, LEARNING_RATE_TIMES_WIDTH / hidden_size))


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"
