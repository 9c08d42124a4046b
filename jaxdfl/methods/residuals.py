"""Dense residuals beside the factors: what methods merge into the frozen weights, by target path.

All are in units of B A, [clients, d_out, d_in]: the model applies its scale alpha / rank to them as to the factors.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdfl.protocol import PerBlock, State
from jaxdfl.trees import stack, wide

Residuals = dict[str, Float[Array, "clients d_out d_in"]]


def products(blocks: PerBlock) -> Residuals:
    """B_i A_i of every client and target, in float32 or wider."""
    return {path: jnp.matmul(wide(blocks.b[path]), wide(a), precision="highest") for path, a in blocks.a.items()}


def no_residuals(blocks: PerBlock) -> Residuals:
    """Zeros, shaped as the products."""
    return {path: jnp.zeros((*blocks.b[path].shape[:2], a.shape[-1]), wide(a).dtype) for path, a in blocks.a.items()}


def leading_residuals(state: State) -> PerBlock:
    """A `Method.merged` for mixers whose state is (residuals, ...): as factors of rank d_in, A the identity."""
    residuals: Residuals = state[0]
    identity = {path: stack(jnp.eye(r.shape[-1], dtype=r.dtype), len(r)) for path, r in residuals.items()}
    return PerBlock(a=identity, b=residuals, head={})
