"""PEFT adapter folders: one client's adapter written for `peft.PeftModel.from_pretrained`, and read back.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, under PEFT's own names: the factors of
`encoder/layers/0/attention/query` are `base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight` and
`...lora_B.weight`, both shaped as here, and the head is one of `modules_to_save`. Nothing pickled is written or read,
and nothing that a file says is taken for the name of another file.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdfl.models.classifier import Classifier
from jaxdfl.models.encoder import HEADS
from jaxdfl.models.names import checkpoint_name
from jaxdfl.models.sources import read_json, sha256
from jaxdfl.protocol import PerBlock

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
PREFIX = "base_model.model."
HEAD = "classifier"  # the module that `transformers` keeps a sequence classifier's head in
PLAIN = {  # settings under which an adapter is x A^T B^T beside a weight and nothing else
    "peft_type": ("LORA",), "bias": ("none", None), "lora_bias": (False,), "fan_in_fan_out": (False,),
    "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "layer_replication": (None,),
    "trainable_token_indices": (None,), "target_parameters": (None, []), "alora_invocation_tokens": (None,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # the others change the model's own weights
}  # fmt: skip
SHOWN = 3  # names of a kind in a message


def write(
    folder: Path, adapter: PerBlock, *, model_type: str, scale: float, base: str, dropout: float = 0.0, card: str = ""
) -> None:
    """Writes one client's adapter into a new or empty folder.

    Args:
        adapter: a and b by path, of any one rank; head, the whole head, trained or not, by path.
        model_type: `bert` or `roberta`.
        scale: of the product B A; PEFT's alpha is scale * rank.
        base: name of the pretrained model, on the hub where it is there.
        card: the text of README.md.

    Raises:
        ValueError: the folder holds something, or an adapter stands beside a layer of the head, which PEFT saves whole.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; name a new one.")
    if beside := [path for path in adapter.a if _in_head(model_type, path)]:
        raise ValueError(
            f"{beside[0]} is part of the head and has an adapter, which a PEFT folder has no place for: PEFT saves the "
            f"head whole; adapt other `targets`."
        )
    rank = next(iter(adapter.a.values())).shape[0]
    tensors = _tensors(model_type, adapter)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(scale * rank) if scale * rank == int(scale * rank) else scale * rank,
        "lora_dropout": dropout,
        "target_modules": [_module(model_type, path) for path in adapter.a],
        "modules_to_save": [HEAD],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: np.ascontiguousarray(x.T if path.endswith("/kernel") else x, np.float32)
        for name, (path, x) in tensors.items()
    }
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def read(folder: Path, like: PerBlock, *, model_type: str, scale: float) -> PerBlock:
    """The adapter in a folder, float32, shaped as `like`; its head is {} where the folder has none.

    Args:
        like: a, b and the whole head by path, whose shapes are needed.
        scale: that the model applies to B A.

    Raises:
        ValueError: no folder, something pickled or damaged in it, another architecture, a kind of adapter that is not
            plain LoRA, another rank or scale, or tensors that do not fit (all kinds counted).
    """
    config = read_json(folder / CONFIG, remedy="name a folder that PEFT's save_pretrained or `jaxdfl export` wrote")
    _require_plain(folder, config)
    _require_scale(folder, config, like, scale)
    expected = _tensors(model_type, like)
    found = _open(folder, model_type)
    if not any(path for name, (path, _) in expected.items() if _in_head(model_type, path) and name in found):
        expected = {name: each for name, each in expected.items() if not _in_head(model_type, each[0])}
    shapes = {name: x.shape[::-1] if path.endswith("/kernel") else x.shape for name, (path, x) in expected.items()}
    _require_fit(folder, shapes, {name: x.shape for name, x in found.items()})
    arrays = {path: found[name].T if path.endswith("/kernel") else found[name] for name, (path, _) in expected.items()}
    a, b = (
        {path: arrays[f"{path}/lora_{factor}"] for path in like.a} for factor in ("A", "B")
    )  # in the order of `like`
    return PerBlock(a, b, {path: x for path, x in arrays.items() if _in_head(model_type, path)})


def identity(folder: Path) -> dict[str, str]:
    """What a manifest says of an adapter.

    Raises:
        ValueError: there is none.
    """
    return {"name": folder.resolve().name, "sha256": sha256(_weights(folder))}


