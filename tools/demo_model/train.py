"""Train the demonstration model: Muon for the hidden matrices, AdamW for the rest, one cooled-down schedule.

`--steps N` gives a reproducible run; `--minutes M` spends M minutes of counted training time, in which a
step counts for at most five times the median step, so that a stopped process loses nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from . import tokenizer as tokenizer_file
from .export import export
from .model import CausalLM, Shape
from .packing import Packer, Rows

WARMUP_STEPS = 100
COMPILING_STEPS = 8  # the first steps of a process compile, and do not count as time
COOLDOWN_FROM = 0.36  # the share of the run after which the learning rate falls linearly to zero
MUON_LR = 4e-3
ADAMW_LR = 3e-3
WEIGHT_DECAY = 0.05
SHORT_ROWS = (16, 256)
LONG_ROWS = (4, 512)
LONGEST_ROWS = (2, 1024)  # in place of the long rows at every fourth step


@dataclass
class Budget:
    """How far a run has come, in steps or in counted seconds of training."""

    steps: int | None
    seconds: float | None
    done_steps: int = 0
    counted_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=50)
        self._session_steps = 0

    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        if self.steps is not None:
            return min(1.0, self.done_steps / self.steps)
        assert self.seconds is not None
        return min(1.0, self.counted_seconds / self.seconds)

    def count(self, seconds: float) -> None:
        """One more step, which took `seconds` on the clock."""
        self.done_steps += 1
        self._session_steps += 1
        if self._session_steps > COMPILING_STEPS:
            self._recent.append(seconds)
            self.counted_seconds += min(seconds, 5 * statistics.median(self._recent))

    def median_step_seconds(self) -> float:
        """Median of the latest counted steps, 0 before the first."""
        return statistics.median(self._recent) if self._recent else 0.0

    def learning_rate_factor(self) -> float:
        """Warm-up, plateau, then linear cool-down to zero."""
        warm = min(1.0, (self.done_steps + 1) / WARMUP_STEPS)
        return warm * min(1.0, (1.0 - self.progress()) / (1.0 - COOLDOWN_FROM))


def optimizers(model: CausalLM) -> list[torch.optim.Optimizer]:
    """Muon on the layers' matrices; fused AdamW on embedding and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def gradient_step(
    model: CausalLM, opts: list[torch.optim.Optimizer], rows: list[Rows], factor: float
) -> float:
    """One update from all `rows`; returns the mean loss per answer token in nats."""
    total = sum(int((part.labels >= 0).sum()) for part in rows)
    summed = 0.0
    for part in rows:
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = model.loss(part.ids, part.labels, part.mask(torch.bfloat16))
        (loss / total).backward()  # type: ignore[no-untyped-call]
        summed += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt in opts:
        for group in opt.param_groups:
            group.setdefault("peak_lr", group["lr"])
            group["lr"] = group["peak_lr"] * factor
        opt.step()
        opt.zero_grad(set_to_none=True)
    return summed / total


def save(path: Path, model: CausalLM, opts: list[torch.optim.Optimizer], budget: Budget) -> None:
    """Write a checkpoint in one piece."""
    state = {
        "model": model.state_dict(),
        "optimizers": [opt.state_dict() for opt in opts],
        "done_steps": budget.done_steps,
        "counted_seconds": budget.counted_seconds,
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int)
    length.add_argument("--minutes", type=float)
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo_model"), help="checkpoint and tokenizer"
    )
    parser.add_argument("--out", type=Path, help="model folder, written at the end")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=float, default=240.0, help="seconds between checkpoints")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile (half the speed)")
    return parser.parse_args()


def main() -> None:
    """Train, with a checkpoint every few minutes and when terminated, and export at the end."""
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "tokenizer.json").exists():
        tokenizer_file.write(args.work, args.seed)
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    model = CausalLM(Shape(vocab_size=tokenizer.get_vocab_size()))
    opts = optimizers(model)
    budget = Budget(args.steps, args.minutes * 60 if args.minutes else None)
    checkpoint = args.work / "checkpoint.pt"
    if args.resume:
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        budget.done_steps, budget.counted_seconds = state["done_steps"], state["counted_seconds"]
    if not args.no_compile:
        model.model.compile(dynamic=False)
    packers = [Packer(tokenizer, args.seed, (SHORT_ROWS, rows)) for rows in (LONG_ROWS, LONGEST_ROWS)]
    tokens = sum(rows * length for rows, length in (SHORT_ROWS, LONG_ROWS))
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    saved_at = time.monotonic()
    smooth = 0.0
    while budget.progress() < 1.0 and not stopping:
        began = time.monotonic()
        step = budget.done_steps
        rows = packers[step % 4 == 3].step(step)
        loss = gradient_step(model, opts, rows, budget.learning_rate_factor())
        budget.count(time.monotonic() - began)
        smooth = loss if smooth == 0.0 else 0.95 * smooth + 0.05 * loss
        if step % 50 == 0:
            rate = tokens / max(budget.median_step_seconds(), 1e-9) if step else 0
            print(
                f"step {step} loss {smooth:.4f} {rate:.0f} tokens/s progress {budget.progress():.4f}",
                flush=True,
            )
        if time.monotonic() - saved_at > args.save_every or budget.progress() >= 1.0 or stopping:
            save(checkpoint, model, opts, budget)
            saved_at = time.monotonic()
    if args.out and not stopping:
        export(args.work, args.out)


if __name__ == "__main__":
    main()
