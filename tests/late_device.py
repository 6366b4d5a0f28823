"""A device that is as late as a device can be, and a runner on it: what is enqueued happens when somebody waits for it.

Its tensors are `LateTensor`s of device type `meta`. Operations on them are computed at once, which nobody can tell from
later; copies between host and device are not: a fetched tensor holds nonsense until its event, and memory that a copy
reads must be unchanged when the copy runs. Whatever makes a host wait is noted in `waits`: reading a value, a copy out
of memory that is not pinned, an operation whose result's shape depends on values, waiting for an event.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from penstock.engine import kv_pool
from penstock.engine.batch import DeviceSlots
from penstock.engine.build import Built, attention_spec, draft_attention_spec, scheduler_config
from penstock.engine.choices import choose
from penstock.engine.device_thread import DeviceThread
from penstock.engine.draft_models.config import MTPConfig, read_draft_config
from penstock.engine.draft_models.drafter import ModelDrafter, staging_buffers
from penstock.engine.draft_models.load import build_mtp
from penstock.engine.draft_models.model import moved
from penstock.engine.grammar.masks import MaskThread
from penstock.engine.layers.parts import LayerParts
from penstock.engine.layers.rope import rope_table
from penstock.engine.model_config import read_model_config, read_raw_config
from penstock.engine.models.registry import FAMILIES
from penstock.engine.parallel.grid import local_config
from penstock.engine.parallel.group import Group
from penstock.engine.parallel.ranks import Ranks
from penstock.engine.parallel.shard import Part, whole
from penstock.engine.pooling import Pooler
from penstock.engine.pooling_config import Purpose
from penstock.engine.runner import ModelRunner
from penstock.engine.speculation import Speculation
from penstock.engine.streams import AsyncStream, HostStream
from penstock.kernels.attention.interface import AttentionBatch, AttentionSpec
from penstock.kernels.interface import Recorder
from penstock.kernels.reference import TorchOps
from penstock.scheduler.messages import EngineConfig, EngineInfo, SpeculativeConfig
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
LATE = torch.device("meta")
NONSENSE = 0xA5
PURPOSE = Purpose("lm", ("generate", "embed"), mode="last", normalize=True, activation="none", info=None)
VALUES_DECIDE = {aten.nonzero, aten.masked_select, aten.unique_dim, aten._unique2, aten.bincount, aten.equal}


class LateTensor(torch.Tensor):
    """Lies on the device; `inner` is what it will have been."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> LateTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=LATE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is aten.detach:
            return args[0]
        raise AssertionError(f"{func} on a tensor of the device, outside of its thread")


class LateEvent:
    def __init__(self, device: LateDevice) -> None:
        self._device = device
        self._asked = 0
        self.at = 0

    def record(self) -> None:
        self.at = self._device.enqueue(lambda: None)

    def done(self) -> bool:
        """Who asks again and again gets there."""
        self._asked += 1
        if self._asked % 4 == 0:
            self._device.advance(max(0, self.at - self._device.num_done))
        return self._device.num_done >= self.at

    def wait(self) -> None:
        self._device.reach(self.at, "an event")

    def seconds_since(self, earlier: LateEvent) -> float:
        assert self._device.num_done >= self.at >= earlier.at > 0
        return 1e-3 * (self.at - earlier.at)


