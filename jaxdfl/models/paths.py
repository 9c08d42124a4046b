"""A model as its structure and a flat dict of arrays by path, and back.

Paths are attribute names and list indices joined by slashes: `encoder/layers/0/attention/query/kernel`.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx

Structure = nnx.GraphDef


def take_apart(model: nnx.Module) -> tuple[Structure, dict[str, Any]]:
    """The static structure, and every array (or its shape, of an abstract model) by path."""
    structure, state = nnx.split(model)
    return structure, {"/".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def put_together(structure: Structure, arrays: Mapping[str, Any]) -> Any:
    """The model with these arrays, which need not have the shapes of the first ones. Cheap: nothing is copied."""
    flat: Any = {tuple(int(p) if p.isdigit() else p for p in path.split("/")): x for path, x in arrays.items()}
    return nnx.merge(structure, nnx.State.from_flat_path(flat))


def modules(model: nnx.Module, kind: type) -> dict[str, Any]:
    """The model's modules of one class by path."""
    return {"/".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, kind)}
