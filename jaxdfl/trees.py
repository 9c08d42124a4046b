"""Small operations on stacked pytrees, whose leaves all lead with the clients axis."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

Tree = Any


def keep(mask: Bool[Array, ""] | bool, new: Tree, old: Tree) -> Tree:
    """`new` where the mask holds, else `old`, bit for bit (not a blend). The mask is one boolean for the whole tree."""
    return jax.tree.map(lambda n, o: jnp.where(mask, n, o), new, old)


def client_mean(tree: Tree) -> Tree:
    """Mean over the leading clients axis, which is dropped."""
    return jax.tree.map(lambda x: x.mean(0), tree)


def stack(tree: Tree, clients: int) -> Tree:
    """The same tree for every client: each leaf gains a leading axis of length `clients`."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (clients, *jnp.shape(x))), tree)


def is_key(x: Array) -> bool:
    """Whether it is a typed random key, which neither files nor other processes take as it is."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def on_words(function: Callable[[Array], Tree], x: Array) -> Tree:
    """`function(x)`; of a typed key, `function` of its raw words, every leaf of which is a key again."""
    if not is_key(x):
        return function(x)
    implementation = jax.random.key_impl(x)
    return jax.tree.map(
        lambda words: jax.random.wrap_key_data(words, impl=implementation), function(jax.random.key_data(x))
    )


def as_data(function: Callable) -> Partial:
    """The function as an argument of compiled code: arrays bound by a `Partial` are data, any other one is its code."""
    return function if isinstance(function, Partial) else Partial(function)


def wide(x: Array) -> Array:
    """At least float32: half precision is widened, float64 kept."""
    return x.astype(at_least_float32(x.dtype))


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """float32 for half precision, the dtype itself for float32 and float64."""
    return jnp.promote_types(dtype, jnp.float32)


def along(values: Array, x: Array) -> Array:
    """`values`, whose axes are x's first ([clients], say), with axes of length one behind, to broadcast against x."""
    return values.reshape(*values.shape, *(1,) * (x.ndim - values.ndim))


def squared_norm(tree: Tree) -> Float[Array, ""]:
    """Sum of squares of all entries, in float32 at least; 0 for an empty tree."""
    return sum((jnp.sum(jnp.square(wide(x))) for x in jax.tree.leaves(tree)), jnp.float32(0))


def centred(x: Float[Array, "clients *shape"]) -> Float[Array, "clients *shape"]:
    """x_i - (1/m) sum_j x_j in float32 or wider: exactly 0 where all clients are equal, sharp where they nearly are.

    Distances are taken from client 0 first, since the mean of equal numbers need not round to that number.
    """
    offsets = wide(x) - wide(x[0])
    return offsets - offsets.mean(0)


def squared_distances(tree: Tree) -> Float[Array, " clients"] | Float[Array, ""]:
    """Each client's squared distance from the clients' mean, over all leaves; 0 for an empty tree."""
    return sum(
        (jnp.sum(jnp.square(centred(x)), axis=range(1, x.ndim)) for x in jax.tree.leaves(tree)),
        jnp.float32(0),
    )


def bytes_per_client(tree: Tree) -> int:
    """Bytes that one client sends when it sends its slice of every leaf once."""
    return sum(x[0].size * x.dtype.itemsize for x in jax.tree.leaves(tree))
