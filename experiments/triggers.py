"""Speaking only when there is something to say: score against bytes sent, for triggers of different kinds.

python experiments/triggers.py                              a bilinear federation, ten seeds, minutes
python experiments/triggers.py --preset demo                generated sentence pairs, a 22.7M-parameter encoder, offline
python experiments/triggers.py --preset minilm --data-dir DIR     real MNLI; wants a GPU

Every line is one trigger at several settings, from silent to talkative; the better the score at the same bytes, the
better the trigger. Under TAD-LoRA a resting factor only contracts: does a trigger per block save more there?
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

from jaxdfl import presets
from jaxdfl.experiment import main
from jaxdfl.studies import NONE, Panel, Record, by_method, draw, grouped, judged_by, mean_of, records, table

THRESHOLDS = (0.001, 0.003, 0.01, 0.03, 0.1)

TRIGGERS = (
    *(f"event_triggered:{threshold}" for threshold in THRESHOLDS),
    *(f"event_triggered:{threshold}:per=client" for threshold in THRESHOLDS),
    *(f"ef_hc:{threshold}" for threshold in THRESHOLDS),
    *(f"random_gossip:{probability}" for probability in (0.1, 0.3, 0.6)),
)
BILINEAR = replace(
    presets.BILINEAR,
    methods=(
        "dec_lora",
        "tad_lora",
        *(f"{name}+{trigger}" for name in ("dec_lora", "tad_lora") for trigger in TRIGGERS),
    ),
    topologies=("ring",),
)
DEMO = replace(
    presets.DEMO, topologies=("ring",), eval_every=24,
    methods=("dec_lora", "dec_lora+event_triggered:0.003", "tad_lora", "tad_lora+event_triggered:0.003"),
)  # fmt: skip
MINILM = replace(presets.MINILM, topologies=("ring",), methods=BILINEAR.methods)


def study(folder: Path) -> str:
    """Score against bytes, a panel for each base method."""
    runs, judged = records(folder), judged_by(folder)
    on_a_network = [run for run in runs if run["rho"] is not None]  # the rest hold all data in one place
    sent = {ran: mean_bytes(group) for ran, group in grouped(runs, method_there).items()}
    panels = [
        Panel(
            lambda run: sent[method_there(run)] / 1e6, judged.key, (f"MB sent, {base}", judged.label),
            ("linear", "linear"), lines=kind, only=lambda run, base=base: run["base"] == base,
        )
        for base in grouped(on_a_network, lambda run: run["base"])
    ]  # fmt: skip
    missing = draw(folder / "figures" / "triggers.png", panels, on_a_network)
    rows = by_method(runs, mean_of(judged.key), share_of_bytes, mean_of("messages", ".0f"))
    headers = ["method", judged.label, "bytes against always speaking", "messages"]
    return table("Triggers", headers, rows, "Intervals: 95 %, Student's t over seeds.", missing)


def share_of_bytes(group: list[Record], base: list[Record]) -> str:
    always = mean_bytes(base) if base else 0.0
    return f"{mean_bytes(group) / always:.1%}" if always else NONE


def mean_bytes(runs: list[Record]) -> float:
    return math.fsum(run["bytes"] for run in runs) / len(runs)


def method_there(run: Record) -> tuple[str, str]:
    return run["method"], run["topology"]


def kind(run: Record) -> str:
    """The trigger without its threshold."""
    return "+".join(
        ":".join([name, *(str(value) for value in settings.values() if isinstance(value, str))])
        for name, settings in run["wrappers"].items()
    ) or "always"  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(presets.named(BILINEAR, DEMO, MINILM), study=study))
