"""Every registered wrapper, over three methods: nothing that holds for a method alone is lost by wrapping it.

A line in `CASES` and the suite runs: how the wrapper is asked for, and how it is switched off.
"""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl.methods import METHODS, WRAPPERS, build, parse, parts_of
from jaxdfl.methods.orders import refusal
from jaxdfl.simulate.rounds import SimState, make_round

# wrapper -> (a setting at work, the setting that switches it off; None where there is none)
CASES = {
    "repeated": ("repeated:2", "repeated:1"),
    "packet_loss": ("packet_loss:0.3", "packet_loss:0"),
    "aligned": ("aligned:1.5", "aligned:0"),
    "rayleigh": ("rayleigh:0", "rayleigh:inf"),
    "noisy": ("noisy:0.01", "noisy:0"),
    "over_the_air": ("over_the_air:20", "over_the_air:inf:truncation=0"),
    "quantized": ("quantized:4", "quantized:32"),
    "top_k": ("top_k:0.2", "top_k:1"),
    "event_triggered": ("event_triggered:0.05", "event_triggered:0"),
    "random_gossip": ("random_gossip:0.3", "random_gossip:1"),
    "ef_hc": ("ef_hc:0.05:two_slice", "ef_hc:0"),
    "work_weighted": ("work_weighted", "work_weighted:1"),  # a floor of all the work makes all equal
    "salf": ("salf:0.5:true", "salf:0"),
    "concentrated": ("concentrated:0.5", "concentrated:1"),
    "attention": ("attention:0.5", "attention:inf"),
    "ranks": ("ranks:1", f"ranks:{toy.RANK}"),
    "renormalised": ("ranks:1+renormalised", "renormalised"),
}
BASES = ("dec_lora", "tad_lora", "fedavg_lora")

every_wrapper = pytest.mark.parametrize("name", WRAPPERS)
over_three_methods = pytest.mark.parametrize("base", BASES)


def test_every_wrapper_has_its_case():
    assert set(CASES) == set(WRAPPERS)


def partial_work(key, round):
    """Half of the clients, drawn anew in each round, do one of their three local steps."""
    return jnp.where(jax.random.bernoulli(key, 0.5, (toy.CLIENTS,)), 1.0, 1 / 3)


@cache
def compiled_round(spec):
    network = toy.random_network()._replace(work=partial_work)
    return jax.jit(make_round(toy.loss, toy.ADAMW, toy.make(spec), network))


@cache
def after_six_rounds(spec):
    return toy.run(compiled_round(spec), toy.start(toy.make(spec)), toy.batches(rounds=6))


@every_wrapper
@over_three_methods
def test_a_wrapped_method_runs_keeps_its_shapes_and_stays_finite(name, base):
    spec = f"{base}+{CASES[name][0]}"
    state, infos = after_six_rounds(spec)
    chex.assert_trees_all_equal_shapes_and_dtypes(toy.start(toy.make(spec)), state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.blocks))
    assert all(jnp.shape(value) == () for value in infos[0].values())
    assert {"messages", "bytes", "loss", "cross_term"} <= set(infos[0])


@every_wrapper
@over_three_methods
def test_a_wrapper_switched_off_changes_nothing(name, base):
    off = CASES[name][1]
    if off is None:
        pytest.skip(f"{name} has no setting that switches it off")
    plain, infos = after_six_rounds(base)
    wrapped, wrapped_infos = after_six_rounds(f"{base}+{off}")
    toy.assert_close(wrapped.blocks, plain.blocks)
    for one, other in zip(infos, wrapped_infos, strict=True):
        np.testing.assert_allclose(other["messages"], one["messages"])
        np.testing.assert_allclose(other["bytes"], one["bytes"], rtol=1e-6)


@every_wrapper
def test_a_wrapper_at_work_changes_something(name):
    plain, infos = after_six_rounds("dec_lora")
    wrapped, wrapped_infos = after_six_rounds(f"dec_lora+{CASES[name][0]}")
    leaves = zip(jax.tree.leaves(plain.blocks), jax.tree.leaves(wrapped.blocks), strict=True)
    moved = any(x.shape != y.shape or not np.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in leaves)
    assert moved or any(one["bytes"] != other["bytes"] for one, other in zip(infos, wrapped_infos, strict=True))


@every_wrapper
def test_a_wrapped_run_goes_on_from_a_saved_state_bit_for_bit(name):
    spec = f"tad_lora+{CASES[name][0]}"
    step, (straight, _) = compiled_round(spec), after_six_rounds(spec)
    half, _ = toy.run(step, toy.start(toy.make(spec)), jax.tree.map(lambda x: x[:3], toy.batches(rounds=6)))
    leaves, tree = jax.tree.flatten(half._replace(key=jax.random.key_data(half.key)))
    saved = jax.tree.unflatten(tree, [jnp.asarray(np.array(x)) for x in leaves])
    restored = SimState(*saved)._replace(key=jax.random.wrap_key_data(saved.key))
    resumed, _ = toy.run(step, restored, jax.tree.map(lambda x: x[3:], toy.batches(rounds=6)))
    toy.assert_equal(resumed, straight)


@every_wrapper
def test_equal_wrappers_are_one_object_so_that_runs_share_a_program(name):
    spec = f"dec_lora+{CASES[name][0]}"
    assert build(spec).mixer is build(spec).mixer


@pytest.mark.slow
@every_wrapper
@pytest.mark.parametrize("method", METHODS)
def test_every_wrapper_goes_around_every_method(name, method):
    spec = f"{method}+{CASES[name][0]}"
    if refusal(parts_of(parse(spec))):
        with pytest.raises(ValueError, match=f"`{method}(:.*)?` can't stand to the left of"):
            toy.make(spec)
        return
    _, infos = toy.run(compiled_round(spec), toy.start(toy.make(spec)), toy.batches(rounds=2))
    assert all(np.isfinite(info["loss"]) for info in infos)
