"""How long should TAD-LoRA's factors take turns? The switching period T against the network's contraction rho.

python experiments/switching_period.py                      a bilinear federation, ten seeds, minutes
python experiments/switching_period.py --preset demo        generated sentence pairs, a 22.7M-parameter encoder, offline
python experiments/switching_period.py --preset minilm --data-dir DIR     real MNLI; wants a GPU

Every method meets the same graphs and batches for the same seed. T = 1 is always in: it tells alternation from T.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jaxdfl import presets
from jaxdfl.experiment import main
from jaxdfl.studies import (
    NONE,
    Judged,
    Panel,
    Record,
    best_by,
    draw,
    grouped,
    interval,
    judged_by,
    paired,
    records,
    said,
    table,
)

TAD = tuple(f"tad_lora:{period}" for period in (1, 2, 3, 5, 10, 15, 30))
PROBABILITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)

BILINEAR = replace(
    presets.BILINEAR,
    methods=("dec_lora", "rolora:1", *TAD),
    topologies=tuple(f"erdos_renyi:{p}" for p in PROBABILITIES),
)
DEMO = replace(presets.DEMO, methods=("dec_lora", "tad_lora:1", "tad_lora:3", "tad_lora:6"), eval_every=24)
MINILM = replace(presets.MINILM, methods=BILINEAR.methods)


def study(folder: Path) -> str:
    """Cross term and score against T on every topology; the best T of each seed against 1 / sqrt(1 - rho)."""
    runs, judged = records(folder), judged_by(folder)
    tad = of(runs, "tad_lora")
    networks = grouped(runs, topology).values()
    mixing = [there for there in networks if there[0]["recommended_period"] is not None]
    best = [
        {"seed": seed, "x": slowness(there[0]), "T": period, "line": "best T of each seed"}
        for there in mixing
        for seed, period in best_by(of(there, "tad_lora"), period_of, judged).items()
    ]
    rule = [
        {"seed": 0, "x": slowness(there[0]), "T": there[0]["recommended_period"], "line": "3 / sqrt(1 - rho)"}
        for there in mixing
        if best  # a rule alone tells nothing of these runs
    ]
    panels = [
        Panel(
            period_of, "cross_term_over_rounds", ("T", "cross term, mean over rounds"), ("log", "log"),
            lines=topology, only=is_run,
        ),
        Panel(period_of, judged.key, ("T", judged.label), ("log", "linear"), lines=topology, only=is_run),
        Panel(
            lambda point: point["x"], "T", ("1 / sqrt(1 - rho)", "T"), ("linear", "linear"),
            lines=lambda point: point["line"], only=lambda point: not is_run(point),
        ),
    ]  # fmt: skip
    missing = draw(folder / "figures" / "switching_period.png", panels, [*tad, *best, *rule])
    headers = [
        "topology", "rho", "best T, mean over seeds", "T of the rule", "cross term of dec_lora", "of T = 1",
        "of the rule's T",
        f"{judged.label}: T = 1 less dec_lora", "best T on average less T = 1",
    ]  # fmt: skip
    return table("The switching period of TAD-LoRA", headers, [row(there, judged) for there in networks], NOTE, missing)


NOTE = "Intervals: 95 %, Student's t over seeds; differences are taken within each seed. Cross terms: mean over rounds."


def row(there: list[Record], judged: Judged) -> list[str]:
    """What one topology says."""
    tad, dec = of(there, "tad_lora"), of(there, "dec_lora")
    periods, rho, rule = grouped(tad, period_of), there[0]["rho"], there[0]["recommended_period"]
    nearest = None if rule is None else min(periods, key=lambda period: abs(period - rule), default=None)
    crossed = (dec, periods.get(1, []), periods.get(nearest, []))
    return [
        there[0]["topology"],
        NONE if rho is None else f"{rho:.3f}",
        said(interval(list(best_by(tad, period_of, judged).values()))),
        NONE if rule is None else str(rule),
        *(said(interval([run["cross_term_over_rounds"] for run in runs]), ".2g") for runs in crossed),
        said(paired([*periods.get(1, []), *dec], name, "tad_lora", "dec_lora", judged.key), "+.3f"),
        best_on_average(periods, judged),
    ]


def best_on_average(periods: Mapping[int, list[Record]], judged: Judged) -> str:
    """The T with the best mean, and its score less that of T = 1; a T at which a run diverged is out."""
    means = {period: interval([run[judged.key] for run in runs]).mean for period, runs in periods.items()}
    finite = [period for period, mean in means.items() if math.isfinite(mean)]
    if not finite:
        return NONE
    best = (max if judged.larger else min)(finite, key=lambda period: means[period])
    runs = [run for group in periods.values() for run in group]
    return f"T = {best}: " + said(paired(runs, period_of, best, 1, judged.key), "+.3f")


def of(runs: Sequence[Record], method: str) -> list[Record]:
    """The method's runs without wrappers; one where a period is asked for twice, by number and by the rule."""
    found = (run for run in runs if run["name"] == method and not run["wrappers"])
    return list({(run["topology"], run["seed"], run["period"]): run for run in found}.values())


def is_run(point: Record) -> bool:
    return "topology" in point


def topology(run: Record) -> str:
    return run["topology"]


def name(run: Record) -> str:
    return run["name"]


def period_of(run: Record) -> int:
    return run["period"]


def slowness(run: Record) -> float:
    """1 / sqrt(1 - rho), with which the paper's best T grows."""
    return 1 / math.sqrt(1 - run["rho"])


if __name__ == "__main__":
    sys.exit(main(presets.named(BILINEAR, DEMO, MINILM), study=study))
