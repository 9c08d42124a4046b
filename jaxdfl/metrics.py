"""Scores from confusion counts, and their summary over clients."""

from collections.abc import Callable

import numpy as np

Scores = np.ndarray | np.float64  # the shape of the leading axes; of one matrix, one number
Columns = dict[str, float | list[float]]  # of a metrics row: numbers, and a list of one for each client


def accuracy(confusion: np.ndarray) -> Scores:
    """Share of examples classified right. `confusion` is [..., classes, classes], true class first."""
    return np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1))


def f1(confusion: np.ndarray) -> Scores:
    """F1 of class 1 (GLUE's convention for MRPC and QQP); 0 where class 1 is neither present nor predicted."""
    hits = confusion[..., 1, 1].astype(float)
    missed_or_wrong = confusion[..., 1, :].sum(-1) + confusion[..., :, 1].sum(-1)
    return np.divide(2 * hits, missed_or_wrong, out=np.zeros_like(hits), where=missed_or_wrong > 0)


def matthews(confusion: np.ndarray) -> Scores:
    """Matthews correlation for any number of classes (GLUE's metric for CoLA); 0 where one side is constant."""
    confusion = confusion.astype(float)
    right, total = np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1))
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    covariance = right * total - (true * predicted).sum(-1)
    spread = np.sqrt((total**2 - (predicted**2).sum(-1)) * (total**2 - (true**2).sum(-1)))
    return np.divide(covariance, spread, out=np.zeros_like(covariance), where=spread > 0)


METRICS: dict[str, Callable[[np.ndarray], Scores]] = {"accuracy": accuracy, "f1": f1, "matthews": matthews}


def over_clients(name: str, clients: np.ndarray, average_model: np.ndarray, average_product: np.ndarray) -> dict:
    """A metric's columns of a row, from confusion counts.

    `clients` is [clients, classes, classes], the other two [classes, classes]: mean, worst and (population) standard
    deviation over the clients, and the score of the averaged adapter and of the averaged product. Without any counts (a
    model that diverged) a score is NaN.
    """
    scores = score(name, clients)
    return {
        f"{name}_mean": float(scores.mean()),
        f"{name}_worst": float(scores.min()),
        f"{name}_std": float(scores.std()),
        f"{name}_average_model": float(score(name, average_model)),
        f"{name}_average_product": float(score(name, average_product)),
    }


def score(name: str, confusion: np.ndarray) -> Scores:
    """A metric of confusion counts [..., classes, classes]; NaN where there are none."""
    with np.errstate(invalid="ignore"):
        return np.where(confusion.sum((-2, -1)) > 0, METRICS[name](confusion), np.nan)
