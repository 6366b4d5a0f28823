"""`penstock chat`: talk to a model from the terminal, or from a script that pipes one turn a line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

import msgspec

from ..bench.options import OneLineParser, at_least_one, temperature
from ..client.chunks import error_text
from ..client.http import ClientError, HttpClient, Response
from .own_server import ServerFailed, own_server, serve_command
from .repl import Repl
from .session import ChatFailed, Session

DEFAULT_URL = "http://127.0.0.1:8000"


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="penstock chat",
        description=(
            "Chat with a running server, or with one that is started for the chat: of MODEL, or of the embedded "
            f"demonstration model. Without --url a server at {DEFAULT_URL} is used when it serves what is asked for."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("served", nargs="?", metavar="MODEL", help="directory or Hugging Face id to serve")
    parser.add_argument("--url", help="a running server; none is started then")
    parser.add_argument("--model", help="name of the model to ask for [default: the first the server lists]")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--temperature", type=temperature, metavar="T", help="[default: the server's]")
    parser.add_argument(
        "--max-tokens", type=at_least_one, metavar="N", help="limit of an answer [default: the server's]"
    )
    parser.add_argument("--api-key", metavar="KEY", help="sent as Authorization: Bearer KEY")
    parser.add_argument("--insecure", action="store_true", help="do not verify the server's certificate")
    return parser


def main(argv: list[str]) -> int:
    """Exit code 0; 1 when there is no server to talk to, or a piped turn failed; 2 for wrong options."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.url is not None and options.served is not None:
        parser.error(
            f"MODEL {options.served} is for a server to start, --url for one that runs: give one (or --model)"
        )
    # So that a server of our own is ended in order.
    previous = {number: signal.signal(number, _on_end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with asyncio.Runner() as runner, found_server(runner, options) as (client, models):
            session = Session(
                client,
                model=options.model or models[0],
                system=options.system,
                temperature=options.temperature,
                max_tokens=options.max_tokens,
            )
            return Repl(session, runner).run()
    except (ChatFailed, ClientError, ServerFailed, ValueError) as error:
        print(f"penstock chat: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1  # a ValueError: an option's value cannot be used
    except KeyboardInterrupt:
        return 130
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _on_end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def found_server(
    runner: asyncio.Runner, options: argparse.Namespace
) -> Iterator[tuple[HttpClient, list[str]]]:
    """A client of the server to talk to and the models it lists; a server that was started ends with the block."""
    headers = {} if options.api_key is None else {"Authorization": f"Bearer {options.api_key}"}

    def connect(url: str) -> HttpClient:
        url = url.rstrip("/").removesuffix("/v1")
        return HttpClient(url, headers=headers, insecure=options.insecure)

    client = connect(options.url or DEFAULT_URL)
    try:
        try:
            models = runner.run(list_models(client))
        except (ClientError, ChatFailed):
            if options.url is not None:
                raise
            models = []  # nothing there, or something else than a model server
        wanted = options.served or options.model
        usable = bool(models) and (wanted is None or wanted in models)
        if options.url is not None or usable:
            if options.model is not None and options.model not in models:
                listed = ", ".join(models)
                raise ChatFailed(f"{client.url} does not serve --model {options.model}; it serves: {listed}")
            if options.served is not None:
                models = [options.served]
            yield client, models
            return
        if options.model is not None:
            raise ChatFailed(
                f"no server at {client.url} serves --model {options.model}: give --url, or MODEL to start one"
            )
    finally:
        client.close()
    with own_server(serve_command(options.served), sys.stderr) as url:
        client = connect(url)
        try:
            yield client, runner.run(list_models(client))
        finally:
            client.close()


async def list_models(client: HttpClient) -> list[str]:
    """Names in /v1/models; ChatFailed when the server does not tell, with the way out."""
    response: Response = await client.fetch("GET", "/v1/models")
    if response.status in (401, 403):
        raise ChatFailed(f"{client.url} wants an API key: give --api-key ({error_text(response.body)})")
    try:
        models = [str(model["id"]) for model in msgspec.json.decode(response.body)["data"]]
    except (msgspec.DecodeError, LookupError, TypeError):
        models = []
    if response.status != 200 or not models:
        raise ChatFailed(
            f"{client.url}/v1/models lists no model (HTTP {response.status}): is it a model server?"
        )
    return models
