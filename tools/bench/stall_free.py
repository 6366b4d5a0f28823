"""What `--target-itl-ms` does to streams and throughput, on a synthetic machine: `python -m tools.bench.stall_free`.

The scheduler runs as it does in the engine, one step ahead of the device, on a clock that the machine's cost moves. A
line per policy (fixed bounds on the tokens of a step, then targets) and workload gives the gaps between the tokens of
streams while long prompts arrive, the prompts' time to the first token, and tokens per second.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields

import numpy as np
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.messages import SamplingParams
from penstock.scheduler.plan import StepPlan, StepResult
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler, SchedulerConfig


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Milliseconds of a step: the longer of reading all weights (and the decodes' keys) and computing every row.

    The defaults have the shape of a 0.6B model in bfloat16 on two cores with AVX-512. `noise` is the standard
    deviation of a step's logarithm; one in `outlier_every` steps takes `outlier` times as long (0 = none).
    """

    weights_ms: float = 27.0
    fixed_ms: float = 8.5
    decode_ms: float = 1.4
    token_ms: float = 1.3
    pair_ms: float = 2.3e-4
    key_ms: float = 2.0e-3
    noise: float = 0.05
    outlier_every: int = 0
    outlier: float = 5.0

    def quiet_ms(self, plan: StepPlan) -> float:
        decodes = plan.num_decode_rows
        starts, lens = plan.starts[decodes:].astype(np.float64), plan.lens[decodes:].astype(np.float64)
        keys = self.key_ms * float(plan.starts[:decodes].sum())
        compute = self.fixed_ms + self.decode_ms * decodes + self.token_ms * float(lens.sum())
        compute += self.pair_ms * float((lens * (starts + lens / 2)).sum())
        return max(self.weights_ms, compute) + keys


@dataclass(slots=True)
class Job:
    """A request and what became of it; times in seconds of the simulated clock."""

    prompt: int
    output: int
    arrival: float = 0.0
    prefix: int = -1  # >= 0: all prompts of this number are alike
    times: list[float] = field(default_factory=list)

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


@dataclass(slots=True)
class Step:
    plan: StepPlan
    seconds: float
    end: float


def scheduler_config(max_num_batched_tokens: int, target_itl_ms: float, **changes: object) -> SchedulerConfig:
    config: dict[str, object] = {
        "max_num_seqs": min(256, max_num_batched_tokens),
        "max_model_len": 8192,
        "page_size": 16,
        "groups": (KVGroup("full", 8192),),
    }
    return SchedulerConfig(
        max_num_batched_tokens=max_num_batched_tokens,
        target_itl_ms=target_itl_ms,
        **(config | changes),  # type: ignore[arg-type]
    )


def simulate(
    config: SchedulerConfig,
    machine: Machine,
    jobs: Iterable[Job],
    *,
    at_once: int | None = None,
    speed: Callable[[float], float] = lambda now: 1.0,
    seed: int = 0,
) -> list[Step]:
    """Run `jobs` to their end, at most `at_once` of them at a time, and fill in their `times`; returns all steps.

    `speed` is the machine's, given the time.
    """
    scheduler, rng = Scheduler(config), np.random.default_rng(seed)
    waiting = deque(sorted(jobs, key=lambda job: job.arrival))
    by_id: dict[int, Job] = {}
    in_flight: deque[Step] = deque()
    steps: list[Step] = []
    now = device_free = 0.0
    while waiting or scheduler.has_work():
        while waiting and waiting[0].arrival <= now and (at_once is None or len(by_id) < at_once):
            job = waiting.popleft()
            job.arrival = now
            number = len(steps) * 4096 + len(by_id)
            by_id[number] = job
            scheduler.add(request_of(job, number, rng, now))
        plan = scheduler.plan(now)
        if plan is not None:
            factor = math.exp(rng.normal(0.0, machine.noise))
            if machine.outlier_every and rng.random() * machine.outlier_every < 1.0:
                factor *= machine.outlier
            device_free = max(now, device_free)
            seconds = machine.quiet_ms(plan) / 1000 * factor / speed(device_free)
            device_free += seconds
            in_flight.append(Step(plan, seconds, device_free))
            steps.append(in_flight[-1])
        if len(in_flight) == 2 or (in_flight and plan is None):
            step = in_flight.popleft()
            now = max(now, step.end)
            outcome = scheduler.commit(step.plan, result_of(step), now)
            for number in outcome.request_ids.tolist():
                by_id[number].times.append(now)
            for request in outcome.finished:
                del by_id[request.request_id]
        elif not in_flight and waiting:
            now = max(now, waiting[0].arrival)
    return steps


