"""Figures beside their floors: the file they are written to as they come, and the table at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from .shapes import Shape

Record: TypeAlias = dict[str, Any]
KEY = ("model", "measure", "batch", "tokens", "output", "requests")

# What the engine shall reach: see docs/gpu-runs.md.
MOST_OVER_FLOOR = {1: 1.15, 256: 1.35}  # decode batch -> times the floor
LEAST_OF_MATMUL = 0.65  # of the measured rate, in a prefill
MOST_HOST_GAP_US = 50.0
LEAST_OF_LOOP = 0.90  # serving against the bare loop, at the concurrency below
SERVING_TARGET_AT = 256
TARGET_CONTEXT = 1024


@dataclass
class Results:
    """Records by what they measure, in order. With `path` each is appended there as it comes.

    `with_targets`: they are for GPUs; on another device floors are shown and nothing is demanded.
    """

    path: Path | None = None
    with_targets: bool = True
    records: dict[tuple[Any, ...], Record] = field(default_factory=dict)

    def read(self) -> None:
        """Take over what an earlier run left; a line cut short by its end is passed over."""
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "failed" not in record and "skipped" not in record:
                self.records[key(record)] = record

    def has(self, record: Record) -> bool:
        return key(record) in self.records

    def get(self, **what: Any) -> Record | None:
        """A record that holds figures."""
        found = self.records.get(key(what))
        return None if found is None or "failed" in found or "skipped" in found else found

    def add(self, record: Record) -> None:
        self.records[key(record)] = record
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")


def key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in KEY)


def judge(record: Record, shape: Shape, results: Results, kv_element_bytes: int) -> Record:
    """The record with its floor and, where there is one, its target and whether that is `met`."""
    if "failed" in record or "skipped" in record:
        return record
    found = beside_floor(record, shape, results, kv_element_bytes)
    if not results.with_targets:
        return {name: value for name, value in found.items() if name not in ("target", "met")}
    return found


def beside_floor(record: Record, shape: Shape, results: Results, kv_element_bytes: int) -> Record:
    copy, matmul = results.get(measure="copy"), results.get(measure="matmul")
    if record["measure"] == "host_gap":
        return {**record, "target": MOST_HOST_GAP_US, "met": record["host_gap_us"] < MOST_HOST_GAP_US}
    if record["measure"] == "serving":
        return judge_serving(record, results)
    if copy is None or matmul is None:
        return record
    if record["measure"] == "decode":
        batch, context = record["batch"], record["mean_context"]
        seconds = max(
            shape.decode_bytes(batch, context, kv_element_bytes) / copy["bytes_per_s"],
            shape.decode_flop(batch, context) / matmul["flop_per_s"],
        )
        ratio = record["ms"] / (1e3 * seconds)
        judged = {**record, "floor_ms": 1e3 * seconds, "ratio": ratio}
        target = MOST_OVER_FLOOR.get(batch) if record["tokens"] == TARGET_CONTEXT else None
        return judged if target is None else {**judged, "target": target, "met": ratio <= target}
    if record["measure"] == "prefill":
        seconds = shape.prefill_flop(record["tokens"]) / matmul["flop_per_s"]
        share = 1e3 * seconds / record["ms"]
        judged = {**record, "floor_ms": 1e3 * seconds, "ratio": 1 / share, "matmul_share": share}
        return {**judged, "target": LEAST_OF_MATMUL, "met": share >= LEAST_OF_MATMUL}
    return record


def judge_serving(record: Record, results: Results) -> Record:
    loop = results.get(**{**{name: record.get(name) for name in KEY}, "measure": "loop"})
    if loop is None:
        return record
    share = record["tokens_per_s"] / loop["tokens_per_s"]
    judged = {**record, "loop_tokens_per_s": loop["tokens_per_s"], "loop_share": share}
    if record["batch"] != SERVING_TARGET_AT:
        return judged
    return {**judged, "target": LEAST_OF_LOOP, "met": share >= LEAST_OF_LOOP}


# ----------------------------------------------------------------------------------------------------------- table


def table(results: Results) -> str:
    """Markdown, fit for docs/gpu-runs.md."""
    lines = ["| model | what | measured | floor | ratio | target | |", "|---|---|---:|---:|---:|---:|---|"]
    for record in results.records.values():
        if record["measure"] not in ("machine", "engine"):
            lines.append("| " + " | ".join(row(record)) + " |")
    return "\n".join(lines)


def row(record: Record) -> list[str]:
    what, measured, floor, ratio = name_of(record), "", "", ""
    if "failed" in record:
        return [record.get("model", ""), what, "", "", "", "", f"FAILED {record['failed']}"]
    if "skipped" in record:
        return [record.get("model", ""), what, "", "", "", "", f"left out: {record['skipped']}"]
    match record["measure"]:
        case "copy":
            measured = f"{record['bytes_per_s'] / 1e9:,.0f} GB/s"
        case "matmul":
            measured = f"{record['flop_per_s'] / 1e12:,.1f} TFLOP/s"
        case "decode" | "prefill":
            measured = f"{record['ms']:.3f} ms"
            if "floor_ms" in record:
                floor, ratio = f"{record['floor_ms']:.3f} ms", f"{record['ratio']:.2f}"
            if "matmul_share" in record:
                ratio = f"{record['matmul_share']:.0%} of matmul"
        case "host_gap":
            measured = f"{record['host_gap_us']:.1f} µs"
        case "loop":
            measured = f"{record['tokens_per_s']:,.0f} tok/s"
        case "serving":
            measured = f"{record['tokens_per_s']:,.0f} tok/s"
            if "loop_share" in record:
                floor, ratio = f"{record['loop_tokens_per_s']:,.0f} tok/s", f"{record['loop_share']:.2f}"
        case "start":
            measured = f"{record['seconds']:.1f} s"
    target = f"{record['target']:g}" if "target" in record else ""
    verdict = {True: "met", False: "MISSED", None: ""}[record.get("met")]
    return [record.get("model", ""), what, measured, floor, ratio, target, verdict]


def name_of(record: Record) -> str:
    match record["measure"]:
        case "decode":
            return f"decode step, batch {record['batch']}, context {record['tokens']}"
        case "prefill":
            return f"prefill of {record['tokens']}"
        case "host_gap":
            return f"host gap of a decode step, batch {record['batch']}"
        case "loop" | "serving":
            how = "bare loop" if record["measure"] == "loop" else "serving"
            return f"{how}, {record['batch']} at a time, {record['tokens']} in, {record['output']} out"
        case "copy":
            return "copy, read and written"
        case "matmul":
            return "bf16 product"
        case "start":
            return "`penstock serve` to ready"
    return str(record["measure"])
