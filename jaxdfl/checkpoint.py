"""Saves and restores a state (any pytree of arrays, typed random keys among them), bit for bit, with Orbax.

Orbax is handed a flat dictionary from leaf name to array. So it meets none of our records, and an empty container
or an array without entries, neither of which it can store, needs no special case: they come from `like`.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array

Tree = Any


def save(path: str | os.PathLike[str], state: Tree) -> None:
    """Writes the state into the new folder `path`, which exists only once all of it is written. Waits for the disk.

    Raises:
        ValueError: `path` exists already.
    """
    path = Path(path).absolute()  # Orbax refuses relative paths
    if path.exists():
        raise ValueError(f"{path} exists already; save each checkpoint to its own folder.")
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.StandardSave(_arrays(state)))


def restore(path: str | os.PathLike[str], like: Tree) -> Tree:
    """The state saved at `path`, with the structure, key types and shardings of `like`, whose values are not used.

    Raises:
        ValueError: there is no checkpoint at `path`, or a leaf is missing, left over, or has another shape or dtype
            (the message names the first).
    """
    path = Path(path).absolute()
    expected = _arrays(like)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata if path.is_dir() else None
        if metadata is None:
            raise ValueError(f"{path} holds no checkpoint; name a folder that `jaxdfl.checkpoint.save` wrote.")
        saved = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in metadata.tree.items()}
        wanted = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in expected.items()}
        for name in [*wanted, *saved]:
            if saved.get(name) != wanted.get(name):
                raise ValueError(
                    f"{path}: leaf {name} is {saved.get(name, 'absent')} in the checkpoint, but this run needs it "
                    f"to be {wanted.get(name, 'absent')}; restore with the settings that it was saved with."
                )
        arrays = checkpointer.restore(path, args=ocp.args.StandardRestore(expected))
    return jax.tree_util.tree_map_with_path(lambda where, leaf: _as(leaf, arrays.get(_name(where), leaf)), like)


def _arrays(state: Tree) -> dict[str, Array]:
    """Leaf name -> array, without those that have no entries; a typed key as its raw words."""
    leaves = {_name(where): leaf for where, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in leaves.items() if leaf.size}


def _as(leaf: Array, array: Array) -> Array:
    """The array as a typed key where the leaf is one."""
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _name(where: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(where)
