"""`penstock bench serve`: from options to a report, in the order things happen."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import math
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import msgspec
import uvloop

from ..client.chunks import error_text
from ..client.http import ClientError, HttpClient
from . import report
from .arrivals import arrival_times
from .calibrate import Limit, measure_limit
from .datasets import (
    Conversation,
    Item,
    Prompt,
    RandomSizes,
    SharedPrefixSizes,
    random_prompts,
    read_jsonl,
    shared_prefix_prompts,
)
from .load import Endpoint, Load, send
from .options import CHAT, COMPLETIONS, DEFAULT_NUM_PROMPTS, parse
from .records import Live, Record
from .results import summarize
from .vocabulary import Vocabulary, find_vocabulary

# Different prompts than the run's own, which must not find them in the server's prefix cache.
WARM_UP_SEED = 0x5EED


class Failed(Exception):
    """The run cannot start; the message is the one line to print."""


def main(argv: list[str]) -> int:
    """`argv`: the options after `bench serve`. Exit code 0, 1 (nothing succeeded), 2 (wrong options) or 130 (Ctrl-C)."""
    options = parse(argv)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(bench(options))
    except (Failed, ValueError, ClientError) as error:
        print(f"penstock bench serve: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1  # a ValueError: an option's value cannot be used
    except KeyboardInterrupt:
        return 130


async def bench(options: argparse.Namespace) -> int:
    """One whole benchmark."""
    headers = dict(options.header)
    if options.api_key is not None:
        headers["Authorization"] = f"Bearer {options.api_key}"
    client = HttpClient(options.base_url, headers=headers, insecure=options.insecure)
    out = sys.stderr if options.json == "-" else sys.stdout
    say = sys.stderr
    try:
        model = options.model or await first_model(client)
        items, note, vocabulary = await dataset(client, model, options)
        endpoint = Endpoint(endpoint_path(options, items), model, request_fields(options))
        check_items(items, endpoint)
        times = arrival_times(len(items), options.request_rate, options.burstiness, options.seed)
        load = Load(
            client,
            endpoint,
            items,
            times=times,
            max_concurrency=options.max_concurrency,
            timeout=options.timeout,
        )
        print(f"{client.url}{endpoint.path}, model {model}", file=out)
        print(f"{note}; {schedule(options)}; seed {options.seed}\n", file=out, flush=True)
        raise_file_limit(options.max_concurrency or len(items), say)
        await warm_up(client, endpoint, items, vocabulary, options)
        limit = await calibrate(endpoint, items, load, options, say) if options.calibrate else None
        busy, interrupted = await measured(load, say if options.progress else None)
    finally:
        client.close()
    summary = summarize(
        load.records,
        planned=load.num_requests,
        percentiles=options.percentiles,
        scheduled=times is not None,
        slo=options.slo,
        peak_concurrency=load.live.peak_in_flight,
    )
    if options.json is not None:
        figures = {
            "base_url": client.url,
            "endpoint": endpoint.path,
            "model": model,
            "dataset": note,
            "request_rate": "inf" if times is None else options.request_rate,
            "burstiness": options.burstiness,
            "max_concurrency": options.max_concurrency,
            "seed": options.seed,
            **report.as_json(summary, limit, busy),
        }
        if options.save_detailed:
            figures["requests"] = [report.detail(record, load.start) for record in load.records]
        save(figures, options.json)
    text = report.table(summary, options.percentiles)
    if limit is not None:
        text += "\n\n" + report.client_line(limit, summary, busy)
    print(text, file=out)
    if interrupted:
        return 130
    return 0 if summary.completed else 1


async def first_model(client: HttpClient) -> str:
    response = await client.fetch("GET", "/v1/models")
    if response.status != 200:
        raise Failed(refusal(client, "/v1/models", response.status, error_text(response.body)))
    try:
        listed = msgspec.json.decode(response.body)
        return str(listed["data"][0]["id"])
    except (msgspec.DecodeError, LookupError, TypeError):
        raise Failed(f"{client.url}/v1/models lists no model: give --model NAME") from None


def refusal(client: HttpClient, path: str, status: int, message: str) -> str:
    ways_out = {
        401: ": give --api-key",
        403: ": give --api-key",
        404: ": see --base-url, --endpoint and --model",
    }
    return f"{client.url}{path} answered {status} ({message}){ways_out.get(status, '')}"


async def dataset(
    client: HttpClient, model: str, options: argparse.Namespace
) -> tuple[list[Item], str, Vocabulary | None]:
    """The items of the run, what the report says about them, and the vocabulary they were made of."""
    if options.dataset_name == "jsonl":
        found = read_jsonl(Path(options.dataset_path), options.output_len, options.multi_turn)
        count = options.num_prompts or len(found)
        again = f", {len(found)} lines sent again and again" if count > len(found) else ""
        return (
            [found[index % len(found)] for index in range(count)],
            f"{options.dataset_path}: {count}{again}",
            None,
        )
    vocabulary = await find_vocabulary(client, model, options.tokenizer)
    chat = endpoint_path(options, []) == CHAT
    as_text = chat or options.send_text
    made = f"made of {vocabulary.source}"
    if options.dataset_name == "shared-prefix":
        groups = SharedPrefixSizes(
            options.gsp_num_groups,
            options.gsp_prompts_per_group,
            options.gsp_system_prompt_len,
            options.gsp_question_len,
            options.gsp_output_len,
        )
        prompts = await shared_prefix_prompts(groups, vocabulary, options.seed, as_text, chat)
        prompts = prompts[: options.num_prompts]
        note = (
            f"shared-prefix: {len(prompts)} prompts in {groups.num_groups} groups, {groups.system_prompt_len} shared"
            f" + {groups.question_len} own tokens in, {groups.output_len} out, {made}"
        )
        return list(prompts), note, vocabulary
    sizes = RandomSizes(
        options.num_prompts or DEFAULT_NUM_PROMPTS,
        options.random_input_len,
        options.random_output_len,
        options.random_range_ratio,
    )
    prompts = await random_prompts(sizes, vocabulary, options.seed, as_text)
    spread = f" ± {100 * sizes.spread:g} %" if sizes.spread else ""
    note = f"random: {sizes.num_prompts} prompts, {sizes.input_len} tokens in, {sizes.output_len} out{spread}, {made}"
    return list(prompts), note, vocabulary


def endpoint_path(options: argparse.Namespace, items: list[Item]) -> str:
    """--endpoint, or the one that suits the data set."""
    if options.endpoint is not None:
        return str(options.endpoint)
    return CHAT if any(isinstance(item, Conversation) for item in items) else COMPLETIONS


def check_items(items: list[Item], endpoint: Endpoint) -> None:
    """Every item can be sent to the endpoint."""
    for item in items:
        if isinstance(item, Conversation) and not endpoint.chat:
            raise Failed(
                f"the data set holds conversations, {endpoint.path} takes prompts: use --endpoint {CHAT}"
            )
        if isinstance(item, Prompt) and endpoint.chat and not isinstance(item.prompt, str):
            raise Failed(
                f"the data set holds token ids, {endpoint.path} takes text: use --endpoint {COMPLETIONS}"
            )


def request_fields(options: argparse.Namespace) -> dict[str, object]:
    fields: dict[str, object] = {"temperature": options.temperature}
    if options.ignore_eos:
        fields["ignore_eos"] = True
    return {**fields, **options.extra_body}


def schedule(options: argparse.Namespace) -> str:
    limit = f", at most {options.max_concurrency} in flight" if options.max_concurrency else ""
    if math.isinf(options.request_rate):
        return ("closed loop" if limit else "all at once") + limit
    shape = "Poisson" if options.burstiness == 1 else f"burstiness {options.burstiness:g}"
    return f"{options.request_rate:g} arrivals/s ({shape}){limit}"


def raise_file_limit(streams: int, say: TextIO) -> None:
    """A connection each needs a file descriptor each; the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = streams + 64
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    reachable = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
    if reachable < needed:
        print(
            f"warning: {streams} connections need {needed} open files, {hard} are allowed (ulimit -n)",
            file=say,
        )