def whole(classifier: Classifier, model_type: str) -> PerBlock:
    """The first blocks of a classifier with all of its head, trained or frozen."""
    weights = {**classifier.frozen, **classifier.blocks.head}
    head = {path: x for path, x in weights.items() if _in_head(model_type, path)}
    return classifier.blocks._replace(head=head)


def started_from(classifier: Classifier, adapter: PerBlock) -> Classifier:
    """The classifier with the adapter's factors as its first ones, and with the adapter's head where it has one."""

    def replaced(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {path: adapter.head.get(path, x) for path, x in arrays.items()}

    blocks = PerBlock(adapter.a, adapter.b, replaced(classifier.blocks.head))
    return classifier._replace(blocks=blocks, frozen=replaced(classifier.frozen))


def _in_head(model_type: str, path: str) -> bool:
    return path.split("/")[0] in HEADS[model_type]


def _module(model_type: str, path: str) -> str:
    """The name of the layer at `path`, without the family's prefix."""
    return checkpoint_name(model_type, f"{path}/kernel").removesuffix(".weight")


def _tensors(model_type: str, adapter: PerBlock) -> dict[str, tuple[str, Any]]:
    """(path, array) by the name in an adapter's file; a factor's path is its layer's with /lora_A or /lora_B added."""
    factors = {("A", path): x for path, x in adapter.a.items()} | {("B", path): x for path, x in adapter.b.items()}
    named = {
        f"{PREFIX}{model_type}.{_module(model_type, path)}.lora_{factor}.weight": (f"{path}/lora_{factor}", x)
        for (factor, path), x in factors.items()
    }
    return named | {PREFIX + checkpoint_name(model_type, path): (path, x) for path, x in adapter.head.items()}


def _weights(folder: Path) -> Path:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ValueError(
            f"{folder.name}: no {WEIGHTS}; pickled adapters (adapter_model.bin) are never read: save it once more with "
            "a current PEFT."
        )
    return path


def _open(folder: Path, model_type: str) -> dict[str, Array]:
    """The file's tensors by name, an encoder's own adapter under the name that a classifier's would have."""
    path = _weights(folder)
    try:
        with safe_open(path, framework="flax") as file:  # NumPy has no bfloat16
            tensors = {name: file.get_tensor(name).astype(float) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{folder.name}/{WEIGHTS} is damaged or cut off ({error}); copy it again.") from error
    for other in HEADS:
        if other != model_type and any(name.startswith(f"{PREFIX}{other}.") for name in tensors):
            raise ValueError(f"{folder.name}: its adapter is for a {other} model, and this model is a {model_type}.")
    bare = (f"{PREFIX}encoder.", f"{PREFIX}embeddings.")
    return {name.replace(PREFIX, f"{PREFIX}{model_type}.") if name.startswith(bare) else name: x
            for name, x in tensors.items()}  # fmt: skip


def _require_plain(folder: Path, config: Mapping[str, Any]) -> None:
    variants = [key for key in config if (key.startswith("use_") and key != "use_rslora") or key.endswith("_config")]
    for key, allowed in {**PLAIN, **dict.fromkeys(variants, (False, None, {}))}.items():
        if (value := config.get(key, allowed[0])) not in allowed:
            raise ValueError(
                f"{folder.name}: {CONFIG} has `{key}` {value!r}; only plain LoRA ({allowed[0]!r}) is supported."
            )


def _require_scale(folder: Path, config: Mapping[str, Any], like: PerBlock, scale: float) -> None:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ValueError(f"{folder.name}: {CONFIG} needs numbers `r` and `lora_alpha`, got {rank!r} and {alpha!r}.")
    theirs = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    ours = next(iter(like.a.values())).shape[0]
    if rank != ours or not math.isclose(theirs, scale, rel_tol=1e-6):
        raise ValueError(
            f"{folder.name}: its adapter has rank {rank} and scale {theirs:g}, and this run has rank {ours} and scale "
            f"{scale:g}; pass --rank {rank} --alpha {theirs * rank:g}."
        )


def _require_fit(folder: Path, expected: Mapping[str, tuple], found: Mapping[str, tuple]) -> None:
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "misshaped": [
            f"{name} {found[name]} for {shape}" for name, shape in expected.items() if found.get(name, shape) != shape
        ],
    }
    counts = [f"{len(names)} {kind} ({', '.join(names[:SHOWN])})" for kind, names in problems.items() if names]
    if counts:
        raise ValueError(
            f"{folder.name}: its tensors do not fit this model, its classes and --targets: {'; '.join(counts)}."
        )
