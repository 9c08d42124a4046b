"""Settings of an experiment: typed, few, checked before anything is computed; and the presets they start from."""

import jaxdfl.startup  # noqa: F401  # isort: skip (it comes before jax, and all that is run imports settings)

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

import optax

from jaxdfl import methods
from jaxdfl.concentration import Keep
from jaxdfl.data.tasks import TASKS
from jaxdfl.spelling import did_you_mean
from jaxdfl.trackers import check_names

BILINEAR, DOMAINS = OTHER_TASKS = (
    "bilinear",
    "domains",
)  # with settings of their own after a colon, which their problems read
OPTIMIZERS = {"adamw": optax.adamw, "adam": optax.adam, "sgd": optax.sgd, "lion": optax.lion}


@dataclass(frozen=True)
class Settings:
    """Decentralised LoRA fine-tuning: methods x topologies x seeds, on one task. Defaults are the preset's."""

    preset: str
    """Where the defaults below come from: a name, a .toml file, or a run folder."""
    task: str
    """mnli, sst2, qnli, qqp, rte, mrpc, cola, rotten_tomatoes (from a package), natural_logic (generated), or
    `bilinear:HETEROGENEITY`, a proving ground without text: regressions with one adapter, seconds a run; or one of your
    own (`jaxdfl.data.own`). Several joined by + give client i the task number i mod their number, each with its own
    rows of the head. `domains:SOURCE:TARGET` learns the target task from labels of the source (ASDA's objective)."""
    weights: str
    """`demo` (all-MiniLM-L6-v2 from the demo extra), a local folder in Hugging Face layout, or a hub id; `none` for
    bilinear."""
    methods: tuple[str, ...]
    """For example `dec_lora`, `tad_lora:5` (period 5), `tad_lora` (period from the topology), or with wrappers in the
    order in which a message meets them: `tad_lora:5+event_triggered:0.1+packet_loss:0.2`."""
    topologies: tuple[str, ...]
    """For example `ring`, `complete`, `erdos_renyi:0.1` (each edge active with p = 0.1 each round), `w.npy`."""
    seeds: tuple[int, ...] = (0,)
    """Each seeds partition, batches, links of a round, head and factors; all methods share them, so compare by seed.
    Graphs drawn once for all rounds, such as `random_regular:4`, take the first seed."""
    clients: int = 10
    partition: str = "paper"
    """`paper` (its label mixtures), `dirichlet:ALPHA`, `shards:N`, `quantity:P1,P2,...`, `iid`; `own`, as the clients
    of bilinear and of a task of your own hold them."""
    work: str = "steady"
    """Share of its local steps each client finishes: `steady`, `stragglers:FRACTION:SHARE` (who, is drawn each round),
    `uneven:LOWEST` (fixed, from LOWEST to 1) or `random:LOWEST` (uniform in [LOWEST, 1], drawn each round)."""
    arbiter: str = "all"
    """Which of its own examples a client trains on: `all`; `concentrated:SHARE`, those whose gradients at the start are
    most concentrated on few factors (PRISM's Gini index); or `diffuse:SHARE`, all but those."""
    rounds: int = 150
    local_steps: int = 20
    """Optimizer steps of each client in each round."""
    batch_size: int = 32
    """Examples of one client in one step."""
    learning_rate: tuple[float, ...] = (5e-4,)
    """Several make runs of their own: rows, tables and figures then tell them apart."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Over rounds; linear and cosine fall towards zero."""
    optimizer: Literal["adamw", "adam", "sgd", "lion"] = "adamw"
    weight_decay: float = 0.0
    """Of adamw and lion."""
    clip: float | None = None
    """Largest gradient norm of one client; None does not clip."""
    moments: Literal["kept", "reset_each_round", "reset_at_switch", "rotated"] = "kept"
    """Optimizer moments from round to round; `rotated` are kept, and turned with the factors that mixing turns."""
    rank: int = 8
    alpha: float = 16.0
    """The adapter's scale is alpha / rank."""
    lora_dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")
    """Regular expressions of the linear layers that get adapters."""
    adapt_layers: str = "all"
    """`all`, or `last:K`: adapters in the last K encoder layers alone. All below is then frozen, and computed once for
    each example where the result fits in 4 GiB."""
    init_adapter: str | None = None
    """Folder of a PEFT adapter from which every client starts, with its head where it has one; rank, alpha and targets
    must be those of the adapter."""
    head: Literal["frozen", "trained"] = "frozen"
    """A frozen head is random, common to all clients, and fixed by the seed."""
    max_length: int = 128
    """Tokens of a pair; longer ones are cut."""
    data_dir: str | None = None
    """Folder with TASK/SPLIT.jsonl (or csv, parquet, GLUE's tsv); None loads GLUE from the hub."""
    train_examples: int | None = None
    """Random part of the training split; None takes all."""
    eval_examples: int | None = None
    """Random part of the validation split; None takes all."""
    eval_every: int = 10
    """Rounds between evaluations."""
    eval_clients: int | None = None
    """Clients that are evaluated, evenly spaced by number; None: all. The averages are those of all clients all the
    same, and so are all diagnostics."""
    mixing_rule: Literal["metropolis_hastings", "laplacian", "max_degree", "uniform"] = "metropolis_hastings"
    """From a graph to doubly stochastic weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Of the frozen backbone's arithmetic; auto is bfloat16 on accelerators. Factors and mixing are float32. With
    float64 everything is: a slow reference from the same starts and draws, which tells rounding from a fault."""
    remat: bool = False
    """Compute activations again for the gradient rather than keep them: less memory, one more forward pass."""
    packing: bool = True
    """Train on sentences packed into rows, not padded. Changes speed, not the result (but for what LoRA drops out)."""
    client_chunk: int | None = None
    """Clients trained and evaluated at a time; None chooses by the device. Changes speed and memory, not the result."""
    out: str | None = None
    """Run folder; None makes a new one under runs/."""
    track: tuple[str, ...] = ()
    """Where the rows go as well: `tensorboard`, `wandb`, `mlflow`; each needs the extra of its name."""
    dry_run: bool = False
    """Say what the runs would take (memory, operations, programs, time), and do nothing else."""
    overwrite: bool = False
    """Replace what an earlier run left in --out."""
    resume: bool = False
    """Go on with the run in --out, whose settings must be these; start it where there is none."""
    checkpoints: bool = True
    """Save each run's state, on the way and at the end; --resume goes on from it."""
    checkpoint_every: int | None = None
    """Rounds between checkpoints on the way; None: by the clock alone."""
    checkpoint_minutes: float = 10.0
    """Minutes after which the next evaluated round is saved too."""
    checkpoints_kept: int = 2
    """Of each run, the last ones."""
    sweep: bool = True
    """Runs that share a program run as one: all topologies, seeds and learning rates, and methods that differ in
    schedules alone. Changes speed and memory, not the result; a run's seconds are then its share of theirs."""
    runs_at_once: int | None = None
    """Of those runs, so many at a time at most; None: all. Fewer take less memory."""
    cpu_devices: int | None = None
    """Devices that a CPU is split into, to which the runs of a sweep are dealt; None: its cores, 8 at most. Each holds
    the frozen weights."""
    compilation_cache: bool = True
    """Keep compiled programs for later runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/jaxdfl/xla."""


