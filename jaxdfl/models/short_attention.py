"""Attention of whole rows in one GPU kernel: rows are short here, and their scores fit on the chip.

Flash attention is made for long sequences: it walks over blocks of them, and keeps or recomputes what ties the blocks
together. A row of packed sentences is one block. So the forward kernel reads q, k, v and writes the output, and the
backward kernel, which computes the scores anew, reads the same and the gradient, and writes three. No scores, no masks
and no sums in float32 pass through memory, which is what attention would cost on a GPU.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

FAR = -1e30  # in the place of a score that must not count; finite, as all weights then are
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
    return _over_heads(_forward, 1, interpret)(q, k, v, sentence)[0]


def _keep(q: Array, k: Array, v: Array, sentence: Array, interpret: bool) -> tuple[Array, tuple[Array, ...]]:
    return _attend(q, k, v, sentence, interpret), (q, k, v, sentence)


def _back(interpret: bool, kept: tuple[Array, ...], above: Array) -> tuple[Array | None, ...]:
    q, k, v, sentence = kept
    return *_over_heads(_backward, 3, interpret)(q, k, v, sentence, above), None


_attend.defvjp(_keep, _back)


def serves(q: Float[Array, "rows queries heads width"], k: Float[Array, "rows length heads width"]) -> bool:
    """Whether the kernels take queries and keys of these shapes, and there is a GPU for them."""
    fits = all(size >= 16 and size & (size - 1) == 0 for size in (q.shape[1], q.shape[3])) and q.shape[1] <= LONGEST
    return fits and q.shape == k.shape and q.dtype == jnp.bfloat16 and _ampere_or_later()


@cache
def _ampere_or_later() -> bool:
    """Of NVIDIA's; other makers' generations are no such number."""
    major, _, minor = str(getattr(jax.devices()[0], "compute_capability", "")).partition(".")
    return major.isdigit() and minor.isdigit() and int(major) >= 8


def _over_heads(kernel: Any, outputs: int, interpret: bool) -> Any:
    """The kernel for each row and head of arrays [rows, length, heads, width]; the fourth is [rows, length]."""
    from jax.experimental import pallas as pl  # a fifth of a second, for a GPU alone
    from jax.experimental.pallas import triton

    def call(q: Array, *others: Array) -> tuple[Array, ...]:
        rows, length, heads, width = q.shape
        of_head = pl.BlockSpec((None, length, None, width), lambda head, row: (row, 0, head, 0))
        of_row = pl.BlockSpec((None, length), lambda head, row: (row, 0))
        return pl.pallas_call(
            partial(kernel, scale=width**-0.5),
            grid=(heads, rows),
            in_specs=[of_row if x.ndim == 2 else of_head for x in (q, *others)],
            out_specs=(of_head,) * outputs,
            out_shape=(jax.ShapeDtypeStruct(q.shape, q.dtype),) * outputs,
            compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
            interpret=interpret,
            name=kernel.__name__.strip("_"),
        )(q, *others)

    return call


def _forward(q: Any, k: Any, v: Any, sentence: Any, out: Any, *, scale: float) -> None:
    weights = _weights(q[...], k[...], sentence[...], scale)
    out[...] = _product(weights.astype(v.dtype), v[...]).astype(out.dtype)


def _backward(
    q: Any, k: Any, v: Any, sentence: Any, above: Any, to_q: Any, to_k: Any, to_v: Any, *, scale: float
) -> None:
    weights = _weights(q[...], k[...], sentence[...], scale)
    to_v[...] = _product(weights.astype(v.dtype).T, above[...]).astype(to_v.dtype)
    through = weights * _product(above[...], v[...].T)
    scores = ((through - weights * through.sum(1, keepdims=True)) * scale).astype(q.dtype)
    to_q[...] = _product(scores, k[...]).astype(to_q.dtype)
    to_k[...] = _product(scores.T, q[...]).astype(to_k.dtype)


def _weights(q: Array, k: Array, sentence: Array, scale: float) -> Array:
    scores = jnp.where(sentence[:, None] == sentence[None, :], _product(q, k.T) * scale, FAR)
    raised = jnp.exp(scores - scores.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def _product(x: Array, y: Array) -> Array:
    return jax.lax.dot(x, y, preferred_element_type=jnp.float32)
