"""One federation as plain numpy data, made by jaxdfl's own code: what every system is given, down to the batches.

Rivals read the saved folder and need neither jax nor jaxdfl. jaxdfl itself is given `command`, from which the same
weights, factors, batches and mixing matrices follow.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

Padding = Literal["batch", "step", "full"]  # to the longest of: one client's batch, all clients' batches, the task
ARRAYS = ("ids", "types", "lengths", "labels", "mixing", "a", "b", "head")


@dataclass(frozen=True)
class Federation:
    """Who trains on what, and for how long. Dec-LoRA with AdamW (optax's defaults, no decay) and a frozen head."""

    data_dir: str | None = None
    """Folder with mnli/train.jsonl and mnli/validation_matched.jsonl; None generates pairs (natural_logic)."""
    weights: str = "demo"
    """As jaxdfl's option of that name: a BERT or RoBERTa."""
    clients: int = 10
    batch_size: int = 16
    local_steps: int = 2
    rank: int = 8
    max_length: int = 128
    train_examples: int = 20_000
    """Random part of the training split; all of MNLI takes long to read, and weighs on jaxdfl's memory alone."""
    topology: str = "erdos_renyi:0.5"
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen model's arithmetic."""

    def command(self, rounds: int) -> list[str]:
        """The same as options of jaxdfl; evaluation, which the clock leaves out, is as short as can be."""
        options = {
            "task": "mnli" if self.data_dir else "natural_logic", "weights": self.weights, "methods": "dec_lora",
            "topologies": self.topology, "seeds": self.seed, "clients": self.clients, "partition": "paper",
            "rounds": rounds, "local-steps": self.local_steps, "batch-size": self.batch_size, "learning-rate": RATE,
            "rank": self.rank, "alpha": ALPHA, "lora-dropout": 0.0, "clip": None, "moments": "kept",
            "max-length": self.max_length, "eval-every": 1, "eval-examples": 8,
            "train-examples": self.train_examples, "dtype": self.dtype,
        }  # fmt: skip
        if self.data_dir:
            options["data-dir"] = self.data_dir
        return ["--no-checkpoints", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


RATE, ALPHA = 5e-4, 16.0


@dataclass(frozen=True)
class Workload:
    """The federation of some rounds, drawn. All arrays are numpy, float32 or as said."""

    command: list[str]  # for jaxdfl
    weights: str  # folder in Hugging Face layout
    model: dict[str, Any]  # identity, and the encoder's `shape`
    data: dict[str, Any]
    modules: dict[str, str]  # adapted path -> the module's name in transformers' own classifier
    rank: int
    alpha: float
    rate: float
    ids: np.ndarray  # int32 [rounds, clients, steps, batch, length], as all token arrays
    types: np.ndarray  # int8
    lengths: np.ndarray  # int32 [rounds, clients, steps, batch]
    labels: np.ndarray  # int32
    mixing: np.ndarray  # [rounds, clients, clients]
    a: dict[str, np.ndarray]  # the clients' common first factors by path, [rank, d_in]
    b: dict[str, np.ndarray]  # [d_out, rank]
    head: dict[str, np.ndarray]  # the classifier's weight [classes, width] and bias
    dtype: str = "float32"  # of the frozen model's arithmetic

    @property
    def rounds(self) -> int:
        return len(self.mixing)

    @property
    def clients(self) -> int:
        return self.ids.shape[1]

    @property
    def steps(self) -> int:
        return self.ids.shape[2]

    def padded(self, round: int, padding: Padding) -> np.ndarray:
        """Positions in every sentence of a step, [clients, steps], by the rule that a system pads by."""
        longest = self.lengths[round].max(-1)
        if padding == "full":
            longest = np.full_like(longest, self.ids.shape[-1])
        return np.broadcast_to(longest.max(0), longest.shape) if padding == "step" else longest

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        flat = {}
        for name in ARRAYS:
            value = getattr(self, name)
            flat |= {f"{name}:{path}": x for path, x in value.items()} if isinstance(value, dict) else {name: value}
        np.savez(folder / "arrays.npz", **flat)
        words = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ARRAYS}
        (folder / "workload.json").write_text(json.dumps(words, indent=2, default=str), encoding="utf-8")


def load(folder: Path) -> Workload:
    """What `Workload.save` has written."""
    found: dict[str, Any] = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    with np.load(folder / "arrays.npz") as arrays:
        for key in arrays.files:
            name, colon, path = key.partition(":")
            if colon:
                found.setdefault(name, {})[path] = arrays[key]
            else:
                found[name] = arrays[key]
    return Workload(**found)


def save_command(folder: Path, command: list[str]) -> None:
    """All that jaxdfl needs of a workload."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "workload.json").write_text(json.dumps({"command": command}), encoding="utf-8")


def load_command(folder: Path) -> list[str]:
    """Of a whole workload, or what `save_command` has written."""
    return json.loads((folder / "workload.json").read_text(encoding="utf-8"))["command"]


def make(federation: Federation, rounds: int, scratch: Path) -> Workload:
    """Draws the workload; `scratch` takes jaxdfl's (empty) run folder.

    Raises:
        ValueError, OSError: what jaxdfl says of the data, the weights or the settings.
    """
    import jax

    from jaxdfl import presets
    from jaxdfl.arguments import parse
    from jaxdfl.data.batches import plan
    from jaxdfl.models import EncoderConfig, demo_weights
    from jaxdfl.models.names import checkpoint_name
    from jaxdfl.models.sources import locate
    from jaxdfl.prepare import prepare
    from jaxdfl.problems import seed_keys
    from jaxdfl.simulate.rounds import round_keys

    command = federation.command(rounds)
    settings = parse({"benchmark": presets.MINILM}, [*command, "--out", str(scratch)])
    prepared = prepare(settings)
    start, keys = prepared.seeded(prepared.runs[0]), seed_keys(federation.seed)
    picked = plan(keys.batches, start.parts, range(rounds), federation.local_steps, federation.batch_size)
    examples = jax.tree.map(lambda x: np.asarray(x)[picked], prepared.problem.examples)
    network = prepared.topologies[federation.topology].network
    mixing = [network.weights(round_keys(keys.rounds, jax.numpy.int32(t)).network, t) for t in range(rounds)]
    folder = demo_weights() if federation.weights == "demo" else locate(federation.weights)[0]
    config = EncoderConfig.from_transformers(_config(folder))
    blocks = jax.tree.map(np.asarray, start.blocks)
    return Workload(
        command=command,
        weights=str(folder),
        model={**prepared.problem.model, "shape": asdict(config)},
        data=prepared.problem.data,
        modules={
            path: f"{config.model_type}.{checkpoint_name(config.model_type, f'{path}/kernel').removesuffix('.weight')}"
            for path in blocks.a
        },
        rank=federation.rank,
        alpha=ALPHA,
        rate=RATE,
        dtype=federation.dtype,
        **examples._asdict(),
        mixing=np.asarray(mixing, np.float32),
        a=blocks.a,
        b=blocks.b,
        head={
            "weight": np.asarray(start.frozen["classifier/kernel"], np.float32).T,
            "bias": np.asarray(start.frozen["classifier/bias"], np.float32),
        },
    )


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)
