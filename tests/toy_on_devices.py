"""Runs toy federations on so many CPU devices and prints the results as JSON; see test_devices.py.

python toy_on_devices.py DEVICES SPEC...
"""

import json
import sys

import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))  # before `toy`, whose constants start jax

if True:  # imports that must come after it
    import toy

    from jaxdfl.simulate.program import make_advance
    from jaxdfl.simulate.sweep import Case, sweep

ROUNDS, STEPS, CLIENTS = 6, 3, 7
batches = toy.batches(rounds=ROUNDS, clients=CLIENTS)
examples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), batches)
indices = np.arange(ROUNDS * CLIENTS * STEPS, dtype=np.int32).reshape(ROUNDS, CLIENTS, STEPS)
program = make_advance(toy.loss, toy.ADAMW, chunk=2)
held = set()  # clients of one run whose blocks or moments lie on a device between rounds


def advance(*given):
    state, infos = program(*given)
    for leaf in jax.tree.leaves((state.blocks, state.opt)):
        held.update(shard.data.shape[1] for shard in leaf.addressable_shards)
    return state, infos


def plan(rounds):
    return indices[rounds.start : rounds.stop]


def run(spec, seeds):
    method, infos = toy.make(spec), []
    cases = [Case(method, toy.random_network(clients=CLIENTS), toy.FROZEN, plan) for _ in seeds]
    starts = [toy.start(method, seed=seed, clients=CLIENTS) for seed in seeds]
    states = sweep(
        advance,
        cases,
        starts,
        examples,
        rounds=ROUNDS,
        every=3,
        stop=lambda stops: infos.extend(stop.infos for stop in stops),
    )
    found = {
        f"{n} {p}": np.asarray(x).tolist()
        for n, s in enumerate(states)
        for p, x in enumerate(jax.tree.leaves(s.blocks))
    }
    counts = ("loss", "cross_term", "bytes")
    return found | {name: [values[name].tolist() for values in infos if values] for name in counts}


results = {spec: run(spec, [0]) for spec in sys.argv[2:]}
of_one_run = sorted(held)
results["three at a time"] = run("tad_lora", [0, 1, 2])
print(json.dumps({"devices": jax.device_count(), "held": of_one_run, "results": results}))
