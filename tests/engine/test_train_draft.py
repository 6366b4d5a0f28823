"""Training of drafting heads: it resumes exactly, learns, and its files mean what their page says."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from draft_reference import MTP, Eagle3, Target, speculate
from penstock.engine.errors import ConfigurationError
from penstock.engine.train_draft import loss
from penstock.engine.train_draft.build import aux_layers, build_head, frequent_tokens
from penstock.engine.train_draft.evaluate import walk
from penstock.engine.train_draft.generate import Stopped
from penstock.engine.train_draft.job import Method, TrainJob
from penstock.engine.train_draft.target import FrozenTarget
from penstock.engine.train_draft.token_sets import Reading, TokenSet, epoch_batches, read_set, write_set
from penstock.engine.train_draft.train import schedule, train
from penstock.scheduler.messages import EngineConfig
from safetensors.torch import load_file
from tiny_models import VOCAB_SIZE, make_checkpoint
from transformers import PreTrainedModel

HIDDEN, INNER, HEAD_DIM = 64, 96, 16
Model = tuple[Path, Path, PreTrainedModel]  # checkpoint, folder of token sets, the same model in transformers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of four layers and prompts for it; what it answers is kept there by the first run."""
    folder = tmp_path_factory.mktemp("train_draft")
    model = make_checkpoint("qwen3", folder / "model", num_hidden_layers=4)
    texts = folder / "texts"
    texts.mkdir()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, VOCAB_SIZE, int(rng.integers(3, 9))).astype(np.int32) for _ in range(24)]
    # Measured on what was trained on: random weights have nothing to generalise.
    for name, some in (("prompts", prompts), ("eval", prompts[0:8:2])):
        write_set(texts, name, TokenSet.of(some, [np.zeros(len(p), np.uint8) for p in some]))
    return folder / "model", texts, model


def make_job(model: Model, out: Path, method: Method, **changes: object) -> TrainJob:
    job = TrainJob(
        method=method,
        model_dir=str(model[0]),
        output_dir=str(out / "head"),
        work_dir=str(out),
        texts_dir=str(model[1]),
        device="cpu",
        num_threads=1,
        num_steps=8,
        batch_tokens=128,
        max_length=64,
        num_speculative_tokens=3,
        report_every=4,
        max_new_tokens=24,
        temperature=0.6,
    )
    return msgspec.structs.replace(job, **changes)


def run(job: TrainJob, stop_after: int | None = None) -> list[str]:
    """What the run said; `stop_after` so many questions it is told to stop."""
    said: list[str] = []
    asked = 0

    def stopping() -> bool:
        nonlocal asked
        asked += 1
        return stop_after is not None and asked > stop_after

    train(job, said.append, stopping)
    return said


