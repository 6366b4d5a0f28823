"""What a checkpoint is for, and how its states become one vector: its head, sentence-transformers' files, the options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..scheduler.messages import EngineConfig, PoolingInfo, Task
from .errors import ConfigurationError
from .model_config import read_labels
from .models.config import EncoderConfig, Head, ModelConfig

Mode: TypeAlias = Literal["cls", "last", "mean", "max", "mean_sqrt_len", "weightedmean"]
Activation: TypeAlias = Literal["none", "sigmoid", "softmax"]

# As sentence-transformers writes them, in the old form (one flag each) and the new one (one name).
MODES: dict[str, Mode] = {
    "cls_token": "cls",
    "cls": "cls",
    "lasttoken": "last",
    "mean_tokens": "mean",
    "mean": "mean",
    "max_tokens": "max",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weightedmean",
    "weightedmean": "weightedmean",
}
OPTION_MODES: dict[str, Mode] = {"CLS": "cls", "LAST": "last", "MEAN": "mean"}
ACTIVATIONS: dict[str, Activation] = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}
PROBLEMS: dict[str, Activation] = {
    "regression": "none",
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}


@dataclass(frozen=True, slots=True)
class Purpose:
    """Which head is loaded, what the model answers, and how states are pooled for it.

    `mode` and `normalize` are for embeddings, `activation` is for labels.
    """

    head: Head
    tasks: tuple[Task, ...]
    mode: Mode
    normalize: bool
    activation: Activation
    info: PoolingInfo | None


@dataclass(frozen=True, slots=True)
class SentenceTransformer:
    """What modules.json and the files it names say."""

    mode: Mode
    normalize: bool


def decide_purpose(
    config: EngineConfig, raw: Mapping[str, Any], where: str, model: ModelConfig | EncoderConfig
) -> Purpose:
    """What this engine does with the model. Raises ConfigurationError when the options ask for what it cannot."""
    sentence = read_sentence_transformer(Path(config.model_dir)) if model.head != "classify" else None
    head, tasks = decide_tasks(config, model, embedder=sentence is not None)
    causal = isinstance(model, ModelConfig)
    mode: Mode = "last" if causal else "cls"
    normalize = True
    if sentence is not None:
        mode, normalize = sentence.mode, sentence.normalize
    asked = config.pooler_config
    if asked is not None and asked.pooling_type is not None:
        mode = OPTION_MODES[asked.pooling_type]
    if asked is not None and asked.normalize is not None:
        normalize = asked.normalize
    if causal and mode != "last" and "embed" in tasks:
        raise ConfigurationError(
            f"{config.model_dir}: {mode} pooling of a decoder is not supported, its last token sees all others: "
            'set --pooler-config \'{"pooling_type": "LAST"}\', or --convert none to generate only'
        )
    info = None
    if tasks != ("generate",):
        info = PoolingInfo(
            embedding_size=model.hidden_size if "embed" in tasks else 0,
            any_dimension=raw.get("is_matryoshka") is True and not raw.get("matryoshka_dimensions"),
            matryoshka_dimensions=matryoshka_dimensions(raw, where, model.hidden_size),
            labels=read_labels(raw, where) if head == "classify" else [],
        )
    return Purpose(head, tasks, mode, normalize, label_activation(raw, where, model.num_labels), info)


def decide_tasks(
    config: EngineConfig, model: ModelConfig | EncoderConfig, *, embedder: bool
) -> tuple[Head, tuple[Task, ...]]:
    """A head that generates is dropped where embeddings alone are wanted, else it answers both."""
    name, runner, convert = model.architecture, config.runner, config.convert
    if model.head != "lm":
        if runner == "generate":
            raise ConfigurationError(
                f"--runner generate: {name} has no head to generate with: leave --runner out"
            )
        if model.head == "classify" and convert != "embed":
            return "classify", ("classify",)
        return "none", ("embed",)
    if convert == "embed" and runner == "generate":
        raise ConfigurationError(
            "--convert embed and --runner generate: the first leaves out the head that the second needs: keep one"
        )
    if convert == "none":
        if runner == "pooling":
            raise ConfigurationError(
                f"--runner pooling and --convert none: {name} is made to generate, only converted it embeds: keep one"
            )
        return "lm", ("generate",)
    if runner == "pooling" or convert == "embed" or (runner == "auto" and embedder):
        return "none", ("embed",)
    return "lm", ("generate", "embed")


def label_activation(raw: Mapping[str, Any], where: str, num_labels: int) -> Activation:
    """What makes probabilities of a classifier's outputs: what the checkpoint says, else by their number."""
    said = raw.get("sentence_transformers")
    path = said.get("activation_fn") if isinstance(said, dict) else None
    path = path or raw.get("sbert_ce_default_activation_function")
    if path is not None:
        name = str(path).rpartition(".")[2]
        if name not in ACTIVATIONS:
            raise ConfigurationError(
                f"{where}: the activation function {path!r:.100} is not supported: "
                f"one of {', '.join(ACTIVATIONS)} is"
            )
        return ACTIVATIONS[name]
    problem = raw.get("problem_type")
    if problem is not None:
        if problem not in PROBLEMS:
            raise ConfigurationError(
                f"{where}: problem_type {problem!r:.100} is not supported: one of {', '.join(PROBLEMS)} is"
            )
        return PROBLEMS[problem]
    return "sigmoid" if num_labels == 1 else "softmax"


