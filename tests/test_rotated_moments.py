"""`moments="rotated"`: optimizer states go with their factors through a change of gauge."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from jaxdfl.methods import build
from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing.aligned import turned
from jaxdfl.protocol import Method, Mixer, Network
from jaxdfl.simulate.moments import rotated
from jaxdfl.simulate.rounds import init, make_round
from jaxdfl.trees import stack

CLIENTS, RANK = toy.CLIENTS, toy.RANK
TURNS = {
    path: jax.random.orthogonal(jax.random.key(seed), RANK, (CLIENTS,)) for seed, path in enumerate(sorted(toy.BASE))
}
MOMENTUM = optax.sgd(0.02, momentum=0.9)
FIRST = toy.blocks(spread=0.5)

NOBODY = Network(lambda key, round: jnp.eye(CLIENTS), lambda key, round: jnp.ones(CLIENTS))
RING = toy.metropolis(jnp.float32(np.roll(np.eye(6), 1, 0) + np.roll(np.eye(6), -1, 0)))


def regauged():
    """Local training, after each round of which every client turns its factors by a rotation or reflection."""
    mixer = Mixer(init=lambda blocks: (), mix=lambda exchange, blocks, state: (turned(blocks, TURNS), state, {}))
    return Method(both_factors, both_factors, mixer)


def after(method, optimizer, rounds=3, network=NOBODY, **options):
    step = jax.jit(make_round(toy.loss, optimizer, method, network, **options))
    return toy.run(step, init(jax.random.key(0), FIRST, method, optimizer), toy.batches(rounds=rounds))[0]


def products(state):
    return np.stack([state.blocks.b[path] @ state.blocks.a[path] for path in state.blocks.a])


@cache
def trained(optimizer):
    """A state with moments in it."""
    return after(build("local"), optimizer, rounds=1)


def test_under_momentum_a_change_of_gauge_between_rounds_changes_nothing_where_moments_follow():
    """Heavy-ball steps on (A, B) commute with one rotation of both; with moments left behind they do not."""
    plain = products(after(build("local"), MOMENTUM))
    followed = products(after(regauged(), MOMENTUM, moments="rotated"))
    left = products(after(regauged(), MOMENTUM))
    np.testing.assert_allclose(followed, plain, rtol=1e-4, atol=2e-5)
    assert np.abs(left - plain).max() > 0.05


@pytest.mark.parametrize("optimizer", [toy.ADAMW, MOMENTUM, optax.lion(0.01)], ids=["adamw", "momentum", "lion"])
def test_first_moments_turn_as_factors_do_and_second_moments_by_squares(optimizer):
    """Against numpy, leaf by leaf; counts and the head's moments are left alone."""
    state = trained(optimizer)
    found = rotated(state.opt, state.blocks, turned(state.blocks, TURNS))
    toy.assert_equal(found.head, state.opt.head)
    for block in ("a", "b"):
        old, new = (getattr(opt, block)[0]._asdict() for opt in (state.opt, found))
        assert {"mu", "trace"} & set(old)
        for name, moments in old.items():
            if name == "count":
                toy.assert_equal(new[name], moments)
                continue
            for path, moment in moments.items():
                r, moment = np.asarray(TURNS[path]), np.asarray(moment)
                r = r**2 if name == "nu" else r
                expected = np.swapaxes(r, 1, 2) @ moment if block == "a" else moment @ r
                assert np.abs(moment).max() > 1e-6
                scale = np.abs(expected).max()
                np.testing.assert_allclose(new[name][path] / scale, expected / scale, atol=2e-5)
                if name == "nu":
                    np.testing.assert_allclose(new[name][path].sum(), moment.sum(), rtol=1e-5)
                    assert (new[name][path] >= 0).all()


def test_where_no_factor_turns_moments_are_kept_to_rounding():
    """Local training: R = I."""
    kept, followed = (after(build("local"), toy.ADAMW, moments=moments) for moments in ("kept", "rotated"))
    toy.assert_close((followed.blocks, followed.opt), (kept.blocks, kept.opt), rtol=1e-4, atol=1e-5)


def test_a_first_round_with_b_at_zero_is_no_gauge_change():
    """B = 0 leaves A to decide, and equal A leave R = I, without NaN."""
    blocks = toy.blocks()
    opt = stack(toy.ADAMW.init(jax.tree.map(lambda x: x[0], blocks.a)), CLIENTS)
    opt = jax.tree.map(lambda x: x + jnp.ones_like(x), opt)
    found = rotated(blocks._replace(a=opt, b=(), head=()), blocks, blocks)
    toy.assert_close(found.a, opt)


def test_an_optimizer_without_moments_has_nothing_to_turn():
    opt = after(build("local"), toy.SGD, rounds=0).opt
    assert rotated(opt, FIRST, turned(FIRST, TURNS)) == opt


def test_rotated_moments_go_with_gossip_and_alignment():
    network = Network(lambda key, round: RING, NOBODY.work)
    state = after(build("fedrot_lora:1.5"), toy.ADAMW, network=network, moments="rotated")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.blocks, state.opt)))
    assert all((x >= 0).all() for x in jax.tree.leaves((state.opt.a[0].nu, state.opt.b[0].nu)))