@pytest.mark.parametrize("method", ["eagle3", "mtp"])
def test_resumed_run_ends_in_the_same_bits(tiny: Model, tmp_path: Path, method: Method) -> None:
    whole, parts = make_job(tiny, tmp_path / "a", method), make_job(tiny, tmp_path / "b", method, resume=True)
    for path in (tmp_path / "a", tmp_path / "b"):
        path.mkdir()
    run(whole)
    for _ in range(2):
        with pytest.raises(Stopped):
            run(parts, stop_after=3)
    run(parts)
    files = [Path(job.output_dir) / "model.safetensors" for job in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()
    run(msgspec.structs.replace(whole, seed=1))
    assert files[0].read_bytes() != files[1].read_bytes()


@pytest.fixture(scope="module", params=["eagle3", "mtp"])
def trained(
    request: pytest.FixtureRequest, tiny: Model, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainJob, list[str]]:
    """A head after some training, and what was said."""
    out = tmp_path_factory.mktemp(request.param)
    vocab = 200 if request.param == "eagle3" else 0
    changes = {"num_steps": 80, "batch_tokens": 512, "learning_rate": 4e-3, "report_every": 20}
    job = make_job(tiny, out, request.param, draft_vocab_size=vocab, **changes)
    return job, run(job)


def test_loss_falls_and_drafts_are_accepted(trained: tuple[TrainJob, list[str]]) -> None:
    found = [re.search(r"loss (\S+) acceptance (\S+)", line) for line in trained[1]]
    losses = [float(match[1]) for match in found if match]
    accepted = [float(match[2]) for match in found if match]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    assert accepted[-1] > max(0.3, accepted[0])


@pytest.mark.parametrize("method", ["eagle3", "mtp"])
def test_logits_in_pieces_give_the_same_loss_and_gradients(
    tiny: Model, tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tiny, tmp_path, method)
    target = FrozenTarget(EngineConfig(model_dir=job.model_dir, device="cpu", num_threads=1), 32)
    texts = TokenSet.of([np.arange(3, 33, dtype=np.int32)], [np.ones(30, np.uint8)])
    head = build_head(job, target, texts)
    found = []
    for most in (loss.MOST_LOGITS, 7 * VOCAB_SIZE):
        monkeypatch.setattr(loss, "MOST_LOGITS", most)
        head.zero_grad()
        total, tally = loss.chain_loss(head, target, texts.batch([0], target.device), 3, torch.float32)
        total.backward()
        found.append((total.item(), tally, [weight.grad.clone() for weight in head.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1].chains.tolist() == found[1][1].chains.tolist() == [28, 27, 26]
    for whole, pieces in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(whole, pieces, rtol=1e-4, atol=1e-6)


def test_measured_acceptance_is_that_of_a_brute_force_decode(
    trained: tuple[TrainJob, list[str]], tiny: Model
) -> None:
    """The head as its files say, float64, a row at a time, drafting for transformers' greedy decoding."""
    job, said = trained
    target = Target(tiny[2], tiny[0])
    head = (Eagle3 if job.method == "eagle3" else MTP)(Path(job.output_dir), target)
    held_out = read_set(tiny[1], "eval.answered.0")
    prompts = read_set(tiny[1], "eval")
    runs = [
        speculate(target, head, prompts.text(i).tolist(), len(held_out.text(i)), 3)
        for i in range(len(prompts))
    ]
    accepted = [count for counts in runs for count in counts]
    tokens = sum(len(held_out.text(i)) - len(prompts.text(i)) - 1 for i in range(len(prompts)))
    rates = " ".join(f"{np.mean([count >= n for count in accepted]):.3f}" for n in (1, 2, 3))
    assert max(accepted) >= 2, "nothing to compare"
    assert said[-1].startswith(
        f"held out, greedy, 3 drafts: {tokens / len(accepted):.3f} tokens per verification, "
        f"acceptance per position {rates} ({len(prompts)} prompts, {len(accepted)} verifications)"
    )


def test_eagle3_files_are_those_of_published_heads(trained: tuple[TrainJob, list[str]], tiny: Model) -> None:
    job, _ = trained
    if job.method != "eagle3":
        return
    tensors = load_file(Path(job.output_dir) / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "fc.weight": (HIDDEN, 3 * HIDDEN),
        "midlayer.hidden_norm.weight": (HIDDEN,),
        "midlayer.input_layernorm.weight": (HIDDEN,),
        "midlayer.post_attention_layernorm.weight": (HIDDEN,),
        "midlayer.self_attn.q_proj.weight": (4 * HEAD_DIM, 2 * HIDDEN),
        "midlayer.self_attn.k_proj.weight": (2 * HEAD_DIM, 2 * HIDDEN),
        "midlayer.self_attn.v_proj.weight": (2 * HEAD_DIM, 2 * HIDDEN),
        "midlayer.self_attn.o_proj.weight": (HIDDEN, 4 * HEAD_DIM),
        "midlayer.mlp.gate_proj.weight": (INNER, HIDDEN),
        "midlayer.mlp.up_proj.weight": (INNER, HIDDEN),
        "midlayer.mlp.down_proj.weight": (HIDDEN, INNER),
        "norm.weight": (HIDDEN,),
        "lm_head.weight": (200, HIDDEN),
        "d2t": (200,),
        "t2d": (VOCAB_SIZE,),
    }
    assert tensors["d2t"].dtype == torch.int64
    assert tensors["t2d"].dtype == torch.bool
    ids = torch.arange(200) + tensors["d2t"]
    assert ids.tolist() == tensors["t2d"].nonzero().flatten().tolist()
    config = json.loads((Path(job.output_dir) / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["draft_vocab_size"] == 200
    assert config["vocab_size"] == VOCAB_SIZE
    assert config["tie_word_embeddings"] is False
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_mtp_layer_has_the_tensors_of_its_family(tmp_path: Path, family: str, tiny: Model) -> None:
    """Also where the checkpoint is in shards: those stay as they are, the layer comes as one more."""
    shards = family in ("llama", "qwen2")
    make_checkpoint(family, tmp_path / "model", max_shard_size="60KB" if shards else "1GB")
    job = make_job((tmp_path / "model", tiny[1], tiny[2]), tmp_path, "mtp", num_steps=1)
    texts = tmp_path / "texts"
    texts.mkdir()
    write_set(texts, "texts", TokenSet.of([np.arange(20, dtype=np.int32)], [np.ones(20, np.uint8)]))
    run(msgspec.structs.replace(job, texts_dir=str(texts)))
    out, before = Path(job.output_dir), tmp_path / "model"
    tensors = {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}
    own = {name: tensor for path in before.glob("*.safetensors") for name, tensor in load_file(path).items()}
    added = {
        name.removeprefix("model.mtp_layers.0."): tuple(tensors[name].shape) for name in tensors.keys() - own
    }
    layer = {
        name.removeprefix("model.layers.1."): tuple(tensor.shape)
        for name, tensor in own.items()
        if name.startswith("model.layers.1.")
    }
    assert added == layer | {
        "token_layernorm.weight": (HIDDEN,),
        "hidden_layernorm.weight": (HIDDEN,),
        "final_layernorm.weight": (HIDDEN,),
        "input_proj.weight": (HIDDEN, 2 * HIDDEN),
    }
    assert all(torch.equal(tensors[name], tensor) for name, tensor in own.items())
    config = json.loads((out / "config.json").read_text())
    assert config == {**json.loads((before / "config.json").read_text()), "num_nextn_predict_layers": 1}
    assert (out / "tokenizer.json").read_bytes() == (before / "tokenizer.json").read_bytes()
    if shards:
        index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
        assert {
            name for name, path in index.items() if path == "model-mtp.safetensors"
        } == tensors.keys() - own

    run(
        msgspec.structs.replace(job, texts_dir=str(texts), head_only=True, output_dir=str(tmp_path / "alone"))
    )
    alone = load_file(tmp_path / "alone" / "model.safetensors")
    assert alone.keys() == tensors.keys() - own
    assert all(torch.equal(alone[name], tensors[name]) for name in alone)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_target_states_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    """Padding changes nothing, sliding windows hold."""
    window = {"sliding_window": 5} if family == "mistral" else {}
    model = make_checkpoint(family, tmp_path, num_hidden_layers=3, **window)
    target = FrozenTarget(EngineConfig(model_dir=str(tmp_path), device="cpu", num_threads=1), 32)
    tokens = torch.randint(VOCAB_SIZE, (2, 17), generator=torch.Generator().manual_seed(0))
    states = target.states(tokens, (0, 2))
    for row, length in enumerate((17, 11)):
        with torch.no_grad():
            out = model(tokens[row : row + 1, :length], output_hidden_states=True)
        wanted = torch.cat((out.hidden_states[0], out.hidden_states[2]), dim=-1)
        torch.testing.assert_close(states.features[row, :length], wanted[0], atol=2e-4, rtol=2e-4)
        logits = target.logits(states.final[row, :length])
        torch.testing.assert_close(logits, out.logits[0], atol=2e-3, rtol=2e-3)


def test_resume_refuses_another_run(tiny: Model, tmp_path: Path) -> None:
    job = make_job(tiny, tmp_path, "eagle3", num_steps=2, resume=True)
    run(job)
    with pytest.raises(ConfigurationError, match=r"trained with num_steps 2, now it is 3: give the same"):
        run(msgspec.structs.replace(job, num_steps=3))
    with pytest.raises(ConfigurationError, match=r"is of another head \(its lm_head.weight differs\)"):
        run(msgspec.structs.replace(job, draft_vocab_size=100))
    path = tmp_path / "eagle3.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match=r"cannot be read: .*; begin again without it"):
        run(job)


def test_options_that_do_not_fit_the_model_are_refused(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"--draft-vocab-size 999 is more than the model's vocabulary of 320"
    ):
        run(make_job(tiny, tmp_path, "eagle3", draft_vocab_size=999))
    with pytest.raises(ConfigurationError, match=r"--aux-layers 1 2 4: give 3 numbers from 0 .* to 3"):
        run(make_job(tiny, tmp_path, "eagle3", aux_layers=[1, 2, 4]))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigurationError, match=r"no text has as many as three tokens"):
        run(make_job(tiny, tmp_path, "eagle3", texts_dir=str(empty)))


def test_tokens_of_another_model_are_refused(tiny: Model, tmp_path: Path) -> None:
    write_set(tmp_path, "eval", TokenSet.of([np.array([3, VOCAB_SIZE], np.int32)], [np.zeros(2, np.uint8)]))
    with pytest.raises(
        ConfigurationError, match=r"the tokenizer gives token 320, the model has 320 tokens: is it"
    ):
        run(make_job(tiny, tmp_path, "mtp", texts_dir=str(tmp_path)))


def test_layers_are_vllms_where_there_are_enough() -> None:
    assert aux_layers([], 32) == (2, 16, 29)
    assert aux_layers([], 6) == (1, 3, 5)
    assert aux_layers([4, 5, 6], 32) == (4, 5, 6)
    assert len(aux_layers([], 1)) == 3


def test_draft_vocabulary_is_what_is_drafted_most() -> None:
    texts = TokenSet.of(
        [np.array([5, 5, 7, 9, 9, 9, 2], np.int32)], [np.array([0, 0, 1, 1, 1, 0, 1], np.uint8)]
    )
    assert frequent_tokens(texts, 10, 2).tolist() == [2, 9]


def test_an_epoch_reads_every_text_once() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(3, 60, 500)
    texts = TokenSet.of([np.zeros(n, np.int32) for n in lengths], [np.ones(n, np.uint8) for n in lengths])
    epochs = [epoch_batches(texts, 256, 0, epoch) for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert sorted(i for batch in epochs[2] for i in batch) == list(range(500))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 256 for batch in epochs[2])
    reading = Reading(texts, 256, 0)
    assert [reading.next() for _ in range(len(epochs[0]) + len(epochs[2]))] == epochs[0] + epochs[2]


def test_walk_starts_each_draft_where_the_last_verification_ended() -> None:
    """Two tokens of prompt, five of output, of which the first is known before anything is drafted."""
    texts = TokenSet.of([np.arange(7, dtype=np.int32)], [np.array([0, 0, 1, 1, 1, 1, 1], np.uint8)])
    right = [np.array([-1, 2, 0, 1, 0, -1, -1])]
    found = walk(texts, right, 4)
    assert (found.steps, found.tokens) == (2, 4)
    assert found.accepted.tolist() == [1, 1, 0, 0]
    shorter = walk(texts, right, 1)
    assert (shorter.steps, shorter.tokens) == (2, 4)
    assert shorter.accepted.tolist() == [2]


def test_schedule_warms_up_and_ends_at_zero() -> None:
    rates = [schedule(step, 100) for step in range(101)]
    assert 0 < rates[0] < rates[1] < rates[2] == 1.0
    assert rates[-1] == 0.0
    assert all(a >= b for a, b in pairwise(rates[2:]))
