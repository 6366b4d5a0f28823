"""The options of `penstock train-draft`."""

from __future__ import annotations

import argparse

from ..bench.options import DefaultsFormatter, OneLineParser, at_least_one, at_least_zero, finite, temperature

DEFAULT_STEPS = 2000


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="penstock train-draft",
        description="Train a drafting head for a checkpoint: an EAGLE-3 head in a directory of its own, or a next-token "
        "layer (MTP) in a copy of the checkpoint. The model itself is not changed.",
        formatter_class=DefaultsFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("method", choices=["eagle3", "mtp"], help="which kind of head")
    add(
        "--model",
        "-m",
        required=True,
        metavar="MODEL",
        help="local directory or Hugging Face id of a checkpoint",
    )
    add("--output", "-o", required=True, metavar="DIR", help="where the trained head goes")
    add("--tokenizer", metavar="NAME", help="[default: the model's]")

    data = parser.add_argument_group("texts")
    text_help = (
        'what is trained on as it is: .jsonl with "text", "prompt" and "completion", or "messages" (only the answers '
        "are drafted) a line; any other file is one text"
    )
    data.add_argument("--text", nargs="+", default=[], metavar="FILE", help=text_help)
    own_help = (
        "let the model write the texts itself, every second one greedily, for the prompts of these files; without any, "
        "for random words, which is much worse than prompts of the kind it will get"
    )
    data.add_argument("--from-model", nargs="*", metavar="FILE", help=own_help)
    data.add_argument("--num-prompts", type=at_least_one, default=2000, metavar="N", help="of random words")
    eval_help = "prompts for the measurement at the end [default: some that are kept out of training]"
    data.add_argument("--eval", nargs="+", default=[], metavar="FILE", help=eval_help)
    held_help = "prompts kept out of training where --eval names none, a tenth at most"
    data.add_argument("--num-eval-prompts", type=at_least_zero, default=64, metavar="N", help=held_help)
    data.add_argument(
        "--max-length", type=at_least_four, default=2048, metavar="TOKENS", help="longer texts are cut"
    )
    new_help = "of an answer that the model writes"
    data.add_argument("--max-new-tokens", type=at_least_one, default=256, metavar="TOKENS", help=new_help)
    heat_help = "of the answers that are not greedy"
    data.add_argument("--temperature", type=temperature, default=0.8, metavar="T", help=heat_help)

    head = parser.add_argument_group("head")
    chain_help = "drafts in a row that are trained and measured"
    names = ["--num-speculative-tokens", "-k"]
    head.add_argument(*names, type=at_least_one, default=4, metavar="K", help=chain_help)
    vocab_help = "eagle3: the tokens it can draft, the most frequent ones [default: all, at most 32000]"
    head.add_argument("--draft-vocab-size", type=at_least_one, metavar="N", help=vocab_help)
    aux_help = "eagle3: the layers whose inputs it reads, from 0 [default: low, middle and high]"
    head.add_argument("--aux-layers", nargs=3, type=at_least_zero, metavar="LAYER", help=aux_help)
    only_help = "mtp: write the layer alone, without the checkpoint"
    head.add_argument("--head-only", action="store_true", help=only_help)

    run = parser.add_argument_group("run")
    steps_help = f"updates [default: {DEFAULT_STEPS}]"
    run.add_argument("--steps", type=at_least_one, metavar="N", help=steps_help)
    run.add_argument(
        "--tokens", type=at_least_one, metavar="N", help="another way to say --steps: tokens read in all"
    )
    run.add_argument(
        "--batch", type=at_least_one, default=8192, metavar="TOKENS", help="of an update, padding included"
    )
    run.add_argument(
        "--lr", type=finite, metavar="RATE", help="peak learning rate [default: by the model's width]"
    )
    run.add_argument("--seed", type=at_least_zero, default=0, metavar="N")
    run.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    run.add_argument("--threads", type=at_least_one, metavar="N", help="of a CPU [default: all cores]")
    resume_help = "go on from the checkpoint in --work, if there is one"
    run.add_argument("--resume", action="store_true", help=resume_help)
    work_help = "checkpoints, and texts as tokens, which several runs may share [default: OUTPUT.work]"
    run.add_argument("--work", metavar="DIR", help=work_help)
    run.add_argument(
        "--save-every", type=finite, default=300.0, metavar="SECONDS", help="between checkpoints"
    )
    run.add_argument(
        "--report-every", type=at_least_one, default=50, metavar="STEPS", help="between lines of progress"
    )
    return parser


def at_least_four(text: str) -> int:
    if (value := at_least_one(text)) < 4:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 4")
    return int(value)


def parse(argv: list[str]) -> argparse.Namespace:
    """Checked options, `steps` among them; one line on stderr and exit code 2 for anything wrong."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if not options.text and options.from_model is None:
        parser.error(
            "say what to train on: --text FILE, or --from-model for texts that the model writes itself"
        )
    if options.steps is not None and options.tokens is not None:
        parser.error("--steps and --tokens say the same thing: give one")
    if options.batch < options.max_length:
        parser.error(
            f"--batch {options.batch} is less than --max-length {options.max_length}: raise the first or lower the second"
        )
    for name in ("draft_vocab_size", "aux_layers"):
        if options.method != "eagle3" and getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is for eagle3, not {options.method}")
    if options.head_only and options.method != "mtp":
        parser.error("--head-only is for mtp: an eagle3 head is always in files of its own")
    if options.steps is None:
        options.steps = -(-options.tokens // options.batch) if options.tokens else DEFAULT_STEPS
    return options