async def warm_up(
    client: HttpClient,
    endpoint: Endpoint,
    items: list[Item],
    vocabulary: Vocabulary | None,
    options: argparse.Namespace,
) -> None:
    """--num-warmups requests like the run's, with prompts of their own; Failed when one is refused."""
    for number in range(options.num_warmups):
        like = items[number % len(items)]
        sample = like
        if vocabulary is not None:
            assert isinstance(like, Prompt)
            length = like.prompt_tokens or options.random_input_len
            sizes = RandomSizes(1, length, like.max_tokens, 0.0)
            made = await random_prompts(
                sizes, vocabulary, WARM_UP_SEED + number + options.seed, not isinstance(like.prompt, list)
            )
            sample = made[0]
        record = Record(scheduled=0.0)
        await send(client, endpoint.path, endpoint.first_body(sample), record, Live(), options.timeout)
        if record.error is not None:
            status = record.error.removeprefix("HTTP ")
            if status.isdigit():
                raise Failed(refusal(client, endpoint.path, int(status), record.error_message))
            raise Failed(f"the warm-up request failed: {record.error} ({record.error_message})")


async def calibrate(
    endpoint: Endpoint, items: list[Item], load: Load, options: argparse.Namespace, say: TextIO
) -> Limit | None:
    """The client's own limit at this run's shape; None, with a line that says why, when it cannot be measured."""
    # Without a limit on concurrency it depends on the server; a rate's worth of seconds is a fair guess.
    unlimited = len(items) if math.isinf(options.request_rate) else math.ceil(options.request_rate)
    streams = min(options.max_concurrency or unlimited, len(items))
    mean_output = sum(item.max_tokens for item in items) / len(items)
    try:
        return await measure_limit(endpoint.path, load.bodies, mean_output, streams)
    except (OSError, ClientError) as error:
        print(f"calibration left out: {error}", file=say)
        return None


async def measured(load: Load, progress_to: TextIO | None) -> tuple[float, bool]:
    """Run the load; (the client's CPU time per second of it, whether Ctrl-C ended it early)."""
    interrupted = False
    with undisturbed():
        shown = (
            asyncio.ensure_future(show(report.Progress(progress_to, load.live, load.num_requests)))
            if progress_to
            else None
        )
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            await load.run()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            interrupted = True
        finally:
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if shown is not None:
                shown.cancel()
                await asyncio.gather(shown, return_exceptions=True)
    return cpu / wall, interrupted


async def show(progress: report.Progress) -> None:
    try:
        while True:
            await asyncio.sleep(progress.interval_s)
            progress.draw()
    finally:
        progress.clear()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection: its pauses would be counted as the server's. Nothing here makes cycles that pile up."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def save(figures: dict[str, object], path: str) -> None:
    text = msgspec.json.format(msgspec.json.encode(figures), indent=2)
    if path == "-":
        sys.stdout.write(text.decode() + "\n")
        return
    try:
        Path(path).write_bytes(text + b"\n")
    except OSError as error:
        print(f"penstock bench serve: --json {path}: {error.strerror}", file=sys.stderr)
