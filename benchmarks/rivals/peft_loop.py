"""PyTorch and PEFT as one would write it: one base model, an adapter for each client, one client after another."""

# pyright: reportMissingImports=false

from pathlib import Path

import peft

from benchmarks import workload
from benchmarks.rivals import torch_model
from benchmarks.worker import Result, Turn
from benchmarks.workload import Padding


def run(folder: Path, turn: Turn, padding: Padding) -> Result:
    """Every client keeps its AdamW's moments from round to round."""
    work = workload.load(folder)
    names = [f"client{i}" for i in range(work.clients)]
    model = peft.PeftModel(torch_model.classifier(work), torch_model.lora(work), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, torch_model.lora(work))
    clients = [torch_model.factors(work, model, name) for name in names]
    optimizers = [torch_model.adamw(work, parameters) for parameters in clients]
    model.train()

    losses = []
    for round in range(work.rounds):
        turn()
        lengths, total = work.padded(round, padding), torch_model.zero()
        for client, (name, optimizer) in enumerate(zip(names, optimizers, strict=True)):
            model.set_adapter(name)
            for step in range(work.steps):
                with torch_model.arithmetic(work):
                    loss = model(**torch_model.batch(work, (round, client, step), lengths[client, step])).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
        torch_model.mix(work.mixing[round], clients)
        losses.append(total.item() / lengths.size)
    turn()
    return Result(losses, torch_model.executed(work, padding), torch_model.facts())
