"""Factorizations inside compiled programs: on CPUs one matrix at a time.

jaxlib deals a batch of matrices to the threads of its pool, and the thread that asked waits for them. Where as many
threads ask at a time as there are, none ever returns, and the program stands still (jaxlib 0.10.1; experiments/LOG.md,
2026-11-28). One matrix is factorized by the thread that asks for it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def svd(x: Float[Array, "*batch n m"]) -> tuple[Array, Array, Array]:
    """U, the singular values (largest first) and V^T; no more columns of U and rows of V^T than values."""
    return _each(lambda x: jnp.linalg.svd(x, full_matrices=False), x)


def qr(x: Float[Array, "*batch n m"]) -> tuple[Array, Array]:
    """Q and R, Q with no more columns than the matrix."""
    return _each(lambda x: tuple(jnp.linalg.qr(x)), x)


def solve(a: Float[Array, "*batch n n"], b: Float[Array, "*batch n m"]) -> Float[Array, "*batch n m"]:
    """x with a x = b."""
    return _each(jnp.linalg.solve, a, b)


def det(x: Float[Array, "*batch n n"]) -> Float[Array, "*batch"]:
    """The determinant."""
    return _each(jnp.linalg.det, x)


def orthogonal(key: Key[Array, ""], count: int, n: int) -> Float[Array, "count n n"]:
    """So many matrices, uniform over the rotations and reflections of n dimensions."""
    q, r = qr(jax.random.normal(key, (count, n, n)))
    return q * jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))[:, None]


def _each(function: Callable[..., Any], *matrices: Array) -> Any:
    """`function` of single matrices, over leading axes and under `vmap`."""
    if jax.default_backend() == "cpu":
        function = jax.custom_batching.sequential_vmap(function)
    for _ in range(matrices[0].ndim - 2):
        function = jax.vmap(function)
    return function(*matrices)
