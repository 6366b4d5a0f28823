"""Prompts have the lengths, the sharing and the seeds they are asked for; files are read or refused by the line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fake_openai import Request, fake_openai, whole
from penstock.server.bench.datasets import (
    Conversation,
    Prompt,
    RandomSizes,
    SharedPrefixSizes,
    random_prompts,
    read_jsonl,
    shared_prefix_prompts,
    split_turns,
)
from penstock.server.bench.vocabulary import (
    WORDS,
    LocalVocabulary,
    WordVocabulary,
    find_vocabulary,
)
from penstock.server.client.http import HttpClient
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = "<|end|>"


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of single bytes, common words and one special token."""
    words = ["Ġ" + word for word in WORDS.split()[:200]]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *words]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(SPECIAL, special=True)])
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def random_set(vocabulary, seed: int = 0, as_text: bool = False, **sizes: object) -> list[Prompt]:
    settings = {"num_prompts": 50, "input_len": 100, "output_len": 40, "spread": 0.0, **sizes}
    return asyncio.run(random_prompts(RandomSizes(**settings), vocabulary, seed, as_text))


def test_random_prompts_are_exactly_as_long_as_asked_in_plain_text_tokens(tokenizer_dir: Path) -> None:
    vocabulary = LocalVocabulary(str(tokenizer_dir))
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    for item in random_set(vocabulary):
        assert isinstance(item.prompt, list)
        assert len(item.prompt) == item.prompt_tokens == 100
        assert item.max_tokens == 40
        text = tokenizer.decode(item.prompt, skip_special_tokens=False)
        assert SPECIAL not in text
        assert set(text.split()) <= set(WORDS.split())


def test_random_lengths_fill_the_range_and_stay_in_it(tokenizer_dir: Path) -> None:
    found = random_set(
        LocalVocabulary(str(tokenizer_dir)), num_prompts=400, input_len=20, output_len=10, spread=0.5
    )
    assert {len(item.prompt) for item in found} == set(range(10, 31))
    assert {item.max_tokens for item in found} == set(range(5, 16))


def test_a_seed_fixes_the_prompts_and_another_changes_them(tokenizer_dir: Path) -> None:
    vocabulary = LocalVocabulary(str(tokenizer_dir))
    assert random_set(vocabulary, 1) == random_set(vocabulary, 1)
    assert not {tuple(i.prompt[:16]) for i in random_set(vocabulary, 1)} & {
        tuple(i.prompt[:16]) for i in random_set(vocabulary, 2)
    }


def test_shared_prefix_groups_share_their_system_prompt_and_nothing_else(tokenizer_dir: Path) -> None:
    vocabulary = LocalVocabulary(str(tokenizer_dir))
    sizes = SharedPrefixSizes(3, 5, system_prompt_len=32, question_len=8, output_len=4)
    found = asyncio.run(shared_prefix_prompts(sizes, vocabulary, 0, as_text=False, chat=False))
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for item in found:
        assert len(item.prompt) == 40
        groups.setdefault(tuple(item.prompt[:32]), []).append(tuple(item.prompt[32:]))
    assert sorted(map(len, groups.values())) == [5, 5, 5]
    assert len({question for questions in groups.values() for question in questions}) == 15


def test_shared_prefix_in_chat_is_the_system_message() -> None:
    sizes = SharedPrefixSizes(2, 4, system_prompt_len=32, question_len=8, output_len=4)
    found = asyncio.run(shared_prefix_prompts(sizes, WordVocabulary(), 0, as_text=True, chat=True))
    assert len({item.system for item in found}) == 2
    assert {len((item.system or "").split()) for item in found} == {32}
    assert {len(str(item.prompt).split()) for item in found} == {8}


def vocabulary_from(answer, tokenizer: str | None = None, texts: list[list[int]] | None = None):
    async def find(url: str):
        client = HttpClient(url)
        found = await find_vocabulary(client, "m", tokenizer)
        return found, await found.texts(texts) if texts else None

    with fake_openai(answer) as fake:
        return *asyncio.run(find(fake.url)), fake


def test_the_servers_own_tokenizer_gives_the_ids_and_the_text() -> None:
    def answer(request: Request):
        if request.path == "/tokenize":
            assert request.body["add_special_tokens"] is False
            return whole({"count": 3, "tokens": [11, 7, 11, 9]})
        return whole({"prompt": "text of " + " ".join(map(str, request.body["tokens"]))})

    vocabulary, texts, _ = vocabulary_from(answer, texts=[[0, 2], [1]])
    assert vocabulary.exact
    assert vocabulary.ids([0, 1, 2]) == [7, 9, 11]
    assert texts == ["text of 7 11", "text of 9"]


def test_llama_cpps_spelling_is_understood() -> None:
    def answer(request: Request):
        return whole({"tokens": [1, 2]} if "content" in request.body else {"tokens": []})

    assert vocabulary_from(answer)[0].exact


def test_without_any_tokenizer_prompts_are_words_and_say_so() -> None:
    vocabulary, _, _ = vocabulary_from(lambda _: whole({"detail": "Not Found"}, 404))
    assert not vocabulary.exact
    assert "approximate" in vocabulary.source
    (item,) = random_set(vocabulary, num_prompts=1)
    assert isinstance(item.prompt, str)
    assert len(item.prompt.split()) == 100
    assert item.prompt_tokens is None


def test_a_tokenizer_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        LocalVocabulary(str(tmp_path))


def jsonl(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_jsonl_holds_prompts_and_conversations(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    path = jsonl(
        tmp_path, {"prompt": "x"}, "", {"prompt": [1, 2], "max_tokens": 3}, {"messages": talk, "id": 9}
    )
    assert read_jsonl(path, 50, multi_turn=False) == [
        Prompt("x", 50),
        Prompt([1, 2], 3, prompt_tokens=2),
        Conversation([talk], 50),
    ]
    assert read_jsonl(path, 50, multi_turn=True)[2] == Conversation([[talk[0]], [talk[2]]], 50)


def test_a_recorded_last_answer_is_not_sent(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert read_jsonl(jsonl(tmp_path, {"messages": talk}), 5, multi_turn=False) == [
        Conversation([talk[:1]], 5)
    ]


def test_turns_keep_tool_results_and_system_prompts_before_the_answer_they_belong_to() -> None:
    roles = ["system", "user", "assistant", "tool", "tool", "assistant", "assistant", "user"]
    turns = split_turns([{"role": role} for role in roles])
    assert [[message["role"] for message in turn] for turn in turns] == [
        ["system", "user"],
        ["tool", "tool"],
        ["user"],
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{not json", "malformed"),
        ({"text": "x"}, 'either "prompt" or "messages"'),
        ({"prompt": "x", "messages": []}, 'either "prompt" or "messages"'),
        ({"messages": []}, "nothing to answer"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "nothing to answer"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens is 0"),
        ({"prompt": 3}, "prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, complaint: str) -> None:
    path = jsonl(tmp_path, {"prompt": "fine"}, line)
    with pytest.raises(ValueError, match="line 2: ") as caught:
        read_jsonl(path, 5, multi_turn=False)
    assert complaint in str(caught.value)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no prompts"):
        read_jsonl(jsonl(tmp_path, ""), 5, multi_turn=False)
    with pytest.raises(ValueError, match="No such file"):
        read_jsonl(tmp_path / "missing", 5, multi_turn=False)
