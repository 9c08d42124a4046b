"""cuDNN's attention is the plain one: values, gradients, many clients at once. Only where there is such a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.data.examples import Examples
from jaxdfl.data.packing import Room
from jaxdfl.models import EncoderConfig, adapt, cross_entropy, layers, random_model
from jaxdfl.models.layers import attention, fused_attention, has_fused_attention
from jaxdfl.models.packed import packed_cross_entropy
from jaxdfl.simulate.operations import matrix_products
from jaxdfl.trees import stack

CLIENTS, ROWS, LENGTH, HEADS, WIDTH = 3, 4, 32, 2, 16


def drawn(seed, dtype):
    return jax.random.normal(jax.random.key(seed), (CLIENTS, ROWS, LENGTH, HEADS, WIDTH), dtype)


needs_gpu = pytest.mark.skipif(
    not has_fused_attention(x := drawn(0, jnp.bfloat16)[0], x),
    reason="cuDNN's attention wants an NVIDIA GPU, Ampere or later",
)


def test_float32_and_processors_have_the_plain_one():
    assert not has_fused_attention(x := drawn(0, jnp.float32)[0], x)
    if jax.default_backend() == "cpu":
        assert not has_fused_attention(x := drawn(0, jnp.bfloat16)[0], x)


@needs_gpu
def test_values_and_gradients_are_those_of_the_plain_one_in_float32():
    q, k, v, above = (drawn(seed, jnp.bfloat16) for seed in range(4))
    sentence = jnp.repeat(jnp.array([0, 1, 2, -1]), 8)
    mask = jnp.broadcast_to(((sentence[:, None] == sentence) & (sentence >= 0))[None, None], (CLIENTS, ROWS, 32, 32))
    real = (sentence >= 0)[None, None, :, None, None]

    def of(attend, q, k, v):
        return jnp.sum(jnp.where(real, (jax.vmap(attend)(q, k, v, mask) * above).astype(jnp.float32), 0))

    for argument in range(3):
        found = jax.grad(of, argument + 1)(fused_attention, q, k, v)
        wide = [x.astype(jnp.float32) for x in (q, k, v)]
        expected = jax.grad(of, argument + 1)(attention, *wide)
        assert np.linalg.norm(found - expected) < 2e-2 * np.linalg.norm(expected)


@needs_gpu
@pytest.mark.parametrize("packed", [False, True])
def test_a_model_has_the_same_gradients_with_either(packed, monkeypatch):
    config = EncoderConfig("bert", vocabulary=50, positions=64, types=2, width=64, layers=3, heads=4, intermediate=128)
    classifier = adapt(random_model(config, 3, jax.random.key(0), jnp.bfloat16), jax.random.key(1), rank=4)
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 50, (CLIENTS, 8, 32)).astype(np.int32)
    lengths = draw.integers(4, 33, (CLIENTS, 8)).astype(np.int32)
    batch = Examples(ids, np.zeros(ids.shape, np.int8), lengths, draw.integers(0, 3, (CLIENTS, 8)).astype(np.int32))
    loss = packed_cross_entropy(classifier.logits, Room(32, 2, 6)) if packed else cross_entropy(classifier)
    b = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(2), x.shape), classifier.blocks.b)
    blocks = stack(classifier.blocks._replace(b=b), CLIENTS)

    def gradients():
        each = jax.grad(loss, argnums=1)
        found = jax.jit(jax.vmap(each, in_axes=(None, 0, 0)))(classifier.frozen, blocks, jax.device_put(batch))
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])

    fused = gradients()
    monkeypatch.setattr(layers, "has_fused_attention", lambda q, k: False)
    plain = gradients()
    assert np.linalg.norm(fused - plain) < 3e-2 * np.linalg.norm(plain)


@needs_gpu
def test_operations_are_counted_alike():
    q, k, v = (drawn(seed, jnp.bfloat16)[0] for seed in range(3))
    mask = jnp.ones((ROWS, LENGTH, LENGTH), bool)

    def count(attend):
        return matrix_products(jax.make_jaxpr(jax.grad(lambda *x: attend(*x, mask).sum(), (0, 1, 2)))(q, k, v))

    assert count(fused_attention) == count(attention) > 0
