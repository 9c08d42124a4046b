"""What the PyTorch rivals share: the frozen classifier, its batches, PEFT adapters and mixing."""

# pyright: reportMissingImports=false

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import peft
import torch
from transformers import AutoModelForSequenceClassification

from benchmarks import operations
from benchmarks.workload import Padding, Workload

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def classifier(work: Workload) -> Any:
    """transformers' own model with the workload's head, frozen and without dropout."""
    model = AutoModelForSequenceClassification.from_pretrained(
        work.weights, num_labels=len(work.head["bias"]), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model.requires_grad_(False)
    with torch.no_grad():
        for name, x in work.head.items():
            getattr(model.classifier, name).copy_(torch.tensor(x))
    return model.to(DEVICE, getattr(torch, work.dtype))


def arithmetic(work: Workload) -> AbstractContextManager[Any]:
    """Adapters are kept in float32; with a model of less, they are computed as it is."""
    return nullcontext() if work.dtype == "float32" else torch.autocast(DEVICE.type, getattr(torch, work.dtype))


def lora(work: Workload) -> peft.LoraConfig:
    """The workload's adapters; PEFT's scale is alpha / rank, too."""
    return peft.LoraConfig(
        r=work.rank, lora_alpha=work.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=0.0, target_modules=list(work.modules.values())
    )  # fmt: skip


def factors(work: Workload, model: peft.PeftModel, adapter: str) -> list[torch.nn.Parameter]:
    """An adapter's A and B of every adapted layer, in the workload's order, set to their first values."""
    base: Any = model.base_model.model
    found = []
    for path, name in work.modules.items():
        layer = base.get_submodule(name)
        for factor, first in ((layer.lora_A, work.a), (layer.lora_B, work.b)):
            weight = factor[adapter].weight
            with torch.no_grad():
                weight.copy_(torch.tensor(first[path]))
            found.append(weight)
    return found


def zero() -> torch.Tensor:
    """To add losses to, without waiting for each."""
    return torch.zeros((), device=DEVICE)


def adamw(work: Workload, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.AdamW:
    """As optax.adamw has it by default, without weight decay."""
    return torch.optim.AdamW(
        parameters, lr=work.rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=DEVICE.type == "cuda"
    )


def batch(work: Workload, at: tuple[int | slice, ...], length: int) -> dict[str, torch.Tensor]:
    """The sentences at [round, client, step], in rows of `length`; several clients' become one batch."""
    lengths, labels = work.lengths[at].reshape(-1), work.labels[at].reshape(-1)
    inputs = {
        "input_ids": work.ids[at][..., :length].reshape(-1, length),
        "token_type_ids": work.types[at][..., :length].reshape(-1, length),
        "attention_mask": np.arange(length) < lengths[:, None],
        "labels": labels,
    }
    return {name: torch.tensor(x.astype(np.int64)).to(DEVICE) for name, x in inputs.items()}


@torch.no_grad()
def mix(weights: np.ndarray, clients: list[list[torch.nn.Parameter]]) -> None:
    """x_i <- sum_j W_ij x_j for every factor; `clients` hold theirs in one order."""
    for factor in zip(*clients, strict=True):
        mixed = torch.tensordot(torch.tensor(weights).to(DEVICE), torch.stack(factor), dims=1)
        for own, new in zip(factor, mixed, strict=True):
            own.copy_(new)


def executed(work: Workload, padding: Padding) -> list[float]:
    """Operations of every round: all layers at every position, adapters beside the weights."""
    shape = operations.Shape.of(work.model["shape"], len(work.head["bias"]))
    sentences = work.ids.shape[3]
    return [
        operations.of_round(shape, work.padded(t, padding), sentences, work.rank) for t in range(work.rounds)
    ]  # fmt: skip


def facts() -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "device": DEVICE.type}
