"""Encoders compute what transformers and sentence-transformers compute, whole batches as one prompt alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from penstock.engine.assemble import create
from penstock.engine.build import Built
from penstock.engine.errors import ConfigurationError
from penstock.kernels.select import select_bidirectional
from penstock.scheduler.messages import EngineConfig, PoolerConfig, PoolingParams
from pooling_runs import EMBED, pool
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tiny_encoders import MAX_TOKENS, VOCABULARY, make_encoder
from transformers import PreTrainedModel

GENERATOR = torch.Generator().manual_seed(3)
LENGTHS = [1, 2, 7, 64, 33, 7, 18, 64, 5, 40, 3, 21]
PROMPTS = [torch.randint(5, len(VOCABULARY), (n,), generator=GENERATOR).tolist() for n in LENGTHS]
RAW = PoolingParams(task="embed", normalize=False)


@contextmanager
def served(path: Path, **options: Any) -> Iterator[Built]:
    """Few tokens a step, so that the prompts take several."""
    config = {"device": "cpu", "num_threads": 1, "max_num_seqs": 6, "max_num_batched_tokens": 96, **options}
    built = create(EngineConfig(model_dir=str(path), **config), lambda phase, fraction: None)
    try:
        yield built
    finally:
        built.runner.close()


@torch.no_grad()
def reference_states(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    """(tokens, hidden_size) of the last layer, one prompt alone."""
    body = getattr(model, model.base_model_prefix, model)
    return body(input_ids=torch.tensor([prompt])).last_hidden_state[0]


def pooled_by(mode: str, states: torch.Tensor) -> torch.Tensor:
    pooling = Pooling(states.shape[1], pooling_mode=mode)
    mask = torch.ones((1, len(states)), dtype=torch.int64)
    return pooling({"token_embeddings": states[None], "attention_mask": mask})["sentence_embedding"][0]


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("family", ["bert", "bert-mlm", "roberta", "xlm-roberta"])
def test_ragged_batches_give_the_states_of_transformers(tmp_path: Path, family: str, backend: str) -> None:
    reference = make_encoder(family, tmp_path)
    with served(tmp_path, attention_backend=backend) as built:
        vectors = pool(built, PROMPTS, RAW)
    for prompt, vector in zip(PROMPTS, vectors, strict=True):
        expected = reference_states(reference, prompt)[0]
        torch.testing.assert_close(torch.from_numpy(vector), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_activations_and_layer_norm_eps_are_the_checkpoints_own(tmp_path: Path, activation: str) -> None:
    reference = make_encoder("bert", tmp_path, hidden_act=activation, layer_norm_eps=1e-2)
    with served(tmp_path) as built:
        (vector,) = pool(built, PROMPTS[4:5], RAW)
    expected = reference_states(reference, PROMPTS[4])[0]
    torch.testing.assert_close(torch.from_numpy(vector), expected, atol=1e-4, rtol=0)


def test_batches_equal_single_prompts(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)
    with served(tmp_path) as built:
        together = pool(built, PROMPTS)
        alone = [pool(built, [prompt])[0] for prompt in PROMPTS]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("mode", ["cls", "mean", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean"])
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_follows_the_checkpoints_modules(tmp_path: Path, mode: str, normalize: bool) -> None:
    reference = make_encoder("bert", tmp_path)
    modules = [
        Transformer(str(tmp_path)),
        Pooling(48, pooling_mode=mode),
        *([Normalize()] if normalize else []),
    ]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "st"))
    with served(tmp_path / "st") as built:
        vectors = pool(built, PROMPTS)
    for prompt, vector in zip(PROMPTS, vectors, strict=True):
        expected = pooled_by(mode, reference_states(reference, prompt))
        if normalize:
            expected = torch.nn.functional.normalize(expected, dim=0)
        torch.testing.assert_close(torch.from_numpy(vector), expected, atol=1e-4, rtol=0)


def test_the_old_spelling_of_the_pooling_module_is_read(tmp_path: Path) -> None:
    reference = make_encoder("bert", tmp_path)
    write_modules(tmp_path, ["Transformer", "Pooling"])
    flags = {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True, "word_embedding_dimension": 48}
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    with served(tmp_path) as built:
        (vector,) = pool(built, PROMPTS[4:5])
    expected = pooled_by("max", reference_states(reference, PROMPTS[4]))
    torch.testing.assert_close(torch.from_numpy(vector), expected, atol=1e-4, rtol=0)


def write_modules(path: Path, kinds: list[str]) -> None:
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))


def test_a_module_whose_work_is_not_done_here_is_refused(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)
    write_modules(tmp_path, ["Transformer", "Dense"])
    with pytest.raises(ConfigurationError, match="module Dense is not supported"), served(tmp_path):
        pass


def test_options_decide_the_pooling(tmp_path: Path) -> None:
    reference = make_encoder("roberta", tmp_path)
    with served(tmp_path, pooler_config=PoolerConfig("MEAN", False)) as built:
        (vector,) = pool(built, PROMPTS[4:5])
    expected = pooled_by("mean", reference_states(reference, PROMPTS[4]))
    torch.testing.assert_close(torch.from_numpy(vector), expected, atol=1e-4, rtol=0)


def test_embeddings_are_cut_before_they_are_normalised(tmp_path: Path) -> None:
    reference = make_encoder("bert", tmp_path)
    with served(tmp_path) as built:
        (vector,) = pool(built, PROMPTS[4:5], PoolingParams(task="embed", dimensions=10))
    expected = torch.nn.functional.normalize(reference_states(reference, PROMPTS[4])[0, :10], dim=0)
    torch.testing.assert_close(torch.from_numpy(vector), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("family", ["bert-classifier", "roberta-classifier", "xlm-roberta-classifier"])
def test_classifiers_give_the_probabilities_of_transformers(
    tmp_path: Path, family: str, num_labels: int
) -> None:
    reference = make_encoder(family, tmp_path, num_labels=num_labels)
    types = [[0] * (len(prompt) // 2) + [1] * (len(prompt) - len(prompt) // 2) for prompt in PROMPTS]
    if "roberta" in family:
        types = [[0] * len(prompt) for prompt in PROMPTS]
    given = [bytes(each) for each in types]
    wanted = [PoolingParams(task="classify", token_types=each) for each in given]
    with served(tmp_path) as built:
        assert built.info.tasks == ("classify",)
        found = pool(built, PROMPTS, wanted)
        raw = pool(
            built, PROMPTS, [PoolingParams(task="classify", token_types=t, activation=False) for t in given]
        )
    for prompt, type_ids, probabilities, logits in zip(PROMPTS, types, found, raw, strict=True):
        with torch.no_grad():
            expected = reference(
                input_ids=torch.tensor([prompt]), token_type_ids=torch.tensor([type_ids])
            ).logits[0]
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=0)
        expected = expected.sigmoid() if num_labels == 1 else expected.softmax(-1)
        torch.testing.assert_close(torch.from_numpy(probabilities), expected, atol=1e-4, rtol=0)


def test_a_cross_encoders_own_activation_is_used(tmp_path: Path) -> None:
    reference = make_encoder("bert-classifier", tmp_path, num_labels=1)
    config = json.loads((tmp_path / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = CrossEncoder(str(tmp_path), device="cpu")
    expected = encoder.predict([("what is the time", "he said it was two")])
    tokens = encoder.tokenizer("what is the time", "he said it was two")
    wanted = PoolingParams(task="classify", token_types=bytes(tokens["token_type_ids"]))
    with served(tmp_path) as built:
        (score,) = pool(built, [tokens["input_ids"]], wanted)
    np.testing.assert_allclose(score, expected, atol=1e-4)
    del reference


def test_a_classifier_can_be_converted_to_embed(tmp_path: Path) -> None:
    reference = make_encoder("bert-classifier", tmp_path, num_labels=3)
    with served(tmp_path, convert="embed") as built:
        assert built.info.tasks == ("embed",)
        (vector,) = pool(built, PROMPTS[4:5], RAW)
    expected = reference_states(reference, PROMPTS[4])[0]
    torch.testing.assert_close(torch.from_numpy(vector), expected, atol=1e-4, rtol=0)


def test_labels_and_lengths_are_told(tmp_path: Path) -> None:
    make_encoder("roberta-classifier", tmp_path, id2label={0: "bad", 1: "so-so", 2: "good"})
    with served(tmp_path) as built:
        assert built.info.max_model_len == MAX_TOKENS
        assert built.info.num_pages == 0
        assert built.info.pooling is not None
        assert built.info.pooling.labels == ["bad", "so-so", "good"]


def test_the_checkpoint_says_how_far_it_reads(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    with served(tmp_path) as built:
        assert built.info.max_model_len == 20
    with served(tmp_path, max_model_len=MAX_TOKENS) as built:
        assert built.info.max_model_len == MAX_TOKENS


def test_a_step_that_cannot_hold_the_longest_prompt_is_refused(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)
    with (
        pytest.raises(ConfigurationError, match="--max-num-batched-tokens 40 is below the prompt length 64"),
        served(tmp_path, max_num_batched_tokens=40),
    ):
        pass


def test_an_encoder_does_not_generate(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)
    with (
        pytest.raises(ConfigurationError, match="BertModel has no head to generate"),
        served(tmp_path, runner="generate"),
    ):
        pass


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    reference = make_encoder("bert", tmp_path)
    with served(tmp_path, dtype="bfloat16") as built:
        vectors = pool(built, PROMPTS, EMBED)
    for prompt, vector in zip(PROMPTS, vectors, strict=True):
        expected = torch.nn.functional.normalize(reference_states(reference, prompt)[0], dim=0)
        assert float(torch.from_numpy(vector) @ expected) > 0.999


@pytest.mark.parametrize("lengths", [[5], [1, 1, 1], [3, 90, 4, 88, 17], [100, 1], [8, 9, 10, 11]])
def test_attention_in_groups_equals_the_oracle(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn((sum(lengths), 4, 16), generator=generator) for _ in range(3))
    results = []
    for name in ("torch", "auto"):
        backend = select_bidirectional(name, torch.device("cpu"))
        backend.plan(np.array(lengths, np.int32))
        results.append(backend.run(q, k, v))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)
