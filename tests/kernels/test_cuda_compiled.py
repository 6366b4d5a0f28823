"""Triton's kernels go through the compiler for a GPU that is not there; and what only a GPU shows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from penstock.kernels.interface import NotRecordable

COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from penstock.kernels.cuda import draw, mask, pages, rotate

def built(kernel, pointers, **constants):
    names = kernel.arg_names
    kinds = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    compiled = compile(ASTSource(kernel, kinds, values), target=GPUTarget("cuda", 90, 32))
    print(kernel.__name__, len(compiled.asm["cubin"]))

i32, bf16, f32, e4m3 = "*i32", "*bf16", "*fp32", "*fp8e4nv"
rows = dict.fromkeys(("q", "k", "v", "q_out", "q_norm", "k_norm"), bf16)
rows |= dict(places=i32, positions=i32, cos_sin=f32, eps="fp32")
for pool in (bf16, e4m3):
    built(
        rotate.rotate_and_write_kernel, {**rows, "k_out": pool, "v_out": pool},
        Q_HEADS=32, KV_HEADS=8, HEAD_DIM=128, HALF=64, HALF_PADDED=64, REST_PADDED=1, PAGE=16,
        ROTATES=True, NORMS=True, WRITES=True, IS_E4M3=pool == e4m3, HEADS=rotate.HEADS,
    )
names = "places page_table slots token_rows positions tables lengths starts lists begins"
tables = dict.fromkeys(names.split(), i32)
built(pages.token_places_kernel, tables, PAGE=16, BLOCK=pages.BLOCK)
built(pages.dense_tables_kernel, tables, PAGE=16, BLOCK=pages.BLOCK)
built(pages.page_lists_kernel, tables, BLOCK=pages.BLOCK)
built(mask.mask_kernel, dict(logits=bf16, bits=i32, rows=i32), BLOCK=mask.BLOCK)
built(
    draw.draw_kernel,
    dict(logits=bf16, rows=i32, slots=i32, uniform="*fp64", temperature=f32, top_k=i32, top_p=f32, min_p=f32, tokens=i32),
    UNUSED=16, BLOCK=draw.BLOCK,
)
"""


def test_every_triton_kernel_compiles_for_hopper() -> None:
    """In a process that does not interpret them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    sizes = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(sizes) == 7
    assert min(sizes) > 1_000


@pytest.mark.gpu
def test_a_recording_computes_on_what_its_inputs_hold_now() -> None:
    from penstock.kernels.cuda.graph import CudaRecorder

    recorder = CudaRecorder()
    x = torch.ones(64, 64, device="cuda")
    graph = recorder.record(lambda: (x @ x).relu() + x)
    assert torch.equal(graph.result, torch.full_like(x, 65.0))
    x.fill_(2.0)
    assert torch.equal(graph.replay(), torch.full_like(x, 258.0))


@pytest.mark.gpu
def test_a_pass_that_waits_for_the_device_cannot_be_recorded() -> None:
    from penstock.kernels.cuda.graph import CudaRecorder

    recorder = CudaRecorder()
    x = torch.ones(4, device="cuda")
    with pytest.raises(NotRecordable):
        recorder.record(lambda: x * float(x.sum().item()))
    assert torch.equal(recorder.record(lambda: x + 1).replay(), torch.full_like(x, 2.0))
