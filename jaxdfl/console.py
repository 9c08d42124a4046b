"""What a person sees of an experiment: the setup, the progress, the closing table; and the rows that record it."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.monitoring
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from jaxdfl import report
from jaxdfl.run_folder import RunFolder
from jaxdfl.simulate.run import Stop
from jaxdfl.trackers import Rows

COUNTS = ("messages", "bytes")
DIAGNOSTICS = ("disagreement_a", "disagreement_b", "disagreement_product", "disagreement_head", "cross_term")
LOG_SECONDS = 60  # between lines of progress in a log file, where no bar can move
LOG_WIDTH = 240  # characters of a line of the closing table there, at most
OUT = Console(markup=False, highlight=False)  # paths and patterns may hold brackets


def show_setup(manifest: Mapping[str, Any]) -> None:
    """Says which model, data, device and networks the runs use."""
    settings, model, data, world = (manifest[name] for name in ("settings", "model", "data", "environment"))
    rates = ", ".join(format(rate, "g") for rate in settings["learning_rate"])
    runs, note = manifest["runs"], "" if settings["arbiter"] == "all" else f", of which {settings['arbiter']} are kept"
    rows = {
        "model": f"{model['name']} ({model['architecture']}, {model['parameters'] / 1e6:.1f}M, {model['dtype']})",
        "note": model["note"],
        "adapters": f"rank {settings['rank']}, alpha {settings['alpha']:g}{_begun(model)}",
        "data": f"{data['train']['examples']} examples from {data['source']}{note}",
        "score": data.get("score"),
        **(_text_facts(settings, model, data) if "validation" in data else {}),
        "clients": f"{settings['clients']}, partition {settings['partition']}",
        "work": "" if settings["work"] == "steady" else f"{settings['work']} (share of local steps finished)",
        "training": f"{settings['rounds']} rounds x {settings['local_steps']} steps x {settings['batch_size']} "
        f"examples, {settings['optimizer']} {rates} ({settings['learning_rate_schedule']}), "
        f"moments {settings['moments'].replace('_', ' ')}",
        "device": f"{world['devices']} x {world['device']} (jax {world['packages']['jax']})",
        "runs": f"{len(runs)}: {', '.join(settings['methods'])}; seeds {', '.join(map(str, settings['seeds']))}",
    }
    facts = Table.grid("", "", padding=(0, 2))
    facts.columns[0].style = "bold"
    for name, value in rows.items():
        if value:
            facts.add_row(name, value)
    OUT.print(facts)

    networks = Table("topology", box=None, padding=(0, 2, 0, 0), header_style="bold")
    networks.columns[0].overflow = "fold"
    for name in ("rho", "sigma_2", "messages", "connected", "T*"):
        networks.add_column(name, justify="right", no_wrap=True)
    for spec, found in manifest["topologies"].items():
        error = "" if found["rho_is_exact"] else f" ± {found['standard_error']:.3f}"
        networks.add_row(
            spec, f"{found['rho']:.3f}{error}", f"{found['sigma_2']:.3f}", f"{found['links']:.1f}",
            report.share(found["connected"]), str(found["recommended_period"] or "none"),
        )  # fmt: skip
    OUT.print(networks)
    OUT.print(
        "rho = lambda_max(E[W'W] - J): 0 agrees at once, 1 never. sigma_2 of E[W]. Messages in a round, and share of "
        "rounds in which they connect all clients. T*: TAD-LoRA's period.",
        style="dim",
    )


def _begun(model: Mapping[str, Any]) -> str:
    return f", starting from {model['init_adapter']['name']}" if "init_adapter" in model else ""


def _text_facts(settings: Mapping[str, Any], model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, str]:
    drawn = "random, common to all clients" if model["initialised"] else "from the checkpoint"
    validation = data["validation"]
    return {
        "head": f"{drawn}, {settings['head']}",
        "targets": f"{', '.join(settings['targets'])}; dropout {settings['lora_dropout']:g}",
        "tokens": f"{data['length']} an example",
        "validation": f"{validation['examples']} examples from {validation['source']}",
    }


@contextmanager
def progress(rounds: int) -> Iterator[Callable[[str, int, int], None]]:
    """Progress over the rounds of all runs; yields (what runs now, rounds more, runs as far as it) -> None.

    A bar on a terminal. In a log, a line now and then, and one at the end.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}")
    began = said = time.perf_counter()
    with Progress(*columns, console=OUT, disable=not OUT.is_terminal) as bar:
        task = bar.add_task("", total=rounds, pace="")

        def moved(what: str, more: int, together: int) -> None:
            nonlocal said
            bar.update(task, advance=more, description=what)
            now, done = time.perf_counter(), bar.tasks[0].completed
            if not done:
                return
            reached = min(done + more * (together - 1), rounds)  # the others of a program are told at once
            rate = reached / (now - began)
            pace = f"{rate:.3g} rounds/s, {duration((rounds - reached) / rate)} left"
            bar.update(task, pace=pace)
            if not OUT.is_terminal and (now - said > LOG_SECONDS or done == rounds):
                said = now
                OUT.print(f"{done:.0f} of {rounds} rounds, {pace}; {what}", soft_wrap=True)

        yield moved


