"""What transformers makes of a run: how far the engine's probabilities are off, and whether its tokens were likeliest.

In bfloat16 two tokens may be all but equally likely, and any order of summation may decide for either. So tokens are
not compared one by one: the reference, in float32, reads what the engine wrote (teacher forcing) and says how much
likelier than each token its own choice was. How much rounding explains is measured too: by how much transformers' own
bfloat16 differs from its float32 on the same tokens. A wrong page, position or mask is off by many times that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from engine_runs import Served
from transformers import PreTrainedModel

# Times the mean difference of transformers' bfloat16: the mean of ours, and the largest of the gaps between two tokens.
MEAN_TIMES, GAP_TIMES = 1.5, 10.0


@dataclass
class Judgement:
    """In nats: `worst_gap` between an output token and the reference's favourite; `prompt_error`, the mean absolute
    difference of prompt log probabilities, and `worst_prompt_error`; `yardstick`, the mean difference of transformers
    in bfloat16. `agreement` is the share of output tokens that are the favourite."""

    worst_gap: float = 0.0
    agreement: float = 1.0
    prompt_error: float = 0.0
    worst_prompt_error: float = 0.0
    yardstick: float = 0.0

    def figures(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in vars(self).items()}

    def accept(self, times: float = 1.0) -> dict[str, float]:
        """The figures, if nothing is off by more than `times` what rounding explains."""
        figures = self.figures()
        gap, error = times * GAP_TIMES * self.yardstick, times * MEAN_TIMES * self.yardstick
        assert self.worst_gap <= gap, f"a token {self.worst_gap:.3f} nats below the likeliest: {figures}"
        assert self.prompt_error <= error, f"prompt probabilities off by {self.prompt_error:.4f}: {figures}"
        return figures


@torch.no_grad()
def judge(reference: PreTrainedModel, path: Path, served: Served, device: str) -> Judgement:
    """`reference` is the checkpoint at `path` in float32, on `device`."""
    rounded = type(reference).from_pretrained(path, dtype=torch.bfloat16).to(device)
    gaps, errors, roundings = [], [], []
    for request, output, rows in zip(served.requests, served.outputs, served.logprobs, strict=True):
        tokens = torch.from_numpy(request.tokens.copy()).long().to(device)
        first = request.num_prompt_tokens
        assert len(output) == len(tokens) - first
        expected = log_probabilities(reference, tokens)
        own = expected.gather(1, tokens[1:, None])[:, 0]
        rounding = log_probabilities(rounded, tokens).gather(1, tokens[1:, None])[:, 0]
        roundings.append((rounding - own).abs())
        gaps.append(expected[first - 1 :].amax(-1) - own[first - 1 :])
        ours = [torch.from_numpy(row.logprobs.copy()) for row in rows if row.is_prompt]
        if ours:
            errors.append((torch.cat(ours).to(device) - own[: first - 1]).abs())
    gap = torch.cat(gaps)
    found = Judgement(
        worst_gap=float(gap.max()),
        agreement=float((gap == 0).float().mean()),
        yardstick=float(torch.cat(roundings).mean()),
    )
    if errors:
        error = torch.cat(errors)
        found.prompt_error, found.worst_prompt_error = float(error.mean()), float(error.max())
    return found


def log_probabilities(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """(len(tokens) - 1, vocab_size) float32, of the token that follows each."""
    return model(tokens[None, :-1]).logits[0].float().log_softmax(-1)
