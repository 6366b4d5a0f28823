"""Tiny random encoders and classifiers, with a WordPiece tokenizer that tells the parts of a pair apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_models import randomise
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

ENCODERS = {
    "bert": (BertConfig, BertModel),
    "bert-mlm": (BertConfig, BertForMaskedLM),
    "bert-classifier": (BertConfig, BertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaModel),
    "roberta-classifier": (RobertaConfig, RobertaForSequenceClassification),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel),
    "xlm-roberta-classifier": (XLMRobertaConfig, XLMRobertaForSequenceClassification),
}
TEXT = (
    "the a of and to in is it you that he was for on are with as his they be at one have this from by hot but "
    "some what there we can out other were all your when up use word how said an each she which do their time "
    "if will way about many then them would write like so these her long make thing see him two has look more"
)
WORDS = TEXT.split()
VOCABULARY = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", *WORDS, "##s", "##ed", "##ing"]
MAX_TOKENS = 64


def make_encoder(family: str, path: Path, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Write a checkpoint of `family` to `path`, tokenizer included, and return it in float32, the reference."""
    config_class, model_class = ENCODERS[family]
    roberta = "roberta" in family
    sizes = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        # RoBERTa's first position comes after the padding token's.
        "max_position_embeddings": MAX_TOKENS + 1 if roberta else MAX_TOKENS,
        "type_vocab_size": 1 if roberta else 2,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    model: PreTrainedModel = model_class(config_class(**{**sizes, **overrides}))
    randomise(model, seed)
    model.save_pretrained(path)
    write_tokenizer(path, roberta=roberta)
    return model.float().eval()


def write_tokenizer(path: Path, *, roberta: bool = False) -> None:
    """tokenizer.json and tokenizer_config.json; RoBERTa puts two separators between the parts and has one type."""
    tokenizer = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>" if roberta else "<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 2), ("</s>", 3)],
    )
    tokenizer.save(str(path / "tokenizer.json"))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", *([] if roberta else ["token_type_ids"]), "attention_mask"],
        "model_max_length": MAX_TOKENS,
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        **names,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
