"""Scores against their textbook formulas, computed from the labels."""

import numpy as np
import pytest

from jaxdfl.metrics import METRICS, accuracy, f1, matthews, over_clients


def labels(classes, seed=0, examples=200):
    """Predictions that are right about half of the time."""
    draw = np.random.default_rng(seed)
    true, guess = draw.integers(0, classes, (2, examples))
    return true, np.where(draw.random(examples) < 0.4, true, guess)


def confusion(true, predicted, classes):
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (true, predicted), 1)
    return counts


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_accuracy_is_the_share_that_is_right(classes):
    true, predicted = labels(classes)
    np.testing.assert_allclose(accuracy(confusion(true, predicted, classes)), (true == predicted).mean())


def test_f1_is_the_harmonic_mean_of_precision_and_recall_of_class_one():
    true, predicted = labels(2)
    precision, recall = true[predicted == 1].mean(), predicted[true == 1].mean()
    np.testing.assert_allclose(f1(confusion(true, predicted, 2)), 2 / (1 / precision + 1 / recall))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_matthews_is_the_correlation_of_labels_and_predictions(classes):
    """Of 0/1 labels for two classes; for more, of the one-hot vectors (Gorodkin, 2004)."""
    true, predicted = labels(classes)
    x, y = (np.eye(classes)[side] - np.eye(classes)[side].mean(0) for side in (true, predicted))
    expected = (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())
    found = matthews(confusion(true, predicted, classes))
    np.testing.assert_allclose(found, expected)
    if classes == 2:
        np.testing.assert_allclose(found, np.corrcoef(true, predicted)[0, 1])


def test_scores_keep_their_ends():
    right, wrong = np.array([[7, 0], [0, 3]]), np.array([[0, 7], [3, 0]])
    assert [score(right) for score in METRICS.values()] == [1, 1, 1]
    assert [score(wrong) for score in METRICS.values()] == [0, 0, -1]


@pytest.mark.parametrize(
    ("counts", "scores"),
    [
        ([[5, 0], [0, 0]], {"accuracy": 1, "f1": 0, "matthews": 0}),  # class 1 neither there nor predicted
        ([[5, 0], [4, 0]], {"accuracy": 5 / 9, "f1": 0, "matthews": 0}),  # always class 0
        ([[0, 3], [0, 2]], {"accuracy": 0.4, "f1": 4 / 7, "matthews": 0}),  # always class 1
        ([[0, 0], [0, 4]], {"accuracy": 1, "f1": 1, "matthews": 0}),  # one class alone
    ],
)
@pytest.mark.filterwarnings("error")
def test_degenerate_counts_give_a_number_and_no_warning(counts, scores):
    for name, expected in scores.items():
        np.testing.assert_allclose(METRICS[name](np.array(counts)), expected)


@pytest.mark.parametrize("name", METRICS)
def test_leading_axes_are_scored_one_by_one(name):
    counts = np.random.default_rng(0).integers(0, 9, (4, 3, 2, 2))
    alone = [[METRICS[name](counts[i, j]) for j in range(3)] for i in range(4)]
    np.testing.assert_allclose(METRICS[name](counts), alone)


def test_a_row_has_mean_worst_and_population_deviation_over_clients():
    clients = np.array([[[8, 2], [0, 0]], [[5, 5], [0, 0]], [[10, 0], [0, 0]]])  # 0.8, 0.5, 1.0
    row = over_clients("accuracy", clients, np.array([[9, 1], [0, 0]]), np.array([[6, 4], [0, 0]]))
    expected = {
        "accuracy_mean": 2.3 / 3,
        "accuracy_worst": 0.5,
        "accuracy_std": np.sqrt((0.8**2 + 0.5**2 + 1) / 3 - (2.3 / 3) ** 2),
        "accuracy_average_model": 0.9,
        "accuracy_average_product": 0.6,
    }
    assert list(row) == list(expected)
    assert all(type(value) is float for value in row.values())
    np.testing.assert_allclose(list(row.values()), list(expected.values()))


def test_a_model_without_counts_has_no_score():
    """It diverged: NaN, which the run folder writes as null, and not the 0 or the chance level of a guesser."""
    none, some = np.zeros((2, 2), int), np.eye(2, dtype=int)
    row = over_clients("f1", np.stack([none, some]), some, none)
    assert np.isnan([row["f1_mean"], row["f1_worst"], row["f1_average_product"]]).all()
    assert row["f1_average_model"] == 1
