"""ASDA's objective for one client with labelled examples of two domains and unlabelled ones of the second.

"Semi-supervised Domain Adaptive Structure Learning" (ASDA), 2021, arXiv 2112.06161, IEEE TIP. A shared encoder under
two heads, F1 that scatters the source and F2 that gathers the target into clusters. Read, in notes on its code: the
weights .75 and .25 of the two domains' cross-entropies, pseudo-labels on (F1 + F2)/2, adversarial entropy by
gradient reversal with weight .1, and .1 of an MMD with an RBF and a linear kernel. Reconstructed: which way the two
entropies are played (from what the heads are called, and as Saito et al., "Semi-supervised Domain Adaptation via
Minimax Entropy", 2019, arXiv 1904.06487, for F2), that the mean (F1 + F2)/2 is of logits, the threshold, and the RBF's
width. Pseudo-labels: Sohn et al., "FixMatch", 2020, arXiv 2001.07685.

Departures: all terms are one loss of one step, where the paper takes several steps in turn; the strong view is dropout
rather than image augmentation, so a model without dropout trains on its own confident labels. The paper has no clients:
each is taken to hold both domains, and a client without labelled source (or target) drops the terms that need it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from jaxdfl.objectives.discrepancy import entropy, gradient_reversal, mmd
from jaxdfl.protocol import PerBlock

Features = Callable[[Any, PerBlock, Any, Key[Array, ""] | None], Float[Array, "batch width"]]  # a key: dropout is on
Head = Callable[[Any, PerBlock, Float[Array, "batch width"]], Float[Array, "batch classes"]]
Loss = Callable[[Any, PerBlock, "Domains", Key[Array, ""] | None], Float[Array, ""]]


class Domains(NamedTuple):
    """One batch of one client: as many unlabelled examples as labelled ones, so that a row of a data set has both."""

    labelled: Any  # examples of both domains, with a field `labels` [batch]
    target: Bool[Array, " batch"]  # which of the labelled are of the target domain
    unlabelled: Any  # examples of the target domain; labels, if there are any, are not looked at


def domain_adaptive(
    features: Features,
    scattering_head: Head,
    clustering_head: Head,
    *,
    own: float = 0.75,
    consistency: float = 1.0,
    threshold: float = 0.95,
    clustering: float = 0.1,
    scattering: float = 0.1,
    discrepancy: float = 0.1,
    reversal: float = 1.0,
) -> Loss:
    """The loss (frozen, blocks, batch, key) of one client; a weight of 0 drops its term.

    Args:
        features: the encoder; the heads are functions of what it gives.
        own: of the cross-entropy on each head's own domain (source for the scattering head); 1 - own on the other.
        consistency: of the cross-entropy of the strong view with the weak view's labels, where those are confident.
        threshold: the least probability that makes a pseudo-label confident.
        clustering: of H(F2(target)): raised by the head and lowered by the encoder. Negative turns the game round.
        scattering: of H(F1(source)): lowered by the head and raised by the encoder. Negative turns the game round.
        discrepancy: of the MMD between labelled source and unlabelled target features.
        reversal: how strongly the encoder plays against the heads.

    Raises:
        ValueError: `own` or `threshold` is outside [0, 1].
    """
    for name, value in (("own", own), ("threshold", threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")

    def loss(frozen: Any, blocks: PerBlock, batch: Domains, key: Key[Array, ""] | None = None) -> Float[Array, ""]:
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        source, target = 1.0 - batch.target, 1.0 * batch.target  # [batch]
        labelled = features(frozen, blocks, batch.labelled, keys[0])
        strong = features(frozen, blocks, batch.unlabelled, keys[1])
        weak = features(frozen, blocks, batch.unlabelled, None)

        def scatter(x: Array) -> Array:
            return scattering_head(frozen, blocks, x)

        def cluster(x: Array) -> Array:
            return clustering_head(frozen, blocks, x)

        def supervised(logits: Array, on_source: float) -> Array:
            values = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labelled.labels)
            return on_source * _mean(values, source) + (1 - on_source) * _mean(values, target)

        total = supervised(scatter(labelled), own) + supervised(cluster(labelled), 1 - own)
        guesses = (scatter(weak) + cluster(weak)) / 2
        total += consistency * pseudo_label_loss(guesses, (scatter(strong) + cluster(strong)) / 2, threshold)
        of_source = _mean(entropy(scatter(gradient_reversal(labelled, reversal))), source)
        of_target = entropy(cluster(gradient_reversal(strong, reversal))).mean()
        total += scattering * of_source - clustering * of_target
        return total + discrepancy * mmd(labelled, strong, of_x=source)

    return loss


def pseudo_label_loss(
    weak: Float[Array, "batch classes"], strong: Float[Array, "batch classes"], threshold: float
) -> Float[Array, ""]:
    """Cross-entropy of the strong logits with the weak ones' likeliest class, where that is `threshold` probable.

    The mean is over the whole batch, as in FixMatch; no gradient goes through the weak view.
    """
    p = jax.lax.stop_gradient(jax.nn.softmax(weak))
    values = optax.softmax_cross_entropy_with_integer_labels(strong, p.argmax(-1))
    return jnp.mean(jnp.where(p.max(-1) >= threshold, values, 0))


def _mean(values: Float[Array, " batch"], weights: Float[Array, " batch"]) -> Float[Array, ""]:
    """The weighted mean; 0 without any weight."""
    return jnp.sum(weights * values) / jnp.maximum(weights.sum(), 1)
