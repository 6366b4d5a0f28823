"""Where the tokens of made-up prompts come from: a local tokenizer, the server's own `/tokenize`, or plain words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from tokenizers import Tokenizer

from ..client.http import ClientError, HttpClient

# Everyday words: most tokenizers hold each as one token, so their ids are tokens of plain text.
WORDS = (
    "able about above across add after again against age ago air all almost alone along already also always among and"
    " animal another answer any appear apple area arm around art ask autumn away back bag ball bank base beach bear"
    " beautiful because become bed before began behind believe below best better between big bird black blue board boat"
    " body book born both bottom bowl box boy bread break bridge bright bring brother brown build burn busy but buy call"
    " came camp can car card care carry case cat catch cause center century chair chance change check child choose city"
    " clean clear climb clock close cloud coat cold color come common cook cool copy corn corner cost could count country"
    " course cover cow cross crowd cry cup cut dance dark daughter day deep desk differ dinner direct dirt doctor dog"
    " door down draw dream dress drink drive drop dry during each early earth east easy eat edge eight either else end"
    " engine enough enter even evening ever every eye face fact fall family far farm fast father feel feet few field fill"
    " final find fine finger finish fire first fish five floor flower fly follow food foot forest forget form four free"
    " fresh friend from front fruit full game garden gate gave get girl give glad glass gold gone good grass gray great"
    " green ground group grow guess hair half hand happy hard have head hear heart heat heavy held help her here high"
    " hill him his hold home hope horse hot hour house how hundred hurry ice idea island its job join jump just keep"
    " kept key kind king kitchen knee knew know lady lake lamp land language large last late laugh law lay lead leaf"
    " learn least leave left leg less let letter life lift light like line list listen little live long look lost lot"
    " loud love low lunch machine made main make man many map mark market may mean measure meat meet men middle might"
    " mile milk mind minute miss money month moon more morning most mother mountain mouth move much music must name near"
    " neck need never new news next nice night nine noise none north nose note nothing now number ocean off offer office"
    " often oil old once one only open orange order other our out over own page paint paper park part pass past path pay"
    " people perhaps person picture piece place plain plan plant play please point poor possible power press pretty"
    " problem pull push put queen question quick quiet quite race radio rain ran reach read ready real reason red rest"
    " rice rich ride right ring river road rock roof room root round rule run safe sail same sand save say school sea"
    " season seat second see seed seem sell send sentence serve set seven several shape share sheep shine ship shoe shop"
    " short should shoulder show shut side sign silver simple since sing sister sit six size skin sky sleep slow small"
    " smile snow soft some son song soon sound south space speak special speed spell spend spring stand star start stay"
    " step still stone stop store storm story strange street strong study such sugar summer sun sure surface swim table"
    " tail take talk tall teach team tell ten test thank that the their them then there these they thing think third"
    " this those thought three through throw time tiny today together told took top touch toward town trade train travel"
    " tree trip true try turn twelve two uncle under until upon use usual valley very village visit voice wait walk wall"
    " want war warm wash watch water wave way wear weather week weight well went were west what wheel when where which"
    " while white who whole why wide wild will win wind window winter wish with woman wonder wood word work world would"
    " write wrong yard year yellow yes yet you young"
)
DETOKENIZE_AT_ONCE = 32


class Vocabulary(Protocol):
    """A numbered set of plain-text tokens to make prompts of."""

    size: int
    source: str  # for the report
    exact: bool  # whether `ids` are the served model's own tokens

    def ids(self, picks: Sequence[int]) -> list[int]:
        """Token ids of picked entries (each in [0, size)); only when `exact`."""

    async def texts(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """The text of each list of picks."""


class LocalVocabulary:
    """The plain-text tokens of a tokenizer at hand."""

    exact = True

    def __init__(self, name: str) -> None:
        """`name`: a model directory, a tokenizer.json, or a Hugging Face id. Raises ValueError."""
        path = Path(name)
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            if file.exists():
                self._tokenizer = Tokenizer.from_file(str(file))
            elif path.is_dir():
                raise ValueError(f"--tokenizer {name}: the directory holds no tokenizer.json")
            else:
                self._tokenizer = Tokenizer.from_pretrained(name)
        except ValueError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"--tokenizer {name}: no such file or directory, nor a model id ({reason})"
            ) from None
        self._ids = plain_ids(self._tokenizer)
        self.size = len(self._ids)
        self.source = f"tokenizer {name}"

    def ids(self, picks: Sequence[int]) -> list[int]:
        return [self._ids[pick] for pick in picks]

    async def texts(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        return list(self._tokenizer.decode_batch([self.ids(picks) for picks in prompts]))


def plain_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that stand for ASCII letters; for a tokenizer without such, every id that is not an added token."""
    added = set(tokenizer.get_added_tokens_decoder())
    ordinary = sorted(set(tokenizer.get_vocab().values()) - added)
    pieces = tokenizer.decode_batch([[token] for token in ordinary], skip_special_tokens=False)
    plain = [
        token
        for token, piece in zip(ordinary, pieces, strict=True)
        if piece.isascii() and piece.strip().isalpha() and len(piece.strip()) > 1
    ]
    if len(plain) < 16:
        plain = [token for token, piece in zip(ordinary, pieces, strict=True) if "\ufffd" not in piece]
    if not plain:
        raise ValueError("the tokenizer has no token of plain text")
    return plain


