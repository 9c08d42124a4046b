"""Specs that would run and mean nothing are refused, and the orders that the refusals recommend are accepted."""

import jax
import numpy as np
import pytest
import toy

from jaxdfl.methods import METHODS, WRAPPERS, build, parse, parts_of
from jaxdfl.methods.orders import RULES, refusal
from jaxdfl.simulate.rounds import make_round

LEAST = {  # settings of the parts that can't do without
    **{"event_triggered": "0.1", "ef_hc": "0.1", "random_gossip": "0.5", "concentrated": "0.5", "quantized": "8"},
    **{
        "packet_loss": "0.2",
        "rayleigh": "10",
        "top_k": "0.5",
        "noisy": "0.1",
        "over_the_air": "20",
        "attention": "0.5",
    },
    **{"repeated": "2", "salf": "0.5", "ranks": "1"},
}


def pairs(*words):
    """Of the rules whose remedy has one of these words."""
    rules = [rule for rule in RULES if any(word in rule.why for word in words)]
    return sorted({(left, right) for rule in rules for left in rule.left for right in rule.right})


SENSIBLE = (
    *("dec_lora+top_k:0.5+renormalised", "dec_lora+attention:0.5+renormalised+packet_loss:0.1"),
    *("dec_lora+event_triggered:0.1+top_k:0.5", "dec_lora+random_gossip:0.5+quantized:8", "choco+packet_loss:0.1"),
    *("dec_lora+repeated:2+event_triggered:0.1", "dec_lora+repeated:2+concentrated:0.5"),
    *("tad_lora:5+aligned", "fedrot_lora+packet_loss:0.1", "flora+event_triggered:0.1", "dec_lora+ranks:1+top_k:0.5"),
    *("gradient_tracking+top_k:0.5", "lora_fair+packet_loss:0.1", "dec_lora+ranks:1+renormalised"),
    *(
        "dec_lora+aligned+top_k:0.3",
        "decaf+top_k:0.5",
        "fedsvd:aligned+event_triggered:0.1",
        "decaf:balanced:svd+ranks:1",
    ),
    *("dec_lora+top_k:0.5+packet_loss:0.1", "dec_lora+event_triggered:0.1+packet_loss:0.1", "lora_fair+ranks:1"),
)


def name_of(part):
    return part.partition(":")[0]


def spelled(left, right):
    """A spec in which the one part, a name or a name and a setting, stands to the left of the other."""
    parts = []
    for part in (left, right):
        name, colon, setting = part.partition(":")
        parts.append(":".join([name, *([LEAST[name]] if name in LEAST else []), *([setting] if colon else [])]))
    return "+".join(parts if name_of(left) in METHODS else ["dec_lora", *parts])


@pytest.mark.parametrize(("left", "right"), pairs(""))
def test_a_meaningless_order_is_refused_in_one_line_that_names_both_parts(left, right):
    with pytest.raises(ValueError, match=f"`{left}` can't stand to the left of `{right}`: ") as error:
        build(spelled(left, right))
    assert "\n" not in str(error.value)
    assert "{" not in str(error.value)


@pytest.mark.parametrize(
    ("left", "right"), [pair for pair in pairs("to the left of", "to the right of") if name_of(pair[0]) in WRAPPERS]
)
def test_a_refused_pair_of_wrappers_is_accepted_the_other_way_round(left, right):
    build(spelled(right, left))


@pytest.mark.parametrize(("left", "right"), pairs("at its default"))
def test_a_refused_setting_is_accepted_at_its_default(left, right):
    build(spelled(name_of(left), right))


@pytest.mark.parametrize("spec", SENSIBLE)
def test_a_sensible_order_is_accepted(spec):
    build(spec)


def test_what_stands_between_does_not_hide_a_meaningless_order():
    with pytest.raises(ValueError, match="`top_k` can't stand to the left of `ef_hc`"):
        build("dec_lora+top_k:0.5+packet_loss:0.1+ef_hc:0.1")


def test_rules_name_registered_parts_and_accept_every_part_alone():
    named = {name_of(part) for rule in RULES for part in (*rule.left, *rule.right)}
    assert named <= set(METHODS) | set(WRAPPERS)
    assert not any(refusal(parts_of(parse(method))) for method in METHODS)
    assert not any(refusal(parts_of(parse(spelled("dec_lora", wrapper)))) for wrapper in WRAPPERS)


def test_ranks_stand_inside_salf_wherever_the_spec_names_them():
    assert build("dec_lora+ranks:1+salf:0.5").mixer is build("dec_lora+salf:0.5+ranks:1").mixer


@pytest.mark.parametrize("rule", ["compensate", "compensate_differences"])
def test_links_too_weak_for_any_message_leave_clients_finite(rule):
    method = toy.make(f"dec_lora+rayleigh:-20:rule={rule}")
    run_round = jax.jit(make_round(toy.loss, toy.ADAMW, method, toy.complete_network()))
    state, _ = toy.run(run_round, toy.start(method), toy.batches(rounds=2))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.blocks))
