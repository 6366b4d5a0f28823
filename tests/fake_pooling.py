"""What an engine without a model makes of prompts that are read: numbers that depend on tokens and types alone."""

from __future__ import annotations

import zlib

import numpy as np
from penstock.scheduler.messages import PoolingInfo, PoolingParams

EMBEDDER = {"tasks": ("embed",), "pooling": PoolingInfo(embedding_size=8, matryoshka_dimensions=[4])}
CROSS_ENCODER = {"tasks": ("classify",), "pooling": PoolingInfo(labels=["LABEL_0"])}
CLASSIFIER = {"tasks": ("classify",), "pooling": PoolingInfo(labels=["bad", "so-so", "good"])}


def fake_values(tokens: bytes, params: PoolingParams, info: PoolingInfo) -> np.ndarray:
    """float32: an embedding (of unit length unless `normalize` is false), or a number for each label."""
    size = info.embedding_size if params.task == "embed" else len(info.labels)
    seed = zlib.crc32(tokens + params.token_types)
    values = np.random.default_rng(seed).standard_normal(size)
    if params.task == "classify":
        return (1 / (1 + np.exp(-values)) if params.activation else values).astype(np.float32)
    values = values[: params.dimensions or size]
    if params.normalize is not False:
        values /= np.linalg.norm(values)
    return values.astype(np.float32)
