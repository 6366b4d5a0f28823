"""The KV cache is sized by arithmetic that can be checked by hand, and a model that does not fit shows it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from penstock.engine import build, kv_pool, kv_sizing
from penstock.engine.errors import ConfigurationError
from penstock.engine.host_memory import available_bytes, lazy_zeros
from penstock.engine.kv_pool import Footprint
from penstock.engine.model_config import parse_model_config
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.messages import EngineConfig

# 4 layers x 2 (k, v) x 2 heads x 64 x 2 bytes = 2 KiB a token, 32 KiB a page of 16.
RAW = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "vocab_size": 8192,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
SLIDING = RAW | {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1}
PAGE_BYTES = 32 * 1024
MIB = 1 << 20


def sized(raw: dict, **options: object) -> tuple[int, tuple[int, ...]]:
    """(max_model_len, pages of each group) for an engine configuration on a CPU."""
    config = EngineConfig(model_dir="", device="cpu", **options)
    model_config = parse_model_config(raw)
    choices = build.choose(config, model_config)
    max_model_len = build.context_length(model_config, config.max_model_len)
    groups = kv_pool.group_layers(model_config, max_model_len)
    return kv_sizing.size_kv_cache(config, model_config, choices, groups, max_model_len)[:2]


def test_pages_fill_the_budget() -> None:
    assert sized(RAW, kv_cache_memory_bytes=100 * MIB) == (8192, (100 * MIB // PAGE_BYTES,))


def test_pages_never_exceed_what_all_sequences_can_hold() -> None:
    assert sized(RAW, kv_cache_memory_bytes=1 << 40, max_num_seqs=3) == (8192, (3 * 8192 // 16,))


def test_a_context_that_does_not_fit_shows_the_arithmetic_and_both_ways_out() -> None:
    with pytest.raises(ConfigurationError) as error:
        sized(RAW, kv_cache_memory_bytes=5 * MIB, max_model_len=4096)
    message = str(error.value)
    assert "needs 8.00 MiB for one sequence of max_model_len 4096 (256 pages of 32 KiB)" in message
    assert "5.00 MiB are available (--kv-cache-memory-bytes)" in message
    assert "lower --max-model-len to 2560 or raise --kv-cache-memory-bytes to 8388608" in message
    # The ways out are ways out.
    assert sized(RAW, kv_cache_memory_bytes=5 * MIB, max_model_len=2560)[0] == 2560
    assert sized(RAW, kv_cache_memory_bytes=8388608, max_model_len=4096)[0] == 4096
    with pytest.raises(ConfigurationError):
        sized(RAW, kv_cache_memory_bytes=5 * MIB, max_model_len=2561)


def test_a_budget_the_user_set_is_never_met_by_cutting_the_context() -> None:
    with pytest.raises(ConfigurationError, match="max_model_len 8192"):
        sized(RAW, kv_cache_memory_bytes=5 * MIB)


def test_with_nothing_set_the_context_is_cut_to_the_memory_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kv_sizing, "available_bytes", lambda: 32 * MIB)
    with caplog.at_level(logging.WARNING):
        assert sized(RAW) == (4096, (256,))
    assert "max_model_len is 4096 instead of 8192" in caplog.text
    with pytest.raises(ConfigurationError, match="lower --max-model-len to 4096"):
        sized(RAW, max_model_len=8192)


def test_nothing_fits_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_sizing, "available_bytes", lambda: 4 * 1024)
    with pytest.raises(ConfigurationError, match="raise --kv-cache-memory-bytes") as error:
        sized(RAW)
    assert "lower" not in str(error.value)


def test_the_default_budget_is_4_gib_or_one_sequence_within_a_quarter_of_memory() -> None:
    gib = kv_pool.GIB
    small, large = Footprint((1,), (gib,)), Footprint((1,), (6 * gib,))
    assert kv_pool.default_cpu_budget(100 * gib, small) == 4 * gib
    assert kv_pool.default_cpu_budget(8 * gib, small) == 2 * gib
    assert kv_pool.default_cpu_budget(100 * gib, large) == 6 * gib
    assert kv_pool.default_cpu_budget(20 * gib, large) == 5 * gib


def test_num_pages_is_taken_as_told_and_checked() -> None:
    assert sized(RAW, num_pages=600, max_num_seqs=1) == (8192, (600,))
    with pytest.raises(
        ConfigurationError, match=r"500 pages of 16 tokens hold 8000 tokens.*--max-model-len to 8000"
    ):
        sized(RAW, num_pages=500)
    assert sized(RAW, num_pages=500, max_model_len=8000) == (8000, (500,))


def test_layers_are_grouped_by_what_they_see() -> None:
    groups = kv_pool.group_layers(parse_model_config(SLIDING), 8192)
    assert groups.windows == (None, 100)
    assert groups.of_layer == (0, 1, 1, 1)
    assert kv_pool.kv_groups(groups, (7, 9)) == (KVGroup("full", 7), KVGroup("sliding", 9, 100))
    # A window that covers the whole context is no window.
    assert kv_pool.group_layers(parse_model_config(SLIDING), 100).windows == (None,)


def test_a_sliding_group_needs_its_window_and_one_chunk() -> None:
    config = parse_model_config(SLIDING)
    need = kv_pool.footprint(
        config,
        kv_pool.group_layers(config, 8192),
        max_model_len=8192,
        page_size=16,
        max_num_batched_tokens=64,
        dtype=torch.bfloat16,
    )
    assert need.page_bytes == (8 * 1024, 24 * 1024)
    # 100 keys lie on at most 8 pages; a chunk of 64 tokens reaches over 4 more.
    assert need.sequence_pages == (512, 12)


def test_groups_share_what_is_left_page_for_page_up_to_their_limit() -> None:
    need = Footprint(page_bytes=(10, 30), sequence_pages=(100, 4))
    assert kv_pool.count_pages(need, 1_119, 4) is None
    assert kv_pool.count_pages(need, 1_120, 4) == (100, 4)
    assert kv_pool.count_pages(need, 1_120 + 5 * 40, 4) == (105, 9)
    # The sliding group is full at 4 sequences, the rest goes to the other.
    assert kv_pool.count_pages(need, 1_120 + 12 * 40 + 1_000, 4) == (212, 16)
    assert kv_pool.count_pages(need, 1 << 30, 4) == (400, 16)
    assert kv_pool.count_pages(need, 1 << 30, 1) == (100, 4)


def test_batched_tokens_must_hold_a_token_of_every_sequence() -> None:
    with pytest.raises(ConfigurationError, match="--max-num-batched-tokens 8 is below --max-num-seqs 256"):
        sized(RAW, max_num_batched_tokens=8)


def test_float16_checkpoints_run_in_bfloat16_on_a_cpu_unless_told() -> None:
    half = parse_model_config(RAW | {"torch_dtype": "float16"})
    config = EngineConfig(model_dir="", device="cpu")
    assert build.choose(config, half).dtype == torch.bfloat16
    assert build.choose(replace(config, dtype="float16"), half).dtype == torch.float16
    assert build.choose(config, parse_model_config(RAW)).dtype == torch.bfloat16
    assert build.choose(config, parse_model_config(RAW | {"torch_dtype": "float32"})).dtype == torch.float32


def test_a_kv_dtype_other_than_the_models_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--kv-cache-dtype float32"):
        sized(RAW, kv_cache_dtype="float32")


def resident_bytes() -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def test_pools_are_zero_and_cost_nothing_until_touched() -> None:
    before = resident_bytes()
    pool = lazy_zeros((1 << 10, 1 << 20), torch.bfloat16)  # 2 GiB
    assert resident_bytes() - before < 64 * MIB
    pool[5, 7:9] = 3
    assert pool[5, 6:10].tolist() == [0, 3, 3, 0]
    assert resident_bytes() - before < 64 * MIB


def test_available_memory_respects_the_cgroup(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert available_bytes(tmp_path, tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1024000\n")
    (tmp_path / "memory.stat").write_text("anon 5\nactive_file 2048\ninactive_file 1024\n")
    assert available_bytes(tmp_path, tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("4096000\n")
    assert available_bytes(tmp_path, tmp_path) == 4096000 - 1024000 + 3072
