"""Floating point operations of one client's step, counted: a multiplication and an addition are two.

Matrix products alone: all else is a fortieth (XLA's count, MiniLM). The encoder is frozen; adapters sit on query
and value of every layer, and gradients are taken with respect to their factors alone.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Shape(NamedTuple):
    """What of an encoder decides how much there is to compute."""

    width: int
    intermediate: int
    layers: int
    classes: int

    @classmethod
    def of(cls, model: Mapping[str, Any], classes: int) -> "Shape":
        """From an `EncoderConfig` as a dict."""
        return cls(model["width"], model["intermediate"], model["layers"], classes)


def client_step(shape: Shape, sentences: int, length: float, rank: int, *, only_read: bool = False) -> float:
    """Forward and backward of `sentences` rows of `length` positions each, padding included.

    Args:
        only_read: the last layer's queries, output and feed-forward at the one position that the classifier reads.
    """
    tokens = sentences * length
    total = 4 * sentences * shape.width * (shape.width + shape.classes)  # pooler and classifier, there and back
    for layer in range(shape.layers):
        queries = sentences if only_read and layer == shape.layers - 1 else tokens
        total += _layer(shape, queries, tokens, length, rank, first=layer == 0)
    return total


def _layer(shape: Shape, queries: float, tokens: float, length: float, rank: int, *, first: bool) -> float:
    """One layer, forward and backward. Nothing below the first layer's query and value wants a gradient."""
    width, square = shape.width, 2 * shape.width**2  # operations of a width x width product, per position
    projections = (2 * tokens + queries) * square  # key, value, query
    above = queries * (square + 4 * width * shape.intermediate)  # output projection and feed-forward
    scores = 2 * queries * length * width  # as many again for the weighted sum of values
    forward = projections + above + 2 * scores
    # One product back through every frozen weight, two through each of attention's; but for the keys' in the first.
    backward = above + 4 * scores + (-scores if first else projections)

    thin = 4 * (queries + tokens) * width * rank  # x A^T, then B; for query and value
    return forward + thin + backward + 2 * thin - (thin / 2 if first else 0)


def of_round(shape: Shape, lengths: np.ndarray, sentences: int, rank: int, **layout: bool) -> float:
    """A round's operations; `lengths` are the positions a sentence takes in every step, [clients, steps]."""
    return float(sum(client_step(shape, sentences, float(length), rank, **layout) for length in lengths.ravel()))


def useful(shape: Shape, lengths: np.ndarray, rank: int) -> float:
    """The least a round can do as formulated here: `lengths` are those of the sentences, [clients, steps, batch]."""
    return float(sum(client_step(shape, 1, float(length), rank, only_read=True) for length in lengths.ravel()))
