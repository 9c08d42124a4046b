"""Studies read a run folder right, and their intervals are those of Student's t."""

import importlib.util
import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from jaxdfl import experiment, presets, studies
from jaxdfl.exit_codes import NOT_FINITE
from jaxdfl.settings import check
from jaxdfl.studies import (
    NO_FIGURE,
    Judged,
    Panel,
    best_by,
    by_method,
    curve,
    draw,
    grouped,
    interval,
    less_base,
    paired,
    said,
)

ROOT = Path(__file__).parents[1]
STUDIES = {  # with a few methods of each, since every composition compiles a program of its own
    "switching_period": ("dec_lora", "tad_lora:1", "tad_lora:3"),
    "methods_by_topology": ("dec_lora", "tad_lora", "decaf"),
    "imperfect_links": ("dec_lora", "dec_lora+packet_loss:0.3", "dec_lora+repeated:2+packet_loss:0.3"),
    "stragglers": ("dec_lora", "dec_lora+salf:0.5", "dec_lora+salf:0.5:correction=true"),
    "triggers": ("dec_lora", "dec_lora+event_triggered:0.01", "dec_lora+ef_hc:0.01", "tad_lora"),
}
RECORDS = [
    {"seed": seed, "x": x, "y": 10 * x + seed, "line": "a" if x < 3 else "b"} for x in (3, 1, 2) for seed in (0, 1, 2)
]


def test_an_interval_is_student_s_t_over_seeds():
    """t(0.975, 2 degrees of freedom) = 4.3027."""
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert (found.high - found.low) / 2 == pytest.approx(4.3027 * 1 / math.sqrt(3), rel=1e-4)
    assert said(found, ".1f") == "2.0 [-0.5, 4.5]"


def test_one_seed_has_no_interval():
    found = interval([1.5])
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert said(found) == "1.5"


def test_no_value_is_a_dash_and_a_diverged_one_spoils_the_mean():
    assert interval([]).seeds == 0
    assert said(interval([])) == "–"
    assert said(paired(RECORDS, lambda r: r["x"], 3, "never run", "y")) == "–"
    assert said(interval([1.0, math.nan])) == "n/a"


def test_a_difference_is_taken_from_the_base_with_its_settings_on_the_same_network():
    runs = [
        {"method": method, "base": method.partition("+")[0], "topology": topology, "rho": 0.5, "seed": 0, "y": y}
        for method, topology, y in (
            ("tad_lora:5", "ring", 1.0), ("tad_lora:5+w", "ring", 3.0), ("tad_lora:5+w", "star", 4.0),
            ("tad_lora", "ring", 9.0),
        )
    ]  # fmt: skip
    rows = dict(by_method(runs, less_base("y", "g")))
    assert rows["tad_lora:5+w, ring"] == "2"
    assert rows["tad_lora:5+w, star"] == "–"


