"""The engine at full size on an accelerator: `python -m benchmarks.accelerator`.

A model of RoBERTa-large's shape with random weights, ten clients of 32 sentences of exactly 128 tokens, bfloat16:
rounds of the compiled engine, without evaluation. Operations are those of the matrix products in jaxdfl's own traced
loss; the peak is the maker's figure for dense bfloat16 products. `--profile` also says which kernels took the time.
"""

import gzip
import json
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks import record
from jaxdfl import methods, topology
from jaxdfl.data.examples import Examples
from jaxdfl.data.packing import Room
from jaxdfl.models import EncoderConfig, layers, random_model
from jaxdfl.models.classifier import Classifier, adapt, cross_entropy
from jaxdfl.models.packed import packed_cross_entropy
from jaxdfl.problems.backbone import ACCELERATOR_GROUP
from jaxdfl.simulate.operations import matrix_products
from jaxdfl.simulate.rounds import init
from jaxdfl.simulate.run import Stop, make_advance, simulate
from jaxdfl.trees import stack

PEAKS = {"H100": 989.4, "H200": 989.4, "A100": 312.0}  # TFLOP/s, dense bfloat16, of the SXM cards by their datasheets
EXAMPLES = 4096


@dataclass(frozen=True)
class Shape:
    """Of a model, and of a step of all clients."""

    layers: int = 24
    width: int = 1024
    heads: int = 16
    intermediate: int = 4096
    clients: int = 10
    batch_size: int = 32
    length: int = 128
    rank: int = 8
    plain_attention: bool = False
    """XLA's attention, also where the kernel for short rows would serve."""
    remat: bool = False


@dataclass(frozen=True)
class Options(Shape):
    """Rounds of a large model: milliseconds, TFLOP/s, share of the peak."""

    local_steps: int = 5
    rounds: int = 6
    """Three at least: the first compiles, the second settles."""
    chunk: int | None = None
    """Clients at a time; None: all."""
    packing: bool = False
    """Sentences as long as a row leave nothing to pack; then it shows what packing costs."""
    profile: bool = False
    """Trace one more round."""
    out: Path | None = None
    """JSON file; a trace goes beside it."""


def main() -> int:
    """Runs, and prints."""
    options = tyro.cli(Options)
    if options.rounds < 3:
        print(f"error: `--rounds` must be at least 3, got {options.rounds}.", file=sys.stderr)
        return 2
    device = jax.devices()[0]
    peak = next((value for name, value in PEAKS.items() if name in device.device_kind), None)
    size = 8192 if device.platform != "cpu" else 1024  # of the square product that sets the roof
    best = _best_product(size)
    with _plain_attention() if options.plain_attention else nullcontext():
        seconds, compiling, operations, memory = measure(options)
    rate = operations / seconds / 1e12
    found = {
        "options": asdict(options), "device": device.device_kind, "packages": record.packages(), "seconds": seconds,
        "compiling": compiling, "tflop": operations / 1e12, "tflops": rate, "best_product_tflops": best, "peak": peak,
        "peak_gib": memory,
    }  # fmt: skip
    print(f"{device.device_kind}, jax {jax.__version__}; best product of {size}^3 {best:.0f} TFLOP/s")
    share = f", {rate / peak:.1%} of {peak:.0f}" if peak else ""
    print(
        f"{seconds / options.local_steps * 1e3:.1f} ms a step of {options.clients} clients, "
        f"{operations / options.local_steps / 1e12:.1f} TFLOP: {rate:.0f} TFLOP/s{share}, {rate / best:.1%} of the "
        f"best product; compiled in {compiling:.0f} s; {memory:.1f} GiB",
        flush=True,
    )
    if options.out:
        record.write(options.out, found)
    return 0


def _plain_attention() -> AbstractContextManager[Any]:
    """What is traced within takes XLA's attention."""
    return patch.object(layers, "serves", lambda q, k: False)


def _best_product(size: int) -> float:
    """TFLOP/s of a square bfloat16 product, by ten in a row."""
    x, y = (jax.random.normal(jax.random.key(n), (size, size), jnp.bfloat16) for n in range(2))

    @jax.jit
    def ten(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 10, lambda _, z: (z @ y * size**-0.5).astype(jnp.bfloat16), x)

    ten(x, y).block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        ten(x, y).block_until_ready()
        times.append(time.perf_counter() - began)
    return 10 * 2 * size**3 / median(times) / 1e12


def large(shape: Shape) -> Classifier:
    """The adapted model, in bfloat16."""
    config = EncoderConfig(
        "roberta", vocabulary=50265, positions=514, types=1, width=shape.width, layers=shape.layers,
        heads=shape.heads, intermediate=shape.intermediate, epsilon=1e-5, position_offset=2,
    )  # fmt: skip
    model = random_model(config, 3, jax.random.key(0), jnp.bfloat16)
    return adapt(model, jax.random.key(1), rank=shape.rank, remat=shape.remat)


