"""Runs toy federations on many CPU devices and prints the results as JSON; see test_devices.py.

python sharded_toy.py DEVICES CLIENTS SPEC... [ADDRESS PROCESSES RANK]
"""

import json
import sys

import jax

devices, clients, *specs = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", int(devices))
if ":" in specs[-3] and specs[-3].startswith("127."):
    *specs, address, processes, rank = specs
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(processes), int(rank))

import numpy as np
import toy
from jax.experimental.multihost_utils import process_allgather

from jaxdfl.simulate.clients import clients_mesh
from jaxdfl.simulate.rounds import init
from jaxdfl.simulate.run import make_advance, simulate

clients, rounds, steps = int(clients), 8, 3
batches = toy.batches(rounds=rounds, clients=clients)
examples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), batches)
indices = np.arange(rounds * clients * steps, dtype=np.int32).reshape(rounds, clients, steps)
traces = []


def counted(*args):
    traces.append(1)
    return toy.loss(*args)


mesh = clients_mesh(jax.device_count()) if jax.device_count() > 1 else None
advance = make_advance(counted, toy.ADAMW, chunk=2, mesh=mesh)
results = {}
for spec in specs:
    method, stops = toy.make(spec), []
    state = init(jax.random.key(0), toy.blocks(clients), method, toy.ADAMW, base=toy.BASE)
    state = simulate(
        advance, method, toy.random_network(clients=clients), toy.FROZEN, state, examples,
        lambda these: indices[these.start : these.stop], rounds=rounds, every=4, stop=stops.append,
    )  # fmt: skip
    gather = process_allgather if jax.process_count() > 1 else lambda x, tiled: np.asarray(x)
    results[spec] = {
        str(place): np.asarray(gather(x, tiled=True)).tolist() for place, x in enumerate(jax.tree.leaves(state.blocks))
    }
    results[spec] |= {
        name: np.concatenate([stop.infos[name] for stop in stops[1:]]).tolist()
        for name in ("loss", "cross_term", "bytes")
    }
print(json.dumps({"devices": jax.device_count(), "traces": len(traces), **results}))