def test_a_figure_leaves_out_what_is_not_finite_and_panels_without_points(tmp_path):
    points = [{"x": x, "y": y, "none": math.nan} for x, y in ((1.0, 2.0), (2.0, math.nan), (3.0, 0.0))]
    one, empty = (Panel(lambda r: r["x"], y, ("x", "y"), lines=lambda r: "a") for y in ("y", "none"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(tmp_path / "figures" / "one.png", [one, empty], points) == ""
        assert draw(tmp_path / "figures" / "no.png", [empty], points) == NO_FIGURE
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["one.png"]


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_an_interval_that_goes_below_a_logarithmic_axis_is_left_out(scale, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(studies, "save", lambda figure, path: drawn.append(figure))
    ends = {1: (0.30, 0.34), 2: (0.20, 0.24), 3: (0.01, 0.40), 4: (0.01, 0.30)}
    runs = [{"x": x, "y": y, "method": "a"} for x, values in ends.items() for y in (*values, sum(values) / 2)]
    draw(tmp_path / "one.png", [Panel(lambda r: r["x"], "y", ("x", "y"), ("linear", scale))], runs)
    (band,) = drawn[0].axes[0].collections
    assert {x for path in band.get_paths() for x, _ in path.vertices} == ({1, 2} if scale == "log" else {1, 2, 3, 4})


def test_the_best_setting_is_never_one_that_diverged():
    records = [{"seed": 1, "T": t, "y": y} for t, y in ((1, math.nan), (3, 2.0), (5, 1.0))]
    for larger, best in ((True, 3), (False, 5)):
        assert best_by(records, lambda r: r["T"], Judged("y", "", larger=larger)) == {1: best}
    assert best_by(records[:1], lambda r: r["T"], Judged("y", "", larger=True)) == {}


def test_a_curve_rises_in_x_and_averages_over_seeds():
    points = curve(RECORDS, lambda r: r["x"], "y")
    assert [x for x, _ in points] == [1, 2, 3]
    assert [found.mean for _, found in points] == [11, 21, 31]


def test_the_best_setting_is_found_for_each_seed_and_either_way():
    records = [{"seed": s, "T": t, "y": abs(t - s)} for s in (1, 5) for t in (1, 3, 5)]
    assert best_by(records, lambda r: r["T"], Judged("y", "", larger=False)) == {1: 1, 5: 5}
    assert best_by(records, lambda r: r["T"], Judged("y", "", larger=True)) == {1: 5, 5: 1}


def test_differences_are_taken_within_seeds():
    found = paired(RECORDS, lambda r: r["x"], 3, 1, "y")
    assert found == (20, 20, 20, 3)  # the seeds' own spread is gone


def test_groups_keep_the_order_in_which_they_come():
    assert list(grouped(RECORDS, lambda r: r["x"])) == [3, 1, 2]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_from_its_preset_draws_its_figure_and_says_what_it_found(name, tmp_path, capsys):
    module = load(name)
    argv = [
        "--rounds",
        "2",
        "--eval-every",
        "2",
        "--local-steps",
        "1",
        "--seeds",
        "0",
        "1",
        "--out",
        str(tmp_path / "r"),
    ]
    argv += ["--topologies", module.BILINEAR.topologies[-1], "--methods", *STUDIES[name]]
    assert experiment.main(presets.named(module.BILINEAR), argv, study=module.study) == 0
    words = (tmp_path / "r" / "study.md").read_text()
    assert words.startswith("# ")
    assert words in capsys.readouterr().out
    assert (tmp_path / "r" / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    found = studies.records(tmp_path / "r")
    assert len(found) == len(set((run["method"], run["seed"]) for run in found))
    assert all(np.isfinite(run["error_mean"]) for run in found)


@pytest.mark.parametrize("name", STUDIES)
def test_every_preset_of_a_study_is_in_order(name):
    """Every composition in it exists."""
    module = load(name)
    for preset in (module.BILINEAR, module.DEMO, module.MINILM):
        check(preset)


SHORT = ["--rounds", "2", "--eval-every", "2", "--local-steps", "1", "--seeds", "0", "1"]
ODD = {  # methods and topologies that no preset has
    "one method": (("dec_lora",), ("ring",)),
    "one period": (("tad_lora:5",), ("ring",)),
    "pooled data beside": (("centralized", "tad_lora:2"), ("ring",)),
    "pooled data alone": (("centralized",), ("ring",)),
    "no link": (("dec_lora", "tad_lora:2"), ("isolated",)),
    "two networks": (("dec_lora", "tad_lora:5"), ("ring", "isolated")),
    "a wrapper without its base": (("centralized", "tad_lora:2+event_triggered:0.01"), ("ring",)),
}


@pytest.fixture(scope="module")
def odd_runs(tmp_path_factory):
    """One run folder with every method of `ODD` on every topology, from the command line."""
    methods, topologies = (list(dict.fromkeys(name for odd in ODD.values() for name in odd[i])) for i in (0, 1))
    folder = tmp_path_factory.mktemp("odd") / "r"
    argv = [*SHORT, "--methods", *methods, "--topologies", *topologies, "--out", str(folder)]
    module = load("switching_period")
    assert experiment.main(presets.named(module.BILINEAR), argv, study=module.study) == 0
    assert (folder / "study.md").is_file()
    return folder


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diverged") / "r"
    argv = [*SHORT, "--optimizer", "sgd", "--learning-rate", "1e15", "--topologies", "ring", "--out", str(folder)]
    module = load("switching_period")
    argv += ["--methods", "dec_lora", "tad_lora:2"]
    assert experiment.main(presets.named(module.BILINEAR), argv, study=module.study) == NOT_FINITE
    assert "n/a" in (folder / "study.md").read_text()
    return folder


def part_of(folder, methods, topologies, to):
    """A run folder as if only these had been asked for."""
    to.mkdir()
    manifest = json.loads((folder / "manifest.json").read_text())

    def asked(run):
        return run["method"] in methods and run["topology"] in (*topologies, "pooled")

    manifest["runs"] = list(filter(asked, manifest["runs"]))
    (to / "manifest.json").write_text(json.dumps(manifest))
    for name in ("metrics.jsonl", "rounds.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (to / name).write_text("".join(line for line in lines if asked(json.loads(line))))
    return to


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("odd", ODD)
def test_a_study_has_words_for_methods_and_topologies_that_no_preset_has(name, odd, odd_runs, tmp_path):
    folder = part_of(odd_runs, *ODD[odd], tmp_path / "r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words = load(name).study(folder)
    assert words.startswith("# ")
    assert "nan" not in words
    assert (folder / "figures" / f"{name}.png").exists() != (NO_FIGURE in words)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_words_for_runs_that_diverged(name, diverged):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words = load(name).study(diverged)
    assert "n/a" in words
    assert "nan" not in words
