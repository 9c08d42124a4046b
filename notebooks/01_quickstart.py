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
# # Quickstart
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github)
#
# Ten clients fine-tune one frozen model, each with LoRA factors A and B of its own, and average with the neighbours
# they can reach. There is no server. This notebook runs such a federation in seconds, on a problem without text (two
# small regressions with adapters), looks at the network, and compares methods. All of it works on sentences too: put
# `--preset demo` (a small BERT, offline) or `--preset minilm --data-dir DIR` (real MNLI) in the place of `bilinear`.

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
from pathlib import Path

import jax
from IPython.display import Image, Markdown, display

from jaxdfl import drawings, experiment, figures
from jaxdfl.comparison import compare
from jaxdfl.presets import PRESETS
from jaxdfl.tables import markdown
from jaxdfl.topology import build, recommended_period, spectrum

ROUNDS, SEEDS = "60", ("0", "1", "2")

startup.split_cpu(None)  # a device for each core; a GPU or TPU is found, and taken, without a word
print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
scratch = tempfile.TemporaryDirectory()  # run folders go there, and go with the notebook
os.chdir(scratch.name)
out = Path("runs")
out.mkdir()

# %% [markdown]
# ## The network
#
# In `erdos_renyi:0.1` each of the 45 links is there with probability 0.1, anew in every round. What decides how fast
# clients agree is rho: mean squared disagreement shrinks by that factor in a round. TAD-LoRA takes its period from it.

# %%
network = build("erdos_renyi:0.1", clients=10)
found = spectrum(network.network, 10, jax.random.key(0))
print(f"rho = {found.rho:.2f} ± {found.standard_error:.2f}, period T* = {recommended_period(found.rho)}")
figures.save(drawings.figure(network, found), out / "network.png")
display(Image(out / "network.png", width=640))

# %% [markdown]
# ## An experiment
#
# Methods x networks x seeds: all of them are one compiled program where they can be. The same from a shell:
#
#     jaxdfl run --preset bilinear --methods local dec_lora ffa_lora tad_lora:3 --topologies erdos_renyi:0.1 ring

# %%
asked = ["--preset", "bilinear", "--methods", "local", "dec_lora", "ffa_lora", "tad_lora:3"]
asked += ["--topologies", "erdos_renyi:0.1", "ring", "--seeds", *SEEDS, "--rounds", ROUNDS, "--eval-every", "20"]
experiment.main(PRESETS, [*asked, "--overwrite", "--out", str(out / "run")])
# %% [markdown]
# ## What came of it
#
# The run folder holds rows, tables and figures. `compare` reads one or more run folders: intervals over seeds, and the
# difference from a baseline within each seed, since all methods see the same graphs and batches. (`jaxdfl report` makes
# a page of it.) The figure shows the cross term, what averaging the factors adds to the average of the products.

# %%
display(Markdown(markdown(compare([out / "run"]))))
display(Image(out / "run" / "figures" / "cross_term.png", width=640))
