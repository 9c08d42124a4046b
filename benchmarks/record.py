"""What a measurement leaves behind: the comparison, a table, a file, and what machine and versions it was made with."""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.systems import CORES, FLOWER_PYTHON, SYSTEMS
from jaxdfl.run_folder import processor

PACKAGES = ("jax", "jaxlib", "torch", "peft", "transformers", "numpy", "optax", "flwr", "ray")
WIDTH = 130  # of the table, also where the terminal has less
COLUMNS = (  # of a comparison: key, heading, format
    ("seconds", "s/round", "{:.2f}"), ("ratio", "ratio", "{:.2f}x"), ("first_seconds", "first round", "{:.1f} s"),
    ("setup_seconds", "setup", "{:.1f} s"), ("peak_mib", "peak MiB", "{:.0f}"), ("gflop", "GFLOP", "{:.0f}"),
    ("gflops", "GFLOP/s", "{:.0f}"), ("roof_share", "of roof", "{:.0%}"), ("useful_share", "useful", "{:.0%}"),
    ("loss_difference", "loss differs", "{:.1e}"),
)  # fmt: skip


def compare(found: Mapping[str, Any], against: str, warm_up: int) -> dict[str, dict[str, float]]:
    """A row for every system.

    `ratio` is the median over repetitions of its seconds over `against`'s. `gflop` are executed, `useful_share` is how
    much of them a round needs at least. `loss_difference` is the largest relative one, to `against` (or to the first
    system, where that was left out).
    """
    systems = found["systems"]
    base = systems.get(against) or next(iter(systems.values()))
    roof = max((value for by_size in found["roofline_gflops"].values() for value in by_size.values()), default=math.nan)
    rows = {}
    for name, own in systems.items():
        seconds = _of_one(own)[warm_up:]
        rates = [g / 1e9 / s for g, s in zip(own["operations"][warm_up:], seconds, strict=True)]
        executed = [g / 1e9 for g in own["operations"][warm_up:]]
        rows[name] = {
            "seconds": median(seconds),
            "ratio": median(s / b for s, b in zip(seconds, _of_one(base)[warm_up:], strict=True)),
            "first_seconds": own["seconds"][0],
            "setup_seconds": own["setup_seconds"],
            "peak_mib": own["peak_mib"],
            "gflop": median(executed),
            "gflops": median(rates),
            "roof_share": median(rates) / roof,
            "useful_share": sum(found["useful_gflop"][warm_up:]) / sum(executed),
            "loss_difference": max(
                abs(x - y) / abs(y) for x, y in zip(own["losses"], base["losses"], strict=True)
            ),
        }  # fmt: skip
    return rows


def _of_one(system: Mapping[str, Any]) -> list[float]:
    """Seconds by round of one run, where several go together."""
    return [seconds / system["facts"].get("runs", 1) for seconds in system["seconds"]]


def show(found: Mapping[str, Any], console: Console | None = None) -> None:
    """The table, and beside it all that it depends on."""
    console = console or Console(markup=False, highlight=False)
    console.width = max(console.width, WIDTH)
    table = Table("system", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for _, heading, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in found["compared"].items():
        table.add_row(name, *(form.format(row[key]) for key, _, form in COLUMNS))
    console.print(table)
    options, machine, data = found["options"], found["machine"], found["data"]
    best = [(v, f"{library} {size}") for library, by in found["roofline_gflops"].items() for size, v in by.items()]
    roof = "; roof {:.0f} GFLOP/s ({})".format(*max(best)) if best else ""
    drawn = options["federation"]
    sizes = f"{drawn['clients']} clients x {drawn['local_steps']} steps x {drawn['batch_size']} sentences"
    source = f"{data['task']} ({data['source']}), at most {data['length']} tokens"
    console.print(f"{sizes}, rank {drawn['rank']}; {source}", soft_wrap=True)
    if not drawn["data_dir"]:
        console.print("Generated sentences, for want of --data-dir: shorter than MNLI's, so padding matters less.")
    console.print(f"{machine['cpu']}, {machine['cores']} cores{roof}")
    console.print(", ".join(f"{name} {version}" for name, version in found["packages"].items()), soft_wrap=True)
    for name, system in found["systems"].items():
        facts = ", ".join(f"{key} {value}" for key, value in system["facts"].items())
        console.print(f"{name}: {SYSTEMS[name].says} ({facts})", soft_wrap=True)
    for name, why in found["left_out"].items():
        console.print(f"{name} was left out: no {', '.join(why)}", soft_wrap=True)


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Everything, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """The processor, its cores that are ours, and the flags that matter."""
    flags = {name: os.environ[name] for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES") if name in os.environ}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cpu": processor(), "cores": CORES, "platform": platform.platform(), "load_average": load, "flags": flags}


def packages(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of those installed; Flower's from its own interpreter, where it has one."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = _elsewhere(name)
    return {name: version for name, version in found.items() if version}


def _elsewhere(name: str) -> str:
    python = os.environ.get(FLOWER_PYTHON)
    if not python:
        return ""
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.run((python, "-c", code), capture_output=True, text=True).stdout.strip()
