"""The options of `penstock bench serve`: vLLM's spellings where the meaning is the same, SGLang's for shared prefixes."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import msgspec

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BACKENDS = {"openai": COMPLETIONS, "vllm": COMPLETIONS, "openai-chat": CHAT}
DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_NUM_PROMPTS = 1000
SLO_NAMES = ("ttft", "tpot", "e2el")
_UNITS_MS = {"": 1.0, "ms": 1.0, "s": 1000.0, "us": 0.001}


class OneLineParser(argparse.ArgumentParser):
    """Errors are one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help where there is one to speak of."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, (bool, list, dict)):
            return action.help
        return super()._get_help_string(action)


def _checked(convert: Callable[[str], Any], fits: Callable[[Any], bool], what: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"{text!r} must be {what}")
        return value

    return parse


at_least_one = _checked(int, lambda value: value >= 1, "a whole number of at least 1")
at_least_zero = _checked(int, lambda value: value >= 0, "a whole number of at least 0")
above_zero = _checked(float, lambda value: value > 0, "a number above 0 (inf for no limit)")
finite = _checked(float, lambda value: 0 < value < math.inf, "a number above 0")
temperature = _checked(float, lambda value: 0 <= value < math.inf, "a number of at least 0")
ratio = _checked(float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def percentile_list(text: str) -> list[float]:
    """`50,90,99` as numbers, ascending."""
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = [-1.0]
    if not all(0 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers from 0 to 100, separated by commas")
    return values


def parse_slo(texts: Iterable[str]) -> dict[str, float]:
    """`ttft=200,tpot=50ms,e2el=1.5s` (or vLLM's `ttft:200 tpot:50`) as milliseconds by name. Raises ValueError."""
    slo: dict[str, float] = {}
    for part in re.split(r"[,\s]+", " ".join(texts).strip()):
        match = re.fullmatch(r"(\w+)[=:]([0-9.]+)(ms|us|s|)", part)
        if match is None or match[1] not in SLO_NAMES or match[2].count(".") > 1 or match[2] == ".":
            names = ", ".join(SLO_NAMES)
            raise ValueError(f"{part!r} is not a limit: write NAME=NUMBER[ms|s] with NAME one of {names}")
        slo[match[1]] = float(match[2]) * _UNITS_MS[match[3]]
    return slo


def header(text: str) -> tuple[str, str]:
    """`Name: value` or `Name=value`."""
    mark = min((mark for mark in ":=" if mark in text), key=text.index, default="")
    name, _, value = text.partition(mark) if mark else ("", "", "")
    if not name.strip() or not name.strip().isascii():
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE or NAME: VALUE")
    return name.strip(), value.strip()


def json_object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be a JSON object ({error})") from None


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="penstock bench serve",
        description="Load any OpenAI-compatible server and report latency, throughput, errors and goodput.",
        formatter_class=DefaultsFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )

    def add(group: Any, *names: str, **settings: Any) -> None:
        group.add_argument(*names, **{"default": None, **settings})

    server = parser.add_argument_group("server")
    add(server, "--base-url", default=DEFAULT_URL, metavar="URL", help="the server, without /v1")
    add(server, "--host", metavar="HOST", help="with --port, another way to say --base-url")
    add(
        server, "--port", type=at_least_one, metavar="PORT", help="with --host, another way to say --base-url"
    )
    endpoint_help = f"{COMPLETIONS} or {CHAT} [default: the first, unless the data set holds conversations]"
    add(server, "--endpoint", metavar="PATH", help=endpoint_help)
    add(server, "--backend", choices=sorted(BACKENDS), help="another way to choose the endpoint")
    add(server, "--model", "-m", metavar="NAME", help="[default: the first that /v1/models lists]")
    tokenizer_help = "directory, tokenizer.json or Hugging Face id [default: the server's /tokenize]"
    add(server, "--tokenizer", metavar="NAME", help=tokenizer_help)
    add(server, "--api-key", metavar="KEY", help="sent as Authorization: Bearer KEY")
    add(
        server,
        "--header",
        type=header,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="sent along",
    )
    add(
        server,
        "--insecure",
        action="store_true",
        default=False,
        help="do not verify the server's certificate",
    )
    add(server, "--timeout", type=finite, default=21_600.0, metavar="SECONDS", help="limit for one request")

    data = parser.add_argument_group("data set")
    names = ["random", "shared-prefix", "jsonl", "custom"]
    add(data, "--dataset-name", choices=names, default="random", help="custom is another name of jsonl")
    jsonl_help = 'jsonl: one {"prompt": …} or {"messages": […]} a line, each with an optional max_tokens'
    add(data, "--dataset-path", metavar="FILE", help=jsonl_help)
    count_help = f"[default: {DEFAULT_NUM_PROMPTS} for random, the whole set otherwise]"
    add(data, "--num-prompts", type=at_least_one, metavar="N", help=count_help)
    add(
        data,
        "--seed",
        type=at_least_zero,
        default=0,
        metavar="N",
        help="of prompts, lengths, order and arrivals",
    )
    text_help = "prompts go as text, not as token ids (always so in chat)"
    add(data, "--send-text", action="store_true", default=False, help=text_help)
    add(
        data, "--random-input-len", "--input-len", type=at_least_one, default=1024, metavar="N", help="tokens"
    )
    add(data, "--random-output-len", type=at_least_one, default=128, metavar="N", help="tokens")
    spread_help = "lengths spread evenly over LEN*(1-R) to LEN*(1+R)"
    add(data, "--random-range-ratio", type=ratio, default=0.0, metavar="R", help=spread_help)
    add(data, "--gsp-num-groups", type=at_least_one, default=64, metavar="N", help="shared-prefix: groups")
    add(
        data,
        "--gsp-prompts-per-group",
        type=at_least_one,
        default=16,
        metavar="N",
        help="shared-prefix: prompts",
    )
    add(data, "--gsp-system-prompt-len", type=at_least_one, default=2048, metavar="N", help="shared tokens")
    add(data, "--gsp-question-len", type=at_least_one, default=128, metavar="N", help="a prompt's own tokens")
    add(data, "--gsp-output-len", type=at_least_one, default=256, metavar="N", help="tokens")
    length_help = "jsonl: tokens for lines without max_tokens"
    names = ["--output-len", "--custom-output-len"]
    add(data, *names, dest="output_len", type=at_least_one, default=256, metavar="N", help=length_help)
    turns_help = "jsonl: replay conversations turn by turn, each with the answers that the server gave before"
    add(data, "--multi-turn", action="store_true", default=False, help=turns_help)

    load = parser.add_argument_group("load")
    rate_help = "arrivals a second; inf: all at once"
    add(load, "--request-rate", type=above_zero, default=math.inf, metavar="RATE", help=rate_help)
    burst_help = "1: Poisson arrivals; less: burstier; more: steadier"
    add(load, "--burstiness", type=finite, default=1.0, metavar="B", help=burst_help)
    limit_help = "requests (multi-turn: conversations) in flight at most [default: no limit]"
    add(load, "--max-concurrency", type=at_least_one, metavar="N", help=limit_help)
    warm_help = "requests before the run, not counted; they also find a wrong address or key early"
    add(load, "--num-warmups", type=at_least_zero, default=1, metavar="N", help=warm_help)

    sampling = parser.add_argument_group("sampling")
    add(sampling, "--temperature", type=temperature, default=0.0, metavar="T", help="0: greedy")
    add(sampling, "--ignore-eos", action="store_true", default=False, help="every answer has its full length")
    add(
        sampling,
        "--extra-body",
        type=json_object,
        default={},
        metavar="JSON",
        help="more fields of every request",
    )

    report = parser.add_argument_group("report")
    slo_help = "limits for goodput: ttft=200,tpot=50,e2el=2s (milliseconds unless a unit is given)"
    add(report, "--slo", "--goodput", nargs="+", default=[], metavar="NAME=LIMIT", help=slo_help)
    names = ["--percentiles", "--metric-percentiles"]
    add(
        report,
        *names,
        dest="percentiles",
        type=percentile_list,
        default="50,90,99",
        metavar="P,P,…",
        help="of every latency",
    )
    add(
        report,
        "--json",
        metavar="FILE",
        help="write the figures as JSON (- for stdout, in place of the table)",
    )
    detail_help = "with --json: every request's figures too"
    add(report, "--save-detailed", action="store_true", default=False, help=detail_help)
    quick_help = "do not measure the client's own limit before the run"
    add(report, "--no-calibrate", dest="calibrate", action="store_false", default=True, help=quick_help)
    add(
        report,
        "--no-progress",
        "--disable-tqdm",
        dest="progress",
        action="store_false",
        default=True,
        help="no progress line",
    )
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """Checked options; one line on stderr and exit code 2 for anything wrong.

    `endpoint` stays None when it depends on the data set; `slo` becomes milliseconds by name.
    """
    parser = make_parser()
    options = parser.parse_args(argv)
    given = {word.split("=")[0] for word in argv}
    if options.host is not None or options.port is not None:
        if "--base-url" in given:
            parser.error("--base-url and --host/--port say the same thing: give one")
        options.base_url = f"http://{options.host or '127.0.0.1'}:{options.port or 8000}"
    if options.backend is not None:
        chosen = BACKENDS[options.backend]
        if options.endpoint not in (None, chosen):
            parser.error(
                f"--backend {options.backend} means --endpoint {chosen}, not {options.endpoint}: give one"
            )
        options.endpoint = chosen
    if options.endpoint is not None and not options.endpoint.startswith("/"):
        options.endpoint = "/" + options.endpoint
    if options.endpoint is not None and not options.endpoint.endswith("/completions"):
        parser.error(f"--endpoint {options.endpoint} must be {COMPLETIONS} or {CHAT}, with any prefix")
    # A base URL copied from an SDK's settings ends in /v1, which every endpoint here begins with.
    if (options.endpoint or COMPLETIONS).startswith("/v1/"):
        options.base_url = options.base_url.rstrip("/").removesuffix("/v1")
    if options.dataset_name == "custom":
        options.dataset_name = "jsonl"
    if (options.dataset_name == "jsonl") != (options.dataset_path is not None):
        parser.error(
            "--dataset-name jsonl needs --dataset-path FILE"
            if options.dataset_path is None
            else f"--dataset-path {options.dataset_path} is for --dataset-name jsonl"
        )
    if options.multi_turn and options.dataset_name != "jsonl":
        parser.error("--multi-turn is for --dataset-name jsonl, which can hold conversations")
    if options.save_detailed and options.json is None:
        parser.error("--save-detailed goes into the file of --json: give that too")
    for prefix, dataset in (
        ("--random-", "random"),
        ("--input-len", "random"),
        ("--gsp-", "shared-prefix"),
        ("--output-len", "jsonl"),
        ("--custom-output-len", "jsonl"),
    ):
        stray = sorted(word for word in given if word.startswith(prefix))
        if stray and options.dataset_name != dataset:
            parser.error(f"{stray[0]} is for --dataset-name {dataset}, not {options.dataset_name}")
    if "--burstiness" in given and math.isinf(options.request_rate):
        parser.error("--burstiness shapes the arrivals of --request-rate, which is inf: give a rate")
    total = options.gsp_num_groups * options.gsp_prompts_per_group
    if options.dataset_name == "shared-prefix" and (options.num_prompts or 0) > total:
        parser.error(f"--num-prompts {options.num_prompts} is more than the {total} prompts of all groups")
    try:
        options.slo = parse_slo(options.slo) if options.slo else {}
    except ValueError as error:
        parser.error(f"--slo: {error}")
    return options
