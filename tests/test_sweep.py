"""Many runs as one program: each has the numbers that it has alone, and what differs between them compiles nothing."""

import os
import subprocess
import sys
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl.methods import METHODS
from jaxdfl.simulate.clients import over_clients, portion
from jaxdfl.simulate.placement import mesh_of, together
from jaxdfl.simulate.rounds import SimState
from jaxdfl.simulate.run import make_advance, simulate
from jaxdfl.simulate.sweep import Case, program, stretch, sweep
from jaxdfl.topology import build

ROUNDS = 6
BATCHES = {seed: toy.batches(rounds=ROUNDS, seed=seed) for seed in (0, 1)}
EXAMPLES = jax.tree.map(lambda *xs: jnp.concatenate([x.reshape(-1, *x.shape[3:]) for x in xs]), *BATCHES.values())
EACH = ROUNDS * toy.CLIENTS * 3  # examples of one seed
TABLES = ("dec_lora", "ffa_lora", "rolora", "fedsa_lora", "tad_lora")  # methods that gossip plainly
NETWORKS = (toy.random_network(0.3), toy.complete_network())
advance = cache(lambda **options: make_advance(toy.loss, toy.ADAMW, **options))


@cache
def plan(seed):
    indices = seed * EACH + np.arange(EACH, dtype=np.int32).reshape(ROUNDS, toy.CLIENTS, 3)
    return lambda these: indices[these.start : these.stop]


@cache
def frozen(seed):
    """One weight of the seed's own, and one that all share."""
    return {"scale": jnp.float32(2.0 + seed / 4), "shared": SHARED}


SHARED = jnp.zeros((3, 3))


class Ready(NamedTuple):
    """A case and the state it is in."""

    case: Case
    state: SimState


def case(name, network=NETWORKS[0], seed=0, rate=1.0):
    method = toy.make(name)
    state = toy.start(method, seed=seed)
    return Ready(Case(method, network, frozen(seed), plan(seed), partial(scaled, rate)), state)


def scaled(rate, round):
    return jnp.float32(rate) / (1 + round)


CASES = [
    case(name, network, seed, rate)
    for name, network, seed, rate in [
        ("dec_lora", NETWORKS[0], 0, 1.0), ("ffa_lora", NETWORKS[1], 0, 0.5), ("rolora", NETWORKS[0], 1, 1.0),
        ("fedsa_lora", NETWORKS[1], 1, 2.0), ("tad_lora", NETWORKS[0], 0, 0.5), ("tad_lora", NETWORKS[0], 1, 0.5),
        ("local", NETWORKS[0], 1, 1.0),
    ]
]  # fmt: skip


def swept(cases, every=4, devices=None, **options):
    """Final states, and every case's infos over all rounds."""
    stops = {}
    states = sweep(
        advance(**options), *zip(*cases, strict=True), EXAMPLES, rounds=ROUNDS, every=every,
        stop=lambda at: [stops.setdefault(number, []).append(each) for number, each in enumerate(at)], devices=devices,
    )  # fmt: skip
    infos = [
        {name: np.concatenate([at.infos[name] for at in stops[number][1:]]) for name in stops[number][-1].infos}
        for number in range(len(cases))
    ]
    return states, infos, stops


def alone(ready, every=4, **options):
    """The same of one run without the others."""
    case, stops = ready.case, []
    state = simulate(
        advance(**options), case.method, case.network, case.frozen, ready.state, EXAMPLES, case.plan,
        rounds=ROUNDS, every=every, stop=stops.append, step_scale=case.step_scale,
    )  # fmt: skip
    return state, {name: np.concatenate([at.infos[name] for at in stops[1:]]) for name in stops[-1].infos}


