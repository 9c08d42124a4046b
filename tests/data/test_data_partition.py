import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdfl.data import partition as partitions
from jaxdfl.data.partition import build, by_group, describe, dirichlet, iid, label_mixture, paper_mixtures

SPECS = {
    "paper": "paper",
    "dirichlet": "dirichlet:0.5",
    "shards": "shards:2",
    "quantity": "quantity:4,3,2,1,1,1,1,1,1,1",
    "iid": "iid",
}


def some_labels(count=1_000, classes=2, seed=0):
    return np.random.default_rng(seed).integers(0, classes, count, np.int32)


def sizes(partition):
    return [len(part) for part in partition]


def test_every_partition_has_its_example_here():
    assert SPECS.keys() == partitions.PARTITIONS.keys()


@pytest.mark.parametrize("spec", SPECS.values())
@pytest.mark.parametrize("classes", [2, 3])
def test_no_client_is_empty_and_no_example_comes_twice(spec, classes):
    labels = some_labels(classes=classes)
    partition = build(spec, labels, classes, 10, seed=0)
    everything = np.concatenate(partition)
    assert len(partition) == 10
    assert all(sizes(partition))
    assert len(np.unique(everything)) == len(everything)
    assert everything.min() >= 0
    assert everything.max() < len(labels)
    assert all(part.dtype == np.int64 for part in partition)
    assert (describe(partition, labels).sum(1) == sizes(partition)).all()
    if spec != "paper":
        assert len(everything) == len(labels)


@pytest.mark.parametrize("spec", SPECS.values())
def test_the_seed_alone_decides(spec):
    once, again, other = (build(spec, some_labels(), 2, 10, seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(once, again, strict=True))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(once, other, strict=True))


