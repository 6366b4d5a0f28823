"""Score the model on held-out questions and write the table into this folder's README and the model card."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .checks import passes
from .text import KINDS, Dialogue, held_out_questions

BEGIN, END = "<!-- score begins -->", "<!-- score ends -->"
MAX_NEW_TOKENS = 320
BATCH = 40


@dataclass(frozen=True)
class Answered:
    """A held-out dialogue with the model's reply to it."""

    dialogue: Dialogue
    reply: str

    @property
    def right(self) -> bool:
        """Whether the reply passes the check of the dialogue."""
        return passes(self.dialogue.last.check, self.reply)


def answer(model: Any, tokenizer: Any, dialogues: list[Dialogue]) -> list[Answered]:
    """Greedy replies, at most `MAX_NEW_TOKENS` tokens each."""
    answered = []
    tokenizer.padding_side = "left"
    for start in range(0, len(dialogues), BATCH):
        part = dialogues[start : start + BATCH]
        prompts = [
            tokenizer.apply_chat_template(
                d.last.messages[:-1], tools=d.last.tools or None, add_generation_prompt=True, tokenize=False
            )
            for d in part
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
            )
        replies = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answered += [Answered(d, reply.strip()) for d, reply in zip(part, replies, strict=True)]
    return answered


def table(results: dict[str, list[Answered]]) -> str:
    """A Markdown table of right answers by kind, with the total."""
    lines = ["| kind of question | right | of | share |", "| --- | ---: | ---: | ---: |"]
    counts = {kind: (sum(a.right for a in answered), len(answered)) for kind, answered in results.items()}
    total = tuple(map(sum, zip(*counts.values(), strict=True)))
    for kind, (right, asked) in [*counts.items(), ("**all**", total)]:
        lines.append(f"| {kind} | {right} | {asked} | {100 * right / asked:.1f} % |")
    return "\n".join(lines)


def put_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the score markers of the file at `path`."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Score a model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--each", type=int, default=60, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", help="only these, separated by commas")
    parser.add_argument(
        "--wrong", type=int, default=0, help="show up to this many wrong replies of each kind"
    )
    parser.add_argument(
        "--write", type=Path, nargs="*", default=[], help="files whose score table to replace"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    began = time.monotonic()
    results = {}
    for kind in args.kinds.split(",") if args.kinds else KINDS:
        results[kind] = answer(model, tokenizer, held_out_questions(kind, args.each, args.seed))
        wrong = [a for a in results[kind] if not a.right][: args.wrong]
        for a in wrong:
            question = a.dialogue.last.messages[-2]["content"]
            print(f"[{kind}] {question!r}\n    want {a.dialogue.last.check}\n    got  {a.reply!r}")
    text = table(results)
    print(text)
    print(f"{time.monotonic() - began:.0f} s")
    for path in args.write:
        put_between_markers(path, text)


if __name__ == "__main__":
    main()
