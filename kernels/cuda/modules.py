"""Which of FlashInfer's kernels a model needs, to be compiled before the first start: into an image, or an archive.

    FLASHINFER_CUDA_ARCH_LIST=9.0a python -m penstock.kernels.cuda.modules --heads 32/8 --head-dim 128 --list

compiles (without --list) into FlashInfer's cache, `$FLASHINFER_WORKSPACE_BASE/.cache/flashinfer`, where a server with
the same variable and version finds them. nvcc is needed, a GPU is not. What is missing is compiled when it is first used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from ..attention.flashinfer import kernels_for, why_not
from ..attention.interface import AttentionSpec
from .library import load_flashinfer

JitSpec: TypeAlias = Any  # of FlashInfer: has a name, sources, and builds itself

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def module_specs(layers: Sequence[AttentionSpec], architecture: int) -> list[JitSpec]:
    """The modules of models with these kinds of layers on GPUs of a major compute capability, each once, cheap first.

    Raises ValueError for layers that no kernel can compute, and where FlashInfer is not installed.
    """
    load_flashinfer()
    from flashinfer.jit.activation import gen_act_and_mul_module
    from flashinfer.jit.norm import gen_norm_module

    found = [gen_act_and_mul_module("silu"), gen_norm_module()]
    for spec in layers:
        if reason := why_not(spec):
            raise ValueError(f"flashinfer {reason}")
        kernels = kernels_for(spec, architecture)
        found += [attention_module(spec, kernel) for kernel in ("xqa", "fa2", "fa3") if kernel in kernels]
    return list({each.name: each for each in found}.values())


def attention_module(spec: AttentionSpec, kernel: str) -> JitSpec:
    """The module that `kernels/attention/flashinfer.py` makes FlashInfer load for one kind of layers."""
    from flashinfer.jit.attention import gen_batch_prefill_module
    from flashinfer.jit.attention.modules import _gen_batch_prefill_primary_module
    from flashinfer.jit.xqa import gen_xqa_module

    dtype, kv_dtype, has_window = spec.dtype, spec.kv_dtype or spec.dtype, spec.window is not None
    if kernel == "xqa":
        group = spec.num_heads // spec.num_kv_heads
        return gen_xqa_module(
            dtype, kv_dtype, spec.page_size, spec.head_dim, group, has_window, dtype, 1, False
        )
    # With equal strides of keys and values fa2 has a module of its own.
    generate = _gen_batch_prefill_primary_module if kernel == "fa2" else gen_batch_prefill_module
    no_position_encoding, fp16_products = 0, False
    return generate(
        kernel,
        dtype,
        kv_dtype,
        dtype,
        torch.int32,
        spec.head_dim,
        spec.head_dim,
        no_position_encoding,
        has_window,
        spec.soft_cap is not None,
        fp16_products,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m penstock.kernels.cuda.modules")
    parser.add_argument("--heads", nargs="+", default=["32/8"], help="query and KV heads, such as 32/8")
    parser.add_argument("--head-dim", nargs="+", type=int, default=[128])
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--fp8", action="store_true", help="keys and values of 8 bits as well")
    parser.add_argument("--window", action="store_true", help="layers with a sliding window as well")
    parser.add_argument("--architecture", type=int, default=9, help="major compute capability")
    parser.add_argument("--list", action="store_true", help="names only")
    options = parser.parse_args(arguments)
    dtype = DTYPES[options.dtype]
    layers = [
        AttentionSpec(
            num_heads=int(heads.partition("/")[0]),
            num_kv_heads=int(heads.partition("/")[2]),
            head_dim=head_dim,
            page_size=options.page_size,
            scale=1.0,
            window=window,
            dtype=dtype,
            kv_dtype=kv_dtype,
        )
        for heads in options.heads
        for head_dim in options.head_dim
        for window in ([None, 1] if options.window else [None])
        for kv_dtype in ([dtype, torch.float8_e4m3fn] if options.fp8 else [dtype])
    ]
    for module in module_specs(layers, options.architecture):
        print(module.name, flush=True)
        if not options.list:
            module.build(verbose=False)


if __name__ == "__main__":
    main()
