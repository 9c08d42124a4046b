"""Flower's simulation engine (Ray) with the PEFT client of `peft_loop`, written with Flower's Message API.

Flower has a server, so peers are averaged there: the server app keeps every client's factors and mixes them by W. A
client keeps its AdamW's moments in its Flower context. What is not Flower's is cached in each of Ray's processes: the
model is built once there, not once a message.
"""

# pyright: reportMissingImports=false

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import peft
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from benchmarks import workload
from benchmarks.rivals import torch_model
from benchmarks.systems import CORES
from benchmarks.worker import Result, Turn
from benchmarks.workload import Padding, Workload

FACTORS, TASK, MOMENTS = "factors", "task", "moments"
CPUS_A_CLIENT = 1  # so that as many clients train at a time as there are cores


@cache
def _loaded(folder: str) -> tuple[Workload, peft.PeftModel, list[torch.nn.Parameter]]:
    work = workload.load(Path(folder))
    model = peft.PeftModel(torch_model.classifier(work), torch_model.lora(work), adapter_name="own")
    parameters = torch_model.factors(work, model, "own")
    model.train()
    return work, model, parameters


def _train(folder: str, padding: Padding, message: Message, context: Context) -> Message:
    work, model, parameters = _loaded(folder)
    client, round = (int(message.content[TASK][name]) for name in ("client", "round"))
    with torch.no_grad():
        for own, new in zip(parameters, message.content[FACTORS].to_numpy_ndarrays(), strict=True):
            own.copy_(torch.tensor(new))
    optimizer = torch_model.adamw(work, parameters)
    if MOMENTS in context.state:
        _restore(optimizer, context.state[MOMENTS].to_torch_state_dict())
    total = 0.0
    for step in range(work.steps):
        length = work.padded(round, padding)[client, step]
        with torch_model.arithmetic(work):
            loss = model(**torch_model.batch(work, (round, client, step), length)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    context.state[MOMENTS] = ArrayRecord(dict(_moments(optimizer)))
    trained = ArrayRecord([x.detach().cpu().numpy() for x in parameters])
    found = MetricRecord({"client": client, "loss": total / work.steps})
    return Message(RecordDict({FACTORS: trained, TASK: found}), reply_to=message)


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Array]]:
    for place, values in optimizer.state_dict()["state"].items():
        for name, x in values.items():
            yield f"{place}.{name}", Array(np.asarray(x))


def _restore(optimizer: torch.optim.Optimizer, found: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, x in found.items():
        place, name = key.split(".")
        state.setdefault(int(place), {})[name] = x
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _serve(work: Workload, turn: Turn, grid: Grid) -> list[float]:
    """All rounds; returns their losses."""
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < work.clients:
        nodes = sorted(grid.get_node_ids())
    factors = [[x[path] for path in work.modules for x in (work.a, work.b)]] * work.clients
    losses = []
    for round in range(work.rounds):
        turn()
        messages = [
            Message(
                RecordDict({FACTORS: ArrayRecord(factors[i]), TASK: ConfigRecord({"client": i, "round": round})}),
                dst_node_id=nodes[i], message_type="train",
            )
            for i in range(work.clients)
        ]  # fmt: skip
        replies = [reply.content for reply in grid.send_and_receive(messages)]
        replies.sort(key=lambda content: int(content[TASK]["client"]))
        trained = [content[FACTORS].to_numpy_ndarrays() for content in replies]
        mixed = [np.tensordot(work.mixing[round], np.stack(factor), 1) for factor in zip(*trained, strict=True)]
        factors = [list(own) for own in zip(*mixed, strict=True)]
        losses.append(float(np.mean([content[TASK]["loss"] for content in replies])))
    turn()
    return losses


def run(folder: Path, turn: Turn, padding: Padding) -> Result:
    """As many clients train at a time as there are cores, each with one thread."""
    work = workload.load(folder)
    client, server, losses = ClientApp(), ServerApp(), []

    @client.train()
    def train(message: Message, context: Context) -> Message:
        return _train(str(folder), padding, message, context)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        losses.extend(_serve(work, turn, grid))

    run_simulation(
        server, client, num_supernodes=work.clients,
        backend_config={
            "client_resources": {"num_cpus": CPUS_A_CLIENT, "num_gpus": 0.0},
            "init_args": {"num_cpus": CORES, "include_dashboard": False},
        },
    )  # fmt: skip
    at_once = CORES // CPUS_A_CLIENT
    return Result(losses, torch_model.executed(work, padding), {"processes": at_once, "threads": CPUS_A_CLIENT})
