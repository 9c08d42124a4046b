"""Optimizer moments that follow their factors through a change of gauge.

Moments belong to coordinates. Where mixing turns a client's factors, A <- R^T A and B <- B R, the gradients of the
next round come in turned coordinates (R^T G_A and G_B R), and moments that stayed behind would be of other ones.
Not from a paper.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, GetAttrKey, KeyPath
from jaxtyping import Array

from jaxdfl.mixing.aligned import rotation
from jaxdfl.protocol import PerBlock, State
from jaxdfl.trees import wide


def rotated(opt: PerBlock, old: PerBlock, new: PerBlock) -> PerBlock:
    """The optax states `opt`, stacked, turned for every client and target as its factors went from `old` to `new`.

    R minimises ||R^T A_old - A_new||^2 + ||B_old R - B_new||^2 over orthogonal R. First moments turn as the factors do;
    second moments by the squares of R's entries, which is exact where the gradients of different rows of A (columns of
    B) are uncorrelated, and keeps their sum in any case. The head's state, counts, and leaves under other names than
    optax's `mu`, `trace` and `nu` stay as they are.
    """
    turns = {
        path: rotation(_joined(old.a[path], old.b[path]), _joined(new.a[path], new.b[path])) for path in old.a
    }  # [clients, rank, rank]

    def turn(equation: str, state: State) -> State:
        def leaf(where: KeyPath, x: Array) -> Array:
            match where:
                case (*_, GetAttrKey(name="mu" | "trace"), DictKey(key=path)):
                    r = turns[path]
                case (*_, GetAttrKey(name="nu"), DictKey(key=path)):
                    r = jnp.square(turns[path])
                case _:
                    return x
            return jnp.einsum(equation, wide(x), r, precision="highest").astype(x.dtype)

        return jax.tree_util.tree_map_with_path(leaf, state)

    return opt._replace(a=turn("mrd,mrs->msd", opt.a), b=turn("mor,mrs->mos", opt.b))


def _joined(a: Array, b: Array) -> Array:
    """[A, B^T] side by side, [clients, rank, d_in + d_out], so that one rotation serves both."""
    return jnp.concatenate([a, jnp.swapaxes(b, -1, -2)], axis=-1)
