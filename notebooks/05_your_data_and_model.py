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
# # Your data, your model, your loss
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github)
#
# Sentences as your clients hold them, any BERT or RoBERTa checkpoint, and a loss that you write: twenty lines, and all
# that jaxdfl does (methods, networks, sweeps, resuming, reports) works on them.

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

import datasets
import jax
import jax.numpy as jnp
import optax
from IPython.display import Markdown, display

from jaxdfl import experiment
from jaxdfl.comparison import compare
from jaxdfl.data import tasks
from jaxdfl.data.own import own
from jaxdfl.data.tasks import TASKS
from jaxdfl.models import demo_weights
from jaxdfl.presets import PRESETS
from jaxdfl.tables import markdown

ROUNDS, LOSS_ROUNDS = 12, 10

startup.split_cpu(None)  # a device for each core; a GPU or TPU is found, and taken, without a word
print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
scratch = tempfile.TemporaryDirectory()  # run folders go there, and go with the notebook
os.chdir(scratch.name)

# %% [markdown]
# ## The data
#
# Four clients and what each has read: reviews of comedies, of dramas, of documentaries, of thrillers. (Real sentences,
# from a package, told apart by a word in them. Yours come from wherever you keep them.) A client's table may be a dict
# of lists or arrays, a data frame, or a `datasets.Dataset`; its labels may be numbers or names.

# %%
reviews = tasks.load("rotten_tomatoes", "train")
GENRES = ("comedy", "drama", "documentary", "thriller")
clients = []
for genre in GENRES:
    mine = [number for number, text in enumerate(reviews.first) if genre in text]
    clients.append({"text": [reviews.first[n] for n in mine], "label": reviews.labels[mine]})
clients[0] = datasets.Dataset.from_dict(clients[0])  # a Dataset serves as well as a dict
held_out = tasks.load("rotten_tomatoes", "validation", limit=200)
validation = {"text": held_out.first, "label": held_out.labels}
for genre, table in zip(GENRES, clients, strict=True):
    print(f"{genre:12} {len(table['text']):4} sentences, {sum(table['label']) / len(table['text']):.0%} positive")

# %% [markdown]
# ## The whole path
#
# `own` checks every row (a wrong label or an empty text is named with its client and its row) and makes a task of them;
# under a name, it can be asked for like any other. `--weights` takes a folder as Hugging Face writes it (`config.json`,
# `model.safetensors`, a tokenizer), BERT's or RoBERTa's, or a hub id. `--partition own` leaves the sentences where they
# are; any other partition puts them together and deals them anew.

# %%
folder = demo_weights()  # yours: "path/to/my-roberta"
TASKS["reviews"] = own(clients, validation, columns=("text",), labels=("negative", "positive"))
asked = ["--preset", "demo", "--partition", "own", "--clients", str(len(clients)), "--weights", str(folder)]
asked += ["--topologies", "ring", "--adapt-layers", "last:2", "--max-length", "48"]
methods = ["local", "dec_lora", "tad_lora:2"]
ran = [*asked, "--task", "reviews", "--methods", *methods, "--rounds", str(ROUNDS), "--eval-every", str(ROUNDS)]
experiment.main(PRESETS, [*ran, "--overwrite", "--out", "reviews"])
# %%
display(Markdown(markdown(compare(["reviews"]))))

# %% [markdown]
# Here talking pays: clients that fine-tune alone get 62 % of the held-out sentences right, and 70 % when they average
# with two neighbours (one seed; 200 sentences have a standard error of 3 points). TAD-LoRA trains each factor in half
# of the rounds, and in twelve rounds that shows. The average of the clients that never met is at chance here.
#
# ## A loss of your own
#
# It gets a batch's logits and labels and gives *one value for each example*; the mean, the packing of sentences into
# rows, gradients and clients are jaxdfl's. Here: the focal loss of Lin et al. (arXiv 1708.02002), which spends less on
# examples that are right already, and label smoothing. A run's manifest and tables name the loss that trained it.


# %%
def focal(logits, labels):
    """-(1 - p)^2 log p of the true class."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
    return -((1 - jnp.exp(log_p)) ** 2) * log_p


def smoothed(logits, labels):
    """The cross-entropy with a tenth of the label spread over all classes."""
    wanted = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
    return optax.softmax_cross_entropy(logits, wanted)


labels = ("negative", "positive")
TASKS["focal"] = own(clients, validation, labels=labels, loss=focal)
TASKS["smoothed"] = own(clients, validation, labels=labels, loss=smoothed)
short = [*asked, "--methods", "dec_lora", "--rounds", str(LOSS_ROUNDS), "--eval-every", str(LOSS_ROUNDS), "--overwrite"]
for task in ("reviews", "focal", "smoothed"):
    experiment.main(PRESETS, [*short, "--task", task, "--out", f"loss_{task}"])
# %%
for task in ("reviews", "focal", "smoothed"):
    display(Markdown(markdown(compare([f"loss_{task}"]))))

# %% [markdown]
# All three end between 72 and 73 %, which 200 sentences cannot tell apart.
#
# ## What is refused, and how
#
# A mistake is found before anything is loaded, and said in one line.

# %%
right = {"text": ["a fine film"], "label": [1]}
for wrong in ({"sentence": ["a dull film"], "label": [0]}, {"text": [], "label": []}, {"text": ["dull"], "label": [2]}):
    try:
        own([right, wrong], right, labels=labels)
    except ValueError as error:
        print(error)
experiment.main(PRESETS, [*ran, "--clients", "5", "--out", "five"])

# %% [markdown]
# A task lives in the process that registered it: `--resume`, `jaxdfl.export.export` and `jaxdfl.replay.replay` need the
# same cell to have run before.
