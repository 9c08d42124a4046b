"""A classifier with a second output layer, which `domain_adaptive` asks for, made of the pieces that there are.

The encoder's features are the logits of the same classifier whose output layer is the identity. So no model has to know
of a second head, and every block, dropout and merged adapter means what it meant.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdfl.models.classifier import Classifier, Logits
from jaxdfl.objectives.domain_adaptive import Features, Head
from jaxdfl.protocol import PerBlock

OUTPUT = ("classifier/kernel", "classifier/bias")  # the output layer's names in `blocks.head`
SECOND = "second/"  # goes before the names of the second output layer


class TwoHeads(NamedTuple):
    """What `domain_adaptive` and an evaluation take. `blocks` go to the engine in place of the classifier's own."""

    blocks: PerBlock  # of one client
    features: Features
    first: Head
    second: Head
    logits: Logits  # the mean of both heads, for `simulate.evaluate.make_evaluate`


def two_heads(classifier: Classifier, key: Key[Array, ""]) -> TwoHeads:
    """The classifier with a second output layer in `blocks.head`, drawn anew: normal, of the first one's spread.

    Raises:
        ValueError: the classifier's head is frozen.
    """
    missing = [name for name in OUTPUT if name not in classifier.blocks.head]
    if missing:
        raise ValueError(f"`classifier` has no {missing[0]} in its trained head; adapt it with train_head=True.")
    plain = classifier.logits
    kernel, bias = (classifier.blocks.head[name] for name in OUTPUT)
    drawn = (kernel.std() * jax.random.normal(key, kernel.shape, jnp.float32), jnp.zeros_like(bias))
    second = dict(zip((SECOND + name for name in OUTPUT), drawn, strict=True))
    identity = dict(
        zip(OUTPUT, (jnp.eye(len(kernel), dtype=kernel.dtype), jnp.zeros(len(kernel), bias.dtype)), strict=True)
    )

    def features(
        frozen: Any, blocks: PerBlock, examples: Any, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch width"]:
        own = {name: leaf for name, leaf in blocks.head.items() if not name.startswith(SECOND)}
        return plain(frozen, blocks._replace(head=own | identity), examples, key)

    def head(prefix: str) -> Head:
        def apply(frozen: Any, blocks: PerBlock, x: Float[Array, "batch width"]) -> Float[Array, "batch classes"]:
            kernel, bias = (blocks.head[prefix + name] for name in OUTPUT)
            return x @ kernel + bias

        return apply

    first, other = head(""), head(SECOND)

    def logits(
        frozen: Any, blocks: PerBlock, examples: Any, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch classes"]:
        x = features(frozen, blocks, examples, key)
        return (first(frozen, blocks, x) + other(frozen, blocks, x)) / 2

    blocks = classifier.blocks._replace(head=classifier.blocks.head | second)
    return TwoHeads(blocks, features, first, other, logits)
