"""What each method trains and shares, round by round, and how a method is asked for by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.methods import METHODS, POOLED, build, parse
from jaxdfl.methods.schedules import alternate, as_table, from_table
from jaxdfl.mixing import everyone, gossip
from jaxdfl.topology.spectrum import recommended_period

# Blocks by round, as letters: a, b, h (the head).
EXPECTED = {
    "local": (["abh"] * 6, [""] * 6),
    "centralized": (["abh"] * 6, [""] * 6),
    "fedavg_lora": (["abh"] * 6, ["abh"] * 6),
    "dec_lora": (["abh"] * 6, ["abh"] * 6),
    "ffa_lora": (["bh"] * 6, ["bh"] * 6),
    "fedsa_lora": (["abh"] * 6, ["a"] * 6),
    "rolora": (["bh", "ah"] * 3, ["bh", "ah"] * 3),
    "rolora:2": (["bh", "bh", "ah", "ah", "bh", "bh"], ["bh", "bh", "ah", "ah", "bh", "bh"]),
    "adf_lora": (["bh"] * 5 + ["ah"], ["abh"] * 6),
    "tad_lora:1": (["bh", "ah"] * 3, ["abh"] * 6),
    "tad_lora:3": (["bh"] * 3 + ["ah"] * 3, ["abh"] * 6),
}


def letters(table):
    return ["".join(np.array(["a", "b", "h"])[row]) for row in np.asarray(table)]


def test_every_registered_method_is_described_here():
    assert {spec.partition(":")[0] for spec in EXPECTED} == set(METHODS)
    assert set(METHODS) >= POOLED


@pytest.mark.parametrize("spec", EXPECTED)
def test_a_method_trains_and_shares_what_its_paper_says(spec):
    method, (trains, shares) = build(spec), EXPECTED[spec]
    assert letters(as_table(method.trains, 6)) == trains
    assert letters(as_table(method.shares, 6)) == shares
    assert method.mixer is (everyone(gossip()) if spec == "fedavg_lora" else gossip())


@pytest.mark.parametrize("spec", EXPECTED)
def test_a_table_is_the_schedule_it_was_made_from(spec):
    """Row by row, for whole numbers and for traced ones alike."""
    for schedule in (build(spec).trains, build(spec).shares):
        table = as_table(schedule, 9)
        rows = jax.jit(lambda t, table=table: from_table(table)(t))
        for t in range(9):
            assert list(map(bool, rows(t))) == list(map(bool, schedule(t))) == table[t].tolist()
        assert list(map(bool, rows(50))) == table[8].tolist()


@pytest.mark.parametrize("period", [1, 2, 5])
def test_alternation_depends_on_the_parity_of_the_phase_alone(period):
    """P22: b in even phases, a in odd ones, never both, never neither."""
    table = np.asarray(as_table(alternate(period), 40))
    assert (table[:, 1] == (np.arange(40) // period % 2 == 0)).all()
    assert (table[:, 0] != table[:, 1]).all()
    assert table[:, 2].all()


def test_alternation_needs_a_period_of_a_round_or_more():
    with pytest.raises(ValueError, match="`period` must be at least 1 round, got 0"):
        alternate(0)


def test_a_spec_is_a_name_and_the_first_setting():
    assert parse("dec_lora") == ("dec_lora", {})
    assert parse("tad_lora:7") == ("tad_lora", {"period": 7})
    assert all(parse(name) == (name, {}) for name in METHODS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tad_lra", r"unknown method 'tad_lra'\. Did you mean 'tad_lora'\? Known: local, .*tad_lora\."),
        ("", "unknown method ''. Known: local"),
        ("xyzzy:3", "unknown method 'xyzzy'. Known: local"),
        ("dec_lora:5", "method 'dec_lora' takes no setting, got 'dec_lora:5'"),
        ("tad_lora:", "`period` must be a whole number of at least 1, got ''"),
        ("tad_lora:0", "`period` must be a whole number of at least 1, got '0'"),
        ("rolora:-1", "`period` must be a whole number of at least 1, got '-1'"),
        ("adf_lora:1.5", "`period` must be a whole number of at least 1, got '1.5'"),
        ("tad_lora:2:3", "`period` must be a whole number of at least 1, got '2:3'"),
    ],
)
def test_an_impossible_spec_is_answered_in_one_clear_line(spec, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(spec)
    assert "\n" not in str(error.value)


def test_tad_lora_takes_its_period_from_the_network_unless_it_is_given():
    rho = 0.9
    chosen = np.asarray(as_table(build("tad_lora", rho=rho).trains, 30))
    np.testing.assert_array_equal(chosen, as_table(alternate(recommended_period(rho)), 30))
    given = as_table(build("tad_lora:2", rho=rho).trains, 30)
    np.testing.assert_array_equal(given, as_table(alternate(2), 30))
    with pytest.raises(ValueError, match="needs `period`, or `rho`"):
        build("tad_lora")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_on_a_known_network_from_its_name_alone(name):
    method = build(name, rho=0.5)
    assert jnp.asarray(method.trains(0).b).dtype == bool
