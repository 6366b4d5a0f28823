"""A stand-in for the module `flashinfer`: takes every call by the real signature, refuses what the real one gets wrong
or crashes on, and computes with the torch oracle.

The signatures are data (`flashinfer_signatures.json`), written by tools/record_flashinfer_signatures.py.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from inspect import BoundArguments, Parameter, Signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from penstock.kernels.attention.interface import AttentionSpec
from penstock.kernels.attention.torch_backend import as_stored, attend
from penstock.kernels.reference import TorchOps

ORACLE = TorchOps()
SEMAPHORE_BYTES = 8 << 20


class Trap(AssertionError):
    """A call that the real library would take, to answer wrongly or never."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Trap(what)


# ------------------------------------------------------------------------------------------------- signatures


def signature_of(text: str) -> Signature:
    """From "(a, b=1, *args, c=None)"; defaults are literals."""
    definition = ast.parse(f"def f{text}: ...").body[0]
    assert isinstance(definition, ast.FunctionDef)
    given = definition.args
    assert not given.posonlyargs
    assert given.kwarg is None
    empty = [Parameter.empty] * (len(given.args) - len(given.defaults))
    defaults = [*empty, *map(ast.literal_eval, given.defaults)]
    parameters = [
        Parameter(each.arg, Parameter.POSITIONAL_OR_KEYWORD, default=default)
        for each, default in zip(given.args, defaults, strict=True)
    ]
    if given.vararg is not None:
        parameters.append(Parameter(given.vararg.arg, Parameter.VAR_POSITIONAL))
    for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        value = Parameter.empty if default is None else ast.literal_eval(default)
        parameters.append(Parameter(each.arg, Parameter.KEYWORD_ONLY, default=value))
    return Signature(parameters)


RECORDED = json.loads((Path(__file__).parent / "flashinfer_signatures.json").read_text())
SIGNATURES = {name: signature_of(text) for name, text in RECORDED["functions"].items()}


def bind(name: str, *args: Any, **kwargs: Any) -> BoundArguments:
    """TypeError if the real function does not take them."""
    bound = SIGNATURES[name].bind(*args, **kwargs)
    bound.apply_defaults()
    return bound


# ------------------------------------------------------------------------------------------------- the device


class FakeDevice:
    """What is enqueued on it is done when somebody waits, and not before."""

    def __init__(self) -> None:
        self._queue: list[Callable[[], None]] = []
        self._done = 0

    def enqueue(self, work: Callable[[], None]) -> None:
        self._queue.append(work)

    def new_fence(self) -> FakeFence:
        return FakeFence(self)

    def advance(self, to: int) -> None:
        while self._done < to:
            self._queue[self._done]()
            self._done += 1

    @property
    def end(self) -> int:
        return len(self._queue)


class FakeFence:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._at = 0

    def record(self) -> None:
        self._at = self._device.end

    def synchronize(self) -> None:
        self._device.advance(self._at)


# -------------------------------------------------------------------------------------------------- attention


def check_pages(k: torch.Tensor, v: torch.Tensor, pages: torch.Tensor) -> None:
    require(k.stride() == v.stride(), "strides of keys and values differ")
    require(k.shape == v.shape and k.dtype == v.dtype, "keys and values differ")
    require(k.stride(-1) == 1, "the last dimension is strided")
    inside = (pages >= 0) & (pages < len(k))
    require(bool(inside.all()), f"pages {pages[~inside].tolist()} of {len(k)}")


def attend_row(
    q: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    pages: torch.Tensor,
    context: int,
    spec: AttentionSpec,
) -> torch.Tensor:
    """q (len, heads, head_dim), the last ones of `context` tokens."""
    keys, values = (as_stored(x)[pages.long()].view(x.dtype).flatten(0, 1)[:context] for x in cache)
    return attend(q, keys, values, context - len(q), spec)