class ServerVocabulary:
    """The tokens into which the server itself cuts plain words."""

    exact = True

    def __init__(self, client: HttpClient, model: str, ids: list[int]) -> None:
        self._client, self._model, self._ids = client, model, ids
        self.size = len(ids)
        self.source = "the server's /tokenize"

    def ids(self, picks: Sequence[int]) -> list[int]:
        return [self._ids[pick] for pick in picks]

    async def texts(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        slots = asyncio.Semaphore(DETOKENIZE_AT_ONCE)

        async def text(picks: Sequence[int]) -> str:
            async with slots:
                answer = await post(
                    self._client, "/detokenize", {"model": self._model, "tokens": self.ids(picks)}
                )
            found = answer.get("prompt", answer.get("content")) if answer else None
            if not isinstance(found, str):
                raise ValueError("the server has /tokenize but no /detokenize: give --tokenizer DIR")
            return found

        return list(await asyncio.gather(*(text(picks) for picks in prompts)))


class WordVocabulary:
    """Plain words, for a server that does not tell its tokens: lengths are in words, not tokens."""

    exact = False
    source = (
        "words (the server has no /tokenize and no --tokenizer was given: prompt lengths are approximate)"
    )

    def __init__(self) -> None:
        self._words = WORDS.split()
        self.size = len(self._words)

    def ids(self, picks: Sequence[int]) -> list[int]:
        raise AssertionError("words have no token ids")

    async def texts(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join(self._words[pick] for pick in picks) for picks in prompts]


async def post(client: HttpClient, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON object a server answers with; None for any other answer, a missing path included."""
    try:
        response = await client.fetch("POST", path, msgspec.json.encode(body))
        answer = msgspec.json.decode(response.body) if response.status == 200 else None
    except (ClientError, msgspec.DecodeError):
        return None
    return answer if isinstance(answer, dict) else None


async def find_vocabulary(client: HttpClient, model: str, tokenizer: str | None) -> Vocabulary:
    """The most exact vocabulary to be had."""
    if tokenizer is not None:
        return LocalVocabulary(tokenizer)
    text = " " + WORDS
    # vLLM's and Penstock's spelling first, then llama.cpp's.
    for body in (
        {"model": model, "prompt": text, "add_special_tokens": False},
        {"content": text, "add_special": False},
    ):
        answer = await post(client, "/tokenize", body)
        found = answer.get("tokens") if answer else None
        if isinstance(found, list) and found and all(isinstance(token, int) for token in found):
            return ServerVocabulary(client, model, sorted(set(found)))
    return WordVocabulary()
