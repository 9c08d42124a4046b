"""Every registered method meets the engine's contract on a toy federation. Registering a method tests it."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl.methods import METHODS
from jaxdfl.protocol import Method, PerBlock
from jaxdfl.simulate.rounds import SimState, init, make_round, round_keys
from jaxdfl.simulate.run import make_advance, simulate

every_method = pytest.mark.parametrize("name", METHODS)


@cache
def compiled_round(name, chunk=None):
    return jax.jit(make_round(toy.loss, toy.ADAMW, toy.make(name), toy.random_network(), chunk=chunk))


@cache
def after_eight_rounds(name):
    return toy.run(compiled_round(name), toy.start(toy.make(name)), toy.batches(rounds=8))


@every_method
def test_a_method_is_a_record_of_pure_functions(name):
    method = toy.make(name)
    assert isinstance(method, Method)
    for schedule in (method.trains, method.shares):
        flags = schedule(jnp.int32(4))
        assert isinstance(flags, PerBlock)
        assert all(jnp.asarray(flag).dtype == bool for flag in flags)


@every_method
def test_a_method_learns(name):
    method = toy.make(name)
    _, infos = toy.run(compiled_round(name), toy.start(method), toy.batches(rounds=40))
    first, last = infos[0]["loss"], np.mean([info["loss"] for info in infos[-6:]])
    assert last < 0.8 * first


@every_method
def test_a_round_keeps_structure_shapes_and_dtypes(name):
    state = toy.start(toy.make(name))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after_eight_rounds(name)[0])


@every_method
def test_a_round_reports_its_loss_diagnostics_and_costs_as_scalars(name):
    info = after_eight_rounds(name)[1][0]
    wanted = {"loss", "disagreement_a", "disagreement_b", "disagreement_product", "cross_term", "messages", "bytes"}
    assert wanted <= set(info)
    assert all(jnp.shape(value) == () for value in info.values())


@every_method
def test_compiled_scan_equals_a_python_loop(name):
    """Tables, gathers, chunks of rounds and all, against the round called one by one."""
    method, network, rounds = toy.make(name), toy.random_network(), 8
    batches = toy.batches(rounds=rounds)
    looped, loop_infos = after_eight_rounds(name)

    clients, steps = toy.CLIENTS, 3
    examples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), batches)
    indices = np.arange(rounds * clients * steps, dtype=np.int32).reshape(rounds, clients, steps)
    stops = []
    advance = make_advance(toy.loss, toy.ADAMW)
    scanned = simulate(
        advance, method, network, toy.FROZEN, toy.start(method), examples,
        lambda these: indices[these.start : these.stop], rounds=rounds, every=4, stop=stops.append,
    )  # fmt: skip
    toy.assert_close(scanned, looped)
    assert [stop.round for stop in stops] == [0, 4, 8]
    for name_ in ("loss", "cross_term", "messages", "bytes"):
        scanned_info = np.concatenate([stop.infos[name_] for stop in stops[1:]])
        np.testing.assert_allclose(scanned_info, [info[name_] for info in loop_infos], rtol=1e-4, atol=1e-7)


@every_method
def test_seeds_vmapped_equal_seeds_one_by_one(name):
    method, step = toy.make(name), compiled_round(name)
    batches = jax.tree.map(lambda x: x[0], toy.batches())
    states = [toy.start(method, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together, _ = jax.vmap(lambda state: step(toy.FROZEN, state, batches))(stacked)
    for seed, state in enumerate(states):
        alone, _ = step(toy.FROZEN, state, batches)
        toy.assert_close(jax.tree.map(lambda x, seed=seed: x[seed], together), alone)


@every_method
def test_client_chunks_do_not_change_the_result(name):
    """Four at a time does not divide the six clients: the remainder counts too."""
    chunked, _ = toy.run(compiled_round(name, chunk=4), toy.start(toy.make(name)), toy.batches(rounds=8))
    toy.assert_close(chunked, after_eight_rounds(name)[0])


@every_method
def test_a_saved_state_goes_on_bit_for_bit(name):
    """P22: the phase, the graphs and the dropout follow from the state; nothing lives outside it."""
    method, batches = toy.make(name), toy.batches(rounds=8)
    step, (straight, _) = compiled_round(name), after_eight_rounds(name)
    half, _ = toy.run(step, toy.start(method), jax.tree.map(lambda x: x[:5], batches))
    leaves, tree = jax.tree.flatten(half._replace(key=jax.random.key_data(half.key)))
    saved = jax.tree.unflatten(tree, [jnp.asarray(np.array(x)) for x in leaves])
    restored = SimState(*saved)._replace(key=jax.random.wrap_key_data(saved.key))
    resumed, _ = toy.run(step, restored, jax.tree.map(lambda x: x[5:], batches))
    toy.assert_equal(resumed, straight)


@every_method
def test_relabelling_clients_permutes_the_result(name):
    """P17: no client is special. Dropout is off, since client i's stream follows its label."""
    method, batches = toy.make(name), toy.batches(rounds=4)
    order = np.array([3, 1, 5, 0, 2, 4])
    network = toy.random_network()
    permuted_network = network._replace(weights=lambda key, t: network.weights(key, t)[order][:, order])

    def outcome(network, batches, start_blocks):
        state = init(jax.random.key(0), start_blocks, method._replace(start=None), toy.ADAMW)
        step = jax.jit(make_round(toy.loss, toy.ADAMW, method, network))
        return toy.run(step, state, batches)[0].blocks

    spread = toy.start(method, spread=0.1).blocks  # before relabelling, since a start may draw factors by label
    plain = outcome(network, batches, spread)
    permuted = outcome(
        permuted_network, jax.tree.map(lambda x: x[:, order], batches), jax.tree.map(lambda x: x[order], spread)
    )
    toy.assert_close(permuted, jax.tree.map(lambda x: x[order], plain), atol=toy.ROUNDING.get(name, 2e-6))


