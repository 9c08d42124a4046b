"""Studies read a run folder right, and their intervals are those of Student's t."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdfl import experiment, presets, studies
from jaxdfl.settings import check
from jaxdfl.studies import Judged, best_by, curve, grouped, interval, paired, said

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