def test_paper_mixtures_of_ten_clients_are_the_papers():
    assert paper_mixtures(2, 10).tolist() == [[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3 + [[0.5, 0.5]] * 4
    three = [[0.9, 0.05, 0.05]] * 4 + [[0.05, 0.9, 0.05]] * 3 + [[0.05, 0.05, 0.9]] * 3
    assert paper_mixtures(3, 10).tolist() == three


@given(st.integers(1, 200), st.sampled_from([2, 3]))
def test_other_numbers_of_clients_keep_the_papers_shares(clients, classes):
    mixtures = paper_mixtures(classes, clients)
    assert mixtures.shape == (clients, classes)
    for mixture, share in partitions.PAPER[classes]:
        assert abs((mixtures == mixture).all(1).sum() - clients * share / 10) < 1


def test_label_mixture_keeps_its_proportions_to_rounding_at_equal_sizes():
    labels = some_labels(3_001, classes=3)
    mixtures = paper_mixtures(3, 10)
    counts = describe(label_mixture(labels, mixtures, seed=0), labels)
    assert len(set(counts.sum(1))) == 1
    assert (abs(counts - counts.sum(1, keepdims=True) * mixtures) < 1).all()


def test_label_mixture_of_balanced_labels_uses_every_example_it_can():
    labels = np.repeat(np.array([0, 1], np.int32), 500)
    counts = describe(label_mixture(labels, paper_mixtures(2, 10), seed=0), labels)
    assert counts.tolist() == [[90, 10]] * 3 + [[10, 90]] * 3 + [[50, 50]] * 4


def largest_remainder(size, mixture):
    counts = [math.floor(size * share) for share in mixture]
    neediest = sorted(range(len(mixture)), key=lambda label: counts[label] - size * mixture[label])
    for label in neediest[: size - sum(counts)]:
        counts[label] += 1
    return counts


@given(st.integers(0, 2**32 - 1), st.integers(60, 400), st.integers(1, 12), st.fractions("0.3", "0.7"))
@settings(max_examples=50)
def test_label_mixture_has_the_largest_size_that_fits(seed, count, clients, share):
    labels = (np.random.default_rng(seed).permutation(count) < count * share).astype(np.int32)
    pools, mixtures = np.bincount(labels, minlength=2), paper_mixtures(2, clients)
    exact = [[Fraction(value).limit_denominator(100) for value in mixture] for mixture in mixtures]

    def fits(size):
        return (np.sum([largest_remainder(size, mixture) for mixture in exact], axis=0) <= pools).all()

    size = len(label_mixture(labels, mixtures, seed)[0])
    assert fits(size)
    assert not any(fits(larger) for larger in range(size + 1, count // clients + 1))


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 100), st.integers(1, 8))
@settings(max_examples=50)
def test_dirichlet_uses_every_example_once(seed, alpha, clients):
    partition = dirichlet(some_labels(400, 3), clients, alpha, seed)
    assert np.sort(np.concatenate(partition)).tolist() == list(range(400))
    assert all(sizes(partition))


def test_dirichlet_tends_to_even_shares_as_alpha_grows():
    labels = some_labels(10_000)
    even, skewed = (describe(dirichlet(labels, 5, alpha, 0), labels)[:, 0] for alpha in (1e4, 0.5))
    assert np.std(even) < 0.05 * np.mean(even) < np.std(skewed)


def test_dirichlet_with_tiny_alpha_says_so_instead_of_leaving_clients_empty():
    with pytest.raises(ValueError, match=r"`alpha` 0\.001 left a client of 10 without examples"):
        dirichlet(some_labels(), 10, 0.001, 0)


def test_two_shards_mean_few_labels_per_client():
    labels = np.repeat(np.arange(10, dtype=np.int32), 100)
    counts = describe(build("shards:2", labels, 10, 20, 0), labels)
    assert ((counts > 0).sum(1) <= 2).all()
    assert (counts.sum(1) == 50).all()


def test_quantities_follow_their_proportions():
    assert sizes(build("quantity:5,3,2", some_labels(1_000), 2, 3, 0)) == [500, 300, 200]


@given(st.integers(1, 300), st.integers(1, 50))
def test_iid_sizes_differ_by_at_most_one(count, clients):
    if clients > count:
        with pytest.raises(ValueError, match="`clients`"):
            iid(count, clients, 0)
        return
    assert max(sizes(iid(count, clients, 0))) - min(sizes(iid(count, clients, 0))) <= 1
    assert sorted(np.concatenate(iid(count, clients, 0))) == list(range(count))


def test_natural_partition_gives_each_group_to_one_client():
    parts = by_group(np.array(["news", "fiction", "news", "letters"]))
    assert [part.tolist() for part in parts] == [[1], [3], [0, 2]]


@pytest.mark.parametrize("spec", SPECS.values())
def test_more_clients_than_examples_is_an_error(spec):
    with pytest.raises(ValueError, match=r"`clients`|`proportions` must have one"):
        build(spec, some_labels(5), 2, 12, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("even", "must be one of paper, dirichlet"),
        ("dirichlet", "must be written 'dirichlet:ALPHA'"),
        ("dirichlet:", "must be written 'dirichlet:ALPHA'"),
        ("iid:3", "must be written 'iid'"),
        ("paper:", "must be written 'paper'"),
        ("dirichlet:low", "not a number: 'low'"),
        ("dirichlet:1,2", "one number"),
        ("dirichlet:-1", "`alpha` must be positive"),
        ("dirichlet:nan", "`alpha` must be positive"),
        ("shards:1.5", "whole number"),
        ("shards:0", "`shards_per_client` must be at least 1"),
        ("shards:500", "`shards_per_client` must be at most 100"),
        ("quantity:1,2", "one number for each of 10 clients, got 2"),
        ("quantity:1,1,1,1,1,1,1,1,1,0", "must be positive"),
        ("quantity:1,1,1,1,1,1,1,1,1,1e-9", "client 9 none"),
    ],
)
def test_a_wrong_spec_is_named_with_its_remedy(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec, some_labels(), 2, 10, 0)


def test_the_paper_has_mixtures_for_two_and_three_classes_only():
    with pytest.raises(ValueError, match="`classes` must be 2 or 3"):
        build("paper", some_labels(classes=5), 5, 10, 0)


def test_mixtures_that_cannot_be_had_are_refused():
    with pytest.raises(ValueError, match="add up to 1"):
        label_mixture(some_labels(), np.array([[0.5, 0.4]]), 0)
    with pytest.raises(ValueError, match="labels go up to 2"):
        label_mixture(some_labels(classes=3), np.array([[0.5, 0.5]]), 0)
    with pytest.raises(ValueError, match="by class"):
        label_mixture(np.zeros(50, np.int32), paper_mixtures(2, 10), 0)
