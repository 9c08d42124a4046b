"""A run folder can be run again, and the first number that does not come out the same is named."""

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdfl import experiment
from jaxdfl.commands import main
from jaxdfl.presets import BILINEAR, named
from jaxdfl.run_folder import read_manifest

ELSEWHERE = Path(__file__).parent / "elsewhere"  # run folders made on another machine; its manifest.json says which
DIFFERENCE = re.compile(r"different: (?:rounds|metrics)\.jsonl: method=\S+ .*round=\d+: (\S+) was (.*), is (.*)")
SMALL = ["--rounds", "4", "--eval-every", "2", "--clients", "3", "--seeds", "0", "1", "--checkpoints"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert experiment.main(named(BILINEAR), [*SMALL, "--out", str(out)]) == 0
    return out


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def said(capsys):
    return capsys.readouterr().out.splitlines()[-1]


def test_the_same_run_is_identical_and_is_only_read(run, capsys):
    before = contents(run)
    assert main(["replay", str(run)]) == 0
    said_all = capsys.readouterr().out
    assert said_all.splitlines()[-1] == "identical"
    assert "Rows, tables and figures" not in said_all  # they lay in a folder that is gone
    assert contents(run) == before


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        (
            "rounds.jsonl",
            "loss",
            1.5,
            "rounds.jsonl: method=dec_lora topology=erdos_renyi:0.1 seed=0 round=2: loss was 1.5, is",
        ),
        (
            "metrics.jsonl",
            "bytes",
            7,
            "metrics.jsonl: method=tad_lora topology=erdos_renyi:0.1 seed=0 round=0: bytes was 7, is 0",
        ),
        ("metrics.jsonl", "seconds", 1e9, "identical"),
    ],
)
def test_a_number_that_differs_is_named(run, tmp_path, capsys, name, key, value, words):
    shutil.copytree(run, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
    rows[1][key] = value
    (tmp_path / "run" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["replay", str(tmp_path / "run"), "--to", str(tmp_path / "again")]) == (words != "identical")
    assert words in said(capsys)
    assert (tmp_path / "again" / "metrics.jsonl").exists()


def test_another_stream_of_batches_is_named_and_so_is_another_environment(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    manifest = read_manifest(run)
    manifest["streams"]["batches"]["seed 1"] = "0" * 64
    manifest["environment"]["packages"]["jax"] = "0.0.1"
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    assert main(["replay", str(tmp_path / "run")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("different: manifest.json: streams.batches.seed 1 was '000")
    assert any(line.startswith("environment: packages.jax was '0.0.1', is ") for line in lines)


def test_the_last_digit_of_an_eigenvalue_is_no_difference(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    manifest = read_manifest(run)
    (found,) = manifest["topologies"].values()
    found["sigma_2"] = math.nextafter(found["sigma_2"], 2)
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    assert main(["replay", str(tmp_path / "run")]) == 0
    assert experiment.main(named(BILINEAR), [*SMALL, "--out", str(tmp_path / "run"), "--resume"]) == 0


def test_what_is_no_run_folder_is_refused_in_one_line(tmp_path, capsys):
    assert main(["replay", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("made", ["bilinear", "text"])
def test_a_folder_made_on_another_machine_is_identical_or_its_first_difference_is_named(made):
    """`text` is the demo's encoder on generated sentences. A result that changes beyond rounding fails here: where that
    is meant, CHANGELOG.md says so, and the command in `manifest.json` makes the folder anew."""
    # As a user has it: our own tests compile otherwise (tests/conftest.py), which shows in the last digits.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "jaxdfl", "replay", str(ELSEWHERE / made)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    answer = ran.stdout.splitlines()[-1]
    if answer == "identical":
        assert ran.returncode == 0
        return
    assert ran.returncode == 1, ran.stderr
    found = DIFFERENCE.fullmatch(answer)
    assert found, answer
    key, was, now = found[1], *map(ast.literal_eval, found.groups()[1:])
    # Accuracies are of 32 sentences, of which rounding may turn one.
    assert math.isclose(was, now, rel_tol=1e-3, abs_tol=0.05 if "accuracy" in key else 1e-6), answer
