"""What the endpoints of one front end share, built once at its start."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..scheduler.messages import EngineInfo
from .api.isolation import CacheIsolation
from .api.responses.background import BackgroundResponses
from .api.responses.store import ResponseStore
from .api.sampling import Sampling, SeedSource
from .frontend_config import FrontEndConfig
from .generation_defaults import eos_token_ids, load_defaults
from .metrics.catalogue import Metrics
from .parsing.choice import AnswerFormats, choose
from .requests.grammars import Grammars
from .requests.link import EngineLink
from .requests.router import Router
from .text.template import ChatTemplate, load_template
from .text.tokenizer import Tokenizer, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """`info` of the engine is asked for through the link: it is not known before the engine is ready."""

    config: FrontEndConfig
    version: str
    tokenizer: Tokenizer
    template: ChatTemplate
    formats: AnswerFormats
    sampling: Sampling
    isolation: CacheIsolation
    metrics: Metrics
    router: Router
    link: EngineLink
    grammars: Grammars
    response_store: ResponseStore
    background: BackgroundResponses
    fingerprint: str

    @property
    def info(self) -> EngineInfo | None:
        return self.link.info


def build_services(config: FrontEndConfig, version: str) -> Services:
    """Loads the tokenizer's files. Raises `TokenizerError` or `jinja2.TemplateSyntaxError`."""
    tokenizer_dir, model_dir = Path(config.tokenizer_dir), Path(config.model_dir)
    tokenizer = Tokenizer.load(tokenizer_dir)
    defaults_path = Path(config.generation_config_path) if config.generation_config_path else None
    metrics = Metrics(Path(config.multiprocess_dir) if config.multiprocess_dir else None, config.frontend_id)
    router = Router(config.endpoint)
    response_store = ResponseStore(
        Path(config.responses_dir) if config.responses_dir else None,
        config.response_store,
        config.num_frontends,
    )
    template = load_template(
        config.chat_template,
        [tokenizer_dir, model_dir],
        tokenizer,
        seconds=config.limits.template_timeout,
        max_bytes=config.limits.max_template_bytes,
    )
    return Services(
        config=config,
        version=version,
        tokenizer=tokenizer,
        template=template,
        formats=choose(
            config.tool_call_parser,
            config.reasoning_parser,
            model_type=model_type(model_dir),
            template=template.source,
        ),
        sampling=Sampling(
            defaults=load_defaults(defaults_path, config.override_generation_config),
            eos_token_ids=eos_token_ids(model_dir, tokenizer.eos_token_id),
            seeds=SeedSource(config.seed, config.frontend_id),
            limits=config.limits,
        ),
        isolation=CacheIsolation(config.prefix_cache_scope, config.cache_salt_secret),
        metrics=metrics,
        router=router,
        link=EngineLink(
            router=router,
            frontend_id=config.frontend_id,
            incarnation=config.incarnation,
            metrics=metrics,
        ),
        grammars=Grammars(router=router, metrics=metrics, compile_timeout_s=config.grammar_compile_timeout_s),
        response_store=response_store,
        background=BackgroundResponses(response_store, config.frontend_id, alone=config.num_frontends == 1),
        fingerprint=fingerprint(config, version),
    )


def model_type(model_dir: Path) -> str:
    """`model_type` of config.json; empty if there is none."""
    return str(read_json(model_dir / "config.json").get("model_type", ""))


def fingerprint(config: FrontEndConfig, version: str) -> str:
    """`system_fingerprint`: the same for the same program serving the same model."""
    digest = hashlib.sha256(f"{version}\0{config.model}\0".encode())
    model_config = Path(config.model_dir) / "config.json"
    if model_config.is_file():
        digest.update(model_config.read_bytes())
    return f"fp_{digest.hexdigest()[:12]}"
