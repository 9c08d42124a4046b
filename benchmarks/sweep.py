"""Twelve runs as one program against twelve runs one by one: throughput once compiled, and whole commands.

    python benchmarks/sweep.py bilinear
    python benchmarks/sweep.py text --repeats 5

Two methods x two topologies x three seeds, ten clients each. `text` is a random two-layer BERT of width 64 on generated
sentence pairs. Warm: one process, both ways in turn, medians; the engine alone, without evaluation or files. Cold:
whole commands in processes of their own, nothing compiled beforehand, one command for all runs against one for each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from jaxdfl import experiment, planner, presets  # first: it splits the CPU, and hushes XLA
from jaxdfl.data.batches import plan
from jaxdfl.prepare import Run, prepare
from jaxdfl.problems import seed_keys
from jaxdfl.settings import Settings, make_optimizer
from jaxdfl.simulate.program import make_advance
from jaxdfl.simulate.rounds import SimState
from jaxdfl.simulate.sweep import Case, sweep
from jaxdfl.startup import split_cpu

GRID: dict[str, Any] = {
    "methods": ("dec_lora", "tad_lora:5"),
    "topologies": ("erdos_renyi:0.1", "ring"),
    "seeds": (0, 1, 2),
}


def settings(problem: str, weights: Path) -> Settings:
    """The twelve runs."""
    if problem == "bilinear":
        return replace(presets.BILINEAR, **GRID)
    return replace(
        presets.DEMO, **GRID, weights=str(weights), clients=10, rounds=20, eval_every=20, batch_size=4, max_length=32,
        checkpoints=False,
    )  # fmt: skip


def write_weights(folder: Path) -> None:
    """A random BERT in Hugging Face layout, with the words of the generated sentences."""
    import jax
    import numpy as np
    from safetensors.numpy import save_file

    from jaxdfl.data import tasks
    from jaxdfl.models import EncoderConfig, random_model
    from jaxdfl.models.names import checkpoint_name
    from jaxdfl.models.paths import take_apart

    texts = tasks.load("natural_logic", "train")
    said = " ".join(text for part in (texts.first, texts.second or []) for text in part).lower()
    words = sorted(set("".join(c if c.isalnum() else f" {c} " for c in said).split()))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    shape: dict[str, Any] = {"width": 64, "layers": 2, "heads": 4, "intermediate": 128, "positions": 64}
    config = EncoderConfig("bert", vocabulary=len(vocabulary), types=2, initializer_range=0.1, **shape)
    _, arrays = take_apart(random_model(config, 3, jax.random.key(0)))
    folder.mkdir()
    save_file(
        {
            checkpoint_name("bert", path): np.ascontiguousarray(x.T if path.endswith("/kernel") else x)
            for path, x in arrays.items() if not path.startswith("classifier")
        },
        folder / "model.safetensors",
    )  # fmt: skip
    names = {
        "vocab_size": len(vocabulary), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "max_position_embeddings": 64, "type_vocab_size": 2, "initializer_range": 0.1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **names}))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")


def warm(asked: Settings, repeats: int) -> tuple[float, float, float]:
    """Median seconds of the sweep and of the runs one by one, and the operations of either's matrix products."""
    import jax

    prepared = prepare(asked)
    starts = {seed: prepared.problem.seeded(seed) for seed in asked.seeds}
    plans = {
        seed: partial(_plan, plan(seed_keys(seed).batches, start.parts, range(asked.rounds), asked.local_steps,
                                  asked.batch_size))
        for seed, start in starts.items()
    }  # fmt: skip
    ready = [prepared.case(run, starts[run.seed], plans[run.seed]) for run in prepared.runs]
    advance = make_advance(prepared.problem.loss, make_optimizer(asked), chunk=prepared.problem.chunk)

    def seconds(*groups: Sequence[tuple[Case, SimState]]) -> float:
        began = time.perf_counter()
        for group in groups:
            cases, states = zip(*group, strict=True)
            states = sweep(
                advance, cases, states, prepared.problem.examples, rounds=asked.rounds, every=asked.rounds,
                stop=lambda stops: None,
            )  # fmt: skip
            jax.block_until_ready([state.blocks for state in states])
        return time.perf_counter() - began

    each = [[one] for one in ready]
    seconds(ready)  # compiles
    seconds(each[0])  # too
    times = [(seconds(ready), seconds(*each)) for _ in range(repeats)]
    together, alone = (median(column) for column in zip(*times, strict=True))
    return together, alone, planner.work(prepared).operations


def _plan(indices, these: range):
    return indices[these.start : these.stop]


def cold(asked: Settings, folder: Path) -> tuple[float, float]:
    """Seconds of one command for all runs, and of one for each."""
    runs = [Run(m, t, s) for s in asked.seeds for m in asked.methods for t in asked.topologies]
    one_by_one = [replace(asked, methods=(m,), topologies=(t,), seeds=(s,)) for m, t, s, _ in runs]
    together = _command(asked, folder / "together")
    return together, sum(_command(each, folder / f"alone{number}") for number, each in enumerate(one_by_one))


def _command(asked: Settings, out: Path) -> float:
    began = time.perf_counter()
    given = json.dumps(asdict(replace(asked, out=str(out), compilation_cache=False)))
    subprocess.run([sys.executable, __file__, "command", given], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    if sys.argv[1] == "command":
        given: dict[str, Any] = {
            name: tuple(x) if isinstance(x, list) else x for name, x in json.loads(sys.argv[2]).items()
        }
        sys.exit(experiment.main({"given": Settings(**given)}, []))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=("bilinear", "text"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-cold", action="store_true", help="leave the whole commands out")
    asked = parser.parse_args()
    split_cpu(None)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if asked.problem == "text":
            write_weights(folder / "weights")
        runs = settings(asked.problem, folder / "weights")
        together, alone, operations = warm(replace(runs, out=str(folder / "warm")), asked.repeats)
        steps = 12 * runs.rounds * runs.clients * runs.local_steps
        print(f"{asked.problem}, {os.cpu_count()} cores, 12 runs of {runs.clients} clients x {runs.rounds} rounds")
        print(f"warm   sweep {together:.2f} s, one by one {alone:.2f} s: {alone / together:.2f}x throughput", end="; ")
        print(f"{steps / together:,.0f} client-steps a second")
        rates = (f"{operations / seconds / 1e9:.0f}" for seconds in (together, alone))
        print("       GFLOP/s of matrix products in training: sweep {}, one by one {}".format(*rates))
        if not asked.no_cold:
            together, alone = cold(runs, folder)
            print(f"cold   one command {together:.1f} s, twelve {alone:.1f} s: {alone / together:.2f}x", flush=True)


if __name__ == "__main__":
    main()
