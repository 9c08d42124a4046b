"""Experts at inference: every input weighs a client's experts by how near it lies to the data they were trained on.

The implicit mixture of experts of Yang et al., 2026, arXiv 2602.20492, reconstructed: a note on the paper says that a
task's latent code routes inputs, by a matrix whose inverse does not exist where the code is a mean. Here the code of an
expert is the mean feature of its client's training examples, and nearness is the cosine (ours):

    g_j(x) = softmax_j(cos(feature(x), code_j) / temperature);   W(x) = W0 + s sum_j g_j(x) B_j A_j

`gather` makes blocks of a bank and `routed` logits of a classifier's logits; they go where blocks and logits go, into
`jaxdfl.simulate.evaluate.make_evaluate` say. Codes are computed here for all clients; a client would send its own once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdfl.data.examples import Examples
from jaxdfl.data.partition import Partition
from jaxdfl.mixing.expert_bank import Bank, side_by_side
from jaxdfl.protocol import PerBlock
from jaxdfl.trees import wide

Feature = Callable[[Any, Any], Float[Array, "batch width"]]  # (frozen, examples): nothing in it trains
Logits = Callable[..., Float[Array, "batch classes"]]  # (frozen, blocks, examples, key)


class Router(NamedTuple):
    """What stands in the head's place among the blocks of a routed model; of one client or, stacked, of all."""

    head: Any
    codes: Float[Array, "experts width"]
    known: Bool[Array, " experts"]  # the others were never heard and get no weight


def word_means(frozen: Any, examples: Examples) -> Float[Array, "batch width"]:
    """The mean frozen word embedding of each example's real tokens, for the classifiers of `jaxdfl.models`."""
    real = jnp.arange(examples.ids.shape[-1]) < examples.lengths[:, None]  # [batch, length]
    words = wide(frozen["embeddings/word/table"][examples.ids])
    return jnp.sum(words * real[..., None], axis=1) / jnp.maximum(examples.lengths[:, None], 1)


def latent_codes(
    feature: Feature, frozen: Any, examples: Any, parts: Partition, batch_size: int = 256
) -> Float[Array, "clients width"]:
    """Each client's mean feature over its own training examples; leaves of `examples` are [examples, ...]."""

    def one(example: Any) -> Array:
        return feature(frozen, jax.tree.map(lambda x: x[None], example))[0]

    def of_client(part: Any) -> Array:
        return jax.lax.map(one, jax.tree.map(lambda x: jnp.asarray(x)[part], examples), batch_size=batch_size).mean(0)

    return jnp.stack([of_client(part) for part in parts])


def gather(blocks: PerBlock, bank: Bank, codes: Float[Array, "clients width"]) -> PerBlock:
    """Everybody's routed blocks, stacked, from a state's blocks and the bank in its mixer's state.

    All experts side by side, A [clients, experts * rank, d_in] and B [clients, d_out, experts * rank], and a `Router`.
    """
    a, b = side_by_side(bank)
    return PerBlock(a, b, Router(blocks.head, codes[bank.members], bank.trust > 0))


def gates(
    features: Float[Array, "batch width"],
    codes: Float[Array, "experts width"],
    known: Bool[Array, " experts"],
    temperature: float,
) -> Float[Array, "batch experts"]:
    """Softmax of the cosines over `temperature`, among the known; 0 gives all weight to the nearest (first of equals).

    Mean word embeddings have cosines above 0.9 even across tasks: temperatures that tell them apart are about 0.02.

    Raises:
        ValueError: `temperature` is negative.
    """
    if temperature < 0:
        raise ValueError(f"`temperature` must be at least 0, got {temperature}.")
    cosines = jnp.matmul(_unit(features), _unit(codes).T, precision="highest")
    cosines = jnp.where(known, cosines, -jnp.inf)
    if temperature == 0:
        return jax.nn.one_hot(jnp.argmax(cosines, axis=-1), len(codes))
    return jax.nn.softmax(cosines / temperature, axis=-1)


def routed(logits: Logits, feature: Feature, *, temperature: float, at_once: int = 16) -> Logits:
    """`logits` of (frozen, one client's routed blocks, examples, key): each example meets its own mixture of experts.

    The model runs on one example at a time, with B's column groups scaled by the example's gates; `at_once` examples
    are mapped together, each of which may hold a kernel of its own for every adapted layer.
    """

    def of_batch(frozen: Any, blocks: PerBlock, examples: Any, key: Array | None = None) -> Array:
        head, codes, known = blocks.head
        weights = gates(feature(frozen, examples), codes, known, temperature)

        def of_example(inputs: tuple[Any, Array]) -> Array:
            example, gate = inputs
            b = {path: x * jnp.repeat(gate, x.shape[-1] // len(gate)) for path, x in blocks.b.items()}
            return logits(frozen, PerBlock(blocks.a, b, head), jax.tree.map(lambda x: x[None], example), key)[0]

        return jax.lax.map(of_example, (examples, weights), batch_size=at_once)

    return of_batch


def _unit(x: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