# May differ when a run goes on: they change what is kept, speed and memory; results at most by rounding.
FREE_ON_RESUME = (
    "out", "track", "dry_run", "overwrite", "resume", "checkpoints", "checkpoint_every", "checkpoint_minutes",
    "checkpoints_kept", "client_chunk", "sweep", "runs_at_once", "cpu_devices", "compilation_cache",
)  # fmt: skip


def check(settings: Settings) -> None:
    """Refuses what can be refused without loading anything.

    Raises:
        ValueError: names the first bad setting, its value and the remedy.
    """
    for name in ("methods", "topologies", "seeds", "targets", "learning_rate", "track"):
        values = getattr(settings, name)
        if not values and name != "track":
            raise ValueError(f"`{flag(name)}` is empty; name at least one.")
        if len(set(values)) < len(values):
            raise ValueError(f"`{flag(name)}` names one twice: {' '.join(map(str, values))}.")
    check_names(settings.track)
    known = (*TASKS, *OTHER_TASKS)
    arbiter_of(settings)
    adapted_layers(settings)
    if settings.task.partition(":")[0] not in OTHER_TASKS:
        tasks = settings.task.split("+")
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"`--task` names one twice: {settings.task}.")
        for task in tasks:
            if task not in TASKS:
                raise ValueError(
                    f"unknown task {task!r}.{did_you_mean(task, known)} Known: {', '.join(known)}. One of your own "
                    "must be in `jaxdfl.data.tasks.TASKS` first."
                )
    for spec in settings.methods:
        methods.parse(spec)
        try:
            method = methods.build(
                spec, rho=0.5, learning_rate=settings.learning_rate[0], local_steps=settings.local_steps
            )
        except ValueError as error:
            raise ValueError(f"method {spec!r}: {error}") from None
        if settings.init_adapter is not None and method.start is not None:
            raise ValueError(f"method {spec!r} starts from factors of its own; leave out it or `--init-adapter`.")
    at_least_one = ["clients", "rounds", "local_steps", "batch_size", "rank", "eval_every"]
    at_least_one += ["client_chunk", "runs_at_once", "cpu_devices", "train_examples", "eval_examples", "eval_clients"]
    at_least_one += ["checkpoint_every", "checkpoints_kept"]
    for name in at_least_one:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"`{flag(name)}` must be at least 1, got {value}.")
    if settings.resume and settings.overwrite:
        raise ValueError("`--resume` goes on with the run in --out and `--overwrite` removes it; give one of them.")
    if settings.resume and settings.out is None:
        raise ValueError("`--resume` needs `--out`, the folder of the run to go on with.")
    positive = [("learning_rate", rate) for rate in settings.learning_rate]
    positive += [(name, getattr(settings, name)) for name in ("alpha", "clip", "checkpoint_minutes")]
    for name, value in positive:
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"`{flag(name)}` must be a positive number, got {value}.")
    for name, below in (("weight_decay", float("inf")), ("lora_dropout", 1.0)):
        if not 0 <= getattr(settings, name) < below:
            raise ValueError(f"`{flag(name)}` must lie in [0, {below}), got {getattr(settings, name)}.")
    if any(not 0 <= seed < 2**32 for seed in settings.seeds):
        raise ValueError(f"`--seeds` must lie in [0, 2^32), got {' '.join(map(str, settings.seeds))}.")
    for pattern in settings.targets:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"`--targets`: {pattern!r} is no regular expression ({error}).") from None
    if settings.max_length < 8:
        raise ValueError(f"`--max-length` must be at least 8 tokens, got {settings.max_length}.")


