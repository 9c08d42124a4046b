"""Runs side by side: refused where they are no comparison; numbers, tables and page say the same."""

import dataclasses
import html
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from test_report import METHODS, TOPOLOGIES, write_run

from jaxdfl import presets, tables
from jaxdfl.commands import main
from jaxdfl.comparison import compare
from jaxdfl.page import page
from jaxdfl.report import summarize
from jaxdfl.statistics import interval

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WORLD = {"packages": {"jax": "0.10.1"}, "device": "cpu", "devices": 2, "git": {"commit": "abc", "dirty": False}}


def write(path, changes=(), **asked):
    """A run folder with all that a manifest says; `changes` are of its settings, or of whole entries (a dict)."""
    write_run(path, rounds=20, **asked)
    manifest = json.loads((path / "manifest.json").read_text())
    settings = dataclasses.replace(presets.DEMO, clients=6, methods=METHODS, topologies=tuple(TOPOLOGIES))
    manifest |= {"settings": dataclasses.asdict(settings), "environment": WORLD, "command": ["jaxdfl", "run"]}
    manifest["model"] |= {"sha256": {"model.safetensors": "0"}}
    manifest["data"] |= {"labels": ["a", "b", "c"], "train": {"examples": 60, "sha256": "1"}}
    manifest["partitions"] = {"0": [[4, 5, 1]] * 6}
    full = {"rho_is_exact": True, "standard_error": 0.0, "samples": 1, "sigma_2": 0.9, "gap": 0.1, "links": 12.0}
    manifest["topologies"] = {
        spec: {**found, **full, "connected": 1.0, "recommended_period": 3}
        for spec, found in manifest["topologies"].items()
    }
    for key, value in dict(changes).items():
        manifest["settings" if not isinstance(value, dict) else key][key] = value
    for key, value in dict(changes).items():
        if isinstance(value, dict):
            manifest[key] = {**manifest[key], **value}
            manifest[key].pop(key, None)
    (path / "manifest.json").write_text(json.dumps(manifest))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rows = [{**row, "accuracy_clients": [row["accuracy_mean"]] * 5 + [None]} for row in rows]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write(tmp_path_factory.mktemp("comparison") / "whole")


def refusal(call):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are compared by the caller)
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# What may stand side by side


@pytest.mark.parametrize("axis", ["methods", "topologies", "seeds"])
def test_runs_made_apart_compare_as_those_of_one_folder(run, tmp_path, axis):
    parts = {"methods": METHODS, "topologies": list(TOPOLOGIES.items()), "seeds": (0, 1, 2)}[axis]
    for number, part in enumerate(parts):
        write(tmp_path / str(number), **{axis: dict([part]) if axis == "topologies" else (part,)})
    apart = compare([tmp_path / str(number) for number in range(len(parts))], "dec_lora")
    key = lambda line: (line.topology, line.method)  # noqa: E731
    assert repr(sorted(apart.lines, key=key)) == repr(sorted(compare([run], "dec_lora").lines, key=key))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rank": 4},
            "rank is 8 in the first and 4 in the second; runs may differ in methods, topologies, seeds, learning",
        ),
        ({"clients": 5}, "clients is 6 in the first and 5 in the second"),
        ({"model": {"sha256": {"model.safetensors": "9"}}}, "the model is ["),
        ({"data": {"train": {"examples": 60, "sha256": "2"}}}, "the data is ["),
    ],
)
def test_runs_that_differ_in_anything_else_are_refused_with_the_first_difference(run, tmp_path, changes, words):
    other = write(tmp_path / "other", changes, seeds=(7,))
    assert words in refusal(lambda: compare([run, other]))


def test_what_changes_speed_alone_may_differ_and_is_told(run, tmp_path):
    other = write(tmp_path / "other", {"client_chunk": 2}, seeds=(7,))
    assert compare([run, other]).differing == {"client_chunk": [None, 2]}


def test_folders_with_other_learning_rates_tell_them_apart(run, tmp_path):
    other = write(tmp_path / "other", {"learning_rate": [0.1]}, methods=("dec_lora",))
    labels = {line.method for line in compare([run, other]).lines}
    assert {"dec_lora @ 0.1", "dec_lora @ 0.005", "tad_lora @ 0.005"} <= labels


