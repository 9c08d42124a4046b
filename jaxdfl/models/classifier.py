"""The bridge from a model to the engine: plain pytrees in, logits and a loss out, all for ONE client.

The model is split once, here; inside compiled code it is only put together again while tracing.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxdfl.data.examples import Examples, Rows
from jaxdfl.data.tasks import ExampleLoss
from jaxdfl.lora import find_targets, init_factors
from jaxdfl.models.encoder import EncoderClassifier
from jaxdfl.models.layers import Adapter, Linear
from jaxdfl.models.paths import modules, put_together, take_apart
from jaxdfl.protocol import Base, PerBlock
from jaxdfl.trees import wide

Logits = Callable[[Any, PerBlock, Examples | Rows, Key[Array, ""] | None], Float[Array, "batch classes"]]
Loss = Callable[[Any, PerBlock, Examples, Key[Array, ""] | None], Float[Array, ""]]
CROSS_ENTROPY: ExampleLoss = optax.softmax_cross_entropy_with_integer_labels


class Classifier(NamedTuple):
    """A model as the engine sees it. `frozen` is an argument of `logits`, so jit does not bake it into programs."""

    blocks: PerBlock  # one client's first blocks; a and b by path, head a flat dict by path, {} when it is frozen
    frozen: Any  # every other weight by path
    logits: Logits  # (frozen, blocks, examples, key): a key switches dropout on, None is evaluation
    base: Callable[[Any], Base]  # frozen -> the adapted layers' W0 / scale by path, [d_out, d_in], float32 at least


def adapt(
    model: EncoderClassifier,
    key: Key[Array, ""],
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: Sequence[str] = ("query", "value"),
    first_layer: int = 0,
    train_head: bool = False,
    remat: bool = False,
) -> Classifier:
    """Puts LoRA adapters beside the linear layers that `targets` match, and splits the result. `model` stays as it is.

    Args:
        alpha: the adapters' scale is alpha / rank, also for factors of another rank handed to `logits` later on.
        dropout: rate on the input of A, in training only.
        targets: patterns for `re.search` on paths such as `encoder/layers/0/attention/query`.
        first_layer: the lowest encoder layer with adapters; no gradient is computed below it.
        remat: keep only what passes between layers for the gradient, and compute the rest again: less memory, for one
            more forward pass.

    Raises:
        ValueError: a rate outside [0, 1), a rank too large, a pattern that matches nothing.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must lie in [0, 1), got {dropout}.")
    if isinstance(targets, str):
        raise ValueError(f"`targets` must be a sequence of patterns, got a string: pass ({targets!r},).")
    model = nnx.clone(model)
    layers = modules(model, Linear)
    paths = [path for path in find_targets(list(layers), targets) if _layer(path) >= first_layer]
    if not paths:
        raise ValueError(f"`targets` match no layer from number `first_layer` ({first_layer}) on; lower it.")
    model.encoder.remat = remat
    a, b = init_factors(key, {path: layers[path].kernel.shape for path in paths}, rank)
    for path in paths:
        salt = crc32(path.encode())
        layers[path].adapter = Adapter(a[path], b[path], scale=alpha / rank, dropout=dropout, salt=salt)

    structure, frozen = take_apart(model)
    for name in _factors(a, b):
        del frozen[name]
    own = [name for name in frozen if train_head and name.split("/")[0] in model.config.head]
    head = {name: frozen.pop(name) for name in own}

    def logits(
        frozen: Any, blocks: PerBlock, examples: Examples | Rows, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch classes"]:
        client = put_together(structure, {**frozen, **_factors(blocks.a, blocks.b), **blocks.head})
        return client(examples, key)

    def base(frozen: Any) -> Base:
        return {path: wide(frozen[f"{path}/kernel"].T) * (rank / alpha) for path in paths}

    return Classifier(PerBlock(a, b, head), frozen, logits, base)


def cross_entropy(classifier: Classifier, each: ExampleLoss = CROSS_ENTROPY) -> Loss:
    """The mean cross-entropy over a batch, in nats, as the engine's loss(frozen, blocks, examples, key).

    The mean of another loss, where `each` gives one.
    """
    logits = classifier.logits  # alone: a program that holds the loss must not hold this classifier's weights too

    def loss(frozen: Any, blocks: PerBlock, examples: Examples, key: Key[Array, ""] | None = None) -> Float[Array, ""]:
        predicted = logits(frozen, blocks, examples, key)
        return each(predicted, examples.labels).mean()

    return loss


def _layer(path: str) -> float:
    """The number of the encoder layer that a path lies in; infinity above the encoder."""
    found = re.match(r"encoder/layers/(\d+)/", path)
    return float(found[1]) if found else math.inf


def _factors(a: dict[str, Array], b: dict[str, Array]) -> dict[str, Array]:
    """The factors by the paths they have inside the model."""
    return {f"{path}/adapter/a": x for path, x in a.items()} | {f"{path}/adapter/b": x for path, x in b.items()}
