"""PyTorch by hand: all clients' sentences are one batch for the frozen weights, adapters are stacked and batched."""

# pyright: reportMissingImports=false

from pathlib import Path
from typing import Any

import torch

from benchmarks import workload
from benchmarks.rivals import torch_model
from benchmarks.worker import Result, Turn
from benchmarks.workload import Padding


class StackedLoRA(torch.nn.Module):
    """A frozen linear layer with one adapter for each client; the batch holds the clients' parts one after another."""

    def __init__(self, base: torch.nn.Linear, a: torch.Tensor, b: torch.Tensor, scale: float):
        super().__init__()
        self.base, self.scale = base, scale
        self.a, self.b = torch.nn.Parameter(a), torch.nn.Parameter(b)  # [clients, rank, d_in], [clients, d_out, rank]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = x.reshape(len(self.a), -1, x.shape[-1])  # [clients, positions, d_in]
        thin = torch.einsum("cpr,cor->cpo", torch.einsum("cpi,cri->cpr", own, self.a), self.b)
        return self.base(x) + self.scale * thin.reshape(*x.shape[:-1], -1)


def run(folder: Path, turn: Turn, padding: Padding) -> Result:
    """One AdamW serves all clients, since it works entry by entry."""
    work = workload.load(folder)
    model: Any = torch_model.classifier(work)
    adapters = [_adapt(work, model, path, name) for path, name in work.modules.items()]
    optimizer = torch_model.adamw(work, [x for adapter in adapters for x in (adapter.a, adapter.b)])
    model.train()

    losses = []
    for round in range(work.rounds):
        turn()
        lengths, total = work.padded(round, padding), torch_model.zero()
        for step in range(work.steps):
            inputs = torch_model.batch(work, (round, slice(None), step), lengths[:, step].max())
            with torch_model.arithmetic(work):
                loss = model(**inputs).loss  # the mean over all clients' sentences
            optimizer.zero_grad()
            (loss * work.clients).backward()  # each client's gradient is that of its own mean
            optimizer.step()
            total += loss.detach()
        _mix(torch.tensor(work.mixing[round]).to(torch_model.DEVICE), adapters)
        losses.append(total.item() / work.steps)
    turn()
    return Result(losses, torch_model.executed(work, padding), torch_model.facts())


def _adapt(work: workload.Workload, model: torch.nn.Module, path: str, name: str) -> StackedLoRA:
    a, b = (torch.tensor(x[path]).repeat(work.clients, 1, 1).to(torch_model.DEVICE) for x in (work.a, work.b))
    base: Any = model.get_submodule(name)
    stacked = StackedLoRA(base, a, b, work.alpha / work.rank)
    model.set_submodule(name, stacked)
    return stacked


@torch.no_grad()
def _mix(weights: torch.Tensor, adapters: list[StackedLoRA]) -> None:
    for adapter in adapters:
        for factor in (adapter.a, adapter.b):
            factor.copy_(torch.tensordot(weights, factor, dims=1))
