"""Command line and file become one checked configuration; whatever cannot be is one line and exit status 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from penstock.server.config import ServeConfig
from penstock.server.options.parse import OptionError, by_switch, fields, parse


def config(*arguments: str) -> ServeConfig:
    return parse(arguments).config


def complaint(*arguments: str) -> str:
    with pytest.raises(OptionError) as caught:
        parse(arguments)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path):
    """Write a YAML file and return its path."""

    def write(text: str) -> str:
        path = tmp_path / "serve.yaml"
        path.write_text(text)
        return str(path)

    return write


# ------------------------------------------------------------------------------------------------------- environment


def test_a_variable_stands_in_for_the_default_and_gives_way_to_file_and_flag(
    monkeypatch: pytest.MonkeyPatch, file
) -> None:
    monkeypatch.setenv("PENSTOCK_HOST", "0.0.0.0")
    monkeypatch.setenv("PENSTOCK_API_KEY", '["first", "second"]')
    assert config().server.host == "0.0.0.0"
    assert config().server.api_key == ["first", "second"]
    assert config("--config", file("host: 127.0.0.2")).server.host == "127.0.0.2"
    assert config("--host", "::", "--config", file("host: 127.0.0.2")).server.host == "::"
    # An image that sets it does not contradict its user.
    assert config("--uds", "/tmp/socket").server.uds == "/tmp/socket"
    assert parse([]).given == frozenset()


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HOST", "")
    assert config().server.host == "127.0.0.1"


def test_a_variable_that_cannot_be_read_is_named_without_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_API_KEY", '["sesame"')
    said = complaint()
    assert said.startswith("$PENSTOCK_API_KEY: ")
    assert "sesame" not in said


# ------------------------------------------------------------------------------------------------------------ values


def test_without_arguments_everything_has_its_default() -> None:
    parsed = parse([])
    assert parsed.config == ServeConfig()
    assert parsed.given == frozenset()
    assert parsed.config.server.host == "127.0.0.1"
    assert parsed.config.server.port == 8000


@pytest.mark.parametrize(
    ("arguments", "group", "name", "value"),
    [
        ("some/model", "model", "model", "some/model"),
        ("--model some/model", "model", "model", "some/model"),
        ("--model-path some/model", "model", "model", "some/model"),
        ('--served-model-name ["a","b"]', "model", "served_model_name", ["a", "b"]),
        ("--served-model-name a --served-model-name b", "model", "served_model_name", ["a", "b"]),
        ("--max-model-len 32k", "model", "max_model_len", 32_000),
        ("--max-model-len 32K", "model", "max_model_len", 32_768),
        ("--max-model-len=4096", "model", "max_model_len", 4096),
        ("--context-length 1.5k", "model", "max_model_len", 1500),
        ("--max-model-len auto", "model", "max_model_len", None),
        ("--max-model-len -1", "model", "max_model_len", None),
        ("--max_model_len 7", "model", "max_model_len", 7),
        ("--dtype half", "model", "dtype", "float16"),
        ("--dtype bfloat16", "model", "dtype", "bfloat16"),
        ("--generation-config vllm", "model", "generation_config", "none"),
        ("--sampling-defaults openai", "model", "generation_config", "none"),
        ('--hf-overrides {"rope_theta":1e6}', "model", "hf_overrides", {"rope_theta": 1e6}),
        ("--json-model-override-args {}", "model", "hf_overrides", {}),
        ("--random-seed 5", "model", "seed", 5),
        ("--port 0", "server", "port", 0),
        ("--api-key a --api-key b", "server", "api_key", ["a", "b"]),
        ("--api-server-count 3", "server", "api_workers", 3),
        (
            '--allowed-origins ["https://a","https://b"]',
            "server",
            "allowed_origins",
            ["https://a", "https://b"],
        ),
        ("--max-request-bytes 1MiB", "limits", "max_request_bytes", 1 << 20),
        ("--sse-keep-alive-interval 2.5", "server", "sse_keep_alive_interval", 2.5),
        ("--max-running-requests 9", "scheduler", "max_num_seqs", 9),
        ("--chunked-prefill-size 1k", "scheduler", "max_num_batched_tokens", 1000),
        ("--target-itl-ms 75", "scheduler", "target_itl_ms", 75.0),
        ("--target-itl-ms 0", "scheduler", "target_itl_ms", 0.0),
        ("--schedule-policy lpm", "scheduler", "scheduling_policy", "lpm"),
        ("--scheduling-policy priority", "scheduler", "scheduling_policy", "fcfs"),
        ("--no-async-scheduling", "scheduler", "async_scheduling", False),
        ("--disable-overlap-schedule", "scheduler", "async_scheduling", False),
        ("--enforce-eager", "scheduler", "enforce_eager", True),
        ("--disable-cuda-graph", "scheduler", "enforce_eager", True),
        ("--cudagraph-capture-sizes [1,2,4]", "scheduler", "cudagraph_capture_sizes", [1, 2, 4]),
        ("--cuda-graph-bs 8", "scheduler", "cudagraph_capture_sizes", [8]),
        ("--cuda-graph-max-bs 64", "scheduler", "max_cudagraph_capture_size", 64),
        ("--enable-prefix-caching", "cache", "enable_prefix_caching", True),
        ("--enable-prefix-caching=false", "cache", "enable_prefix_caching", False),
        ("--disable-radix-cache", "cache", "enable_prefix_caching", False),
        ("--page-size 32", "cache", "block_size", 32),
        ("--kv-cache-dtype fp8", "cache", "kv_cache_dtype", "fp8"),
        ("--kv-cache-dtype fp8_e4m3", "cache", "kv_cache_dtype", "fp8_e4m3"),
        ("--kv-cache-memory 4GiB", "cache", "kv_cache_memory_bytes", 4 << 30),
        ("--kv-cache-memory-bytes 4g", "cache", "kv_cache_memory_bytes", 4 << 30),
        ("--kv-cache-memory-bytes 1.5MB", "cache", "kv_cache_memory_bytes", 3 << 19),
        ("--mem-fraction-static 0.5", "cache", "gpu_memory_utilization", 0.5),
        ("--max-total-tokens 64k", "cache", "max_total_tokens", 64_000),
        ("--log-requests", "observability", "enable_log_requests", True),
        ("--shutdown-timeout 0", "lifecycle", "shutdown_timeout", 0.0),
    ],
)
def test_a_flag_in_any_of_its_spellings_sets_its_option(
    arguments: str, group: str, name: str, value: object
) -> None:
    parsed = parse(arguments.split(" "))
    assert getattr(getattr(parsed.config, group), name) == value
    assert parsed.given == {name}


def test_kv_events_config_is_read_with_its_defaults() -> None:
    events = config("--kv-events-config", '{"endpoint": "tcp://127.0.0.1:7777"}').cache.kv_events_config
    assert events is not None
    assert events.endpoint == "tcp://127.0.0.1:7777"
    assert events.buffer_steps == 10_000


def test_a_list_takes_several_words_after_the_model() -> None:
    parsed = config("org/name", "--served-model-name", "a", "b", "--api-key", "c", "d")
    assert parsed.model.model == "org/name"
    assert parsed.model.served_model_name == ["a", "b"]
    assert parsed.server.api_key == ["c", "d"]


@pytest.mark.parametrize("flag", ["--tensor-parallel-size", "--tp-size", "--tp", "-tp"])
def test_ranks_are_counted_under_every_name_that_users_know(flag: str) -> None:
    parallel = config(flag, "2", flag.replace("tensor", "pipeline").replace("tp", "pp"), "3").parallel
    assert (parallel.tensor_parallel_size, parallel.pipeline_parallel_size) == (2, 3)


def test_the_last_of_a_repeated_flag_counts() -> None:
    assert config("--port", "1", "--port", "2").server.port == 2


def test_every_option_has_a_flag_a_help_sentence_and_no_spelling_is_shared() -> None:
    names = [name for field in fields() for name, _ in field.switches()]
    assert len(names) == len(set(names)) == len(by_switch())
    for field in fields():
        assert field.option.help.endswith(".")


# -------------------------------------------------------------------------------------------------------------- file


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(file) -> None:
    path = file("port: 9000\nmax-num-seqs: 8\n")
    parsed = config("--config", path, "--port", "9001")
    assert parsed.server.port == 9001
    assert parsed.scheduler.max_num_seqs == 8
    assert parsed.cache.block_size == 16


def test_an_alias_on_the_command_line_wins_over_the_canonical_name_in_the_file(file) -> None:
    path = file("max-num-seqs: 8\nenable-prefix-caching: true\n")
    parsed = config("--max-running-requests", "4", "--disable-radix-cache", f"--config={path}")
    assert parsed.scheduler.max_num_seqs == 4
    assert parsed.cache.enable_prefix_caching is False


def test_file_keys_may_use_underscores_aliases_groups_and_native_values(file) -> None:
    path = file(
        "model: org/name\n"
        "served_model_name: [one, two]\n"
        "context-length: 32k\n"
        "server:\n  api-key: secret\n  sse_keep_alive_interval: 5\n"
        "cache:\n  disable-radix-cache: true\n  kv-events-config: {hwm: 5}\n"
        "hf-overrides:\n  rope_theta: 10000.0\n"
    )
    parsed = config("--config", path)
    assert parsed.model.model == "org/name"
    assert parsed.model.served_model_name == ["one", "two"]
    assert parsed.model.max_model_len == 32_000
    assert parsed.server.api_key == ["secret"]
    assert parsed.server.sse_keep_alive_interval == 5.0
    assert parsed.cache.enable_prefix_caching is False
    assert parsed.cache.kv_events_config is not None
    assert parsed.cache.kv_events_config.hwm == 5
    assert parsed.model.hf_overrides == {"rope_theta": 10000.0}


def test_the_model_group_and_the_model_option_share_their_key(file) -> None:
    assert config("--config", file("model:\n  model: org/name\n  dtype: float32\n")).model.model == "org/name"


def test_a_list_on_the_command_line_replaces_the_files(file) -> None:
    path = file("api-key: [a, b]\n")
    assert config("--config", path, "--api-key", "c").server.api_key == ["c"]


def test_an_empty_file_changes_nothing(file) -> None:
    assert config("--config", file("# nothing\n")) == ServeConfig()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("prot: 1\n", ["serve.yaml: prot", "did you mean port?"]),
        ("server:\n  prot: 1\n", ["serve.yaml: server.prot", "did you mean port?"]),
        ("server:\n  dtype: auto\n", ["server.dtype", "belongs to the group model"]),
        ("port: x\n", ["serve.yaml: port: x", "whole number"]),
        ("port: 70000\n", ["port: 70000", "at most 65,535"]),
        ("port: true\n", ["port: true", "whole number"]),
        ("port: [1, 2]\n", ["port: [1, 2]", "whole number"]),
        ("port:\n", ["port: null", "value is missing"]),
        ("model: 7\n", ["model: 7", "quotes"]),
        ("revision: 0123\n", ["revision: 83", "quotes"]),
        ("api-key: [1]\n", ["api-key", "quotes"]),
        ("dtype: int4\n", ["dtype: int4", "float32"]),
        ("enable-prefix-caching: 3\n", ["enable-prefix-caching: 3", "true or false"]),
        ("hf-overrides: [1]\n", ["hf-overrides: [1]", "mapping"]),
        ("kv-events-config: {hwm: x}\n", ["kv-events-config", "key hwm"]),
        ("port: 1\nport: 2\n", ["port appears twice", "line 2"]),
        (
            "max-num-seqs: 1\nmax-running-requests: 2\n",
            ["max-running-requests 2", "contradicts", "max-num-seqs"],
        ),
        ("data-parallel-size: 2\n", ["data-parallel-size", "not supported yet"]),
        ("config: other.yaml\n", ["config", "unknown option"]),
        ("port: 1\n bad: [\n", ["serve.yaml", "not valid YAML in line 2"]),
        ("- port\n", ["serve.yaml", "found a list"]),
    ],
)
def test_a_bad_file_is_one_line_with_file_key_value_and_way_out(file, text: str, parts: list[str]) -> None:
    line = complaint("--config", file(text))
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_a_missing_file_is_named() -> None:
    line = complaint("--config", "/nowhere/serve.yaml")
    assert "--config /nowhere/serve.yaml" in line
    assert "no such file" in line


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--prot 1", ["--prot", "did you mean --port?"]),
        ("--max-num-sqs 1", ["--max-num-sqs", "did you mean --max-num-seqs?"]),
        ("--zzzzzz", ["--zzzzzz", "penstock serve --help"]),
        ("-x", ["-x", "penstock serve --help"]),
        ("--port", ["--port", "value is missing"]),
        ("--port --host h", ["--port", "value is missing"]),
        ("--api-key", ["--api-key", "value is missing"]),
        ("--config", ["--config", "value is missing"]),
        ("--port x", ["--port x", "whole number"]),
        ("--port 1.5", ["--port 1.5", "whole number"]),
        ("--port 65536", ["--port 65536", "at most 65,535"]),
        ("--max-num-seqs 0", ["--max-num-seqs 0", "at least 1"]),
        ("--max-model-len 0", ["--max-model-len 0", "at least 1"]),
        ("--max-model-len 12q", ["--max-model-len 12q", "32k"]),
        ("--max-model-len 0.5", ["--max-model-len 0.5", "whole number"]),
        ("--kv-cache-memory 4x", ["--kv-cache-memory 4x", "4GiB"]),
        ("--gpu-memory-utilization 1.5", ["--gpu-memory-utilization 1.5", "at most 1"]),
        ("--gpu-memory-utilization nan", ["--gpu-memory-utilization nan", "a number"]),
        ("--shutdown-timeout inf", ["--shutdown-timeout inf", "a number"]),
        ("--shutdown-timeout -1", ["--shutdown-timeout -1", "at least 0"]),
        ("--dtype flaot16", ["--dtype flaot16", "choose one of", "did you mean float16?"]),
        ("--scheduling-policy lottery", ["--scheduling-policy lottery", "fcfs, lpm, wspt"]),
        ("--enable-prefix-caching=perhaps", ["--enable-prefix-caching perhaps", "true or false"]),
        ("--hf-overrides {", ["--hf-overrides {", "JSON object"]),
        ("--hf-overrides [1]", ["--hf-overrides [1]", "JSON object"]),
        ('--kv-events-config {"hwn":1}', ["--kv-events-config", "hwn"]),
        ('--kv-events-config {"hwm":"x"}', ["--kv-events-config", "key hwm"]),
        ("--allowed-origins [1", ["--allowed-origins", "JSON list"]),
        ("--served-model-name a org/name", ["--served-model-name", "org/name", "Put MODEL first"]),
        ("--api-key secret org/name", ["--api-key", "its last word", "Put MODEL first"]),
        ("one two", ["two", "already given as one"]),
        ("--model one two", ["two", "already given as --model one"]),
        ("one --model two", ["--model two", "contradicts MODEL"]),
        # what vLLM and SGLang have and we do not
        ("--data-parallel-size 2", ["--data-parallel-size", "not supported yet", "leave it out"]),
        ("-dp 2", ["-dp", "not supported yet", "leave it out"]),
        ("--quantization fp8", ["--quantization fp8", "int8, int4"]),
        ("-q fp8", ["-q fp8", "int8, int4"]),
        ("-quantization int8", ["-quantization", "unknown option"]),
        ("--quantization int8 --device cuda", ["--quantization int8", "--device cuda", "leave one"]),
        ("-q int4 --dtype half", ["--quantization int4", "--dtype float16"]),
        ("--speculative-token-map m", ["--speculative-token-map", "not supported yet"]),
        ("--enable-chunked-prefill", ["--enable-chunked-prefill", "always chunked"]),
        ("--trust-remote-code", ["--trust-remote-code", "leave it out"]),
        # contradictions
        ("--uds /x --port 3", ["--uds /x", "--port 3", "leave one out"]),
        ("--ssl-keyfile k", ["--ssl-keyfile k", "--ssl-certfile"]),
        ("--ssl-certfile c", ["--ssl-certfile c", "--ssl-keyfile"]),
        ("--ssl-certfile /no/c --ssl-keyfile /no/k", ["--ssl-keyfile /no/k", "no such file"]),
        ("--root-path api/", ["--root-path api/", "try /api"]),
        ("--revision main", ["--revision main", "MODEL"]),
        (
            "--num-pages 5 --kv-cache-memory 1g",
            ["--kv-cache-memory", "--num-gpu-blocks-override 5", "keep one"],
        ),
        ("--max-total-tokens 4", ["--max-total-tokens 4", "page of 16"]),
        (
            "--max-model-len 100 --num-pages 2",
            ["--max-model-len 100", "32 tokens", "--num-gpu-blocks-override"],
        ),
        ("--max-num-batched-tokens 64", ["--max-num-batched-tokens 64", "--max-num-seqs is 256"]),
        ("--target-itl-ms -1", ["--target-itl-ms -1", "at least 0"]),
        ("--target-itl-ms inf", ["--target-itl-ms inf"]),
        ("--target-itl-ms 50 --runner pooling", ["--target-itl-ms 50", "--runner pooling", "leave one"]),
        ("--page-size 16 --block-size 32", ["--block-size 32", "contradicts --page-size"]),
        ("--enable-prefix-caching --disable-radix-cache", ["--disable-radix-cache", "contradicts"]),
        ("--device cuda --attention-backend cpu", ["--attention-backend cpu", "--device cuda"]),
        (
            "--device cpu --attention-backend flashinfer",
            ["--attention-backend flashinfer", "--device cpu"],
        ),
        ("--kv-cache-dtype fp4", ["--kv-cache-dtype fp4"]),
        ("--device cpu --gpu-memory-utilization 0.5", ["--gpu-memory-utilization 0.5", "--kv-cache-memory"]),
        (
            '--kv-events-config {"endpoint":"ipc://x","replay_endpoint":"ipc://x"}',
            ["--kv-events-config", "ipc://x", "different"],
        ),
    ],
)
def test_a_bad_command_line_is_one_line_with_option_value_and_way_out(
    arguments: str, parts: list[str]
) -> None:
    line = complaint(*arguments.split(" "))
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_an_empty_api_key_is_refused_rather_than_leaving_the_server_open() -> None:
    assert complaint("--api-key", "").startswith("--api-key: an empty word")


def test_secrets_are_not_repeated_in_errors() -> None:
    assert "hush" not in complaint("--api-key", "hush", "")
    assert "hush" not in complaint("--api-key", "hush", "hush-hush")
    assert "hush" not in complaint("--hf-token", "hush", "--hf-token=hush", "--port", "x")


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        (["serve", "--max-num-seqs", "0"], "error: --max-num-seqs 0: "),
        (["serve", "--uds", "/x", "--host", "h"], "error: --uds /x and --host h"),
        (["serve", "/nowhere/at/all"], "error: MODEL /nowhere/at/all: no such directory"),
        (["serve", "--chat-template", "/no/such"], "error: --chat-template /no/such: "),
        (["srve"], "error: srve: unknown command; did you mean serve?"),
        (["bench", "latency"], "error: bench latency: "),
    ],
)
def test_the_command_ends_with_status_2_and_that_line_alone(arguments: list[str], beginning: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(beginning)
    assert done.stderr.count("\n") == 1


def test_the_version_is_printed_without_loading_what_other_commands_need() -> None:
    code = (
        "import sys\nfrom penstock.server.cli import run\nassert run(['version']) == 0\n"
        "assert not {'msgspec', 'zmq', 'torch', 'numpy', 'yaml'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("penstock ")
