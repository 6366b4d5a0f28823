"""What the endpoints of one front end share, built once at its start."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..scheduler.messages import EngineInfo
from .api.sampling import Sampling, SeedSource
from .config import FrontEndConfig
from .generation_defaults import eos_token_ids, load_defaults
from .metrics.catalogue import Metrics
from .requests.link import EngineLink
from .text.template import ChatTemplate, load_template
from .text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """`info` of the engine is asked for through the link: it is not known before the engine is ready."""

    config: FrontEndConfig
    version: str
    tokenizer: Tokenizer
    template: ChatTemplate
    sampling: Sampling
    metrics: Metrics
    link: EngineLink
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
    return Services(
        config=config,
        version=version,
        tokenizer=tokenizer,
        template=load_template(config.chat_template, [tokenizer_dir, model_dir], tokenizer),
        sampling=Sampling(
            defaults=load_defaults(defaults_path, config.override_generation_config),
            eos_token_ids=eos_token_ids(model_dir, tokenizer.eos_token_id),
            seeds=SeedSource(config.seed, config.frontend_id),
            max_n=config.max_n,
            max_logprobs=config.max_logprobs,
        ),
        metrics=metrics,
        link=EngineLink(
            endpoint=config.endpoint,
            frontend_id=config.frontend_id,
            incarnation=config.incarnation,
            metrics=metrics,
        ),
        fingerprint=fingerprint(config, version),
    )


def fingerprint(config: FrontEndConfig, version: str) -> str:
    """`system_fingerprint`: the same for the same program serving the same model."""
    digest = hashlib.sha256(f"{version}\0{config.model}\0".encode())
    model_config = Path(config.model_dir) / "config.json"
    if model_config.is_file():
        digest.update(model_config.read_bytes())
    return f"fp_{digest.hexdigest()[:12]}"