@every_method
def test_every_method_meets_the_same_graphs_for_the_same_seed(name):
    """Keys are split before the method is consulted: the mixer is handed the network's weights for (seed, round)."""
    seen = []

    def spy(exchange, blocks, state):
        jax.debug.callback(lambda w: seen.append(np.asarray(w)), exchange.weights, ordered=True)
        return toy.make(name).mixer.mix(exchange, blocks, state)

    method = toy.make(name)._replace(mixer=toy.make(name).mixer._replace(mix=spy))
    step = jax.jit(make_round(toy.loss, toy.ADAMW, method, toy.random_network()))
    state, _ = toy.run(step, toy.start(method), toy.batches(rounds=2))
    jax.block_until_ready(state.blocks)
    jax.effects_barrier()
    network = toy.random_network()
    expected = [network.weights(round_keys(jax.random.key(0), t).network, t) for t in range(2)]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


def test_runs_that_differ_in_data_alone_share_one_program():
    """Topology, probability, period, seed, what trains and what is shared: no second compilation."""
    batches = toy.batches(rounds=1)
    examples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), batches)
    indices = np.arange(18, dtype=np.int32).reshape(1, 6, 3)
    traces, first = [], 0

    def counted_loss(*args):
        traces.append(1)
        return toy.loss(*args)

    advance = make_advance(counted_loss, toy.ADAMW)
    for name in ("dec_lora", "ffa_lora", "rolora", "fedsa_lora", "adf_lora", "tad_lora", "local"):
        for network in (toy.random_network(0.1), toy.random_network(0.5), toy.complete_network()):
            method = toy.make(name)
            simulate(
                advance, method, network, toy.FROZEN, toy.start(method, seed=len(name)), examples,
                lambda these: np.repeat(indices, len(these), 0), rounds=4, every=2, stop=lambda stop: None,
            )  # fmt: skip
            first = first or len(traces)
    assert len(traces) == first
