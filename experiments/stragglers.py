"""Clients that don't finish: score against the share of stragglers, whose update reaches only the last layers (SALF).

python experiments/stragglers.py                            a bilinear federation, ten seeds, minutes
python experiments/stragglers.py --preset demo              generated sentence pairs, a 22.7M-parameter encoder, offline
python experiments/stragglers.py --preset minilm --data-dir DIR     real MNLI; wants a GPU

For clients that finish fewer local steps instead, add `--work stragglers:0.5:0.2` and compare run folders.
"""

import sys
from dataclasses import replace
from pathlib import Path

from jaxdfl import presets
from jaxdfl.experiment import main
from jaxdfl.studies import SEEDS, Panel, Record, by_method, draw, judged_by, less_base, mean_of, records, table

FRACTIONS = (0.3, 0.6, 0.9)

BILINEAR = replace(
    presets.BILINEAR,
    methods=(
        *("dec_lora", "tad_lora", "ffa_lora"),
        *(f"{name}+salf:{fraction}" for name in ("dec_lora", "tad_lora", "ffa_lora") for fraction in FRACTIONS),
        *(f"dec_lora+salf:{fraction}:correction=true" for fraction in FRACTIONS),
    ),
    topologies=("ring",),
)
DEMO = replace(
    presets.DEMO, topologies=("ring",), eval_every=24,
    methods=("dec_lora", "dec_lora+salf:0.5", "dec_lora+salf:1", "tad_lora", "tad_lora+salf:0.5"),
)  # fmt: skip
MINILM = replace(presets.MINILM, topologies=("ring",), methods=BILINEAR.methods)


def study(folder: Path) -> str:
    """Score and disagreement against the share of stragglers."""
    runs, judged = records(folder), judged_by(folder)
    axis = "share of stragglers"
    panels = [
        Panel(fraction, judged.key, (axis, judged.label), ("linear", "linear"), lines=kind),
        Panel(fraction, "disagreement_product_over_rounds", (axis, "disagreement of BA, mean over rounds"), lines=kind),
    ]
    missing = draw(folder / "figures" / "stragglers.png", panels, runs)
    rows = by_method(runs, mean_of(judged.key), less_base(judged.key))
    return table("Stragglers", ["method", judged.label, "less without stragglers"], rows, SEEDS, missing)


def fraction(run: Record) -> float:
    return run["wrappers"].get("salf", {}).get("fraction", 0.0)


def kind(run: Record) -> str:
    corrected = run["wrappers"].get("salf", {}).get("correction", False)
    return run["base"] + (", corrected" if corrected else "")


if __name__ == "__main__":
    sys.exit(main(presets.named(BILINEAR, DEMO, MINILM), study=study))
