"""An adapter of a finished run as a PEFT folder: one client's, or the average.

Made from the run folder, and from the pretrained weights that it names by hash: a frozen head is no part of a
checkpoint, and is drawn again from the run's seed. No data is read.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdfl import checkpoint, methods, peft
from jaxdfl.arguments import from_manifest
from jaxdfl.card import card, name
from jaxdfl.diagnostics import average, average_product
from jaxdfl.methods import POOLED
from jaxdfl.models.sources import KNOWN
from jaxdfl.problems import seed_keys
from jaxdfl.problems.backbone import backbone
from jaxdfl.protocol import Method, PerBlock
from jaxdfl.run_folder import of_run, read_manifest, read_rows
from jaxdfl.settings import OTHER_TASKS, Settings, make_optimizer
from jaxdfl.simulate.rounds import adapters, init
from jaxdfl.startup import precision
from jaxdfl.trees import stack

AVERAGES = {"average": average, "average-product": average_product}
ABOUT = {
    "average": "the average of all clients: mean A, mean B",
    "average-product": "the exact average of all clients' products: their factors stacked along the rank",
}


class Chosen(NamedTuple):
    """One run of a run folder."""

    number: int
    run: Mapping[str, Any]  # as the manifest has it
    settings: Settings
    manifest: Mapping[str, Any]


def export(
    folder: str | os.PathLike[str], to: str | os.PathLike[str], *, client: str = "average", run: int | None = None
) -> str:
    """Writes the adapter that a run of `folder` ended with into the new folder `to`; says in a line what it is.

    Args:
        client: a number from 0; `average`, the mean of the factors (the `accuracy_average_model` of the rows); or
            `average-product`, whose product is the exact mean of the products and whose rank is the sum of the ranks.
        run: number of the run in the manifest's `runs`, from 0; None where there is only one.

    Raises:
        ValueError, OSError: what is missing or does not fit, in one line; nothing has been written.
    """
    chosen = _choose(Path(folder), run)
    saved, rounds = _checkpoint(Path(folder), chosen.number)
    with precision(chosen.settings.dtype):
        adapter, model_type = _adapter(saved, chosen, client)
    settings, model = chosen.settings, chosen.manifest["model"]
    about, rank = ABOUT.get(client, f"client {client}"), next(iter(adapter.a.values())).shape[0]
    base = next((KNOWN[digest].hub for digest in model["sha256"].values() if digest in KNOWN), model["name"])
    text = card(
        chosen.manifest, chosen.run, _row(Path(folder), chosen, rounds), about=about, base=base, rank=rank,
        layers=len(adapter.a),
    )  # fmt: skip
    peft.write(
        Path(to), adapter, model_type=model_type, scale=settings.alpha / settings.rank, base=base,
        dropout=settings.lora_dropout, card=text,
    )  # fmt: skip
    return f"{name(chosen.run)}: {about}, rank {rank}"


def _choose(folder: Path, number: int | None) -> Chosen:
    manifest = read_manifest(folder)
    settings, runs = from_manifest(manifest), manifest["runs"]
    if settings.task.partition(":")[0] in OTHER_TASKS:
        raise ValueError(f"{folder} is a run of {settings.task}, whose model has no place in a PEFT folder.")
    listed = "; ".join(f"{place} {name(run)}" for place, run in enumerate(runs))
    if number is None and len(runs) > 1:
        raise ValueError(f"{folder} holds {len(runs)} runs; name one by --run: {listed}.")
    if not 0 <= (number or 0) < len(runs):
        raise ValueError(f"`--run` must be one of {listed}, got {number}.")
    return Chosen(number or 0, runs[number or 0], settings, manifest)


def _adapter(saved: Path, chosen: Chosen, client: str) -> tuple[PerBlock, str]:
    """One client's blocks in the checkpoint `saved` with the whole head, and the family of the model."""
    settings, run, manifest = chosen.settings, chosen.run, chosen.manifest
    clients = 1 if methods.parse(run["method"]).name in POOLED else settings.clients
    if client not in AVERAGES and not (client.isdecimal() and int(client) < clients):
        raise ValueError(f"`--client` must be {', '.join(AVERAGES)} or a number below {clients}, got {client!r}.")
    model = backbone(settings, manifest["data"]["classes"], train_head=settings.head == "trained")
    if model.identity["sha256"] != manifest["model"]["sha256"]:
        raise ValueError(f"{settings.weights} are not the weights of the run: their hashes are not the manifest's.")
    classifier, model_type = model.classifier(run["seed"]), model.identity["architecture"]
    method, start, base = _method(chosen), stack(classifier.blocks, clients), classifier.base(classifier.frozen)
    like = init(seed_keys(run["seed"]).rounds, start, method, make_optimizer(settings), base=base)
    blocks = adapters(method, checkpoint.restore(saved, like))
    one = AVERAGES[client](blocks) if client in AVERAGES else jax.tree.map(lambda x: x[int(client)][None], blocks)
    one = jax.tree.map(lambda x: x[0], one)
    return one._replace(head={**peft.whole(classifier, model_type).head, **one.head}), model_type


def _checkpoint(folder: Path, number: int) -> tuple[Path, int]:
    """Where the last state of a run lies, and how many rounds it has completed."""
    for run in (folder / "checkpoints").glob(f"{number:03d}-*"):
        if rounds := checkpoint.rounds_saved(run):
            return checkpoint.round_folder(run, rounds[-1]), rounds[-1]
    raise ValueError(f"{folder} holds no checkpoint of run {number}; run it with --checkpoints.")


def _method(chosen: Chosen) -> Method:
    settings, run = chosen.settings, chosen.run
    rho = chosen.manifest["topologies"].get(run["topology"], {}).get("rho", 0.0)
    rate = run.get("learning_rate", settings.learning_rate[0])
    return methods.build(run["method"], rho=rho, learning_rate=rate, local_steps=settings.local_steps)


def _row(folder: Path, chosen: Chosen, rounds: int) -> Mapping[str, Any]:
    """What the run's last evaluation until then found."""
    mine = of_run(read_rows(folder / "metrics.jsonl", torn=True), chosen.run)
    return max((row for row in mine if row["round"] <= rounds), key=lambda row: row["round"], default={})
