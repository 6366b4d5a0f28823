"""What the runner costs the host in a decode step beside its kernels: `python -m tools.bench.runner_step`.

A real runner with a model of one layer, 16 wide, and the time of its forward passes taken out: what is left of a step
is applying the plan, index arrays, the attention back end's planning, and the draws, with what these take of kernels on
a vocabulary of 512. A line per number of running requests and way of sampling gives the median and 99th percentile in
microseconds, measured on the device's thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from penstock.engine.batch import ForwardBatch
from penstock.engine.build import Built, create_runner
from penstock.engine.runner import ModelRunner
from penstock.scheduler.messages import EngineConfig, SamplingParams
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler

VOCABULARY = 512
PROMPT = 4
WARM_UP_STEPS = 30
MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "eos_token_id": 1,
}
SAMPLING = {
    "greedy": SamplingParams(max_tokens=3000, temperature=0.0),
    "temperature": SamplingParams(max_tokens=3000, temperature=0.8),
    "top-p": SamplingParams(max_tokens=3000, temperature=0.8, top_p=0.9, top_k=50),
}


class TimedForward:
    """Calls `forward` and adds up the seconds."""

    def __init__(self, forward: Callable[[ForwardBatch], torch.Tensor]) -> None:
        self._forward = forward
        self.seconds = 0.0

    def __call__(self, batch: ForwardBatch) -> torch.Tensor:
        begin = time.perf_counter()
        hidden = self._forward(batch)
        self.seconds += time.perf_counter() - begin
        return hidden


def measure(
    built: Built, forward: TimedForward, sampling: SamplingParams, running: int, steps: int
) -> np.ndarray:
    """(steps,) microseconds on the device's thread."""
    scheduler = Scheduler(built.scheduler_config)
    rng = np.random.default_rng(0)
    for number in range(running):
        request = Request(
            key=number,
            request_id=number,
            tokens=rng.integers(0, VOCABULARY, PROMPT).astype(np.int32),
            num_prompt_tokens=PROMPT,
            sampling=msgspec.structs.replace(sampling, seed=number),
        )
        scheduler.add(request)
    times: list[float] = []
    while len(times) < WARM_UP_STEPS + steps:
        plan = scheduler.plan(0.0)
        assert plan is not None
        forward.seconds = 0.0
        result = built.runner.launch(plan).result()
        scheduler.commit(plan, result, 0.0)
        if plan.num_decode_rows == running:
            times.append(1e6 * (result.device_seconds - forward.seconds))
    return np.array(times[WARM_UP_STEPS:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-bench") as folder:
        (Path(folder) / "config.json").write_bytes(msgspec.json.encode(MODEL))
        config = EngineConfig(
            model_dir=folder, load_format="dummy", max_num_seqs=max(options.running), num_threads=1
        )
        built = create_runner(config)
        runner = built.runner
        assert isinstance(runner, ModelRunner)
        forward = TimedForward(runner._forward)
        runner._forward = forward  # type: ignore[assignment]
        for name, sampling in SAMPLING.items():
            for running in options.running:
                times = measure(built, forward, sampling, running, options.steps)
                median, tail = np.median(times), np.percentile(times, 99)
                print(f"{name:12} x{running:<4} median {median:7.1f} us   p99 {tail:7.1f} us")
        runner.close()


if __name__ == "__main__":
    main()
