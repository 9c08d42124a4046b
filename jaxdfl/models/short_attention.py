"""Attention of whole rows in one GPU kernel: rows are short here, and their scores fit on the chip.

Flash attention is made for long sequences: it walks over blocks of them, and keeps or recomputes what ties the blocks
together. A row of packed sentences is one block. So the forward kernel reads q, k, v and writes the output, and the
backward kernel, which computes the scores anew, reads the same and the gradient, and writes three. No scores and no
masks pass through memory, which is what attention would cost on a GPU: of each query's weights, the logarithm of their
sum alone, so that the way back needs no maximum and no division.
"""

from functools import partial
from math import log
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

FAR = -1e30  # in the place of a score that must not count; finite, as all weights then are
LOG2_E = 1 / log(2)  # a GPU raises 2, not e
LONGEST = 128  # positions whose scores, float32, fit into the registers of one block of threads
WARPS = 8


def short_attention(
    q: Float[Array, "rows length heads width"],
    k: Float[Array, "rows length heads width"],
    v: Float[Array, "rows length heads width"],
    sentence: Int[Array, "rows length"],
    *,
    interpret: bool = False,
) -> Float[Array, "rows length heads width"]:
    """softmax(q k^T / sqrt(width)) v, where each position sees its own sentence alone (padding, -1, sees padding).

    Products take q's dtype and add in float32, as everything else. `length` and `width` are powers of two, 16 at least,
    and `length` is at most `LONGEST`. `interpret` runs without a GPU, slowly.
    """
    return _attend(q, k, v, sentence, interpret)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, sentence: Array, interpret: bool) -> Array:
    return _keep(q, k, v, sentence, interpret)[0]


def _keep(q: Array, k: Array, v: Array, sentence: Array, interpret: bool) -> tuple[Array, tuple[Array, ...]]:
    rows, length, heads, _ = q.shape
    sums = jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)
    out, sums = _over_heads(_forward, (q, sums), interpret)(q, k, v, sentence)
    return out, (q, k, v, sentence, sums)


def _back(interpret: bool, kept: tuple[Array, ...], above: Array) -> tuple[Array | None, ...]:
    q, k, v, sentence, sums = kept
    return *_over_heads(_backward, (q, k, v), interpret)(q, k, v, sentence, sums, above), None


_attend.defvjp(_keep, _back)


def serves(q: Float[Array, "rows queries heads width"], k: Float[Array, "rows length heads width"]) -> bool:
    """Whether the kernels take queries and keys of these shapes, and there is a GPU for them."""
    fits = all(size >= 16 and size & (size - 1) == 0 for size in (q.shape[1], q.shape[3])) and q.shape[1] <= LONGEST
    return fits and q.shape == k.shape and q.dtype == jnp.bfloat16 and _there_is_a_gpu()


def _there_is_a_gpu() -> bool:
    """NVIDIA's, Ampere or later (other makers' generations are no such number), and a JAX that compiles for Triton.

    JAX means to drop that (deprecated since 0.11); where it has, attention is XLA's.
    """
    major, _, minor = str(getattr(jax.devices()[0], "compute_capability", "")).partition(".")
    if not (major.isdigit() and minor.isdigit() and int(major) >= 8):
        return False
    try:
        from jax.experimental.pallas import triton  # noqa: F401
    except ImportError:
        return False
    return True


def _over_heads(kernel: Any, outputs: tuple[Any, ...], interpret: bool) -> Any:
    """The kernel for each row and head of arrays [rows, length, heads, width], [rows, heads, length], [rows, length].

    `outputs` have the shapes and dtypes of its outputs.
    """
    from jax.experimental import pallas as pl  # a fifth of a second, for a GPU alone
    from jax.experimental.pallas import triton

    def call(q: Array, *others: Array) -> tuple[Array, ...]:
        rows, length, heads, width = q.shape
        blocks = {
            4: pl.BlockSpec((None, length, None, width), lambda head, row: (row, 0, head, 0)),
            3: pl.BlockSpec((None, None, length), lambda head, row: (row, head, 0)),
            2: pl.BlockSpec((None, length), lambda head, row: (row, 0)),
        }
        return pl.pallas_call(
            partial(kernel, scale=width**-0.5),
            grid=(heads, rows),
            in_specs=[blocks[x.ndim] for x in (q, *others)],
            out_specs=tuple(blocks[x.ndim] for x in outputs),
            out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs),
            compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
            interpret=interpret,
            name=kernel.__name__.strip("_"),
        )(q, *others)

    return call


def _forward(q: Any, k: Any, v: Any, sentence: Any, out: Any, sums: Any, *, scale: float) -> None:
    scores = jnp.where(_seen(sentence), _product(q[...], k[...].T), FAR)
    top = scores.max(1)
    raised = jnp.exp2((scores - top[:, None]) * (scale * LOG2_E))
    total = raised.sum(1)
    out[...] = (_product(raised.astype(v.dtype), v[...]) * (1 / total)[:, None]).astype(out.dtype)
    sums[...] = top * (scale * LOG2_E) + jnp.log2(total)


def _backward(
    q: Any, k: Any, v: Any, sentence: Any, sums: Any, above: Any, to_q: Any, to_k: Any, to_v: Any, *, scale: float
) -> None:
    raised = jnp.exp2(_product(q[...], k[...].T) * (scale * LOG2_E) - sums[...][:, None])
    weights = jnp.where(_seen(sentence), raised, 0)
    to_v[...] = _product(weights.astype(v.dtype).T, above[...]).astype(to_v.dtype)
    through = _product(above[...], v[...].T)
    mean = (weights * through).sum(1, keepdims=True)
    scores = (weights * (through - mean)).astype(q.dtype)
    to_q[...] = (_product(scores, k[...]) * scale).astype(to_q.dtype)
    to_k[...] = (_product(scores.T, q[...]) * scale).astype(to_k.dtype)


def _seen(sentence: Any) -> Array:
    return sentence[...][:, None] == sentence[...][None, :]


def _product(x: Array, y: Array) -> Array:
    return jax.lax.dot(x, y, preferred_element_type=jnp.float32)