def duration(seconds: float) -> str:
    """`42 s`, `12 min` or `3.4 h`."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


@contextmanager
def compile_time() -> Iterator[Callable[[], float]]:
    """Seconds that XLA has spent compiling since the block was entered."""
    spent = [0.0]

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            spent[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: spent[0]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class Recorder:
    """Writes the rows of one run as the engine stops, and moves the progress bar; goes on after rows that are there.

    A row's `seconds` are those of the last row there, and those since the recorder was made, divided by the number of
    runs that go `together` with this one: compiling and evaluation included. `tell` is called with all rows of a stop,
    once they are written.
    """

    def __init__(
        self,
        folder: RunFolder,
        run: Mapping[str, Any],
        moved: Callable[[str, int, int], None],
        tell: Callable[[Rows], None],
        together: int = 1,
    ):
        self.folder, self.run, self.moved, self.tell, self.together = folder, run, moved, tell, together
        rounds = folder.rows("rounds.jsonl", run)
        self.totals: dict[str, int] = {name: sum(row[name] for row in rounds) for name in COUNTS}
        self.before = max((row["seconds"] for row in folder.rows("metrics.jsonl", run)), default=0.0)
        self.began = time.perf_counter()
        moved(self.name, len(rounds), 1)

    @property
    def name(self) -> str:
        rate = f", learning rate {self.run['learning_rate']:g}" if "learning_rate" in self.run else ""
        return f"{self.run['method']} on {self.run['topology']}, seed {self.run['seed']}{rate}"

    def __call__(self, stop: Stop, scores: Mapping[str, Any] | None) -> None:
        """A row for every round since the last stop, and one for this stop where it has been scored."""
        rounds = len(stop.infos.get("loss", ()))
        loss, rows = None, []
        for index in range(rounds):
            info = {name: values[index].item() for name, values in stop.infos.items()}
            loss = info.pop("loss")
            counts = {name: round(info.pop(name)) for name in COUNTS}
            self.totals = {name: self.totals[name] + counts[name] for name in COUNTS}
            diagnostics = {name: info.pop(name) for name in DIAGNOSTICS}
            number = stop.round - rounds + index + 1
            row = {**self.run, "round": number, "loss": loss, **diagnostics, **counts, **info}
            self.folder.log_round(row)
            rows.append(("rounds", row))
        if scores is not None:
            seconds = round(self.before + (time.perf_counter() - self.began) / self.together, 3)
            row = {**self.run, "round": stop.round, "loss": loss, **scores, **self.totals, "seconds": seconds}
            self.folder.log_metrics(row)
            rows.append(("metrics", row))
        self.tell(rows)
        self.moved(self.name, rounds, self.together)


def warn(words: str) -> None:
    """Says what a person should know, above the progress bar."""
    OUT.print(f"warning: {words}", soft_wrap=True)


def show_summary(summary: report.Summary, folder: Path | None, compiling: float) -> None:
    """The closing table, and where the rest lies, if it stays; `compiling` is in seconds."""
    table, out = report.table(summary), OUT
    if not (OUT.is_terminal or OUT.is_jupyter):  # a log has no edge
        width = Measurement.get(OUT, OUT.options.update(max_width=LOG_WIDTH), table).maximum
        out = Console(file=OUT.file, width=max(OUT.width, width), markup=False, highlight=False)
    out.print(table)
    took = f"Compiling took {compiling:.0f} s in all."
    OUT.print(f"{took} Rows, tables and figures: {folder}" if folder else took, soft_wrap=True)
    if folder and summary.unfinished:
        OUT.print(f"{summary.unfinished}. To go on: {_going_on(summary.manifest, folder)}", soft_wrap=True)
    elif folder:
        OUT.print(f"As one page: jaxdfl report {shlex.quote(str(folder))} --out report", style="dim", soft_wrap=True)


def _going_on(manifest: Mapping[str, Any], folder: Path) -> str:
    """The command that takes up a run where it was cut off."""
    words = [word for word in manifest["command"] if word not in ("--resume", "--overwrite")]
    out = [] if any(word.partition("=")[0] == "--out" for word in words) else ["--out", str(folder)]
    return shlex.join([*words, *out, "--resume"])


def show_study(words: str, folder: Path) -> None:
    """Keeps what a study found beside its figures, and shows it."""
    (folder / "study.md").write_text(words, encoding="utf-8")
    OUT.print(words, soft_wrap=True)
    OUT.print(f"This table: {folder / 'study.md'}; its figure: {folder / 'figures'}", soft_wrap=True)
