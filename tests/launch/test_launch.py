"""Every option reaches a process: what the engine and the front ends are told follows from the configuration."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from penstock.scheduler.grammar_messages import GrammarConfig
from penstock.scheduler.messages import EngineConfig, KVEventsConfig, PoolerConfig
from penstock.server.config import ModelOptions, ServeConfig
from penstock.server.frontend_config import FrontEndConfig
from penstock.server.launch import describe_family, seconds_since_start
from penstock.server.model_files import ModelFiles, resolve
from penstock.server.options.parse import Field, fields, parse

# options whose effect is outside of what the children are told, with the test that shows it
ELSEWHERE = {
    "model": "test_model_files",
    "served_model_name": "test_model_files",
    "tokenizer": "test_model_files",
    "revision": "test_model_files",
    "hf_token": "test_model_files",
    "download_dir": "test_model_files",
    "generation_config": "test_model_files",
    "chat_template": "test_model_files",
    "host": "test_listening",
    "port": "test_listening",
    "uds": "test_listening",
    "engine_restart_limit": "test_supervisor",
    "engine_restart_window": "test_supervisor",
    "enable_auto_tool_choice": "without effect, as its description says",
    "spec_model": "test_speculative_options",
    "speculative_eagle_topk": "test_speculative_options: it has one value",
}
# options that mean something beside others only
BESIDE = {"speculative": {"spec_method": "ngram"}}
ANOTHER = {
    "kv_events_config": KVEventsConfig(hwm=7),
    "pooler_config": PoolerConfig("MEAN"),
    "cudagraph_capture_sizes": [3],
    "speculative_config": {"method": "ngram", "window": 2048},
    "spec_method": None,
    "speculative_adaptive": False,
}


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return resolve(ModelOptions())


def told(
    config: ServeConfig, files: ModelFiles, folder: Path
) -> tuple[EngineConfig, list[FrontEndConfig], GrammarConfig]:
    """What the processes would read at a start with incarnation 5, but for what is new at every start."""
    folder.mkdir(exist_ok=True)
    family = describe_family(config, files, folder, listen_fd=9)
    engine_argv = family.engines[0].command(5)
    assert engine_argv[-3:-1] == ["-m", "penstock.engine"]
    engine = msgspec.json.decode(Path(engine_argv[-1]).read_bytes(), type=EngineConfig)
    frontends = []
    for spec in family.frontends:
        argv = spec.command(5)
        assert argv[-3:-1] == ["-m", "penstock.server.frontend"]
        assert spec.pass_fds == (9,)
        frontend = msgspec.json.decode(Path(argv[-1]).read_bytes(), type=FrontEndConfig)
        frontends.append(msgspec.structs.replace(frontend, cache_salt_secret="", command_began_ns=None))
    (background,) = family.background
    grammar_argv = background.command(5)
    assert grammar_argv[-3:-1] == ["-m", "penstock.engine.grammar"]
    grammar = msgspec.json.decode(Path(grammar_argv[-1]).read_bytes(), type=GrammarConfig)
    return engine, frontends, grammar


def another_value(field: Field) -> Any:
    """A valid value of the option that is not its default."""
    if field.name in ANOTHER:
        return ANOTHER[field.name]
    match field.kind:
        case "bool":
            return not field.default
        case "choice":
            return next(choice for choice in field.choices if choice != field.default)
        case "list":
            return ["other"]
        case "object":
            return {"other": 1}
        case "int":
            default = field.default or 0
            return default // 2 if default > 1 else default + 64
        case "float":
            return (field.default or 1.0) / 2
        case _:
            return "/other"


@pytest.mark.parametrize(
    "field", [field for field in fields() if field.name not in ELSEWHERE], ids=lambda f: f.name
)
def test_no_option_is_accepted_and_ignored(field: Field, files: ModelFiles, tmp_path: Path) -> None:
    base = ServeConfig()
    group = msgspec.structs.replace(getattr(base, field.group), **BESIDE.get(field.group, {}))
    base = msgspec.structs.replace(base, **{field.group: group})
    group = msgspec.structs.replace(group, **{field.name: another_value(field)})
    changed = msgspec.structs.replace(base, **{field.group: group})
    assert told(changed, files, tmp_path / "a") != told(base, files, tmp_path / "a")


def test_the_options_with_effects_elsewhere_exist() -> None:
    assert set(ELSEWHERE) <= {field.name for field in fields()}


def test_every_front_end_has_its_own_endpoint_and_engine_and_grammar_process_know_them_all(
    files: ModelFiles, tmp_path: Path
) -> None:
    config = parse(["--api-workers", "3"]).config
    engine, frontends, grammar = told(config, files, tmp_path)
    assert engine.frontends == grammar.frontends == [frontend.endpoint for frontend in frontends]
    assert [frontend.frontend_id for frontend in frontends] == [0, 1, 2]
    assert len({frontend.multiprocess_dir for frontend in frontends}) == 1
    assert Path(frontends[0].multiprocess_dir or "").is_dir()
    assert engine.incarnation == frontends[0].incarnation == grammar.incarnation == 5


def test_one_front_end_alone_needs_no_shared_metrics(files: ModelFiles, tmp_path: Path) -> None:
    _, (frontend,), _ = told(ServeConfig(), files, tmp_path)
    assert frontend.multiprocess_dir is None
    assert frontend.served_model_names == ["penstock-demo"]


def test_a_cache_size_in_tokens_becomes_whole_pages(files: ModelFiles, tmp_path: Path) -> None:
    config = parse(["--max-total-tokens", "1000", "--block-size", "32"]).config
    engine, _, _ = told(config, files, tmp_path)
    assert engine.num_pages == 31


def test_what_holds_keys_is_readable_by_its_owner_alone(files: ModelFiles, tmp_path: Path) -> None:
    config = parse(["--api-key", "secret"]).config
    told(config, files, tmp_path)
    assert stat.S_IMODE((tmp_path / "frontend-0.json").stat().st_mode) == 0o600


def test_only_the_first_start_of_a_front_end_is_part_of_the_family_s_start(
    files: ModelFiles, tmp_path: Path
) -> None:
    family = describe_family(ServeConfig(), files, tmp_path, listen_fd=9)
    before = time.time_ns()
    told = [
        msgspec.json.decode(Path(family.frontends[0].command(start)[-1]).read_bytes(), type=FrontEndConfig)
        for start in (5, 6)
    ]
    assert told[0].command_began_ns is not None
    assert 0 < before - told[0].command_began_ns < 24 * 3600 * 1e9
    assert told[1].command_began_ns is None


def test_the_time_to_ready_counts_from_the_start_of_the_process() -> None:
    assert 0 < seconds_since_start() < 24 * 3600
