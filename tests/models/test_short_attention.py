"""Attention of short rows in one kernel is attention: values and gradients, of many clients at once.

Interpreted on any machine, in float32; compiled, in bfloat16, where there is a GPU for it.
"""

import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.data.examples import Examples
from jaxdfl.data.packing import Room
from jaxdfl.models import EncoderConfig, adapt, cross_entropy, layers, random_model
from jaxdfl.models.layers import attention, gelu
from jaxdfl.models.packed import packed_cross_entropy
from jaxdfl.models.short_attention import serves, short_attention
from jaxdfl.simulate.operations import matrix_products
from jaxdfl.trees import stack

CLIENTS, ROWS, LENGTH, HEADS, WIDTH = 3, 2, 32, 2, 16
SENTENCE = jnp.broadcast_to(jnp.repeat(jnp.array([0, 1, 2, -1]), 8), (CLIENTS, ROWS, LENGTH))
MASK = SENTENCE[..., :, None] == SENTENCE[..., None, :]


def drawn(dtype=jnp.float32):
    """q, k, v and a gradient from above."""
    shape = (CLIENTS, ROWS, LENGTH, HEADS, WIDTH)
    return [jax.random.normal(jax.random.key(seed), shape, dtype) for seed in range(4)]


needs_gpu = pytest.mark.skipif(
    not serves(drawn(jnp.bfloat16)[0][0], drawn(jnp.bfloat16)[0][0]), reason="needs an NVIDIA GPU, Ampere or later"
)


def gradients(attend, second, q, k, v, above):
    """Of q, k and v; `second` is what the attention takes beside them."""

    def total(*given):
        return jnp.sum(jax.vmap(attend)(*given, second) * above, dtype=jnp.float32)

    return jax.grad(total, (0, 1, 2))(q, k, v)


def test_values_and_gradients_are_those_of_attention():
    q, k, v, above = drawn()
    short = partial(short_attention, interpret=True)
    np.testing.assert_allclose(jax.vmap(short)(q, k, v, SENTENCE), jax.vmap(attention)(q, k, v, MASK), atol=2e-6)
    found, expected = gradients(short, SENTENCE, q, k, v, above), gradients(attention, MASK, q, k, v, above)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=4e-6)


def test_a_sentence_is_deaf_to_the_others_of_its_row():
    q, k, v, _ = (x[0] for x in drawn())
    other = jnp.where((SENTENCE[0] == 1)[..., None, None], 3 * k, k)
    before, after = (short_attention(q, each, v, SENTENCE[0], interpret=True) for each in (k, other))
    changed = jnp.any(before != after, axis=(2, 3))
    np.testing.assert_array_equal(changed, SENTENCE[0] == 1)
    assert np.isfinite(after).all()


def test_what_cannot_be_one_block_is_left_to_plain_attention():
    def shapes(length, width, dtype):
        return jnp.zeros((1, length, 2, width), dtype)

    assert not serves(shapes(32, 16, jnp.float32), shapes(32, 16, jnp.float32))
    assert not serves(shapes(48, 16, jnp.bfloat16), shapes(48, 16, jnp.bfloat16))
    assert not serves(shapes(256, 16, jnp.bfloat16), shapes(256, 16, jnp.bfloat16))
    assert not serves(shapes(16, 16, jnp.bfloat16), shapes(32, 16, jnp.bfloat16))
    if jax.default_backend() == "cpu":
        assert not serves(shapes(32, 16, jnp.bfloat16), shapes(32, 16, jnp.bfloat16))


@pytest.mark.parametrize(("capability", "kernels"), [("9.0", True), ("7.5", False), ("gfx90a", False)])
def test_they_serve_where_the_gpu_and_jax_are_up_to_it(capability, kernels, monkeypatch):
    q, *_ = (x[0] for x in drawn(jnp.bfloat16))
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability=capability)])
    assert serves(q, q) == kernels
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)  # as a JAX without it
    monkeypatch.delattr("jax.experimental.pallas.triton", raising=False)
    assert not serves(q, q)


def test_products_are_counted_for_every_row_and_head():
    q, k, v, above = drawn()
    short = jax.make_jaxpr(partial(gradients, partial(short_attention, interpret=True), SENTENCE))(q, k, v, above)
    plain = jax.make_jaxpr(partial(gradients, attention, MASK))(q, k, v, above)
    assert matrix_products(plain) == 6 * (one := 2 * CLIENTS * ROWS * HEADS * LENGTH**2 * WIDTH)
    assert matrix_products(short) == 7 * one  # the scores a second time


@needs_gpu
def test_compiled_in_bfloat16():
    given = drawn(jnp.bfloat16)
    found = gradients(short_attention, SENTENCE, *given)
    expected = gradients(attention, MASK, *(x.astype(jnp.float32) for x in given))
    for one, other in zip(found, expected, strict=True):
        assert np.linalg.norm(one - other) < 2e-2 * np.linalg.norm(other)


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

    def of_clients():
        each = jax.vmap(jax.grad(loss, argnums=1), in_axes=(None, 0, 0))
        found = jax.jit(each)(classifier.frozen, blocks, jax.device_put(batch))
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])

    short = of_clients()
    monkeypatch.setattr(layers, "serves", lambda q, k: False)
    plain = of_clients()
    assert np.linalg.norm(short - plain) < 3e-2 * np.linalg.norm(plain)


def test_gelu_and_its_slope_are_those_of_jax():
    x = jnp.linspace(-9, 9, 2001)
    slope = jax.grad(lambda x: jax.nn.gelu(x, approximate=False).sum())
    narrow = x.astype(jnp.bfloat16)
    for given, tolerance in ((x, 1e-6), (narrow, 2**-8)):
        exact = given.astype(jnp.float32)
        found = jax.grad(lambda x: gelu(x).sum(dtype=jnp.float32))(given)
        assert found.dtype == gelu(given).dtype == given.dtype
        np.testing.assert_allclose(gelu(given), jax.nn.gelu(exact, approximate=False), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(found, slope(exact), rtol=tolerance, atol=tolerance)


def test_gelu_keeps_its_input_alone():
    rows, width, wide = 512, 64, 256

    def memory(layers):
        def loss(x, weights):
            for up, down in weights:
                x = x + gelu(x @ up) @ down
            return x.sum(dtype=jnp.float32)

        x, up, down = (
            jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((rows, width), (width, wide), (wide, width))
        )
        return jax.jit(jax.grad(loss)).lower(x, [(up, down)] * layers).compile().memory_analysis().temp_size_in_bytes

    of_a_layer = (memory(8) - memory(4)) / 4 / (rows * wide * 2)  # in units of its input, bfloat16
    assert of_a_layer < 3.5  # 2.5 on CPUs, where products are float32; 6.5 with what XLA would keep
