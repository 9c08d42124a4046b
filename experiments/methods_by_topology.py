"""Every family of methods on networks from dense to sparse: who holds up as the graph thins out?

python experiments/methods_by_topology.py                   a bilinear federation, five seeds, minutes
python experiments/methods_by_topology.py --preset demo     generated sentence pairs, a 22.7M-parameter encoder, offline
python experiments/methods_by_topology.py --preset minilm --data-dir DIR     real MNLI; wants a GPU

Any method and any composition can be named: `--methods dec_lora "tad_lora:5+packet_loss:0.2"`.
"""

import sys
from dataclasses import replace
from pathlib import Path

from jaxdfl import presets
from jaxdfl.experiment import main
from jaxdfl.studies import Panel, Record, draw, grouped, interval, judged_by, paired, records, said, table

BILINEAR = replace(
    presets.BILINEAR,
    methods=(
        "local", "fedavg_lora", "dec_lora", "ffa_lora", "fedsa_lora", "rolora", "tad_lora", "fedrot_lora", "decaf",
        "lora_fair", "fedex_lora", "gradient_tracking",
    ),
    topologies=("complete", *(f"erdos_renyi:{p}" for p in (0.5, 0.2, 0.1, 0.05, 0.02)), "ring"),
    seeds=tuple(range(5)),
)  # fmt: skip
DEMO = replace(presets.DEMO, methods=("dec_lora", "tad_lora", "fedrot_lora", "decaf"), eval_every=24)
MINILM = replace(presets.MINILM, methods=("dec_lora", "ffa_lora", "rolora", "tad_lora", "fedrot_lora", "decaf"))


def study(folder: Path) -> str:
    """Score and cross term against rho, a line per method."""
    runs, judged = records(folder), judged_by(folder)
    on_a_network = [run for run in runs if run["rho"] is not None]  # the rest hold all data in one place
    axis = "rho: 0 agrees at once, 1 never"
    panels = [
        Panel(rho, judged.key, (axis, judged.label), ("linear", "linear" if judged.larger else "log")),
        Panel(rho, "disagreement_product_over_rounds", (axis, "disagreement of BA, mean over rounds")),
        Panel(rho, "cross_term_over_rounds", (axis, "cross term, mean over rounds"), only=has_cross_term),
    ]
    missing = draw(folder / "figures" / "methods_by_topology.png", panels, on_a_network)
    methods = grouped(on_a_network, lambda run: run["method"])
    baseline = "dec_lora" if "dec_lora" in methods else next(iter(methods), "")
    networks = grouped(on_a_network, lambda run: run["topology"])
    rows = [
        [
            name,
            *(
                f"{said(interval([run[judged.key] for run in there if run['method'] == name]))}; "
                f"{said(paired(there, lambda run: run['method'], name, baseline, judged.key), '+.3f')}"
                for there in networks.values()
            ),
        ]
        for name in methods
    ]
    pooled = grouped((run for run in runs if run["rho"] is None), lambda run: run["method"])
    anchors = (
        f"{name}, all data in one place: {said(interval([run[judged.key] for run in group]))}."
        for name, group in pooled.items()
    )
    note = f"{judged.label}; then less {baseline}'s, within each seed. Intervals: 95 %, Student's t over seeds."
    title, headers = "Methods by topology", ["method", *networks]
    return table(title, headers, rows, note if baseline else "No method ran on a network.", *anchors, missing)


def rho(run: Record) -> float:
    return run["rho"]


def has_cross_term(run: Record) -> bool:
    return run["cross_term_over_rounds"] > 0


if __name__ == "__main__":
    sys.exit(main(presets.named(BILINEAR, DEMO, MINILM), study=study))
