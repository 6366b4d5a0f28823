"""Recordings of passes: replayed on new inputs they do what the pass does; what cannot be recorded is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from penstock.kernels.cpu.graph import CpuRecorder
from penstock.kernels.cpu.library import Library
from penstock.kernels.cpu.ops import CpuOps
from penstock.kernels.interface import NotRecordable

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
HIDDEN = 48


@pytest.fixture
def ops(library: Library) -> CpuOps:
    return CpuOps(library)


@pytest.fixture
def recorder(library: Library) -> CpuRecorder:
    return CpuRecorder(library)


def blocks(
    ops: CpuOps, dtype: torch.dtype, depth: int = 3
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Embedding, then gated blocks with norms and rotations between: every kind of kernel but attention."""
    generator = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) / HIDDEN**0.5).to(dtype)

    table, norm, cos_sin = randn(100, HIDDEN), randn(HIDDEN), randn(64, 16).float()
    gates = [ops.linear(randn(4 * HIDDEN, HIDDEN)) for _ in range(depth)]
    downs = [ops.linear(randn(HIDDEN, 2 * HIDDEN), randn(HIDDEN)) for _ in range(depth)]

    def work(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = ops.embedding(table, ids)
        residual = x
        x = ops.rms_norm(x, norm, 1e-6)
        for gate, down in zip(gates, downs, strict=True):
            inner = ops.silu_mul(gate(x))
            heads = inner.view(len(ids), -1, 16)
            ops.rotary(heads[:, :4], heads[:, 4:], cos_sin, positions)
            x, residual = ops.add_rms_norm(down(inner), residual, norm, 1e-6)
        return x

    return work


def inputs(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 100, (tokens,), generator=generator, dtype=torch.int32),
        torch.randint(0, 64, (tokens,), generator=generator, dtype=torch.int32),
    )


@DTYPES
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_a_replay_does_what_the_pass_does_on_what_its_inputs_hold_now(
    ops: CpuOps, recorder: CpuRecorder, tokens: int, dtype: torch.dtype
) -> None:
    work, (ids, positions) = blocks(ops, dtype), inputs(tokens, 0)
    with torch.inference_mode():
        first = work(ids, positions)
        graph = recorder.record(lambda: work(ids, positions))
        assert torch.equal(graph.replay(), first)
        for seed in (1, 2):
            new_ids, new_positions = inputs(tokens, seed)
            expected = work(new_ids, new_positions)
            assert not torch.equal(expected, first)
            ids.copy_(new_ids), positions.copy_(new_positions)
            assert torch.equal(graph.replay(), expected)


def test_recordings_of_other_sizes_share_memory_and_do_not_disturb_each_other(
    ops: CpuOps, recorder: CpuRecorder
) -> None:
    work = blocks(ops, torch.float32)
    with torch.inference_mode():
        kept = {tokens: inputs(tokens, tokens) for tokens in (64, 1, 200, 3)}
        graphs = {tokens: recorder.record(lambda at=at: work(*at)) for tokens, at in kept.items()}
        for tokens in (1, 200, 3, 64, 200, 1):
            assert torch.equal(graphs[tokens].replay(), work(*kept[tokens]))


def test_recording_does_not_load_the_compiler_of_torch(library: Library) -> None:
    """It takes seconds, and would be loaded while a request waits."""
    script = (
        "import sys, torch\n"
        "from penstock.kernels.cpu.library import load\n"
        "from penstock.kernels.cpu.ops import CpuOps\n"
        "ops = CpuOps(load())\n"
        "linear, x = ops.linear(torch.eye(4)), torch.ones(2, 4)\n"
        "ops.recorder().record(lambda: linear(x).view(-1))\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_memory_of_dead_tensors_is_used_again_within_a_recording(ops: CpuOps, recorder: CpuRecorder) -> None:
    """Each of 40 blocks allocates 7 MB; without reuse that is 280 MB."""
    work, at = blocks(ops, torch.float32, depth=40), inputs(6000, 0)
    with torch.inference_mode():
        recorder.record(lambda: work(*at))
    assert sum(block.nbytes for block in recorder._blocks) < 40 << 20


@pytest.mark.parametrize(
    "foreign",
    [lambda x: x + 1, lambda x: x.float(), lambda x: x.t().contiguous(), lambda x: x[x.sum(1) > 0]],
    ids=["arithmetic", "conversion", "copy", "selection"],
)
def test_what_is_no_kernel_of_ours_is_refused(
    ops: CpuOps, recorder: CpuRecorder, foreign: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    linear = ops.linear(torch.eye(HIDDEN, dtype=torch.bfloat16))
    x = torch.ones(4, HIDDEN, dtype=torch.bfloat16)
    with torch.inference_mode(), pytest.raises(NotRecordable, match="aten"):
        recorder.record(lambda: foreign(linear(x)))
    with torch.inference_mode():  # and the next recording starts anew
        graph = recorder.record(lambda: linear(x))
    assert graph.num_calls == 1
    assert torch.equal(graph.replay(), linear(x))


@DTYPES
def test_copies_joins_and_argmax_are_replayed(ops: CpuOps, recorder: CpuRecorder, dtype: torch.dtype) -> None:
    a, b = (torch.randn(5, 30, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (1, 2))
    best = torch.zeros((5, 1), dtype=torch.int32)

    def work() -> torch.Tensor:
        joined = ops.join([a, b])
        ops.copy_rows(ops.sampling.argmax(joined).view(-1, 1), best)
        return joined

    graph = recorder.record(work)
    a.copy_(torch.randn(5, 30))
    assert torch.equal(graph.replay(), torch.cat((a, b), 1))
    assert torch.equal(best[:, 0], torch.cat((a, b), 1).argmax(1).int())
