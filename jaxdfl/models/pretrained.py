"""Hugging Face checkpoints to our models by one name table, with every mismatch reported at once.

Only safetensors files are read, one tensor at a time, so the peak of memory is the model plus one tensor.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key
from safetensors import SafetensorError, safe_open

from jaxdfl.models.encoder import HEADS, EncoderClassifier, EncoderConfig
from jaxdfl.models.names import checkpoint_name, plain_name
from jaxdfl.models.paths import Structure, put_together, take_apart
from jaxdfl.models.sources import KNOWN, locate, read_json, sha256, weight_files

_OUTPUTS = ("classifier.weight", "classifier.out_proj.weight")  # [classes, width]


class Weights(NamedTuple):
    """The identity of loaded weights, for a run's manifest."""

    name: str  # the hub id, the name of weights that we recognise, or of the folder
    revision: str | None  # commit on the hub; None for a local folder
    sha256: dict[str, str]  # by file name
    architecture: str
    parameters: int
    initialised: list[str]  # paths drawn from the key rather than read
    note: str  # what must be said beside figures made with these weights


def load(
    source: str | Path,
    classes: int,
    key: Key[Array, ""],
    dtype: DTypeLike = jnp.float32,
    revision: str | None = None,
) -> tuple[EncoderClassifier, Weights]:
    """A classifier with pretrained weights, and the record of what they are.

    A checkpoint without a classification head gets one from `key`; it is part of the model, so all clients share it.

    Args:
        source: a local folder (config.json and model.safetensors, possibly in shards), or a hub id.
        dtype: of the backbone, float32 or bfloat16.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: nothing there, another architecture, a damaged file, or tensors that do not fit (all of them named).
    """
    folder, commit = locate(source, revision)
    config, files = _read_config(folder), weight_files(folder)
    structure, shapes = _skeleton(config, classes, dtype)
    with ExitStack() as stack:
        tensors = _open(stack, files, config.model_type)
        wanted = {path: checkpoint_name(config.model_type, path) for path in shapes}
        head = [path for path in wanted if path.split("/")[0] in config.head]
        fresh = [] if any(wanted[path] in tensors for path in head) else head
        read = {path: name for path, name in wanted.items() if path not in fresh}
        _check(folder.name, {name: _stored_shape(path, shapes[path].shape) for path, name in read.items()}, tensors)
        arrays = {path: _fresh(key, path, shapes[path], config.initializer_range) for path in fresh}
        for path, name in read.items():
            tensor = tensors[name][:]
            if not np.isfinite(tensor).all():
                raise ValueError(f"{folder.name}: {name} holds numbers that are not finite; take another checkpoint.")
            arrays[path] = jnp.asarray(tensor.T if path.endswith("/kernel") else tensor, shapes[path].dtype)
    hashes = {file.name: sha256(file) for file in files}
    known = next((KNOWN[digest] for digest in hashes.values() if digest in KNOWN), None)
    record = Weights(
        name=str(source) if commit else known.name if known else folder.resolve().name,
        revision=commit,
        sha256=hashes,
        architecture=config.model_type,
        parameters=sum(x.size for x in arrays.values()),
        initialised=fresh,
        note=known.note if known else "",
    )
    return put_together(structure, arrays), record


def redrawn(model: EncoderClassifier, paths: Sequence[str], key: Key[Array, ""]) -> EncoderClassifier:
    """The model with the arrays at `paths` drawn as `load` draws what a checkpoint lacks; it shares all others."""
    structure, arrays = take_apart(model)
    fresh = {path: _fresh(key, path, arrays[path], model.config.initializer_range) for path in paths}
    return put_together(structure, {**arrays, **fresh})


def random_model(
    config: EncoderConfig, classes: int, key: Key[Array, ""], dtype: DTypeLike = jnp.float32
) -> EncoderClassifier:
    """A model of the given shape with random weights, for tests and for measurements of speed and memory."""
    structure, shapes = _skeleton(config, classes, dtype)
    return put_together(
        structure, {path: _fresh(key, path, shape, config.initializer_range) for path, shape in shapes.items()}
    )


def _skeleton(
    config: EncoderConfig, classes: int, dtype: DTypeLike
) -> tuple[Structure, dict[str, jax.ShapeDtypeStruct]]:
    """The model's structure and the shapes of its arrays; nothing is allocated."""
    if classes < 1:
        raise ValueError(f"`classes` must be at least 1, got {classes}.")
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16, jnp.float64):
        raise ValueError(f"`dtype` must be float32, bfloat16 or float64, got {jnp.dtype(dtype).name}.")
    return take_apart(nnx.eval_shape(lambda: EncoderClassifier(config, classes, dtype)))


def _fresh(
    key: Key[Array, ""], path: str, shape: jax.ShapeDtypeStruct | Array, deviation: float
) -> Float[Array, "..."]:
    """A first value as BERT draws it; each path has its own key, so one draw does not depend on the others."""
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "scale":
        return jnp.ones(shape.shape, shape.dtype)
    if leaf == "bias":
        return jnp.zeros(shape.shape, shape.dtype)
    path_key = jax.random.fold_in(key, crc32(path.encode()))
    return (deviation * jax.random.normal(path_key, shape.shape, jnp.float32)).astype(shape.dtype)


def _read_config(folder: Path) -> EncoderConfig:
    raw = read_json(folder / "config.json")
    if raw.get("model_type") not in HEADS:
        raise ValueError(
            f"{folder.name}: `model_type` {raw.get('model_type')!r} in config.json is not supported; "
            f"supported are {sorted(HEADS)}."
        )
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return EncoderConfig.from_transformers(AutoConfig.for_model(**raw))
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder.name}: config.json has a wrong value ({reason}); copy it again.") from error


def _open(stack: ExitStack, files: list[Path], model_type: str) -> dict[str, Any]:
    """Tensors that are not read yet, by plain name."""
    tensors = {}
    for file in files:
        try:
            handle = stack.enter_context(safe_open(file, framework="np"))
        except SafetensorError as error:
            raise ValueError(
                f"{file.parent.name}/{file.name} is damaged or cut off ({error}); copy it again."
            ) from error
        for name in handle.keys():  # noqa: SIM118 (a file handle, no dict)
            if name.startswith(tuple(f"{other}." for other in HEADS if other != model_type)):
                raise ValueError(
                    f"{file.parent.name}: config.json says {model_type!r}, but {file.name} holds {name!r}; "
                    "take both files from the same model."
                )
            if plain := plain_name(model_type, name):
                tensors[plain] = handle.get_slice(name)
    return tensors


def _stored_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if path.endswith("/kernel") else shape


def _check(folder: str, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Any]) -> None:
    """Raises one ValueError that counts all missing, unexpected and misshaped tensors and shows three of each."""
    found = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "misshaped": [
            f"{name} {found[name]} for {shape}" for name, shape in expected.items() if found.get(name, shape) != shape
        ],
    }
    if not any(problems.values()):
        return
    counts = [f"{len(names)} {kind} ({', '.join(names[:3])})" for kind, names in problems.items() if names]
    message = f"{folder}: the tensors do not fit config.json and `classes`: {'; '.join(counts)}"
    head = next(
        (shape[0] for name, shape in found.items() if name in _OUTPUTS and shape != expected.get(name, shape)), 0
    )
    if head:
        message += f"; its head is for {head} classes: pass `classes={head}`, or delete classifier.* for a new head"
    raise ValueError(message + ".")
