"""Where the files of the model to serve are: embedded, in a local directory, or fetched from the Hugging Face hub."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from .config import ModelOptions

DEMO_NAME = "penstock-demo"
DEMO_DIR = Path(__file__).parent / "demo_model"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
TOKENIZER_PATTERNS = ["*.json", "*.jinja"]
WEIGHT_PATTERNS = ["*.safetensors"]
# Other layouts of the same weights. What lies in folders such as 1_Pooling says how embeddings are made.
IGNORED_PATTERNS = ["[!0-9]*/*", "consolidated*.safetensors"]


class ModelError(Exception):
    """The model cannot be served as asked; the message is one line with the option, the value and the way out."""


@dataclass(frozen=True)
class ModelFiles:
    """Local directories with the model's and the tokenizer's files, and what the model is called."""

    model: str  # as the user named it
    served_names: list[str]
    model_dir: Path
    tokenizer_dir: Path
    chat_template: str | None  # Jinja text in place of the checkpoint's
    generation_config: Path | None  # JSON of default sampling parameters
    draft_dir: Path | None = None  # of a drafter with a checkpoint of its own


def resolve(options: ModelOptions, drafter: str | None = None) -> ModelFiles:
    """Find or fetch everything, that of a `drafter` too; raises `ModelError`. A download shows its progress on stderr."""
    with_weights = options.load_format != "dummy"
    if options.model is None:
        model, model_dir = DEMO_NAME, DEMO_DIR
        if not model_dir.is_dir():
            raise ModelError(
                f"MODEL: this installation lacks the embedded model ({DEMO_DIR}): name a MODEL to serve"
            )
    else:
        model = options.model
        model_dir = locate(model, "MODEL", options, options.revision, with_weights)
        if options.revision is not None and Path(model).expanduser().is_dir():
            raise ModelError(
                f"--revision {options.revision}: {model} is a local directory: leave --revision out"
            )
    if options.tokenizer is None:
        tokenizer_dir = model_dir
    else:
        tokenizer_dir = locate(options.tokenizer, "--tokenizer", options, None, with_weights=False)
    check(model, model_dir, with_weights)
    if not (tokenizer_dir / "tokenizer.json").is_file():
        source = options.tokenizer or model
        raise ModelError(
            f"--tokenizer {source}: there is no tokenizer.json in it: name one that has it with --tokenizer"
        )
    return ModelFiles(
        model=model,
        served_names=list(options.served_model_name) or [model],
        model_dir=model_dir,
        tokenizer_dir=tokenizer_dir,
        chat_template=read_chat_template(options.chat_template),
        generation_config=find_generation_config(options.generation_config, model_dir),
        draft_dir=None
        if drafter is None
        else locate(drafter, "--speculative-config: model", options, None, with_weights),
    )


def check(model: str, model_dir: Path, with_weights: bool) -> None:
    """The files without which no engine needs to be started."""
    try:
        json.loads((model_dir / "config.json").read_bytes())
    except FileNotFoundError:
        raise ModelError(
            f"MODEL {model}: there is no config.json in it: name a Hugging Face checkpoint"
        ) from None
    except ValueError as error:
        raise ModelError(
            f"MODEL {model}: its config.json is not JSON ({error}): repair or download it again"
        ) from None
    if with_weights and not any(model_dir.glob("*.safetensors")):
        raise ModelError(
            f"MODEL {model}: there are no *.safetensors files in it: convert the weights, "
            "or use --load-format dummy for random ones"
        )


def locate(name: str, option: str, options: ModelOptions, revision: str | None, with_weights: bool) -> Path:
    """The local directory of a path or hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelError(
            f"{option} {name}: is a file: name the directory that holds config.json and *.safetensors"
        )
    if name.startswith(("/", ".", "~")) or HUB_ID.fullmatch(name) is None:
        raise ModelError(
            f"{option} {name}: no such directory: give a directory or a Hugging Face id like org/name"
        )
    return download(name, option, options, revision, with_weights)


def download(name: str, option: str, options: ModelOptions, revision: str | None, with_weights: bool) -> Path:
    """A snapshot of a hub repository; only what is missing in the cache is fetched."""
    from huggingface_hub import errors, snapshot_download

    at = f"{option} {name}" + (f" --revision {revision}" if revision else "")
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=options.hf_token,
            cache_dir=options.download_dir,
            allow_patterns=[*TOKENIZER_PATTERNS, *(WEIGHT_PATTERNS if with_weights else [])],
            ignore_patterns=IGNORED_PATTERNS,
        )
    except errors.GatedRepoError:
        raise ModelError(
            f"{at}: access is restricted: accept its terms on its page of the Hugging Face hub and give --hf-token"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{at}: not found on the Hugging Face hub, nor a local directory: check the name, "
            "or give --hf-token if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{at}: no such branch, tag or commit: check --revision") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        raise ModelError(
            f"{at}: not in the local cache, and the Hugging Face hub cannot be reached: "
            "connect to the network or name a local directory"
        ) from None
    except (errors.HFValidationError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".: ")
        raise ModelError(
            f"{at}: the download failed ({reason}): try again or name a local directory"
        ) from None
    return Path(folder)


def read_chat_template(given: str | None) -> str | None:
    """The template's text; what contains no Jinja is taken for a path."""
    if given is None:
        return None
    if "{" in given or "\n" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(
            f"--chat-template {given}: no such file: give a file or the Jinja text itself"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ModelError(
            f"--chat-template {given}: cannot be read ({reason}): give a readable file"
        ) from None


def find_generation_config(given: str, model_dir: Path) -> Path | None:
    """The file of default sampling parameters; None for neutral ones."""
    if given == "none":
        return None
    if given == "auto":
        path = model_dir / "generation_config.json"
        return path if path.is_file() else None
    path = Path(given).expanduser()
    path = path / "generation_config.json" if path.is_dir() else path
    try:
        defaults = json.loads(path.read_bytes())
    except OSError:
        raise ModelError(
            f"--generation-config {given}: cannot read {path}: give auto, none, or a directory with generation_config.json"
        ) from None
    except ValueError as error:
        raise ModelError(f"--generation-config {given}: not JSON ({error}): correct it") from None
    if not isinstance(defaults, dict):
        raise ModelError(f"--generation-config {given}: holds no JSON object: correct it")
    return path.resolve()
