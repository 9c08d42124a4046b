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
# # Write a method
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github)
#
# A decentralised method answers three questions, and `Method` holds just the answers: which blocks *train* in a round,
# which are *shared* afterwards, and how a client *mixes* what it hears. No method contains a loop over rounds or over
# clients.

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
import jax.numpy as jnp
from IPython.display import Markdown, display

from jaxdfl import experiment
from jaxdfl.comparison import compare
from jaxdfl.methods import METHODS
from jaxdfl.methods.schedules import alternate, both_factors
from jaxdfl.mixing import gossip
from jaxdfl.presets import PRESETS
from jaxdfl.protocol import Exchange, Method, Mixer, PerBlock
from jaxdfl.tables import markdown

ROUNDS, SEEDS = "60", ("0", "1", "2")

startup.split_cpu(None)  # a device for each core; a GPU or TPU is found, and taken, without a word
print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
scratch = tempfile.TemporaryDirectory()  # run folders go there, and go with the notebook
os.chdir(scratch.name)

# %% [markdown]
# ## A method is a sentence
#
# TAD-LoRA: the factors train in turns of `period` rounds, and both are sent.


# %%
def tad_lora_again(period: int) -> Method:
    return Method(trains=alternate(period), shares=both_factors, mixer=gossip())


# %% [markdown]
# ## A schedule of your own
#
# A schedule maps the round (a traced integer) to three booleans. Here both factors train always, and are sent in every
# `every`-th round only: fewer messages, and more drift between them.


# %%
def lazy_lora(every: int) -> Method:
    """Both factors train; they gossip in every `every`-th round."""
    return Method(trains=both_factors, shares=sometimes(every), mixer=gossip())


def sometimes(every: int):
    def schedule(round):
        now = jnp.asarray(round) % every == every - 1
        return PerBlock(a=now, b=now, head=now)

    return schedule


# %% [markdown]
# ## A mixer of your own
#
# A mixer is a record of two pure functions: `init(blocks) -> state`, and `mix(exchange, blocks, state) -> (blocks,
# state, info)`. Leaves of `blocks` are `[clients, ...]`; `exchange.weights` is W. A wrapper takes a mixer and returns
# one, so that it goes with any method. This one lets a client keep a share of its own adapter, whatever it hears.


# %%
def stubborn(inner: Mixer, share: float) -> Mixer:
    """x_i <- share x_i + (1 - share) (what `inner` makes of it)."""

    def mix(exchange: Exchange, blocks: PerBlock, state):
        heard, state, info = inner.mix(exchange, blocks, state)
        return jax.tree.map(lambda own, new: share * own + (1 - share) * new, blocks, heard), state, info

    return Mixer(inner.init, mix)


def stubborn_lora(share: float) -> Method:
    """Dec-LoRA of clients that give way by 1 - share alone."""
    return Method(trains=both_factors, shares=both_factors, mixer=stubborn(gossip(), share))


# %% [markdown]
# ## A law, before anything is trained
#
# W is doubly stochastic, so gossip keeps the clients' mean; a stubborn mix of it must too. One check of this kind says
# more than many accuracies.

# %%
weights = jnp.full((4, 4), 0.25)
draw = jax.random.normal(jax.random.key(0), (4, 3, 5))
blocks, on = PerBlock({"layer": draw}, {"layer": draw.swapaxes(1, 2)}, {}), jnp.bool_(True)
exchange = Exchange(
    jax.random.key(1), 0, weights, (weights > 0) & ~jnp.eye(4, dtype=bool), jnp.ones(4), PerBlock(on, on, on)
)
mixer = stubborn(gossip(), share=0.5)
mixed, _, info = mixer.mix(exchange, blocks, mixer.init(blocks))
drift = jnp.abs(mixed.a["layer"].mean(0) - draw.mean(0)).max()
print(f"the mean moved by {drift:.1e}; {int(info['messages'])} messages, {int(info['bytes'])} bytes")
assert drift < 1e-6

# %% [markdown]
# ## In an experiment
#
# A line in the registry makes a method available by name, its positional arguments as settings after colons, and every
# wrapper goes with it. (In the repository: one file in `jaxdfl/methods/` and that line; see CONTRIBUTING.md.)

# %%
METHODS |= {"lazy_lora": lazy_lora, "stubborn_lora": stubborn_lora}
out = Path("runs")
asked = ["--preset", "bilinear", "--topologies", "ring", "--seeds", *SEEDS, "--rounds", ROUNDS, "--eval-every", "20"]
asked += ["--methods", "dec_lora", "lazy_lora:4", "stubborn_lora:0.5", "lazy_lora:4+quantized:8"]
experiment.main(PRESETS, [*asked, "--overwrite", "--out", str(out / "run")])
# %%
display(Markdown(markdown(compare([out / "run"], baseline="dec_lora"))))
