"""The README.md beside an exported adapter, in the form in which the hub shows it: what it is, and how to load it."""

from collections.abc import Mapping
from typing import Any

from jaxdfl import __version__
from jaxdfl.run_folder import at_rate

SCORES = ("_mean", "_worst", "_std", "_average_model", "_average_product")  # how the names of scores end


def name(run: Mapping[str, Any]) -> str:
    """`tad_lora:5 on ring, seed 0`."""
    return f"{at_rate(run)} on {run['topology']}, seed {run['seed']}"


def card(
    manifest: Mapping[str, Any], run: Mapping[str, Any], row: Mapping[str, Any], *, about: str, base: str, rank: int,
    layers: int,
) -> str:  # fmt: skip
    """Markdown under a YAML header.

    Args:
        run: one of the manifest's `runs`; `row` holds the scores of its last evaluation.
        about: which client, or which average, the adapter is.
        base: the pretrained model's name.
        rank: of the adapter, which has `layers` pairs of factors.
    """
    settings, model, data = (manifest[key] for key in ("settings", "model", "data"))
    rho = manifest["topologies"].get(run["topology"], {}).get("rho")
    hashes = "".join(f"; SHA-256 of {file}: {digest}" for file, digest in model["sha256"].items())
    rounds, steps, batch = row.get("round", settings["rounds"]), settings["local_steps"], settings["batch_size"]
    facts = {
        "adapter": f"{about}, of {settings['clients']} clients",
        "method": at_rate(run) + (f", period {run['period']}" if run.get("period") else ""),
        "topology": run["topology"] + ("" if rho is None else f" (rho = {rho:.3f})"),
        "training": f"{rounds} rounds x {steps} steps x {batch} examples of each client, {settings['optimizer']}, seed "
        f"{run['seed']}, partition {settings['partition']}",
        "LoRA": f"rank {rank}, alpha {settings['alpha'] / settings['rank'] * rank:g}, {layers} layers "
        f"({', '.join(settings['targets'])}); head {settings['head']}",
        "base model": f"{base} ({model['architecture']}{hashes})",
        "data": f"{data['task']}, {data['train']['examples']} examples; labels {', '.join(data['labels'])}",
        "made by": f"jaxdfl {manifest['jaxdfl']}, exported by {__version__}",
    }
    facts |= {"note": " ".join(filter(None, (each.get("note") for each in (model, data))))}
    scores = {key: "n/a" if row[key] is None else f"{row[key]:.4f}" for key in row if key.endswith(SCORES)}
    return "\n".join(
        [
            "---", f"base_model: {base}", "library_name: peft", "tags: [lora, decentralized-federated-learning]", "---",
            "", f"# {name(run)}", "", *(f"- {what}: {text}" for what, text in facts.items() if text), "",
            f"Scores of all clients and of both averages after {rounds} rounds, on the validation split:", "",
            "| score | value |", "| --- | ---: |", *(f"| {key} | {value} |" for key, value in scores.items()), "",
            "```python", "from peft import PeftModel", "from transformers import AutoModelForSequenceClassification",
            f'base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={data["classes"]})',
            'model = PeftModel.from_pretrained(base, "THIS_FOLDER").eval()', "```", "",
        ]
    )  # fmt: skip
