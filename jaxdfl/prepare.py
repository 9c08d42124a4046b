"""From settings to runs that are ready to go: everything is built, loaded and checked, the cheap things first.

Nothing is written before all of it has succeeded.
"""

import inspect
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jaxdfl import methods
from jaxdfl.data import partition, tasks
from jaxdfl.data.examples import Examples
from jaxdfl.data.partition import Partition
from jaxdfl.data.tasks import TASKS, Texts
from jaxdfl.data.tokenize import encode
from jaxdfl.methods import METHODS, POOLED
from jaxdfl.models.classifier import Classifier, adapt
from jaxdfl.models.encoder import EncoderClassifier
from jaxdfl.models.pretrained import Weights, load
from jaxdfl.models.sources import demo_weights, locate
from jaxdfl.protocol import Method
from jaxdfl.settings import Settings
from jaxdfl.topology import build
from jaxdfl.topology.catalogue import Topology
from jaxdfl.topology.spectrum import Spectrum, recommended_period, spectrum
from jaxdfl.trackers import RunFolder

NOBODY = "pooled"  # the topology of a method that has all data in one place
SAMPLES = 4000  # rounds that a random network's spectrum is estimated on; fewer where clients are many
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # with none of them, transformers knows no word


class SeedKeys(NamedTuple):
    """Everything random in one seed's runs, apart from the partition, which takes the seed itself."""

    head: jax.Array
    factors: jax.Array
    batches: jax.Array
    rounds: jax.Array


class Run(NamedTuple):
    """One method on one topology with one seed."""

    method: str
    topology: str
    seed: int


class Corpus(NamedTuple):
    """The task's text, tokenized, with what the manifest says of it."""

    train: Examples  # numpy, [examples, ...]
    validation: Examples
    classes: tuple[str, ...]
    metrics: tuple[str, ...]  # accuracy first
    identity: dict[str, Any]


class Prepared(NamedTuple):
    """All that the runs need."""

    settings: Settings
    runs: list[Run]
    topologies: dict[str, Topology]
    spectra: dict[str, Spectrum]
    periods: dict[Run, int | None]  # T of the methods that have one
    corpus: Corpus
    partitions: dict[int, Partition]  # by seed
    classifier: Callable[[int], Classifier]  # of a seed; holds the last one
    weights: Weights
    dtype: Any
    folder: RunFolder

    def method(self, run: Run) -> Method:
        """The method of a run, on its network."""
        settings = self.settings
        return methods.build(
            run.method, rho=_rho(self.spectra, run), learning_rate=settings.learning_rate,
            local_steps=settings.local_steps,
        )  # fmt: skip