def request_of(job: Job, number: int, rng: np.random.Generator, now: float) -> Request:
    prompt = rng if job.prefix < 0 else np.random.default_rng(job.prefix)
    return Request(
        key=number,
        request_id=number,
        tokens=prompt.integers(0, 1 << 30, job.prompt).astype(np.int32),
        num_prompt_tokens=job.prompt,
        sampling=SamplingParams(max_tokens=job.output),
        arrival=now,
    )


def result_of(step: Step) -> StepResult:
    sample = step.plan.sample
    return StepResult(
        sample.astype(np.int32), np.full(int(sample.sum()), 7, np.int32), device_seconds=step.seconds
    )


# ------------------------------------------------------------------------------------------------------- workloads


@dataclass(frozen=True)
class Figures:
    """Milliseconds, and tokens (prompt and output together) per second."""

    itl_p50: float
    itl_p99: float
    ttft_p50: float
    tokens_s: float


def figures(streams: list[Job], others: list[Job], begin: float, end: float) -> Figures:
    """Gaps of `streams` that overlap begin .. end, first tokens of `others`, throughput of all."""
    gaps = [
        later - earlier
        for job in streams
        for earlier, later in zip(job.times, job.times[1:], strict=False)
        if later >= begin and earlier <= end
    ]
    jobs = streams + [job for job in others if job not in streams]
    over = max(job.times[-1] for job in jobs) - min(job.arrival for job in jobs)
    total = sum(job.prompt + len(job.times) for job in jobs)
    firsts = [job.times[0] - job.arrival for job in others]
    p50, p99 = np.percentile(gaps, [50, 99]) * 1e3
    return Figures(float(p50), float(p99), float(np.median(firsts)) * 1e3, total / over)


def long_prompts(config: SchedulerConfig, machine: Machine) -> Figures:
    """Eight streams of 256 tokens decode while three prompts of 2048 tokens come, 8 s apart."""
    streams = [Job(128, 256) for _ in range(8)]
    prompts = [Job(2048, 8, arrival=2.0 + 8.0 * number) for number in range(3)]
    simulate(config, machine, streams + prompts)
    return figures(streams, prompts, prompts[0].arrival, prompts[-1].times[-1])


def saturated(config: SchedulerConfig, machine: Machine) -> Figures:
    """32 requests at a time, of 512 tokens and 64 of output each: prefill is most of the work."""
    jobs = [Job(512, 64) for _ in range(96)]
    simulate(config, machine, jobs, at_once=32)
    return figures(jobs, jobs, 0.0, math.inf)


def burst(config: SchedulerConfig, machine: Machine) -> Figures:
    """64 requests of 128 tokens come at once and want 128 each."""
    jobs = [Job(128, 128) for _ in range(64)]
    simulate(config, machine, jobs)
    return figures(jobs, jobs, 0.0, math.inf)


WORKLOADS = (long_prompts, saturated, burst)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for each in fields(Machine):
        flag = f"--{each.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(each.default), default=each.default)
    parser.add_argument("--budgets", type=int, nargs="+", default=[2048, 1024, 512, 256, 128, 64])
    parser.add_argument("--targets", type=float, nargs="+", default=[30, 50, 75, 100, 150, 200, 400])
    given = vars(parser.parse_args())
    budgets, targets = given.pop("budgets"), given.pop("targets")
    machine = Machine(**given)
    policies = [(f"{budget} tokens", scheduler_config(budget, 0.0)) for budget in budgets]
    policies += [(f"{target:g} ms", scheduler_config(max(budgets), target)) for target in targets]
    for workload in WORKLOADS:
        print(f"\n{workload.__name__}: {(workload.__doc__ or '').strip()}")
        print(
            f"{'a step holds':>14} {'ITL p50':>9} {'ITL p99':>9} {'TTFT p50':>10} {'tok/s':>8} {'ratio':>6}"
        )
        first = None
        for name, config in policies:
            got = workload(config, machine)
            first = first or got.tokens_s
            print(
                f"{name:>14} {got.itl_p50:9.1f} {got.itl_p99:9.1f} {got.ttft_p50:10.1f} {got.tokens_s:8.1f} "
                f"{got.tokens_s / first:6.3f}"
            )


if __name__ == "__main__":
    main()