def arbiter_of(settings: Settings) -> tuple[Keep, float]:
    """`diffuse:0.3` -> ("diffuse", 0.3).

    Raises:
        ValueError: neither `all` nor one side with a share in (0, 1).
    """
    side, colon, word = settings.arbiter.partition(":")
    try:
        share = float(word) if colon else 0.0
    except ValueError:
        share = -1.0
    if (side == "all" and not colon) or (side in ("diffuse", "concentrated") and 0 < share < 1):
        return side, share
    raise ValueError(
        f"`--arbiter` must be all, diffuse:SHARE or concentrated:SHARE with a share in (0, 1), got {settings.arbiter}."
    )


def adapted_layers(settings: Settings) -> int | None:
    """`last:2` -> 2; None for all.

    Raises:
        ValueError: neither `all` nor `last:K` with K from 1.
    """
    if settings.adapt_layers == "all":
        return None
    side, _, count = settings.adapt_layers.partition(":")
    if side != "last" or not count.isdecimal() or int(count) < 1:
        raise ValueError(f"`--adapt-layers` must be all or last:K with K at least 1, got {settings.adapt_layers!r}.")
    return int(count)


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """The optax optimizer that every block of every client gets, at a learning rate of 1.

    Updates of all four, weight decay included, are linear in the rate: each run's own enters by `make_step_scale`.
    """
    decay = {"weight_decay": settings.weight_decay} if settings.optimizer in ("adamw", "lion") else {}
    return OPTIMIZERS[settings.optimizer](1.0, **decay)


@cache  # one object for a rate
def make_step_scale(settings: Settings, learning_rate: float) -> optax.Schedule:
    """The learning rate by round, as the settings' schedule has it."""
    if settings.learning_rate_schedule == "linear":
        return optax.linear_schedule(learning_rate, 0.0, settings.rounds)
    if settings.learning_rate_schedule == "cosine":
        return optax.cosine_decay_schedule(learning_rate, settings.rounds)
    return optax.constant_schedule(learning_rate)


def flag(name: str) -> str:
    """A setting's option on the command line."""
    return "--" + name.replace("_", "-")
