"""What runs take is said before they do, and nothing is written for it."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxdfl import experiment, planner
from jaxdfl.execution import cases_of
from jaxdfl.prepare import prepare
from jaxdfl.presets import BILINEAR, named
from jaxdfl.run_folder import read_rows
from jaxdfl.simulate import sweep as sweeping

SMALL = replace(BILINEAR, preset="small", rounds=4, eval_every=4, clients=5, seeds=(0, 1), checkpoints=False)


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("methods", [("dec_lora", "tad_lora:2"), ("gradient_tracking",)])
def test_the_plan_counts_the_arrays_that_the_runs_have(methods):
    prepared = prepare(replace(SMALL, methods=methods))
    found = planner.memory(prepared)
    cases, states, _ = cases_of(prepared, max(prepared.groups(), key=len))
    assert found.runs == len(cases)
    assert found.adapters == (planner.HELD + planner.WITHIN) * sum(nbytes(state.blocks) for state in states)
    assert found.moments == (planner.HELD + planner.WITHIN) * sum(nbytes(state.opt) for state in states)
    assert found.mixers == (planner.HELD + planner.WITHIN) * sum(nbytes(state.mixer) for state in states)
    assert found.examples % nbytes(prepared.problem.examples) == 0
    assert found.networks == planner.DRAWN * 4 * len(cases) * 5**2 * 4


def test_what_fits_is_the_largest_that_does():
    found = planner.memory(prepare(SMALL))._replace(available=10**9)
    clients, runs = found.most_clients, found.most_runs
    assert found.scaled(clients, found.runs).total <= 10**9 < found.scaled(clients + 1, found.runs).total
    assert found.scaled(found.clients, runs).total <= 10**9 < found.scaled(found.clients, runs + 1).total
    assert found._replace(available=10).most_clients == 0
    assert found._replace(available=None).most_clients is None


def test_as_many_clients_fit_from_wherever_the_plan_is_made():
    """Of many clients fewer rounds are drawn at a time: what 5 clients' networks take, squared, is no measure."""
    plans = (planner.memory(prepare(replace(SMALL, clients=clients))) for clients in (5, 300))
    few, many = (found._replace(available=10**9 + found.examples).most_clients for found in plans)
    assert abs(few - many) <= 0.01 * many


def test_the_plan_is_of_the_runs_that_take_most_bytes_whatever_the_order():
    """Of the pooled baseline's one client, and of all clients; of plain gossip, and of trackers."""
    methods = ("centralized", "dec_lora", "gradient_tracking")
    plans = [planner.memory(prepare(replace(SMALL, methods=each))) for each in (methods, methods[::-1])]
    assert {(found.clients, found.mixers > 0) for found in plans} == {(5, True)}


def test_a_dry_run_says_all_of_it_and_writes_nothing(tmp_path, preset, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert experiment.main({"tiny": preset}, ["--dry-run", "--methods", "dec_lora", "flexlora"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for word in ("memory", "frozen weights", "adapters", "moments", "fits", "programs 2;", "products", "time"):
        assert word in said
    assert not list(tmp_path.iterdir())
    operations = float(re.search(r"products (\S+)", said)[1])
    width, layers, tokens = 16, 1, 8  # of tests/tiny.py and its sentences, about
    steps = 2 * preset.clients * preset.rounds * preset.local_steps
    assert 1 < operations / (steps * preset.batch_size * tokens * layers * 24 * width**2) < 12


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planner, "available", lambda: 10**5)
    assert experiment.main(named(SMALL), ["--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "are free: at most" in said
    assert "--runs-at-once" in said
    assert not (tmp_path / "run").exists()


def test_where_the_memory_is_unknown_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(planner, "available", lambda: None)
    assert planner.memory(prepare(SMALL)).available is None


def test_a_small_table_of_networks_changes_nothing_but_the_stretches(tmp_path, monkeypatch):
    for name, most in (("large", sweeping.TABLE_BYTES), ("small", 4 * 4 * 5**2)):
        monkeypatch.setattr(sweeping, "TABLE_BYTES", most)
        assert experiment.main(named(SMALL), ["--out", str(tmp_path / name)]) == 0
    assert list(sweeping.stretch(0, 4, [4], sweeping.most_rounds(4, 5))) == [0]
    large, small = (read_rows(tmp_path / name / "rounds.jsonl") for name in ("large", "small"))
    order = ("seed", "method", "round")
    for one, other in zip(
        *(sorted(rows, key=lambda row: [row[k] for k in order]) for rows in (large, small)), strict=True
    ):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-6)
