"""What lost messages do: error against the share that is lost, one-way or both ways, and how often to aggregate then.

python experiments/imperfect_links.py                       a bilinear federation, ten seeds, minutes
python experiments/imperfect_links.py --preset demo         generated sentence pairs, a 22.7M-parameter encoder, offline
python experiments/imperfect_links.py --preset minilm --data-dir DIR     real MNLI; wants a GPU

Li et al. (arXiv 2405.12894) say that too many local aggregations over lossy links add up errors, so that some number
of them is best. The third panel looks for it.
"""

import sys
from dataclasses import replace
from pathlib import Path

from jaxdfl import presets
from jaxdfl.experiment import main
from jaxdfl.studies import SEEDS, Panel, Record, by_method, draw, judged_by, less_base, mean_of, records, table

RATES = (0.1, 0.3, 0.5, 0.7)
TIMES = (1, 2, 3, 5, 8)
LOSS = 0.3  # at which aggregations are counted
KINDS = ("", ":symmetric=true", ":rule=renormalise", ":rule=compensate", ":rule=compensate_differences")

BILINEAR = replace(
    presets.BILINEAR,
    methods=(
        "dec_lora",
        *(f"dec_lora+packet_loss:{rate}{kind}" for kind in KINDS for rate in RATES),
        "tad_lora",
        *(f"tad_lora+packet_loss:{rate}" for rate in RATES),
        *(
            f"dec_lora+repeated:{times}+packet_loss:{LOSS}{kind}"
            for kind in ("", ":rule=compensate")
            for times in TIMES
        ),
        *(f"dec_lora+repeated:{times}" for times in TIMES[1:]),
    ),
    topologies=("ring",),
)
DEMO = replace(
    presets.DEMO, topologies=("ring",), eval_every=24,
    methods=(
        "dec_lora", "dec_lora+packet_loss:0.3", "dec_lora+packet_loss:0.7", "tad_lora", "tad_lora+packet_loss:0.7"
    ),
)  # fmt: skip
MINILM = replace(presets.MINILM, topologies=("ring",), methods=BILINEAR.methods)


def study(folder: Path) -> str:
    """Score and disagreement against the loss rate; score against the number of aggregations."""
    runs, judged = records(folder), judged_by(folder)
    panels = [
        Panel(rate, judged.key, ("messages lost", judged.label), lines=kind, only=once),
        Panel(
            rate, "disagreement_product_over_rounds", ("messages lost", "disagreement of BA, mean over rounds"),
            lines=kind, only=once,
        ),
        Panel(times, judged.key, ("aggregations a round", judged.label), lines=lossiness, only=counted),
    ]  # fmt: skip
    present = [panel for panel in panels if len({panel.x(run) for run in runs if panel.only(run)}) > 1]
    missing = draw(folder / "figures" / "imperfect_links.png", present, runs)
    rows = by_method(runs, mean_of(judged.key), less_base(judged.key), mean_of("disagreement_product_over_rounds"))
    headers = ["method", judged.label, "less without losses", "disagreement of BA, mean over rounds"]
    return table("Imperfect links", headers, rows, SEEDS, missing)


def rate(run: Record) -> float:
    return run["wrappers"].get("packet_loss", {}).get("rate", 0.0)


def times(run: Record) -> int:
    return run["wrappers"].get("repeated", {}).get("times", 1)


def once(run: Record) -> bool:
    return "repeated" not in run["wrappers"]


def counted(run: Record) -> bool:
    return run["base"] == "dec_lora" and (rate(run) == 0 or "repeated" in run["wrappers"])


def lossiness(run: Record) -> str:
    rule = run["wrappers"].get("packet_loss", {}).get("rule", "self in place")
    return f"dec_lora, {rate(run):.0%} lost, {rule}" if rate(run) else "dec_lora, nothing lost"


def kind(run: Record) -> str:
    found = run["wrappers"].get("packet_loss", {})
    return f"{run['base']}, {'both ways' if found.get('symmetric') else found.get('rule', 'self in place')}"


if __name__ == "__main__":
    sys.exit(main(presets.named(BILINEAR, DEMO, MINILM), study=study))
