"""`penstock train-draft`: from options to a trained head, in the order things happen.

Texts become tokens here; the training needs torch, so it is a process of the engine's room
(`python -m penstock.engine.train_draft`).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..config import ModelOptions
from ..family.lifeline import die_with_parent
from ..generation_defaults import eos_token_ids
from ..model_files import ModelError, ModelFiles, resolve
from ..text.tokenizer import Tokenizer, TokenizerError
from .gather import Sources, gather
from .options import parse

PACKAGE = __package__.split(".")[0]


def main(argv: list[str]) -> int:
    """`argv`: the options after `train-draft`. Exit code 0, 2 (one line on stderr says what to mend), or 130 (stopped)."""
    options = parse(argv)
    try:
        files = resolve(ModelOptions(model=options.model, tokenizer=options.tokenizer))
        output = Path(options.output).expanduser()
        work = Path(options.work).expanduser() if options.work else output.with_name(output.name + ".work")
        check_output(output, files)
        work.mkdir(parents=True, exist_ok=True)
        texts_dir = gather(sources(options), files, work)
        stops = eos_token_ids(files.model_dir, Tokenizer.load(files.tokenizer_dir).eos_token_id)
    except (ModelError, TokenizerError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    job = work / f"{options.method}.job.json"
    job.write_text(json.dumps(told(options, files, output, work, texts_dir, stops), indent=2) + "\n")
    return run(job)


def check_output(output: Path, files: ModelFiles) -> None:
    """Before hours of training, not after. Raises ValueError, or OSError if it cannot be made."""
    output.mkdir(parents=True, exist_ok=True)
    if output.resolve() == files.model_dir.resolve():
        raise ValueError(
            f"--output {output}: is the model's own directory, of which files would be replaced: name another"
        )
    if not os.access(output, os.W_OK):
        raise ValueError(f"--output {output}: cannot be written to: name another directory")


def sources(options: argparse.Namespace) -> Sources:
    return Sources(
        texts=[Path(name) for name in options.text],
        prompts=None if options.from_model is None else [Path(name) for name in options.from_model],
        held_out=[Path(name) for name in options.eval],
        num_prompts=options.num_prompts,
        num_held_out=options.num_eval_prompts,
        max_length=options.max_length,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )


def told(
    options: argparse.Namespace,
    files: ModelFiles,
    output: Path,
    work: Path,
    texts_dir: Path,
    stop_token_ids: list[int],
) -> dict[str, Any]:
    """A `TrainJob` of engine/train_draft/job.py as JSON; decoding it there checks it."""
    return {
        "method": options.method,
        "model_dir": str(files.model_dir),
        "output_dir": str(output.resolve()),
        "work_dir": str(work.resolve()),
        "texts_dir": str(texts_dir.resolve()),
        "device": options.device,
        "num_threads": options.threads,
        "seed": options.seed,
        "resume": options.resume,
        "head_only": options.head_only,
        "num_steps": options.steps,
        "batch_tokens": options.batch,
        "max_length": options.max_length,
        "learning_rate": options.lr or 0.0,
        "num_speculative_tokens": options.num_speculative_tokens,
        "draft_vocab_size": options.draft_vocab_size or 0,
        "aux_layers": options.aux_layers or [],
        "report_every": options.report_every,
        "save_every_s": options.save_every,
        "stop_token_ids": stop_token_ids,
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
    }


def run(job: Path) -> int:
    """The process that trains, with this one's output; a signal that ends this one lets it save first."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", f"{PACKAGE}.engine.train_draft", str(job)],
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    before = {
        number: signal.signal(number, lambda received, frame: process.send_signal(signal.SIGTERM))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        status = process.wait()
    finally:
        process.kill()
        process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if status < 0:
        name = signal.Signals(-status).name
        print(
            f"error: the training process ended by {name}: --resume goes on from its checkpoint",
            file=sys.stderr,
        )
        return 1
    return status