@pytest.mark.parametrize(
    "options",
    [{}, {"chunk": 4}, {"clip": 0.5, "moments": "reset_at_switch"}, {"moments": "rotated"}],
    ids=lambda options: "-".join(options) or "plain",
)
def test_a_sweep_equals_its_runs_one_by_one(options):
    """Methods, networks, seeds, frozen weights and learning rates differ. Four clients at a time: of two runs."""
    states, infos, _ = swept(CASES, **options)
    for each, state, info in zip(CASES, states, infos, strict=True):
        expected, expected_info = alone(each, **options)
        toy.assert_close(state, expected)
        toy.assert_close(info, expected_info, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_sweeps_over_seeds_and_networks(name):
    cases = [case(name, NETWORKS[0], 0), case(name, NETWORKS[1], 1)]
    states, infos, _ = swept(cases, every=ROUNDS)
    for each, state, info in zip(cases, states, infos, strict=True):
        expected, expected_info = alone(each, every=ROUNDS)
        toy.assert_close(state, expected, atol=toy.ROUNDING.get(name, 2e-6))
        np.testing.assert_array_equal(info["messages"], expected_info["messages"])


def test_a_sweep_stops_for_every_run_in_turn_and_goes_on_from_any_stop_bit_for_bit():
    states, infos, stops = swept(CASES)
    assert list(stops) == list(range(len(CASES)))
    assert all([at.round for at in each] == [0, 4, 6] for each in stops.values())
    halfway = [each._replace(state=stops[number][1].state) for number, each in enumerate(CASES)]
    resumed, later, _ = swept(halfway)
    toy.assert_equal(resumed, states)
    toy.assert_equal(later, [{name: x[4:] for name, x in info.items()} for info in infos])


def test_a_run_cut_out_of_a_sweep_goes_on_alone():
    states, _, stops = swept(CASES)
    for number in (0, 4):
        state, _ = alone(CASES[number]._replace(state=stops[number][1].state))
        toy.assert_close(state, states[number])


def test_runs_share_a_program_where_only_tables_differ():
    groups = {}
    for name in METHODS:
        groups.setdefault(program(toy.make(name), toy.start(toy.make(name))), []).append(name)
    (plain,) = [names for names in groups.values() if "dec_lora" in names]
    assert {*TABLES, "local", "adf_lora"} <= set(plain)
    assert "gradient_tracking" not in plain
    fewer = toy.start(toy.make("dec_lora"), clients=4)
    assert program(toy.make("dec_lora"), fewer) not in groups
    abstract = jax.eval_shape(lambda: toy.start(toy.make("dec_lora")))
    assert program(toy.make("dec_lora"), abstract) in groups


def test_runs_of_several_programs_or_rounds_are_refused():
    with pytest.raises(ValueError, match="must share a program"):
        swept([case("dec_lora"), case("gradient_tracking")])
    ahead = swept([case("dec_lora")])[0][0]
    with pytest.raises(ValueError, match=r"at the same round, got \[0, 6\]"):
        swept([case("dec_lora"), case("dec_lora")._replace(state=ahead)])


def test_a_seeds_plan_is_made_once_for_all_its_runs():
    asked = []

    def counted(these):
        asked.append(these)
        return plan(0)(these)

    ready = [case(name) for name in TABLES]
    swept([each._replace(case=each.case._replace(plan=counted)) for each in ready])
    assert asked == [range(0, 4), range(4, 6)]


def test_frozen_weights_that_all_runs_share_are_held_once():
    held = together([frozen(0), frozen(1), frozen(0)])
    assert held.common == {"scale": None, "shared": SHARED}
    assert held.own["scale"].tolist() == [2.0, 2.25]
    assert held.variant.tolist() == [0, 1, 0]
    toy.assert_equal(held.of(jnp.int32(1)), frozen(1))
    assert together([frozen(1), frozen(1)]).own == {"scale": None, "shared": None}


def events(function):
    """How many programs XLA compiled meanwhile."""
    compiled = []

    def listen(event, duration_secs, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        function()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(compiled)


def test_topology_probability_period_seed_and_learning_rate_compile_nothing():
    """Of the whole sweep, drawing the networks included; the weights of a new topology are validated on the host."""

    def world(spec):
        return build(spec, toy.CLIENTS).network

    def cases(one, other, names, seed, rate):
        return [case(name, world(spec), seed + k, rate) for name in names for k, spec in enumerate((one, other))]

    first = cases("erdos_renyi:0.3", "ring", ("dec_lora", "tad_lora"), 0, 1.0)
    swept(first)
    others = cases("erdos_renyi:0.7", "star", ("ffa_lora", "rolora"), 0, 0.5)
    assert events(lambda: swept(others)) == 0


@pytest.mark.parametrize(
    ("rounds", "every", "most", "lengths"),
    [
        (50, (10,), 99, {10}), (10, (4,), 99, {4, 2}), (100, (50, 20), 99, {20, 10}), (50, (10, 7), 99, {4, 2, 1}),
        (75, (25,), 13, {10, 5}), (100, (23,), 13, {8, 4, 2, 1}), (8, (4,), 1, {1}),
    ],
)  # fmt: skip
def test_stretches_end_at_every_pace_and_have_few_lengths_each_compiled_once(rounds, every, most, lengths):
    ends, done = [], 0
    while done < rounds:
        these = stretch(done, rounds, every, most)
        assert these.start == done
        ends.append(done := these.stop)
    assert {end - start for start, end in pairwise([0, *ends])} == lengths
    assert set(ends) >= {rounds, *(round for pace in every for round in range(pace, rounds + 1, pace))}


def test_a_run_added_to_a_sweep_traces_the_loss_no_more_often():
    traces = []

    def counted_loss(*args):
        traces.append(1)
        return toy.loss(*args)

    def traced(cases):
        traces.clear()
        advance = make_advance(counted_loss, toy.ADAMW)
        sweep(advance, *zip(*cases, strict=True), EXAMPLES, rounds=4, every=2, stop=lambda *_: None)
        return len(traces)

    assert traced(CASES) == traced(CASES[:2])


TWO_DEVICES = """
import jax, test_sweep, toy
assert len(jax.devices()) == 2
both, one = (test_sweep.swept(test_sweep.CASES[:4], devices=jax.devices()[:count]) for count in (2, 1))
toy.assert_close(both[:2], one[:2])
resumed = [case._replace(state=both[2][number][1].state) for number, case in enumerate(test_sweep.CASES[:4])]
toy.assert_equal(test_sweep.swept(resumed, devices=jax.devices())[0], both[0])
"""


def test_runs_dealt_to_two_devices_have_the_same_numbers():
    """In a process of its own, since devices are counted once."""
    here = Path(__file__).parent
    world = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(here.parent)}
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], cwd=here, env=world, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("runs", "dealt", "left"), [(12, 4, 1), (9, 3, 1), (7, 1, 4), (2, 2, 2), (1, 1, 4)])
def test_runs_are_dealt_to_as_many_devices_as_get_equal_shares_and_clients_take_the_rest(runs, dealt, left):
    assert dict(mesh_of(runs, 10, [jax.devices()[0]] * 4).shape) == {"runs": dealt, "clients": left}


@pytest.mark.parametrize("chunk", [None, 1, 3, 4, 5, 12, 20])
def test_clients_map_the_same_in_any_portion(chunk):
    found = over_clients(lambda shared, x: shared * x, chunk)(2.0, jnp.arange(12.0))
    np.testing.assert_array_equal(found, 2 * np.arange(12.0))


@pytest.mark.parametrize(("clients", "most", "size"), [(120, 16, 15), (12, 5, 4), (10, 7, 5), (7, 4, 4), (11, 2, 2)])
def test_a_portion_divides_the_clients_where_that_costs_less_than_half_of_it(clients, most, size):
    assert portion(clients, most) == size
