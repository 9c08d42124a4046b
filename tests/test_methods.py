"""What each method trains and shares, round by round, and how a method is asked for by name."""

import inspect
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl.methods import METHODS, POOLED, WRAPPERS, build, parse
from jaxdfl.methods.schedules import alternate, as_table
from jaxdfl.mixing import everyone, gossip, packet_loss, repeated
from jaxdfl.topology.spectrum import recommended_period

STEPS = {"learning_rate": 0.01, "local_steps": 3}  # of the run, for methods that correct every gradient

ROOT = Path(__file__).parents[1]
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
    "choco": (["abh"] * 6, ["abh"] * 6),
    "tad_lora:3": (["bh"] * 3 + ["ah"] * 3, ["abh"] * 6),
    "conlora": (["bh"] * 6, ["b"] * 6),
    "fedrot_lora": (["abh"] * 6, ["abh"] * 6),
    "flora": (["abh"] * 6, ["abh"] * 6),
    "fedex_lora": (["abh"] * 6, ["abh"] * 6),
    "federa": (["abh"] * 6, ["abh"] * 6),
    "decaf": (["abh"] * 6, ["abh"] * 6),
    "flexlora": (["abh"] * 6, ["abh"] * 6),
    "lora_fair": (["abh"] * 6, ["abh"] * 6),
    "fedsvd": (["bh"] * 6, ["abh"] * 6),
    "sum_product": (["abh"] * 6, ["abh"] * 6),
    "product_sum": (["abh"] * 6, ["abh"] * 6),
    "gradient_tracking": (["abh"] * 6, ["abh"] * 6),
    "local_gradient_tracking": (["abh"] * 6, ["abh"] * 6),
    "extra": (["abh"] * 6, ["abh"] * 6),
    "nids": (["abh"] * 6, ["abh"] * 6),
    "exact_diffusion": (["abh"] * 6, ["abh"] * 6),
    "d2": (["abh"] * 6, ["abh"] * 6),
    "flex_atc:0.3": (["abh"] * 6, ["abh"] * 6),
    "quasi_global_momentum": (["abh"] * 6, ["abh"] * 6),
    "push_sum": (["abh"] * 6, ["abh"] * 6),
    "relay_sgd": (["abh"] * 6, ["abh"] * 6),
    "sparse_orthogonal_lora": (["bh"] * 6, ["b"] * 6),
}
PLAIN = {  # methods that gossip and nothing else; the others bring a mixer of their own
    "local", "centralized", "dec_lora", "ffa_lora", "fedsa_lora", "rolora", "adf_lora", "tad_lora", "conlora",
}  # fmt: skip


def letters(table):
    return ["".join(np.array(["a", "b", "h"])[row]) for row in np.asarray(table)]


def test_every_registered_method_is_described_here():
    assert {spec.partition(":")[0] for spec in EXPECTED} == set(METHODS)
    assert set(METHODS) >= POOLED


@pytest.mark.parametrize("spec", EXPECTED)
def test_a_method_trains_and_shares_what_its_paper_says(spec):
    method, (trains, shares) = build(spec, **STEPS), EXPECTED[spec]
    assert letters(as_table(method.trains, 6)) == trains
    assert letters(as_table(method.shares, 6)) == shares
    assert (method.mixer is gossip()) == (spec.partition(":")[0] in PLAIN)


@pytest.mark.parametrize("spec", EXPECTED)
def test_a_table_is_the_schedule_it_was_made_from(spec):
    """Row by row."""
    for schedule in (build(spec, **STEPS).trains, build(spec, **STEPS).shares):
        table = as_table(schedule, 9)
        for t in range(9):
            assert list(map(bool, schedule(t))) == table[t].tolist()


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
    assert parse("dec_lora") == ("dec_lora", {}, ())
    assert parse("tad_lora:7") == parse("tad_lora:period=7") == ("tad_lora", {"period": 7}, ())


def test_a_composition_lists_its_wrappers_in_the_order_in_which_a_message_meets_them():
    found = parse("tad_lora:5+repeated:2+packet_loss:0.2")
    assert found.wrappers == (("repeated", {"times": 2}), ("packet_loss", {"rate": 0.2}))
    method = build("tad_lora:5+repeated:2+packet_loss:0.2")
    assert method.mixer is repeated(packet_loss(gossip(), rate=0.2), times=2)


def test_wrappers_go_inside_a_method_that_mixes_in_a_way_of_its_own():
    assert build("fedavg_lora+packet_loss:0.2").mixer is everyone(packet_loss(gossip(), rate=0.2))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tad_lra", r"unknown method 'tad_lra'\. Did you mean 'tad_lora'\? Known: local, .*tad_lora, .*\."),
        ("", "unknown method ''. Known: local"),
        ("xyzzy:3", "unknown method 'xyzzy'. Known: local"),
        ("dec_lora:5", "method 'dec_lora' takes no setting, got 'dec_lora:5'"),
        ("tad_lora:", "`period` must be a whole number, got ''"),
        ("adf_lora:1.5", "`period` must be a whole number, got '1.5'"),
        ("tad_lora:2:3", "'3' is one setting too many or none of its own; 'tad_lora' takes period"),
        ("tad_lora:2:period=3", "gives `period` twice"),
        ("tad_lora:epoch=3", "'epoch=3' is one setting too many or none of its own"),
        ("dec_lora+", "unknown wrapper ''. Known: "),
        ("dec_lora+packet_los:0.1", "unknown wrapper 'packet_los'. Did you mean 'packet_loss'"),
        ("dec_lora+packet_loss", "wrapper 'packet_loss' needs `rate`: packet_loss:RATE"),
        ("dec_lora+packet_loss:high", "`rate` must be a number, got 'high'"),
    ],
)
def test_an_impossible_spec_is_answered_in_one_clear_line(spec, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["tad_lora:0", "rolora:-1"])
def test_a_setting_out_of_range_is_refused_by_the_constructor(spec):
    with pytest.raises(ValueError, match="`period` must be at least 1 round, got"):
        build(spec)


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
    method = build(name, rho=0.5, learning_rate=0.01, local_steps=3)
    assert jnp.asarray(method.trains(0).b).dtype == bool


@pytest.mark.parametrize(
    ("page", "up", "known"), [("README.md", "", METHODS), ("docs/methods.md", "../", METHODS | WRAPPERS)]
)
def test_every_method_and_wrapper_has_its_row_naming_its_file(page, up, known):
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[`(\w+)[^`]*`\]\(([^)]+)\)", text, re.MULTILINE))
    assert set(rows) == set(known)
    for name, file in rows.items():
        assert up + inspect.unwrap(known[name]).__module__.replace(".", "/") + ".py" == file


def test_the_readme_names_every_wrapper():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = text.partition("Wrappers, which go with all of them: ")[2].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", named)) == set(WRAPPERS)