def matryoshka_dimensions(raw: Mapping[str, Any], where: str, size: int) -> list[int]:
    given = raw.get("matryoshka_dimensions") or []
    if not isinstance(given, list) or not all(isinstance(n, int) and 0 < n <= size for n in given):
        raise ConfigurationError(
            f"{where}: matryoshka_dimensions must be a list of sizes from 1 to {size}, not {given!r:.200}"
        )
    return sorted(given)


# ----------------------------------------------------------------------------------- sentence-transformers' files


def read_sentence_transformer(model_dir: Path) -> SentenceTransformer | None:
    """How embeddings are made according to `modules.json`; None where it is missing or pools nothing.

    Raises ConfigurationError for modules whose work is not done here: their embeddings would be others.
    """
    path = model_dir / "modules.json"
    modules = read_json(path)
    if modules is None:
        return None
    mode: Mode | None = None
    normalize = False
    try:
        kinds = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (TypeError, KeyError):
        raise ConfigurationError(f"{path}: must be a list of objects with type and path") from None
    for kind, folder in kinds:
        match kind:
            case "Transformer" | "Dropout":
                pass
            case "Pooling":
                mode = pooling_mode(model_dir / folder / "config.json")
            case "Normalize":
                normalize = True
            case _:
                raise ConfigurationError(
                    f"{path}: the module {kind} is not supported: Transformer, Pooling and Normalize are"
                )
    return None if mode is None else SentenceTransformer(mode, normalize)


def pooling_mode(path: Path) -> Mode:
    """The one mode that the Pooling module's config.json switches on."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} is missing or not a JSON object: download the checkpoint again")
    said = content.get("pooling_mode")
    if said is None:
        flags = [key for key, value in content.items() if key.startswith("pooling_mode_") and value is True]
        names = [key.removeprefix("pooling_mode_") for key in flags]
    else:
        names = [str(name) for name in said] if isinstance(said, list) else [str(said)]
    if len(names) != 1 or names[0] not in MODES:
        raise ConfigurationError(
            f"{path}: pooling by {' and '.join(names) or 'nothing'} is not supported: one of {', '.join(MODES)} is"
        )
    return MODES[names[0]]


def max_seq_length(model_dir: str | Path) -> int | None:
    """The length to which the checkpoint was made to read, from sentence_bert_config.json."""
    path = Path(model_dir) / "sentence_bert_config.json"
    content = read_json(path)
    length = content.get("max_seq_length") if isinstance(content, dict) else None
    if length is None:
        return None
    if not isinstance(length, int) or length < 1:
        raise ConfigurationError(f"{path}: max_seq_length must be a positive integer, not {length!r:.100}")
    return length


def read_json(path: Path) -> Any:
    """None if there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