class LateDevice:
    """The `Driver` of it. `num_enqueued` pieces of work, `num_done` of them done."""

    device = LATE

    def __init__(self) -> None:
        self.num_enqueued = 0
        self.num_done = 0
        self.may_go_on = threading.Event()  # cleared: whoever waits for the device waits for this first
        self.may_go_on.set()
        self.waits: list[tuple[str, str]] = []  # (thread, for what)
        self.sent: list[int] = []  # bytes of each copy to the device
        self._pending: deque[Callable[[], None]] = deque()
        self._pinned: dict[int, int] = {}
        self._keep: list[torch.Tensor] = []
        self._lock = threading.RLock()

    # ------------------------------------------------------------------------------------------------------ Driver

    def pinned(self, num_bytes: int) -> torch.Tensor:
        with _disable_current_modes():
            return self.pin(torch.full((num_bytes,), NONSENSE, dtype=torch.uint8))

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        assert target.shape == source.shape
        with _disable_current_modes(), torch.inference_mode():
            if isinstance(target, LateTensor):
                assert self.is_pinned(source), "the copy would wait"
                self._to_device(target, source)
                return
            assert isinstance(source, LateTensor)
            assert self.is_pinned(target), "the copy would wait"
            value = source.inner.clone()
            self.enqueue(lambda: target.copy_(value))

    def event(self) -> LateEvent:
        return LateEvent(self)

    # ------------------------------------------------------------------------------------------------------- the rest

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self._keep.append(tensor)  # an address names one piece of memory
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def enqueue(self, work: Callable[[], Any]) -> int:
        with self._lock:
            self._pending.append(work)
            self.num_enqueued += 1
            return self.num_enqueued

    def advance(self, count: int) -> None:
        """The device does so many pieces of its work."""
        with self._lock, _disable_current_modes(), torch.inference_mode():
            for _ in range(min(count, len(self._pending))):
                self._pending.popleft()()
                self.num_done += 1

    def reach(self, at: int, why: str) -> None:
        """Somebody waits until the device has done the first `at` pieces."""
        if self.num_done < at:
            assert self.may_go_on.wait(60.0)
        with self._lock:
            if self.num_done < at:
                self.waits.append((threading.current_thread().name, why))
                self.advance(at - self.num_done)

    def synchronise(self, why: str) -> None:
        with self._lock:
            self.waits.append((threading.current_thread().name, why))
            self.advance(len(self._pending))

    def _to_device(self, target: LateTensor, source: torch.Tensor) -> None:
        taken = source.clone()
        target.inner.copy_(taken)
        self.sent.append(source.nbytes)

        def check() -> None:
            assert torch.equal(source, taken), "memory was overwritten before the copy out of it ran"

        self.enqueue(check)