def prepare(settings: Settings) -> Prepared:
    """Builds, loads and checks everything, and opens the run folder last.

    Raises:
        ValueError, OSError: what is wrong, in one line; nothing has been written.
    """
    out = Path(settings.out or f"runs/{settings.preset}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    RunFolder.check(out, settings.overwrite)
    topologies = {
        spec: build(spec, settings.clients, rule=settings.mixing_rule, seed=settings.seeds[0])
        for spec in settings.topologies
    }
    spectra = {spec: _spectrum(topology) for spec, topology in topologies.items()}
    runs = list(_runs(settings))
    periods = {run: _period(run, _rho(spectra, run)) for run in runs}

    task = TASKS[settings.task]
    train = tasks.load(settings.task, "train", data_dir=settings.data_dir, limit=settings.train_examples)
    validation = tasks.load(settings.task, "validation", data_dir=settings.data_dir, limit=settings.eval_examples)
    partitions = {
        seed: partition.build(settings.partition, train.labels, len(task.labels), settings.clients, seed)
        for seed in settings.seeds
    }

    source = demo_weights() if settings.weights == "demo" else settings.weights
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.dtype(settings.dtype if settings.dtype != "auto" else "float32" if on_cpu else "bfloat16")

    @lru_cache(maxsize=1)  # one seed's weights are held at a time
    def loaded(seed: int) -> tuple[EncoderClassifier, Weights]:
        return load(source, len(task.labels), seed_keys(seed).head, dtype)

    model, weights = loaded(settings.seeds[0])
    corpus = _encode(settings, locate(source)[0], train, validation)
    largest = max(split.ids.max() for split in (corpus.train, corpus.validation))
    if largest >= model.config.vocabulary:
        raise ValueError(
            f"the tokenizer of {weights.name} gives token {largest}, but the model has {model.config.vocabulary}; "
            "take weights and tokenizer from the same model."
        )

    @lru_cache(maxsize=1)
    def classifier(seed: int) -> Classifier:
        return adapt(
            loaded(seed)[0], seed_keys(seed).factors, rank=settings.rank, alpha=settings.alpha,
            dropout=settings.lora_dropout, targets=settings.targets, train_head=settings.head == "trained",
            # Elsewhere products of float32 take fewer bits (TF32, bfloat16), which would round small updates off a
            # merged kernel; and a kernel for each client is much memory.
            merged=None if on_cpu else False,
        )  # fmt: skip

    first = classifier(settings.seeds[0])
    for split in (corpus.train, corpus.validation):  # refuses sentences too long for the model
        jax.eval_shape(first.logits, first.frozen, first.blocks, jax.tree.map(lambda x: x[:1], split), None)
    return Prepared(
        settings, runs, topologies, spectra, periods, corpus, partitions, classifier, weights, dtype,
        RunFolder(out, settings.overwrite),
    )  # fmt: skip


def seed_keys(seed: int) -> SeedKeys:
    """The one place where a seed becomes keys."""
    return SeedKeys(*jax.random.split(jax.random.key(seed), 4))


def _runs(settings: Settings) -> Iterator[Run]:
    """Seed by seed, since each has weights of its own."""
    for seed in settings.seeds:
        for method in settings.methods:
            pooled = methods.parse(method)[0] in POOLED
            for topology in (NOBODY,) if pooled else settings.topologies:
                yield Run(method, topology, seed)


def _spectrum(topology: Topology) -> Spectrum:
    samples = min(SAMPLES, max(100, 10**8 // topology.clients**3))
    return spectrum(topology.network, topology.clients, jax.random.key(0), period=topology.period, samples=samples)


def _rho(spectra: dict[str, Spectrum], run: Run) -> float:
    return spectra[run.topology].rho if run.topology in spectra else 0.0


def _period(run: Run, rho: float) -> int | None:
    """The period T that a run's method has, given or chosen by `rho`; None for a method without one."""
    name, settings, _ = methods.parse(run.method)
    parameter = inspect.signature(METHODS[name]).parameters.get("period")
    if parameter is None:
        return None
    try:
        return settings.get("period", parameter.default) or recommended_period(rho)
    except ValueError as error:
        raise ValueError(f"{run.method} finds no period on {run.topology}: {error}") from error


def _encode(settings: Settings, folder: Path, train: Texts, validation: Texts) -> Corpus:
    tokenizer = _load_tokenizer(folder)
    coded = {
        split: encode(tokenizer, texts, settings.max_length)
        for split, texts in (("train", train), ("validation", validation))
    }
    task = TASKS[settings.task]
    identity = {
        "task": settings.task,
        "classes": len(task.labels),
        "labels": list(task.labels),
        "source": train.source,
        "train": {"examples": len(train.labels), "sha256": train.sha256, "truncated": coded["train"].truncated},
        "validation": {
            "source": validation.source,
            "examples": len(validation.labels),
            "sha256": validation.sha256,
            "truncated": coded["validation"].truncated,
        },
        "length": coded["train"].examples.ids.shape[1],
    }
    metrics = ("accuracy",) if task.metric == "accuracy" else ("accuracy", task.metric)
    return Corpus(coded["train"].examples, coded["validation"].examples, task.labels, metrics, identity)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"{folder.name}: no tokenizer; copy one of {', '.join(TOKENIZER_FILES)} from the same model.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its readers raise errors of three libraries, the plain `Exception` among them
        raise ValueError(f"{folder.name}: the tokenizer cannot be read ({error}); copy its files again.") from error