def test_a_run_in_two_folders_a_strange_baseline_and_no_folder_are_refused(run, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    assert "dec_lora on complete, seed 0, is in" in refusal(lambda: compare([run, again]))
    assert "`--baseline` must be one of dec_lora, ffa_lora" in refusal(lambda: compare([run], "flora"))
    assert "name at least one" in refusal(lambda: compare([]))
    assert "manifest.json is missing" in refusal(lambda: compare([tmp_path]))


# Numbers


def test_lines_hold_the_last_scores_and_their_differences_within_each_seed(run):
    comparison = compare([run])
    last = {(row["topology"], row["method"], row["seed"]): row for row in comparison.metrics if row["round"] == 20}
    for line in comparison.lines:
        own = [last[line.topology, line.method, seed]["accuracy_mean"] for seed in range(3)]
        base = [last[line.topology, "dec_lora", seed]["accuracy_mean"] for seed in range(3)]
        assert line.score == interval(own)
        assert line.worst.mean == pytest.approx(
            np.mean([last[line.topology, line.method, s]["accuracy_worst"] for s in range(3)])
        )
        if line.method == "dec_lora":
            assert line.gain is None
        else:
            gains = [one - other for one, other in zip(own, base, strict=True)]
            assert line.gain == interval(gains)
            assert line.signs.wins == sum(gain > 0 for gain in gains)


def test_at_equal_bytes_a_method_that_sends_twice_as_much_is_read_at_half_its_rounds(tmp_path):
    folder = write(tmp_path / "run", methods=("dec_lora", "ffa_lora"), topologies={"ring": 0.9}, seeds=(0,))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["bytes"] = row["round"] * (2 if row["method"] == "dec_lora" else 1)
        row["accuracy_mean"] = 0.01 * row["round"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dec, ffa = compare([folder]).lines
    assert (dec.at_bytes.mean, ffa.at_bytes.mean) == pytest.approx((0.1, 0.2))
    assert ffa.gain_at_bytes.mean == pytest.approx(0.1)
    assert ffa.gain.mean == pytest.approx(0.0)


def test_a_method_that_sends_nothing_does_not_set_the_bytes(tmp_path):
    folder = write(tmp_path / "run", methods=("dec_lora", "ffa_lora"), topologies={"ring": 0.9}, seeds=(0,))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{**row, "bytes": 0 if row["method"] == "ffa_lora" else row["bytes"]} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert all(line.at_bytes == line.score for line in compare([folder]).lines)


# Tables


def test_tables_show_each_number_and_leave_out_what_says_nothing(run):
    comparison = compare([run])
    text, source = tables.markdown(comparison), tables.latex(comparison)
    headers = [column.header for column in tables.columns(comparison)]
    assert headers[:5] == ["topology", "method", "T", "accuracy %", "vs dec_lora"]
    assert "round" not in headers
    assert "accuracy % at equal bytes" not in headers  # all send the same here
    for line in comparison.lines:
        score = f"{100 * line.score.mean:.1f} [{100 * line.score.low:.1f}, {100 * line.score.high:.1f}]"
        assert f"| {line.topology} | {line.method} |" in text
        assert score in text
        assert score in source
    assert source.count(r"\midrule") == len(TOPOLOGIES)
    assert source.count(r" \\") == 1 + len(comparison.lines)
    assert not re.search(r"(?<!\\)[_#&](?=[a-z])", source.partition(r"\begin")[2].replace(" & ", " "))
    assert "sign test" in text


def test_scores_that_differ_by_rounding_are_tied_and_their_difference_has_no_sign(tmp_path):
    folder = write(tmp_path / "run", methods=("dec_lora", "ffa_lora"), topologies={"ring": 0.9})
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{**row, "accuracy_mean": 0.7 + (row["method"] == "ffa_lora") * 1e-7 * (row["seed"] - 1)} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison = compare([folder])
    _, ffa = comparison.lines
    assert ffa.signs == (0, 0, 3, 1)
    assert "| 0.0 [0.0, 0.0] | 0 of 3, 3 tied (p = 1) |" in tables.markdown(comparison)
    summarize(folder)
    assert "| 0.0 ± 0.0 |" in (folder / "summary.md").read_text(encoding="utf-8")


def test_a_diverged_seed_is_not_hidden_by_a_mean(tmp_path):
    folder = write(tmp_path / "run", methods=("dec_lora", "ffa_lora"), topologies={"ring": 0.9})
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{**row, "accuracy_mean": None} if row["seed"] == 1 and row["method"] == "ffa_lora" else row for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, ffa = compare([folder]).lines
    assert math.isnan(ffa.score.mean)
    assert ffa.signs.losses >= 1
    assert "| n/a |" in tables.markdown(compare([folder]))


# The page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of fewer methods than `run`, since drawing takes most of the time."""
    folder = tmp_path_factory.mktemp("report")
    networks = {spec: TOPOLOGIES[spec] for spec in ("erdos_renyi:0.1", "ring")}
    write(folder / "run", methods=("dec_lora", "tad_lora"), topologies=networks)
    assert main(["report", str(folder / "run"), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_a_report_holds_the_page_the_tables_and_every_figure_twice(report):
    curves = ("intervals", "accuracy", "accuracy_by_bytes", "cross_term", "disagreement")
    for name in (*curves, "network_erdos_renyi-0.1", "network_ring", "clients", "holdings"):
        assert (report / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (report / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (report / "tables.md").is_file()
    assert r"\toprule" in (report / "tables.tex").read_text()


def test_a_report_takes_the_place_of_an_earlier_one_and_leaves_other_files(tmp_path):
    out = tmp_path / "out"
    for name in ("ring", "star"):
        asked = {"methods": ("dec_lora",), "topologies": {name: 0.9}, "seeds": (0,)}
        assert main(["report", str(write(tmp_path / name, **asked)), "--out", str(out)]) == 0
        (out / "figures" / "network_mine.png").touch()
    kept = {path.name for path in (out / "figures").glob("network_*")}
    assert kept == {"network_star.pdf", "network_star.png", "network_mine.png"}


def test_a_run_folder_takes_no_report(tmp_path, capsys):
    folder = write(tmp_path / "run", seeds=(0,))
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", str(folder), "--out", str(folder)]) == 2
    assert f"`--out` must not be a run folder, got {folder} with a manifest.json; name" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_page_names_no_other_file_and_no_path(report):
    text = (report / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href|action)="(?!#|data:)[^"]*"', text)
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    assert str(report.parent) not in text
    assert text.count("<svg") == 9
    assert len(re.findall(r'<svg role="img" aria-label="[^"]+"', text)) == 9


def test_figures_of_one_seed_name_it(report):
    text = (report / "report.html").read_text(encoding="utf-8")
    assert text.count(">client (seed 0)</text>") == 2


def test_the_page_escapes_what_a_manifest_says(tmp_path):
    folder = write(tmp_path / "run", {"partition": "<script>alert(1)</script>"}, seeds=(0,), topologies={"ring": 0.9})
    text = page(compare([folder]), [], [], [])
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_runs_that_are_no_comparison_are_refused_in_one_line_and_nothing_is_written(run, tmp_path, capsys):
    other = write(tmp_path / "other", {"rank": 4}, seeds=(7,))
    assert main(["report", str(run), str(other), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


BEFORE = """<script>window.found = {errors: [], refused: []};
addEventListener("error", (event) => found.errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => found.refused.push(event.blockedURI));
</script>"""
AFTER = """<script>
const table = document.querySelector("table.sortable");
const texts = (place) => [...table.tBodies[0].rows].map((row) => row.cells[place].dataset.value);
const click = (place) => {
  const header = table.tHead.rows[0].cells[place];
  header.querySelector("button").click();
  return [header.getAttribute("aria-sort"), texts(place)];
};
found.unsorted = texts(3);
found.clicks = [click(3), click(3), click(1)];
found.sizes = [...document.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect().width);
found.wide = document.documentElement.scrollWidth > innerWidth;
found.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
document.documentElement.dataset.found = JSON.stringify(found);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1300, 500])
def test_in_a_browser_a_click_sorts_figures_show_nothing_fails_and_nothing_is_fetched(report, tmp_path, width):
    text = (report / "report.html").read_text(encoding="utf-8")
    assert "<head>" in text
    assert "</body>" in text
    text = text.replace("<head>", "<head>" + BEFORE, 1).replace("</body>", AFTER + "</body>", 1)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --enable-logging=stderr --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    done = subprocess.run(
        [*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', done.stdout)[1]))
    assert (found["errors"], found["refused"], found["requests"]) == ([], [], [])
    (falls, falling), (rises, rising), (words, names) = found["clicks"]
    assert (falls, rises, words) == ("descending", "ascending", "ascending")
    assert list(map(float, falling)) == sorted(map(float, found["unsorted"]), reverse=True)
    assert rising == falling[::-1]
    assert names == sorted(names)
    assert len(found["sizes"]) == 9
    assert all(size > 200 for size in found["sizes"])
    assert not found["wide"]  # the table scrolls within its own box
