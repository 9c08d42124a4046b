import hashlib
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy import optimize, sparse, special

from jaxdfl.data import grammar, natural_logic
from jaxdfl.data.natural_logic import LABELS, Pair, generate, ring


@pytest.fixture(scope="module")
def train():
    return generate(24_000)


@pytest.fixture(scope="module")
def validation():
    return generate(2_400, split="validation")


def words(*sentences):
    """Single words and neighbours of each sentence, marked by which sentence they stand in."""
    found = []
    for place, sentence in enumerate(sentences):
        tokens = sentence.lower().rstrip(".").split()
        found += [f"{place}:{token}" for token in tokens]
        found += [f"{place}:{a} {b}" for a, b in pairwise(tokens)]
    return found


def accuracy_of_a_linear_classifier(train, test, features):
    """Held-out accuracy of multinomial logistic regression on bags of features."""
    names = {}
    for pair in train:
        for name in features(pair):
            names.setdefault(name, len(names))

    def matrix(pairs):
        rows, columns = zip(
            *((row, names[f]) for row, pair in enumerate(pairs) for f in features(pair) if f in names), strict=True
        )
        return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (len(pairs), len(names)))

    x, y = matrix(train), np.eye(3)[[pair.label for pair in train]]

    def loss(flat):
        weights = flat.reshape(-1, 3)
        log_likelihood = special.log_softmax(x @ weights, axis=1)
        gradient = x.T @ (np.exp(log_likelihood) - y) / len(train) + 1e-5 * weights
        return -(y * log_likelihood).sum() / len(train) + 5e-6 * flat @ flat, gradient.ravel()

    fit = optimize.minimize(loss, np.zeros(len(names) * 3), jac=True, method="L-BFGS-B", options={"maxiter": 60})
    guesses = (matrix(test) @ fit.x.reshape(-1, 3)).argmax(1)
    return (guesses == [pair.label for pair in test]).mean()


@pytest.mark.parametrize("side", [0, 1])
def test_one_sentence_alone_does_not_tell_the_label(train, validation, side):
    # One standard error of 2,400 coin throws at chance is 1 point.
    accuracy = accuracy_of_a_linear_classifier(train[:9_000], validation, lambda pair: words(pair[side]))
    assert accuracy < 1 / 3 + 0.03


def test_both_sentences_together_tell_the_label_better_than_chance(train, validation):
    def matches(pair):
        premise, hypothesis = (set(sentence.lower().rstrip(".").split()) for sentence in pair[:2])
        return [f"{p} {h}" for p in premise for h in hypothesis]

    assert accuracy_of_a_linear_classifier(train[:6_000], validation, matches) > 0.6


@pytest.mark.parametrize("side", [0, 1])
def test_each_sentence_is_seen_equally_often_with_each_label(train, side):
    seen = Counter((pair[side], pair.label) for pair in train)
    for sentence in {pair[side] for pair in train}:
        assert len({seen[sentence, label] for label in range(3)}) == 1, sentence


def test_pairs_are_distinct_balanced_and_many(train):
    assert len({pair[:2] for pair in train}) == 24_000
    assert Counter(pair.label for pair in train) == {0: 8_000, 1: 8_000, 2: 8_000}


def test_a_cut_ring_leaves_labels_balanced_to_within_one():
    counts = Counter(pair.label for pair in generate(101))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_train_and_validation_share_no_pair_for_any_seeds(train, validation):
    pairs = {pair[:2] for pair in train}
    assert pairs.isdisjoint(pair[:2] for pair in validation)
    assert pairs.isdisjoint(pair[:2] for pair in generate(6_000, seed=5, split="validation"))


def test_train_and_validation_share_their_words(train, validation):
    vocabulary = {word for pair in train for word in words(*pair[:2]) if " " not in word}
    unknown = {word for pair in validation for word in words(*pair[:2]) if " " not in word} - vocabulary
    assert unknown == {"0:sarah", "1:sarah", "0:henry", "1:henry"} & unknown


def test_same_arguments_give_the_same_pairs_on_every_platform():
    text = "\n".join(f"{pair}" for pair in generate(1_000, seed=3))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7578073000c475f0"  # results change when this does
    assert generate(1_000, seed=3) == generate(1_000, seed=3) != generate(1_000, seed=4)


def test_sentences_are_short(train):
    lengths = [len(pair.premise.split()) + len(pair.hypothesis.split()) for pair in train]
    assert np.mean(lengths) < 13
    assert max(lengths) <= 18


@pytest.mark.parametrize("family", dict.fromkeys(grammar.FAMILIES), ids=lambda family: family.__name__)
def test_every_family_makes_rings_of_twelve_distinct_pairs(family):
    rng = random.Random(0)
    for _ in range(300):
        _, first, second = family(rng)
        pairs = ring(first, second)
        assert len({pair[:2] for pair in pairs}) == 12
        assert len({pair.premise for pair in pairs}) == len({pair.hypothesis for pair in pairs}) == 4


@pytest.mark.parametrize("family", dict.fromkeys(grammar.FAMILIES), ids=lambda family: family.__name__)
def test_a_pair_has_one_label_wherever_it_comes_up(family):
    rng, labels = random.Random(1), {}
    for _ in range(1_000):
        _, first, second = family(rng)
        for premise, hypothesis, label in ring(first, second):
            assert labels.setdefault((premise, hypothesis), label) == label


def test_known_examples_have_the_labels_a_reader_gives():
    wet = (
        grammar.Fact("The dog is wet.", "The animal is wet."),
        grammar.Fact("The dog is dry.", "The animal is dry."),
    )
    hungry = (
        grammar.Fact("The dog is hungry.", "The animal is hungry."),
        grammar.Fact("The dog is full.", "The animal is full."),
    )
    pairs = ring(wet, hungry)
    assert Pair("The dog is wet.", "The animal is wet.", LABELS.index("entailment")) in pairs
    assert Pair("The dog is wet.", "The animal is hungry.", LABELS.index("neutral")) in pairs
    assert Pair("The dog is wet.", "The animal is dry.", LABELS.index("contradiction")) in pairs
    assert Pair("The dog is hungry.", "The animal is dry.", LABELS.index("neutral")) in pairs


def test_numbers_and_years_mean_what_the_labels_say(train):
    order = {word: value for value, word in enumerate(grammar.NUMBERS.split())}
    checked = 0
    for pair in train:
        said, heard = pair.premise.rstrip(".").split(), pair.hypothesis.rstrip(".").split()
        if "than" in heard and said[1] == heard[1] == "has" and said[-1] == heard[-1]:
            claimed, bound = order[said[-2]], order[heard[-2]]
            holds = claimed > bound if "more" in heard else claimed < bound
        elif said[-1].isdigit() and heard[-1].isdigit() and said[:-2] == heard[:-2]:
            holds = int(said[-1]) < int(heard[-1]) if heard[-2] == "before" else int(said[-1]) > int(heard[-1])
        else:
            continue
        checked += 1
        assert LABELS[pair.label] == ("entailment" if holds else "contradiction"), pair
    assert checked > 500


@pytest.mark.parametrize(("arguments", "name"), [((0,), "count"), ((5, 0, "test"), "split")])
def test_impossible_requests_name_the_argument(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        generate(*arguments)


def test_asking_for_more_pairs_than_there_are_says_how_many_there_are(monkeypatch):
    monkeypatch.setattr(natural_logic, "FAMILIES", (lambda rng: ("dog", *grammar._thing(random.Random(0))[1:]),))
    split = "validation" if natural_logic._held_out("dog") else "train"
    with pytest.raises(ValueError, match="at most about 12"):
        generate(13, split=split)
