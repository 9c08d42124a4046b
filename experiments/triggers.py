"""Speaking only when there is something to say: score against bytes sent, for triggers of different kinds.

python experiments/triggers.py                              a bilinear federation, ten seeds, minutes
python experiments/triggers.py --preset demo                generated sentence pairs, a 22.7M-parameter encoder, offline
python experiments/triggers.py --preset minilm --data-dir DIR     real MNLI; wants a GPU

Every line is one trigger at several settings, from silent to talkative; the further down on the left, the better.
Under TAD-LoRA a resting factor only contracts, so its trigger should fall silent by itself.
"""

import sys
from dataclasses import replace
from pathlib import Path

from jaxdfl import presets
from jaxdfl.experiment import main
from jaxdfl.studies import Panel, Record, draw, grouped, interval, judged_by, records, said, table

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
    bases = list(grouped(runs, lambda run: run["name"]))
    average = {
        name: interval([run["bytes"] for run in group]).mean
        for name, group in grouped(runs, lambda run: run["method"]).items()
    }
    panels = [
        Panel(
            lambda run: average[run["method"]] / 1e6, judged.key, (f"MB sent, {base}", judged.label),
            ("linear", "linear"), lines=kind, only=lambda run, base=base: run["name"] == base,
        )
        for base in bases
    ]  # fmt: skip
    draw(folder / "figures" / "triggers.png", panels, runs)
    rows = [
        [
            name,
            said(interval([run[judged.key] for run in group])),
            f"{average[name] / average[group[0]['name']]:.1%}",
            said(interval([run["messages"] for run in group]), ".0f"),
        ]
        for name, group in grouped(runs, lambda run: run["method"]).items()
    ]
    headers = ["method", judged.label, "bytes against always speaking", "messages"]
    return table("Triggers", headers, rows, "Intervals: 95 %, Student's t over seeds.")


def kind(run: Record) -> str:
    """The trigger without its threshold."""
    return "+".join(
        ":".join([name, *(str(value) for value in settings.values() if isinstance(value, str))])
        for name, settings in run["wrappers"].items()
    ) or "always"  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(presets.named(BILINEAR, DEMO, MINILM), study=study))
