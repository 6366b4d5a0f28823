"""What the training process is told: which head for which checkpoint, from which texts, for how long."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Method: TypeAlias = Literal["eagle3", "mtp"]


class TrainJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`python -m penstock.engine.train_draft JOB.json`; `server/train_draft/` writes it.

    In `texts_dir` lie the token sets `texts`, `prompts` and `eval` (`token_sets.py`); in `work_dir` the checkpoint.
    The last five fields of the first group and `learning_rate` may be chosen here: 0 means so.
    """

    method: Method
    model_dir: str
    output_dir: str
    work_dir: str
    texts_dir: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: int | None = None
    seed: int = 0
    resume: bool = False
    head_only: bool = False  # mtp: its tensors alone, not the checkpoint with them

    num_steps: int
    batch_tokens: int = 8192
    max_length: int = 2048
    learning_rate: float = 0.0
    num_speculative_tokens: int = 4  # chained steps that are trained and measured
    draft_vocab_size: int = 0
    aux_layers: list[int] = []  # eagle3: as vLLM counts them, none = low, middle and high

    report_every: int = 50  # steps
    save_every_s: float = 300.0
    stop_token_ids: list[int] = []
    max_new_tokens: int = 256  # of the model's own outputs
    temperature: float = 0.8  # of every second one of them
