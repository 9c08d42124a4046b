"""The layers of a transformer encoder, in plain Flax, and the LoRA adapter that any linear layer may carry.

Every module computes in the dtype of its input. Statistics of a LayerNorm and the softmax are float32 at least.
Constructors only lay out shapes (zeros and ones); `jaxdfl.models.pretrained` fills in the values.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdfl.models.short_attention import serves, short_attention
from jaxdfl.trees import at_least_float32, wide


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x P(X < x) of a standard normal X, in float32 at least."""
    return jax.nn.gelu(x, approximate=False) if wide(x).dtype == x.dtype else _narrow_gelu(x)


@jax.custom_vjp
def _narrow_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Of bfloat16, which only accelerators compute in: there an activation waits for memory, and then for operations.

    So x alone is kept for the gradient; what autodiff keeps beside it is as large again. On CPUs it is the other way.
    """
    tail, _ = _normal(wide(x))
    return (jnp.maximum(wide(x), 0) - abs(wide(x)) * tail).astype(x.dtype)


def _kept_for_gelu(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    return _narrow_gelu(x), x


def _gelu_back(x: Float[Array, "..."], above: Float[Array, "..."]) -> tuple[Float[Array, "..."]]:
    x, above = jax.lax.optimization_barrier((x, above))  # else XLA computes `_normal` once, and keeps it in float32
    tail, density = _normal(wide(x))
    below = jnp.where(x < 0, tail, 1 - tail)
    return ((wide(above) * (below + wide(x) * density)).astype(x.dtype),)


def _normal(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """P(X > |x|) of a standard normal X, and its density at x, to 3e-7 (Abramowitz and Stegun, 1964, 26.2.17).

    With one exponential for both: XLA's erf takes longer than the bytes.
    """
    density, t = jnp.exp(-0.5 * (x * x)) * (2 * jnp.pi) ** -0.5, 1 / (1 + 0.2316419 * abs(x))
    series = ((((1.330274429 * t - 1.821255978) * t + 1.781477937) * t - 0.356563782) * t + 0.319381530) * t
    return series * density, density


_narrow_gelu.defvjp(_kept_for_gelu, _gelu_back)

ACTIVATIONS = {  # by their names in a Hugging Face config
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class LoraA(nnx.Variable):
    """Factor A, [rank, d_in], float32 at least."""


class LoraB(nnx.Variable):
    """Factor B, [d_out, rank], float32 at least."""


class Adapter(nnx.Module):
    """The low-rank term of one linear layer: a second thin path beside the kernel, as in PEFT.

    Merging it into the kernel first is slower (by 4 to 33 % at 64 to 2,048 tokens, see experiments/LOG.md), and costs a
    kernel for each client.
    """

    def __init__(
        self,
        a: Float[Array, "rank d_in"],
        b: Float[Array, "d_out rank"],
        *,
        scale: float,
        dropout: float,
        salt: int,
    ):
        self.a, self.b = LoraA(a), LoraB(b)
        self.scale = scale  # alpha / rank of the first factors; kept when factors of another rank take their place
        self.dropout = dropout
        self.salt = salt  # gives each adapter its own stream from the one key that the whole model is handed

    def __call__(self, x: Float[Array, "... d_in"], key: Key[Array, ""] | None = None) -> Float[Array, "... d_out"]:
        """scale * dropout(x) A^T B^T; without a key nothing is dropped."""
        if key is not None and self.dropout > 0:
            kept = jax.random.bernoulli(jax.random.fold_in(key, self.salt), jnp.float32(1 - self.dropout), x.shape)
            x = jnp.where(kept, x / (1 - self.dropout), 0)
        return self.scale * (x @ self.a[...].astype(x.dtype).T) @ self.b[...].astype(x.dtype).T


class Linear(nnx.Module):
    """y = x kernel + bias, with kernel [d_in, d_out], plus an adapter's term where there is one."""

    def __init__(self, d_in: int, d_out: int, dtype: DTypeLike):
        self.kernel = nnx.Param(jnp.zeros((d_in, d_out), dtype))
        self.bias = nnx.Param(jnp.zeros(d_out, dtype))
        self.adapter: Adapter | None = nnx.data(None)

    def __call__(self, x: Float[Array, "... d_in"], key: Key[Array, ""] | None = None) -> Float[Array, "... d_out"]:
        y = x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)
        return y if self.adapter is None else y + self.adapter(x, key)


class LayerNorm(nnx.Module):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts."""

    def __init__(self, width: int, epsilon: float, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        centred = wide(x) - wide(x).mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """A table of vectors, [entries, width], read by index."""

    def __init__(self, entries: int, width: int, dtype: DTypeLike):
        self.table = nnx.Param(jnp.zeros((entries, width), dtype))

    def __call__(self, index: Int[Array, "..."]) -> Float[Array, "... width"]:
        return self.table[...][index]


class Sight(NamedTuple):
    """What each query may look at."""

    mask: Bool[Array, "batch #queries length"]
    sentence: Int[Array, "batch length"] | None = None  # where that is the query's own sentence, and all are queries


def attention(
    q: Float[Array, "batch queries heads width"],
    k: Float[Array, "batch length heads width"],
    v: Float[Array, "batch length heads width"],
    mask: Bool[Array, "batch #queries length"],
) -> Float[Array, "batch queries heads width"]:
    """softmax(q k^T / sqrt(width)) v over the places that the mask lets a query look at."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=at_least_float32(q.dtype))
    scores *= q.shape[-1] ** -0.5
    scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores).astype(v.dtype), v)


class Attention(nnx.Module):
    """Multi-head attention of some positions (the queries) over all positions of their row."""

    def __init__(self, width: int, heads: int, dtype: DTypeLike):
        self.heads = heads
        self.query = Linear(width, width, dtype)
        self.key = Linear(width, width, dtype)
        self.value = Linear(width, width, dtype)
        self.output = Linear(width, width, dtype)

    def __call__(
        self,
        queries: Float[Array, "batch queries width"],
        hidden: Float[Array, "batch length width"],
        sight: Sight,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch queries width"]:
        """A query that may look nowhere has finite, meaningless output."""
        q, k, v = (
            layer(x, key).reshape(*x.shape[:2], self.heads, -1)  # [batch, positions, heads, width per head]
            for layer, x in ((self.query, queries), (self.key, hidden), (self.value, hidden))
        )
        if sight.sentence is not None and serves(q, k):
            attended = short_attention(q, k, v, sight.sentence)
        else:
            attended = attention(q, k, v, sight.mask)
        return self.output(attended.reshape(queries.shape), key)


class FeedForward(nnx.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, intermediate: int, activation: str, dtype: DTypeLike):
        self.intermediate = Linear(width, intermediate, dtype)
        self.output = Linear(intermediate, width, dtype)
        self.activation = activation

    def __call__(self, x: Float[Array, "... width"], key: Key[Array, ""] | None = None) -> Float[Array, "... width"]:
        return self.output(ACTIVATIONS[self.activation](self.intermediate(x, key)), key)