def measure(options: Options) -> tuple[float, float, float, float]:
    """Median seconds of a round, those of compiling, operations of a round, and peak GiB of the device."""
    classifier = large(options)
    room = Room(options.length, min(options.batch_size, max(1, ACCELERATOR_GROUP // options.length)), 1)
    loss = packed_cross_entropy(classifier.logits, room) if options.packing else cross_entropy(classifier)

    draw = np.random.default_rng(0)
    ids = draw.integers(5, 50000, (EXAMPLES, options.length)).astype(np.int32)
    full = np.full(EXAMPLES, options.length, np.int32)
    labels = draw.integers(0, 3, EXAMPLES).astype(np.int32)
    examples = Examples(*map(jnp.asarray, (ids, np.zeros(ids.shape, np.int8), full, labels)))
    shape = (options.rounds + 1, options.clients, options.local_steps, options.batch_size)
    plan = draw.integers(0, EXAMPLES, shape).astype(np.int32)

    method, optimizer = methods.build("dec_lora"), optax.adamw(5e-4)
    network = topology.build("erdos_renyi:0.5", options.clients).network
    state = init(jax.random.key(2), stack(classifier.blocks, options.clients), method, optimizer)
    advance = make_advance(loss, optimizer, chunk=options.chunk)
    times: list[float] = []

    def go(state: Any, rounds: int, stop: Any) -> Any:
        return simulate(
            advance, method, network, classifier.frozen, state, examples, lambda these: plan[these.start : these.stop],
            rounds=rounds, every=1, stop=stop,
        )  # fmt: skip

    def stop(at: Stop) -> None:
        jax.block_until_ready(at.state)
        times.append(time.perf_counter())
        if len(times) > 1:
            print(f"round {len(times) - 2}: {times[-1] - times[-2]:.2f} s", flush=True)

    state = go(state, options.rounds, stop)
    batch = jax.tree.map(lambda x: x[: options.batch_size], examples)
    turns = -(-options.batch_size // room.rows) if options.packing else None
    with _plain_attention():  # scores that a kernel computes twice count once
        traced = jax.make_jaxpr(jax.value_and_grad(loss, argnums=1))(classifier.frozen, classifier.blocks, batch, None)
    operations = matrix_products(traced, turns) * options.clients * options.local_steps
    rounds = np.diff(times)
    if options.profile:
        with tempfile.TemporaryDirectory() as scratch:
            quiet = jax.profiler.ProfileOptions()
            quiet.python_tracer_level = 0
            jax.profiler.start_trace(scratch, profiler_options=quiet)
            go(state, options.rounds + 1, lambda at: jax.block_until_ready(at.state))
            jax.profiler.stop_trace()
            (path,) = Path(scratch).glob("plugins/profile/*/*.trace.json.gz")
            kernels(json.loads(gzip.decompress(path.read_bytes()))["traceEvents"])
            if options.out:
                options.out.with_suffix(".trace.json.gz").write_bytes(path.read_bytes())
    seconds = median(rounds[2:])
    statistics = jax.devices()[0].memory_stats() or {}
    return seconds, rounds[0] - seconds, operations, statistics.get("peak_bytes_in_use", 0) / 2**30


def kernels(events: list[dict[str, Any]]) -> None:
    """Prints what the device's streams were busy with, by kind of XLA operation and kernel."""
    streams = {
        (each["pid"], each["tid"]) for each in events
        if each.get("name") == "thread_name" and each["args"]["name"].startswith("Stream")
    }  # fmt: skip
    kinds: defaultdict[str, list[float]] = defaultdict(list)
    for name, seconds in _on(streams, events):
        kinds[name].append(seconds)
    total = sum(map(sum, kinds.values()))
    print(f"kernels: {total * 1e3:.1f} ms")
    for kind, times in sorted(kinds.items(), key=lambda item: -sum(item[1]))[:40]:
        print(f"  {sum(times) / total:6.1%} {sum(times) * 1e3:9.2f} ms {len(times):6d}  {kind}")


def _on(streams: set[tuple[int, int]], events: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    for each in events:
        if each.get("ph") == "X" and (each["pid"], each["tid"]) in streams:
            operation = re.sub(r"[.\d]+$", "", str(each.get("args", {}).get("hlo_op", "")))
            yield f"{operation} | {re.sub(r'[_.]?[0-9]+$', '', each['name'])[:80]}", each["dur"] / 1e6


if __name__ == "__main__":
    sys.exit(main())