class LateMode(TorchDispatchMode):
    """Makes the tensors of a `LateDevice` and computes with them, in the thread that entered it."""

    def __init__(self, device: LateDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        with self:  # in inference mode `to` and its like come whole: what they are made of tells what they do
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        flat = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
        late = [each for each in flat if isinstance(each, LateTensor)]
        name, op = str(func), func.overloadpacket
        if op is aten.is_pinned:
            return self.device.is_pinned(args[0])
        if kwargs.pop("pin_memory", False):
            return self.device.pin(func(*args, **kwargs))
        to = kwargs.get("device")
        if op is aten._to_copy and to is not None and not late and to.type == LATE.type:
            return self._upload(args[0], kwargs)
        if late and (op is aten._local_scalar_dense or (to is not None and to.type == "cpu")):
            self.device.synchronise(name)
            kwargs["device"] = torch.device("cpu")
            return args[0].inner.clone() if op is not aten._local_scalar_dense else func(args[0].inner)
        if late and (op in VALUES_DECIDE or indexed_by_flags(op, args)):
            self.device.synchronise(name)
        if op is aten.copy_ and late and not isinstance(args[1], LateTensor):
            return self._copy_in(args[0], args[1])
        makes_late = bool(late) or (to is not None and to.type == LATE.type)
        if late:
            for each in flat:
                assert isinstance(each, LateTensor) or each.dim() == 0, f"{name} mixes host and device"
        if to is not None and to.type == LATE.type:
            kwargs["device"] = torch.device("cpu")
        known = {id(each.inner): each for each in late}
        bare_args, bare_kwargs = tree_map(
            lambda each: each.inner if isinstance(each, LateTensor) else each, (args, kwargs)
        )
        result = func(*bare_args, **bare_kwargs)
        if not makes_late:
            return result

        def late_again(each: Any) -> Any:
            if not isinstance(each, torch.Tensor):
                return each
            return known[id(each)] if id(each) in known else LateTensor(each)

        return tree_map(late_again, result)

    def _upload(self, source: torch.Tensor, kwargs: dict[str, Any]) -> LateTensor:
        target = LateTensor(torch.empty(source.shape, dtype=kwargs.get("dtype") or source.dtype))
        if not (kwargs.get("non_blocking") and self.device.is_pinned(source)):
            self.device.synchronise("a copy that waits")
        self.device._to_device(target, source)
        return target

    def _copy_in(self, target: LateTensor, source: torch.Tensor) -> LateTensor:
        self.device.synchronise("a copy that waits")
        target.inner.copy_(source)
        return target


def indexed_by_flags(op: Any, args: Sequence[Any]) -> bool:
    if op not in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


class GatheredAttention:
    """Paged attention in plain torch that reads nothing on the host and, once planned, has fixed addresses: what a
    recording on a device needs."""

    name = "gathered"

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec
        self._batch: AttentionBatch | None = None

    def plan(self, batch: AttentionBatch) -> None:
        self._batch = batch

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
    ) -> torch.Tensor:
        batch, spec = self._batch, self.spec
        assert batch is not None
        positions = batch.positions.long()
        tables = batch.page_table[batch.slots.long()[batch.token_rows.long()]].long()
        pages = tables.gather(1, (positions // spec.page_size)[:, None])[:, 0]
        k_pages[pages, positions % spec.page_size] = k
        v_pages[pages, positions % spec.page_size] = v
        tables = tables[:, : -(-batch.max_context // spec.page_size)]
        group = spec.num_heads // spec.num_kv_heads
        keys = k_pages[tables].flatten(1, 2).float().repeat_interleave(group, dim=2)
        values = v_pages[tables].flatten(1, 2).float().repeat_interleave(group, dim=2)
        scores = torch.einsum("thd,tkhd->thk", q.float(), keys) * spec.scale
        at = torch.arange(keys.shape[1], device=q.device)
        visible = at[None, :] <= positions[:, None]
        visible = visible & (at[None, :] >= positions[:, None].clamp(max=spec.first))
        if spec.window is not None:
            visible = visible & (at[None, :] > positions[:, None] - spec.window)
        scores = scores.masked_fill(~visible[:, None, :], float("-inf"))
        return torch.einsum("thk,tkhd->thd", scores.softmax(-1), values).to(q.dtype)


class PlacedWeights:
    """The tensors of a small checkpoint in float32, placed by `place`."""

    def __init__(self, path: Path, place: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._place = place
        for file in sorted(path.glob("*.safetensors")):
            self._tensors |= load_file(file)

    def tensor(self, name: str, shape: tuple[int, ...], part: Part | None = None) -> torch.Tensor:
        return self._place(cut(self._tensors[name].float(), part).clone())

    def stacked(
        self,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        parts: Sequence[Part | None] | None = None,
    ) -> torch.Tensor:
        each = zip(names, parts or [None] * len(names), strict=True)
        return self._place(torch.cat([cut(self._tensors[name].float(), part) for name, part in each]))


def cut(tensor: torch.Tensor, part: Part | None) -> torch.Tensor:
    """The part, with zeros for what lies past the end."""
    if part is None:
        return tensor
    padded = list(tensor.shape)
    padded[part.dim] = max(0, part.end - padded[part.dim])
    whole = torch.cat([tensor, tensor.new_zeros(padded)], part.dim)
    return whole.narrow(part.dim, part.first, part.end - part.first)


class LateGroup(Group):
    """Exchanges what the tensors of late devices will have been. That one device waits for another is not noted: it is
    no host that waits."""

    def all_reduce(self, x: LateTensor) -> LateTensor:
        with _disable_current_modes(), torch.inference_mode():
            super().all_reduce(x.inner)
        return x

    def gather(self, x: LateTensor) -> list[LateTensor]:
        with _disable_current_modes(), torch.inference_mode():
            return [LateTensor(part) for part in super().gather(x.inner)]

    def broadcast(self, x: LateTensor) -> LateTensor:
        with _disable_current_modes(), torch.inference_mode():
            super().broadcast(x.inner)
        return x


@contextmanager
def gathered_runner(
    path: Path,
    device: LateDevice | None,
    *,
    capture_sizes: Sequence[int] = (),
    recorder: Recorder | None = None,
    ranks: Ranks | None = None,
    speculative: SpeculativeConfig | None = None,
    **options: Any,
) -> Iterator[Built]:
    """A runner of the checkpoint in float32, on plain torch and `GatheredAttention`: on the late device, or with None
    on the CPU as ever. With `ranks` (of one stage) it is one of several. `speculative` may ask for the checkpoint's own
    next-token layers."""
    config = EngineConfig(
        model_dir=str(path),
        **{"device": "cpu", "num_threads": 1, "page_size": 4, "target_itl_ms": 0.0, "dtype": "float32"}
        | options,
        speculative=speculative,
    )
    model_config = read_model_config(path)
    choices = choose(config, model_config)
    length = config.max_model_len or 96
    groups = kv_pool.group_layers(model_config, length)
    pages = (config.num_pages or 64,) * len(groups.windows)
    local, shard = model_config, None
    if ranks is not None:
        if device:
            ranks._tensor = LateGroup(ranks.rank, ranks.grid.tensor)
        local = local_config(model_config, ranks.grid.tensor)
        shard = ranks.shard(model_config, choices.dtype, choices.device)
        ranks.connect(torch.device("cpu"))
    attention = [
        GatheredAttention(attention_spec(config, local, choices, window)) for window in groups.windows
    ]
    thread = DeviceThread()
    mode = LateMode(device) if device else None
    place = LateTensor if device else (lambda tensor: tensor)
    stream = AsyncStream(device) if device else HostStream()
    where = LATE if device else choices.device

    def make() -> ModelRunner:
        if mode is not None:
            mode.__enter__()
        ops = TorchOps()
        model = FAMILIES[model_config.architecture].model(
            model_config,
            PlacedWeights(path, place),
            ops,
            attention,
            groups.of_layer,
            place(rope_table(model_config, length, choices.device)),
            shard,
        )

        def drafting(slots: DeviceSlots) -> Speculation:
            draft = read_draft_config(config, *read_raw_config(path), model_config)
            assert isinstance(draft, MTPConfig)
            table = rope_table(model_config, length, choices.device)
            parts = [
                LayerParts(
                    draft.layer,
                    number,
                    "",
                    PlacedWeights(path, place),
                    ops,
                    GatheredAttention(draft_attention_spec(config, draft, choices, groups, number)),
                    place(moved(table, number + 1)),
                    whole(draft.layer),
                )
                for number in range(draft.num_modules)
            ]
            kept = kv_pool.allocate_draft(
                draft.shape,
                pages[0] + 1,
                page_size=config.page_size,
                dtype=choices.dtype,
                feature_dtype=choices.dtype,
                device=where,
            )
            drafter = ModelDrafter(
                build_mtp(draft, parts, model),
                kept.kv,
                kept.page_ends,
                slots.token_buffer,
                slots.page_tables[0],
                page_size=config.page_size,
                max_draft_tokens=speculative.num_speculative_tokens,
                stream=AsyncStream(device, staging_buffers(len(parts))) if device else HostStream(),
            )
            return Speculation(
                2 * config.max_num_seqs,
                drafter,
                max_draft_tokens=speculative.num_speculative_tokens,
                adaptive=speculative.adaptive,
            )

        kv = kv_pool.allocate(
            local,
            groups,
            tuple(count + 1 for count in pages),
            page_size=config.page_size,
            dtype=choices.dtype,
            device=where,
        )
        return ModelRunner(
            model,
            attention,
            kv,
            num_slots=2 * config.max_num_seqs,
            max_model_len=length,
            page_size=config.page_size,
            device=where,
            thread=thread,
            pooler=Pooler(PURPOSE, model.logits, causal=True),
            grammars=MaskThread(
                2 * config.max_num_seqs, model_config.vocab_size, ops, num_threads=1, stream=stream
            ),
            recorder=recorder,
            stream=stream,
            capture_sizes=capture_sizes,
            scratch_pages=pages,
            ranks=ranks,
            speculation=None if speculative is None else drafting,
        )

    runner = thread.submit(make).result()
    runner.capture()
    info = EngineInfo(
        max_model_len=length,
        vocab_size=model_config.vocab_size,
        page_size=config.page_size,
        num_pages=pages[0],
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=choices.max_num_batched_tokens,
        max_num_queued_reqs=choices.max_num_queued_reqs,
        dtype="float32",
        kv_cache_dtype="float32",
        device=str(where),
        attention_backend="gathered",
        weight_bytes=0,
        kv_cache_bytes=0,
        startup_seconds={},
    )
    yield Built(runner, scheduler_config(config, choices, info, kv_pool.kv_groups(groups, pages)), info)
    if mode is not None:
        thread.submit(mode.__exit__, None, None, None).result()
    runner.close()
