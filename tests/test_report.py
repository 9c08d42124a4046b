"""Tables and figures say what the rows say."""

import csv
import io
import json
import math
import random
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from rich.console import Console

from jaxdfl import figures
from jaxdfl.console import show_summary
from jaxdfl.report import summarize, table
from jaxdfl.run_folder import RunFolder, read_manifest

METHODS = ("dec_lora", "ffa_lora", "rolora", "tad_lora")
TOPOLOGIES = {"complete": 0.0, "erdos_renyi:0.1": 0.87, "ring": 0.93}


def write_run(path, methods=METHODS, topologies=TOPOLOGIES, seeds=(0, 1, 2), rounds=60, every=10):
    """A run folder as an experiment leaves it, with curves that look like real ones."""
    folder = RunFolder(path)
    runs = [(m, t, s) for t in topologies for m in methods for s in seeds]
    folder.write_manifest(
        {
            "model": {"name": "all-MiniLM-L6-v2", "note": "This model saw MultiNLI in its contrastive training."},
            "data": {"task": "mnli", "source": "natural_logic", "classes": 3},
            "runs": [
                {"method": m, "topology": t, "seed": s, "period": 5 if m == "tad_lora" else None} for m, t, s in runs
            ],
            "topologies": {spec: {"rho": rho} for spec, rho in topologies.items()},
        }
    )
    for method, topology, seed in runs:
        noise, rho = random.Random(f"{method} {topology} {seed}"), topologies[topology]
        reach = 0.75 + 0.04 * METHODS.index(method) * rho - 0.1 * rho + noise.gauss(0, 0.01)
        frozen, apart = method == "ffa_lora", rho / (1.02 - rho)
        for number in range(rounds + 1):
            drift = 1e-3 * apart * (1 - math.exp(-number / 8)) * noise.uniform(0.8, 1.2)
            drift *= 1 if method == "dec_lora" else 0.4 + 0.3 * (number // 5 % 2)
            distances = {
                "disagreement_a": 0.0 if frozen else drift,
                "disagreement_b": 3 * drift,
                "disagreement_product": 0.5 * drift,
                "disagreement_head": 0.0,
                "cross_term": 0.0 if frozen else 30 * drift**2,
            }
            row = {"method": method, "topology": topology, "seed": seed, "round": number}
            loss = 1.1 * math.exp(-number / 40)
            if number:
                folder.log_round({**row, "loss": loss, **distances, "messages": 20, "bytes": 20 * 294912})
            if number % every == 0:
                accuracy = 0.333 + (reach - 0.333) * (1 - math.exp(-number / 15)) + noise.gauss(0, 0.004)
                scores = {"accuracy_mean": accuracy, "accuracy_worst": accuracy - 0.1 * rho, "accuracy_std": 0.02}
                scores |= {"accuracy_average_model": accuracy + 0.01, "accuracy_average_product": accuracy + 0.012}
                costs = {"messages": 20 * number, "bytes": 20 * number * 294912, "seconds": 2.0 * number}
                folder.log_metrics({**row, "loss": loss, **scores, **distances, **costs})
    return path


def write_rows(path, rows):
    """A run folder whose metrics are (method, topology, seed, round, accuracy)."""
    folder = RunFolder(path)
    model, data = {"name": "toy", "note": ""}, {"task": "sst2", "source": "hub", "classes": 2}
    folder.write_manifest({"model": model, "data": data, "runs": [], "topologies": {}})
    for row in rows:
        folder.log_metrics(dict(zip(("method", "topology", "seed", "round", "accuracy_mean"), row, strict=True)))
        folder.log_round(dict(zip(("method", "topology", "seed", "round"), row, strict=False)) | {"cross_term": 0.0})
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def summary(run):
    return summarize(run)


def test_mean_deviation_and_paired_gain_match_their_formulas(tmp_path):
    scores = {"dec_lora": (0.50, 0.60, 0.70), "tad_lora": (0.52, 0.63, 0.71)}
    rows = [(m, "ring", s, 5, x) for m in reversed(scores) for s, x in enumerate(scores[m])]
    tad, dec = summarize(write_rows(tmp_path, rows)).lines
    assert (tad.method, dec.method, dec.gain) == ("tad_lora", "dec_lora", None)  # baseline: dec_lora, though not first
    assert tad.values["accuracy_mean"] == pytest.approx((0.62, np.std(scores["tad_lora"], ddof=1)))
    assert tad.gain == pytest.approx((0.02, 0.01))  # of 0.02, 0.03, 0.01: far less than either's own spread


def test_only_the_last_evaluated_round_of_each_seed_counts(tmp_path):
    rows = [("local", "ring", 0, 10, 0.8), ("local", "ring", 0, 0, 0.1), ("local", "ring", 1, 5, 0.6)]
    (line,) = summarize(write_rows(tmp_path, rows)).lines
    assert (line.rounds, line.seeds) == ("5-10", 2)
    assert line.values["accuracy_mean"].mean == pytest.approx(0.7)


def test_gains_pair_only_seeds_that_both_ran_on_the_same_topology(tmp_path):
    rows = [("a", "ring", 0, 1, 0.5), ("b", "ring", 0, 1, 0.6), ("b", "ring", 1, 1, 0.9), ("b", "star", 0, 1, 0.9)]
    lines = summarize(write_rows(tmp_path, rows)).lines
    assert [(line.method, line.topology) for line in lines] == [("a", "ring"), ("b", "ring"), ("b", "star")]
    assert lines[1].gain == (pytest.approx(0.1), None)
    assert lines[2].gain is None


def test_one_seed_has_no_spread_and_null_is_not_available(tmp_path):
    rows = [("local", "ring", 0, 1, float("nan"))]
    summary = summarize(write_rows(tmp_path, rows))
    assert summary.lines[0].values["accuracy_mean"].deviation is None
    text = (tmp_path / "summary.md").read_text()
    assert "One seed, so no spread" in text
    assert "| n/a |" in text
    assert "±" not in text
    assert "vs local" not in text  # there is nothing beside it


def test_csv_holds_every_quantity_at_full_precision(run, summary):
    with open(run / "summary.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(METHODS) * len(TOPOLOGIES)
    for row, line in zip(rows, summary.lines, strict=True):
        assert (row["method"], row["topology"], row["seeds"], row["round"]) == (line.method, line.topology, "3", "60")
        for key, (mean, deviation) in line.values.items():
            assert (float(row[key]), float(row[f"{key}_sd"])) == (mean, deviation)
    assert rows[0]["accuracy_over_dec_lora"] == ""
    assert float(rows[3]["accuracy_over_dec_lora"]) == summary.lines[3].gain.mean


def test_markdown_states_what_a_reader_must_know(run, summary):
    text = (run / "summary.md").read_text(encoding="utf-8")
    for expected in (
        "all-MiniLM-L6-v2", "saw MultiNLI", "mnli from natural_logic", "chance level 33.3 %", "3 seeds: mean",
        "after 60 rounds", "354 MB", "| ring | tad_lora | 5 | 76", "figures/cross_term.png", "vs dec_lora",
    ):  # fmt: skip
        assert expected in text


def test_terminal_table_shows_the_same_cells(summary):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(summary))
    text = console.export_text()
    assert text.count("tad_lora") == len(TOPOLOGIES)
    assert "chance level 33.3 %" in text


def test_a_narrow_terminal_cuts_no_number(summary):
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(table(summary))
    assert "…" not in console.export_text()


def test_a_log_holds_each_line_of_the_table_whole_and_says_what_makes_a_page(summary, monkeypatch):
    wide, log = Console(width=300, record=True, file=io.StringIO()), Console(width=60, file=io.StringIO())
    wide.print(table(summary))
    monkeypatch.setattr("jaxdfl.console.OUT", log)
    show_summary(summary, Path("runs/a b"), 3.0)
    lines = [line.split() for line in log.file.getvalue().splitlines()]
    assert next(line.split() for line in wide.export_text().splitlines() if "tad_lora" in line) in lines
    assert "jaxdfl report 'runs/a b' --out report" in log.file.getvalue()


def test_a_run_that_was_cut_off_says_how_far_it_got_and_how_to_go_on(tmp_path, monkeypatch):
    """But for a run that ended early by itself, on numbers that are not finite."""
    path, log = (
        write_run(tmp_path / "run", seeds=(0,), topologies={"ring": 0.9}, rounds=20),
        Console(file=io.StringIO()),
    )
    manifest, ended = read_manifest(path), {"method": "dec_lora", "topology": "ring", "seed": 0}
    later, waiting = {**ended, "seed": 1}, {**ended, "seed": 2}
    command = ["jaxdfl", "run", "--seeds", "0", "1", "2", "--overwrite"]

    def unfinished(**changes):
        changed = {**manifest, "command": command, "settings": {"rounds": 20}, **changes}
        (path / "manifest.json").write_text(json.dumps(changed))
        return summarize(path)

    assert unfinished().unfinished is None
    assert unfinished(runs=[*manifest["runs"], later], stopped=[{**later, "round": 3}]).unfinished is None
    found = unfinished(runs=[*manifest["runs"], later, waiting])
    assert found.unfinished == "Not finished: after 0 of 20 rounds, 2 of 6 runs not begun"
    found = unfinished(settings={"rounds": 50}, runs=[*manifest["runs"], waiting])
    assert found.unfinished == "Not finished: after 20 of 50 rounds, 1 of 5 runs not begun"
    assert found.unfinished in (path / "summary.md").read_text()
    monkeypatch.setattr("jaxdfl.console.OUT", log)
    show_summary(found, path, 3.0)
    said = " ".join(log.file.getvalue().split())
    assert f"To go on: jaxdfl run --seeds 0 1 2 --out {path} --resume" in said
    assert "As one page" not in said


@pytest.mark.parametrize("name", ["accuracy", "cross_term", "disagreement"])
def test_each_figure_is_a_png(run, summary, name):
    assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_files_give_the_same_report_and_matplotlib_is_left_as_it_was(run, summary):
    made = [*run.glob("summary.*"), *run.glob("figures/*")]
    before, settings = [path.read_bytes() for path in made], matplotlib.rcParams.copy()
    summarize(run)
    assert len(made) == 5
    assert [path.read_bytes() for path in made] == before
    assert matplotlib.rcParams.copy() == settings


def y_axis(*values):
    """Limits of the axis on which these distances are drawn, and what is named on it."""
    rows = [{"method": "a", "topology": "ring", "seed": 0, "round": t, "x": value} for t, value in enumerate(values)]
    (axes,) = figures.draw(rows, {"x": "x"}, {"ring": "ring"}).axes
    return axes.get_ylim(), [label.get_text() for label in axes.get_yticklabels()]


def test_a_logarithmic_axis_ends_near_the_values_and_names_enough_to_read_them():
    """A tenth of what is spanned is left below and above."""
    (low, high), names = y_axis(1.0, 0.07)
    margin = (1 / 0.07) ** 0.1
    assert (low, high) == (pytest.approx(0.07 / margin), pytest.approx(margin))
    assert names == ["0.1", "0.2", "0.5", "1"]
    assert len(y_axis(0.31, 0.32)[1]) > 2
    assert len(y_axis(1e-6, 0.2)[1]) in range(3, 6)
    low, high = y_axis(0.0, 1e-3, 0.5)[0]  # which keeps room for zero
    assert low < 0
    assert high < 1


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json is missing"):
        summarize(tmp_path)
