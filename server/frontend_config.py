"""What a front-end process is told at its start."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from .config import CacheScope, ResponseStoreOptions
from .limits import LimitOptions
from .parsing.options import AUTO


class FrontEndConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a front-end process is told at its start: `python -m penstock.server.frontend CONFIG.json`.

    The supervisor writes it as JSON into the private runtime directory; every choice that needs no tokenizer has
    been made by then. Once HTTP listens and the engine is ready, the front end sends `Serving` on its ROUTER to the
    peer `supervisor`, again until that peer is known. SIGTERM drains: it stops accepting, finishes running requests
    within `shutdown_timeout_s`, exits 0. A second SIGTERM ends it at once. SIGINT is the supervisor's alone.
    """

    frontend_id: int
    incarnation: int  # time.time_ns() of this start of the process; goes into `Hello`
    command_began_ns: int | None = None  # the same of the command, at the family's first start
    num_frontends: int
    listen_fd: int  # inherited listening socket, TCP or Unix, shared by all front ends
    endpoint: str  # where the ROUTER binds: ipc://...
    multiprocess_dir: str | None = None  # prometheus_client multiprocess files; None = one front end alone

    model: str  # as the user gave it, for `root` in /v1/models
    model_dir: str  # local: config.json, generation_config.json, chat_template.jinja
    tokenizer_dir: str  # local: tokenizer.json, tokenizer_config.json
    served_model_names: list[str]  # at least one; the first is the one replies carry
    chat_template: str | None = None  # the Jinja text that replaces the checkpoint's
    generation_config_path: str | None = (
        None  # JSON file of default sampling parameters; None = neutral defaults
    )
    override_generation_config: dict[str, Any] = {}  # wins over that file
    seed: int | None = (
        None  # of the seeds for requests that bring none (mix in frontend_id); None = fresh entropy
    )

    tool_call_parser: str = AUTO
    exclude_tools_when_tool_choice_none: bool = False
    reasoning_parser: str = AUTO
    api_keys: list[str] = []  # empty = open
    open_metrics: bool = False  # /metrics needs no key
    prefix_cache_scope: CacheScope = "global"
    cache_salt_secret: str = ""  # of the hash that makes salts from API keys; the same in all front ends
    allowed_origins: list[str] = []  # empty = no CORS headers
    root_path: str = ""
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    limits: LimitOptions = LimitOptions()
    response_store: ResponseStoreOptions = ResponseStoreOptions()
    responses_dir: str | None = None  # where they lie, shared by all front ends; None = nothing is stored
    sse_keep_alive_s: float = 15.0  # 0 = never
    enable_request_id_headers: bool = True
    shutdown_timeout_s: float = 30.0
    grammar_compile_timeout_s: float = 10.0
    log_level: str = "info"
    log_requests: bool = False  # one line per finished request
    log_stats: bool = (
        True  # a line of load and throughput every 10 s while requests run (front end 0 prints it)
    )
