"""How far two samples of features are apart, how unsure logits are, and a gradient that plays against itself.

MMD: Gretton, Borgwardt, Rasch, Schoelkopf, Smola, "A Kernel Two-Sample Test", 2012. Gradient reversal: Ganin,
Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", 2014, arXiv 1409.7495.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Kernel = Callable[[Float[Array, "points width"]], Float[Array, "points points"]]  # of all pairs of a pooled sample


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gradient_reversal(x: Float[Array, "..."], strength: float) -> Float[Array, "..."]:
    """x itself; its gradient comes back times -strength."""
    return x


gradient_reversal.defvjp(lambda x, strength: (x, None), lambda strength, _, gradient: (-strength * gradient,))


def entropy(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch"]:
    """-sum_c p_c log p_c of the softmax, in nats: 0 (sure) to log(classes)."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def linear(points: Float[Array, "points width"]) -> Float[Array, "points points"]:
    """k(x, y) = <x, y>; its MMD^2 is the squared distance between the means."""
    return points @ points.T


def rbf(points: Float[Array, "points width"]) -> Float[Array, "points points"]:
    """k(x, y) = exp(-||x - y||^2 / s), with s the mean of ||x - y||^2 over all pairs, taken as a constant."""
    products = points @ points.T
    size = jnp.diag(products)
    distances = jnp.maximum(size[:, None] + size - 2 * products, 0)
    scale = jax.lax.stop_gradient(distances.mean())
    return jnp.exp(-distances / jnp.where(scale > 0, scale, 1))


def mmd(
    x: Float[Array, "n width"],
    y: Float[Array, "m width"],
    kernels: Sequence[Kernel] = (rbf, linear),
    *,
    of_x: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Squared maximum mean discrepancy of two samples, over the sum of the kernels (biased: pairs with oneself count).

    ||mean phi(x) - mean phi(y)||^2 in the kernels' feature space, so never negative but for rounding. `of_x` weighs the
    points of x (a mask, say); 0 where they all weigh nothing. Points of no weight still count for the width of `rbf`.
    """
    of_x = jnp.ones(len(x)) if of_x is None else of_x
    total = of_x.sum()
    signs = jnp.concatenate([of_x / jnp.where(total > 0, total, 1), -jnp.ones(len(y)) / len(y)])
    pooled = jnp.concatenate([x, y])
    pooled = pooled - pooled.mean(0)  # distances do not change, nor does the linear MMD, and less cancels
    value = sum((signs @ kernel(pooled) @ signs for kernel in kernels), jnp.float32(0))
    return jnp.where(total > 0, value, 0)
