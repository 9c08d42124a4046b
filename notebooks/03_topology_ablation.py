# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A topology ablation as one program
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github)
#
# Topologies x methods x seeds are some hundred runs here. They differ in numbers alone (mixing weights, which factor
# trains when, batches), so one compiled program runs them all at once. `jaxdfl run` does so by itself; this notebook
# does it by hand, through the functions that it calls.

# %%
# Where jaxdfl is missing, as on Colab, this installs it. jax stays as it is, and so goes on knowing the GPU or TPU.
import importlib.util
import subprocess
import sys
from importlib.metadata import version

WHERE = "..[demo]"  # the repository around notebooks/; on Colab "jaxdfl[demo] @ git+https://HOST/OWNER/jaxdfl"
if importlib.util.find_spec("jaxdfl") is None:
    kept = [f"{name}=={version(name)}" for name in ("jax", "jaxlib") if importlib.util.find_spec(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", WHERE, *kept], check=True)

# %%
from jaxdfl import startup  # isort: skip (before jax, which it keeps quiet)

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from IPython.display import Image, Markdown, display

from jaxdfl import presets, studies
from jaxdfl.execution import cases_of, make
from jaxdfl.prepare import prepare
from jaxdfl.simulate.sweep import sweep

ROUNDS, SEEDS = 150, (0, 1, 2, 3, 4)

startup.split_cpu(None)  # a device for each core; a GPU or TPU is found, and taken, without a word
print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
scratch = tempfile.TemporaryDirectory()  # run folders go there, and go with the notebook
os.chdir(scratch.name)

# %% [markdown]
# ## What is to be run
#
# `gap:VALUE` links every pair, with weights that have just that spectral gap: an axis without the accidents of a graph.
# Beside it stand graphs that have a name. The methods share their mixer and differ in schedules, which are tables.

# %%
GAPS = tuple(f"gap:{value}" for value in (0.9, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02))
NAMED = ("complete", "exponential", "ring", "chain", "star", "erdos_renyi:0.5", "erdos_renyi:0.1", "erdos_renyi:0.02")
METHODS = ("dec_lora", "rolora", "tad_lora:1", "tad_lora:5")
settings = replace(
    presets.BILINEAR, methods=METHODS, topologies=GAPS + NAMED, seeds=SEEDS, rounds=ROUNDS, eval_every=ROUNDS, out="run"
)
prepared = prepare(settings)
(runs,) = prepared.groups()  # runs that share a program; there would be one list for each program
print(f"{len(runs)} runs in one program")

# %%
headers = ["topology", "gap of the mean W", "rho", "messages a round", "rounds that connect all"]
rows = [
    [spec, f"{found.gap:.3f}", f"{found.rho:.3f}", f"{found.links:.1f}", f"{found.connected:.0%}"]
    for spec, found in prepared.spectra.items()
]
display(Markdown(studies.table("Spectra", headers, rows)))

# %% [markdown]
# ## All of them at once
#
# A `Case` is a run that is ready to go: method, network, frozen weights, plan of batches, step size; its state goes
# beside it. `sweep` stacks the cases along an axis and deals them to the devices there are. What that is worth depends
# on the machine (`benchmarks/sweep.py`): a GPU is filled by many small runs where one leaves it idle; two busy cores
# are not faster for it, and are spared compiling for each topology and method.

# %%
advance, (cases, firsts, starts) = make(prepared), cases_of(prepared, runs)


def seconds(cases, states):
    """How long it takes, and the states that the cases end with."""
    begun = time.perf_counter()
    plan = {"rounds": ROUNDS, "every": ROUNDS, "stop": lambda stops: None}
    states = sweep(advance, cases, states, prepared.problem.examples, **plan)
    jax.block_until_ready(states)
    return time.perf_counter() - begun, states


together, states = seconds(cases, firsts)
first, again = (seconds(cases[:1], firsts[:1])[0] for _ in range(2))
print(f"{len(cases)} runs at once: {together:.1f} s with compiling, {1e3 * together / len(cases):.0f} ms each")
print(f"one run alone: {first:.1f} s with compiling, then {1e3 * again:.0f} ms")

# %% [markdown]
# ## Error against the spectral gap
#
# The error is the clients' mean distance from the best common adapter. Lines: mean over seeds, with its 95 % interval.
# On the left the axis of gaps; in the middle Dec-LoRA on named graphs against that axis.
#
# The gap is of the slowest direction alone: of the `clients` - 1 ways in which clients can differ, the one that mixing
# wears off last. On the right all of them count. Clients that wander at random, as in notebook 02, end up apart by
# mu / (1 - mu) along a direction of whose square a round keeps the share mu (x <- lambda (x + noise), mu = lambda^2).
# The mean over directions is called build-up here; it is ours, no paper's.


# %%
def build_up(spec, rounds=2000):
    """The mean of mu / (1 - mu) over the eigenvalues mu of E[W^T W] - J, the common direction left out."""
    draw = jax.jit(prepared.topologies[spec].network.weights)
    weights = np.stack([draw(jax.random.fold_in(jax.random.key(0), t), t) for t in range(rounds)]).astype(float)
    kept = np.linalg.eigvalsh(np.mean(weights.swapaxes(1, 2) @ weights, axis=0) - 1 / settings.clients)
    mu = np.where(kept > 1e-6, kept, 0)[1:]  # less is float32 rounding; values rise, and J's own comes first
    return np.mean(mu / (1 - mu))


built = {spec: build_up(spec) for spec in settings.topologies}
records = [
    {**run._asdict(), "gap": prepared.spectra[run.topology].gap, "built": built[run.topology],
     **prepared.problem.scores(start, case.method, state)}
    for run, case, start, state in zip(runs, cases, starts, states, strict=True)
]  # fmt: skip


def of(x, label, **options):
    return studies.Panel(lambda run: run[x], "error_mean", (label, "error"), ("log", "log"), **options)


def graph(run):
    return "gap:VALUE" if run["topology"] in GAPS else run["topology"]


def dec_lora(run):
    return run["method"] == "dec_lora"


panels = [
    of("gap", "gap of the mean W", only=lambda run: run["topology"] in GAPS),
    of("gap", "gap of the mean W, Dec-LoRA", lines=graph, only=dec_lora),
    of("built", "build-up, Dec-LoRA", lines=graph, only=dec_lora),
]
studies.draw(out := Path("error.png"), panels, records)
display(Image(out, width=1000))

# %%
rows = []
for topology, there in studies.grouped(records, lambda run: run["topology"]).items():
    methods = studies.grouped(there, lambda run: run["method"])
    errors = [studies.said(studies.interval([run["error_mean"] for run in methods[name]])) for name in METHODS]
    rows.append([topology, *errors])
display(Markdown(studies.table("Error", ["topology", *METHODS], rows, "In brackets: 95 % interval over seeds.")))

# %% [markdown]
# ## What comes out
#
# - As the gap falls all methods get worse. TAD-LoRA and Dec-LoRA cross between gaps of 0.5 and 0.3. Where mixing is
#   quick, training both factors at once is better on average (0.076 against 0.104 to 0.111 at a gap of 0.9; intervals
#   overlap); below, TAD-LoRA is, beyond the intervals (0.30 against 0.44 at 0.1), until at 0.02 little is left to win.
# - RoLoRA, which does not mix the factor that rests, is nowhere better than Dec-LoRA beyond the interval.
# - A period of 5 is nowhere better than 1 beyond the interval. What helps here is to alternate and mix both.
# - The gap orders the errors on its own axis and **not** between graphs: the chain (gap 0.033) does better than
#   `gap:0.2`, and the ring (0.127) better than `gap:0.3`. Along a chain only a few directions are slow; with
#   `gap:VALUE` all are equally slow. The build-up, which counts all, brings graphs and axis close to one curve. What
#   remains: the chain and the sparse Erdős-Rényi networks lie about a quarter below it.
#
# The same from a shell, with a run folder and a report; `--no-sweep` runs one after the other:
#
#     jaxdfl run --preset bilinear --methods dec_lora rolora tad_lora:1 tad_lora:5 \
#         --topologies gap:0.5 gap:0.1 ring --out runs/gaps
#     jaxdfl report runs/gaps --out report
