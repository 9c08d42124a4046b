"""Saves and restores a state (any pytree of arrays, typed random keys among them), bit for bit, with Orbax.

Orbax is handed a flat dictionary from leaf name to array. So it meets none of our records, and an empty container
or an array without entries, neither of which it can store, needs no special case: they come from `like`.

    round-000050/
      state/         what Orbax writes
      sha256.json    of every file in it; a checkpoint that does not match is never restored
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from jaxdfl.models.sources import sha256
from jaxdfl.trees import is_key, on_words

Tree = Any
STATE, SEAL = "state", "sha256.json"
ROUND = re.compile(r"round-(\d+)")


class Damaged(ValueError):
    """The files of a checkpoint are not those that were written."""


def save(path: str | os.PathLike[str], state: Tree) -> None:
    """Writes the state into the new folder `path`, which exists only once all of it is on the disk.

    Raises:
        ValueError: `path` exists already.
        OSError: it cannot be written; nothing is left at `path`, and no other checkpoint is touched.
    """
    path = Path(path).absolute()  # Orbax refuses relative paths
    if path.exists():
        raise ValueError(f"{path} exists already; save each checkpoint to its own folder.")
    unfinished = path.with_name(path.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(unfinished / STATE, args=ocp.args.StandardSave(_arrays(state)))
        (unfinished / SEAL).write_text(json.dumps(_hashes(unfinished / STATE), indent=1), encoding="utf-8")
        _flush(unfinished)
        unfinished.rename(path)
    except (OSError, ValueError, RuntimeError) as error:  # TensorStore tells of a full disk by the latter two
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{path} cannot be saved: {error}") from error


def restore(path: str | os.PathLike[str], like: Tree) -> Tree:
    """The state saved at `path`, with the structure, key types and shardings of `like`, whose values are not used.

    Raises:
        Damaged: files are missing, left over, or have changed since.
        ValueError: there is no checkpoint at `path`, or a leaf is missing, left over, or has another shape or dtype
            (the message names the first).
    """
    path = Path(path).absolute()
    verify(path)
    expected = _arrays(like)
    with _checkpointer() as checkpointer:
        metadata = checkpointer.metadata(path / STATE).item_metadata
        assert metadata is not None  # verified
        saved = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in metadata.tree.items()}
        wanted = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in expected.items()}
        for name in [*wanted, *saved]:
            if saved.get(name) != wanted.get(name):
                raise ValueError(
                    f"{path}: leaf {name} is {saved.get(name, 'absent')} in the checkpoint, but this run needs it "
                    f"to be {wanted.get(name, 'absent')}; restore with the settings that it was saved with."
                )
        arrays = checkpointer.restore(path / STATE, args=ocp.args.StandardRestore(expected))
    return jax.tree_util.tree_map_with_path(lambda where, leaf: _as(leaf, arrays.get(_name(where), leaf)), like)


def verify(path: str | os.PathLike[str]) -> None:
    """Reads every byte of a checkpoint.

    Raises:
        Damaged: files are missing, left over, or have changed since.
        ValueError: there is no checkpoint at `path`.
    """
    path = Path(path)
    if not (path / STATE).is_dir():
        raise ValueError(f"{path} holds no checkpoint; name a folder that `jaxdfl.checkpoint.save` wrote.")
    try:
        written = json.loads((path / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Damaged(f"{path} is damaged: {SEAL} is missing or broken.") from None
    found = _hashes(path / STATE)
    if written != found:
        names = sorted({*found, *written} if isinstance(written, dict) else found)
        changed = next(
            (name for name in names if not isinstance(written, dict) or written.get(name) != found.get(name)), SEAL
        )
        raise Damaged(f"{path} is damaged: {changed} is not what was written.")


def round_folder(run: Path, round: int) -> Path:
    """Where a run's state after `round` rounds belongs."""
    return run / f"round-{round:06d}"


def rounds_saved(run: Path) -> list[int]:
    """The rounds that a run's folder holds a checkpoint of, in order; whether they are whole is not looked at."""
    names = (each.name for each in run.iterdir()) if run.is_dir() else ()
    return sorted(int(found[1]) for found in map(ROUND.fullmatch, names) if found)


def keep_last(run: Path, count: int) -> None:
    """Removes all but the last `count` checkpoints of a run."""
    for round in rounds_saved(run)[:-count]:
        shutil.rmtree(round_folder(run, round), ignore_errors=True)


def drop_after(run: Path, round: int) -> None:
    """Removes the checkpoints of later rounds, and what was left half written."""
    for later in rounds_saved(run):
        if later > round:
            shutil.rmtree(round_folder(run, later))
    for unfinished in run.glob("*.unfinished"):
        shutil.rmtree(unfinished)


def _checkpointer() -> ocp.Checkpointer:
    """One that waits for no other process: whoever saves or restores does so alone."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _flush(folder: Path) -> None:
    """Returns when files and folders would outlive a loss of power."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _arrays(state: Tree) -> dict[str, Array]:
    """Leaf name -> array, without those that have no entries; a typed key as its raw words."""
    leaves = {_name(where): leaf for where, leaf in jax.tree_util.tree_leaves_with_path(state)}
    arrays = {name: jax.random.key_data(leaf) if is_key(leaf) else leaf for name, leaf in leaves.items() if leaf.size}
    # Among several processes Orbax takes an array of JAX for theirs together
    return arrays if jax.process_count() == 1 else jax.tree.map(np.asarray, arrays)


def _as(leaf: Array, array: Array) -> Array:
    """The array as JAX has it; as a typed key where the leaf is one."""
    return on_words(lambda _: jnp.asarray(array), leaf)


def _name(where: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(where)
