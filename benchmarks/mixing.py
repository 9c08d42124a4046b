"""Mixing many clients: W @ X as a matrix product against a sum over neighbours, by clients and degree.

    python benchmarks/mixing.py                          # a table on the screen
    python benchmarks/mixing.py --clients 1024 --out mixing.json
    python benchmarks/mixing.py --clients 1024 --degrees 2 --runs 2  # several runs at once

Parameters have the shapes of rank-8 adapters on `--targets` square layers of width 384 (24 of them: 147,456 a client).
The ways run in turn, so that a busy machine slows all; times are medians. `condition` is what `chosen` would be without
its rule for several runs: under `vmap` a condition computes both its ways.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxdfl.mixing.weighted import MOST_HEARD, matrix_product, sum_over_neighbours, weighted
from jaxdfl.topology.graphs import random_regular
from jaxdfl.topology.weights import metropolis_hastings

RANK, WIDTH = 8, 384


def condition(weights: jax.Array, tree: dict) -> dict:
    most = jnp.count_nonzero(weights, axis=1).max()
    return jax.lax.cond(most <= MOST_HEARD, sum_over_neighbours, matrix_product, weights, tree)


WAYS = {"dense": matrix_product, "sparse": sum_over_neighbours, "condition": condition, "chosen": weighted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--degrees", type=int, nargs="+", default=[2, 4, 8, 16, 30, 32])
    parser.add_argument("--targets", type=int, default=24)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to write the times as json")
    options = parser.parse_args()

    device = jax.devices()[0].device_kind
    rows = []
    for clients in options.clients:
        tree = adapters(clients, options.targets)
        for degree in options.degrees:
            weights = metropolis_hastings(random_regular(clients, degree))
            rows.append({"clients": clients, "degree": degree, **race(weights, tree, options.repeats, options.runs)})
    table = Table(*rows[0], title=f"seconds a mixing of {options.targets * 2 * RANK * WIDTH:,} parameters, {device}")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps({"device": device, "jax": jax.__version__, "rows": rows}, indent=1) + "\n")


def adapters(clients: int, targets: int) -> dict:
    """Factors of the clients, drawn at random."""
    shapes = {"a": (RANK, WIDTH), "b": (WIDTH, RANK)}
    keys = jax.random.split(jax.random.key(0), targets)
    return {
        (number, name): jax.random.normal(key, (clients, *shape))
        for number, key in enumerate(keys)
        for name, shape in shapes.items()
    }


def race(weights: jax.Array, tree: dict, repeats: int, runs: int) -> dict[str, float]:
    """Median seconds of each way, run in turn. A way that cannot take so full a row is left out."""
    full = int(jnp.count_nonzero(weights, axis=1).max()) > MOST_HEARD
    ways = {name: jax.jit(jax.vmap(way) if runs > 1 else way) for name, way in WAYS.items()}
    if full:
        del ways["sparse"]
    if runs > 1:
        weights, tree = jax.tree.map(lambda x: jnp.stack([x] * runs), (jnp.asarray(weights), tree))
    seconds = {name: [] for name in WAYS}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = perf_counter()
            jax.block_until_ready(way(weights, tree))
            if turn:  # the first one compiles
                seconds[name].append(perf_counter() - start)
    return {name: median(each) if each else float("nan") for name, each in seconds.items()}


if __name__ == "__main__":
    main()