class FakePrefillWrapper:
    def __init__(self, device: FakeDevice, calls: list[str], *args: Any, **kwargs: Any) -> None:
        given = bind("BatchPrefillWithPagedKVCacheWrapper.__init__", self, *args, **kwargs).arguments
        require(given["kv_layout"] == "NHD", "layout")
        require(given["backend"] in ("fa2", "fa3"), "auto picks a back end once and for all")
        self._backend = given["backend"]
        self._device = device
        self._calls = calls
        self._copied = True
        self._plan: dict[str, Any] | None = None

    def plan(self, *args: Any, **kwargs: Any) -> None:
        given = bind("BatchPrefillWithPagedKVCacheWrapper.plan", self, *args, **kwargs).arguments
        require(self._copied, "the last plan is overwritten before it was copied")
        require(given["causal"], "causal is left False")
        require(given["q_data_type"] in (torch.bfloat16, torch.float16), f"queries of {given['q_data_type']}")
        kv = given["kv_data_type"]
        require(kv in (given["q_data_type"], torch.float8_e4m3fn), f"keys of {kv}")
        if self._backend == "fa3":
            require(
                kv == given["q_data_type"], "fa3 has no kernel for keys of another dtype than the queries'"
            )
        require(given["head_dim_qk"] in (64, 128, 256), "head_dim")
        qo, begins, last = (given[n] for n in ("qo_indptr", "paged_kv_indptr", "paged_kv_last_page_len"))
        for each in (qo, begins, last, given["seq_lens"]):
            require(each.device.type == "cpu", "lengths on the device: plan would wait for it")
        for each in (qo, begins, last, given["seq_lens"], given["paged_kv_indices"]):
            require(each.dtype == torch.int32, "indices are int32")
        rows, page = len(qo) - 1, given["page_size"]
        require(len(begins) == rows + 1 and len(last) == rows, "lengths differ")
        require(int(qo[0]) == int(begins[0]) == 0, "begins at 0")
        require(len(given["paged_kv_indices"]) == int(begins[-1]), "number of page indices")
        require(bool(((last >= 1) & (last <= page)).all()), "last_page_len")
        pages = begins.diff()
        contexts = (pages - 1) * page + last
        require(bool((pages >= 1).all()), "rows without keys")
        require(torch.equal(given["seq_lens"], contexts), "seq_lens")
        require(bool((qo.diff() <= contexts).all()), "more queries than keys")
        self._copied = False
        self._plan = {
            **given,
            "qo": qo.tolist(),
            "begins": begins.tolist(),
            "contexts": contexts.tolist(),
            "rows": rows,
        }
        self._device.enqueue(self._copy)

    def _copy(self) -> None:
        self._copied = True

    def run(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        given = bind("BatchPrefillWithPagedKVCacheWrapper.run", self, *args, **kwargs).arguments
        plan, q, (k, v), out = self._plan, given["q"], given["paged_kv_cache"], given["out"]
        require(plan is not None, "run before plan")
        assert plan is not None
        self._calls.append(self._backend)
        require(len(q) == plan["qo"][-1], f"{len(q)} queries, {plan['qo'][-1]} planned")
        require(q.shape[1:] == (plan["num_qo_heads"], plan["head_dim_qk"]), "shape of queries")
        require(q.dtype == plan["q_data_type"], "dtype of queries")
        require(k.dtype == plan["kv_data_type"], "dtype of keys")
        require(
            k.shape[1:] == (plan["page_size"], plan["num_kv_heads"], plan["head_dim_qk"]), "shape of pages"
        )
        require(out is not None, "without `out` every layer clears a tensor")
        require(out.shape == q.shape and out.dtype == plan["o_data_type"], "out")
        indices = plan["paged_kv_indices"]
        check_pages(k, v, indices)
        window = plan["window_left"]
        spec = AttentionSpec(
            plan["num_qo_heads"],
            plan["num_kv_heads"],
            plan["head_dim_qk"],
            plan["page_size"],
            plan["sm_scale"],
            None if window < 0 else window + 1,
            plan["logits_soft_cap"] or None,
        )
        for i in range(plan["rows"]):
            tokens = slice(plan["qo"][i], plan["qo"][i + 1])
            pages = indices[plan["begins"][i] : plan["begins"][i + 1]]
            out[tokens] = attend_row(q[tokens], (k, v), pages, plan["contexts"][i], spec)
        return out  # type: ignore[no-any-return]


def fake_xqa(calls: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
    given = bind("decode.xqa_batch_decode_with_kv_cache", *args, **kwargs).arguments
    calls.append("xqa")
    q, (k, v), out, tables = given["query"], given["kv_cache"], given["out"], given["block_tables"]
    lengths, workspace = given["seq_lens"], given["workspace_buffer"]
    require(q.is_contiguous() and out.is_contiguous(), "rows are read by address")
    require(q.dtype in (torch.bfloat16, torch.float16) and out.dtype == q.dtype, "dtype of queries")
    require(k.dtype in (q.dtype, torch.float8_e4m3fn), "dtype of keys")
    require(given["kv_layout"] == "NHD" and given["q_len_per_req"] == 1, "layout")
    require(k.shape[1] in (16, 32, 64, 128), "page size")
    require(q.shape[-1] % 16 == 0 and q.shape[-1] <= 256, "head_dim")
    require(tables.is_contiguous() and tables.dtype == lengths.dtype == torch.int32, "tables")
    require(len(q) == len(tables) == len(lengths), "rows")
    require(given["max_seq_len"] == tables.shape[1] * k.shape[1], "max_seq_len")
    require(workspace.nbytes > SEMAPHORE_BYTES, "workspace")
    require(not workspace.view(torch.uint8)[:SEMAPHORE_BYTES:4096].any(), "semaphores are not zero")
    require(given["bmm2_scale"] == 1.0, "scale of values")
    window = given["window_left"]
    heads, kv_heads, dim = q.shape[1], k.shape[2], q.shape[2]
    spec = AttentionSpec(
        heads, kv_heads, dim, k.shape[1], given["bmm1_scale"], None if window < 0 else window + 1
    )
    for i, context in enumerate(lengths.tolist()):
        require(context >= 1, "a row without keys")
        pages = tables[i, : -(-context // k.shape[1])]
        check_pages(k, v, pages)
        out[i : i + 1] = attend_row(q[i : i + 1], (k, v), pages, context, spec)
    return out  # type: ignore[no-any-return]


# -------------------------------------------------------------------------------------------------- small ones


def check_rows(*tensors: torch.Tensor) -> None:
    for x in tensors:
        require(x.dtype in (torch.bfloat16, torch.float16) and x.dtype == tensors[0].dtype, "dtype")
        require(x.stride(-1) == 1, "the last dimension is strided")


def fake_rmsnorm(*args: Any, **kwargs: Any) -> torch.Tensor:
    given = bind("rmsnorm", *args, **kwargs).arguments
    x, weight = given["input"], given["weight"]
    check_rows(x, weight)
    require(x.dim() in (2, 3), "dimensions")
    return ORACLE.rms_norm(x, weight, given["eps"])


def fake_fused_add_rmsnorm(*args: Any, **kwargs: Any) -> None:
    """The sum is normed before it is rounded."""
    given = bind("fused_add_rmsnorm", *args, **kwargs).arguments
    x, residual, weight = given["input"], given["residual"], given["weight"]
    check_rows(x, residual, weight)
    require(x.dim() == residual.dim() == 2, "dimensions")
    total = x.float() + residual.float()
    residual.copy_(total)
    x.copy_(ORACLE.rms_norm(total, weight, given["eps"]))


def fake_silu_and_mul(*args: Any, **kwargs: Any) -> torch.Tensor:
    x = bind("silu_and_mul", *args, **kwargs).arguments["input"]
    check_rows(x)
    require(x.is_contiguous(), "contiguous")
    require(x.shape[-1] // 2 * x.element_size() % 16 == 0, "halves of whole vectors")
    return ORACLE.silu_mul(x)


def fake_flashinfer(device: FakeDevice | None = None) -> Any:
    """A module. `calls` are the attention kernels in the order in which they ran."""
    device, calls = device or FakeDevice(), []
    return SimpleNamespace(
        __version__=RECORDED["version"],
        calls=calls,
        BatchPrefillWithPagedKVCacheWrapper=lambda *args, **kwargs: FakePrefillWrapper(
            device, calls, *args, **kwargs
        ),
        decode=SimpleNamespace(
            xqa_batch_decode_with_kv_cache=lambda *args, **kwargs: fake_xqa(calls, *args, **kwargs)
        ),
        rmsnorm=fake_rmsnorm,
        fused_add_rmsnorm=fake_fused_add_rmsnorm,
        silu_and_mul=fake_silu_and_mul,
    )
