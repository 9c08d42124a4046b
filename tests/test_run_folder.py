"""The run folder guards what is there, writes strict JSON and reads it back."""

import json
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl import run_folder
from jaxdfl.run_folder import RunFolder, environment, read_manifest, read_rows

ROW = {"method": "tad_lora", "topology": "ring", "seed": 0, "round": 5, "loss": 0.1}


def test_rows_come_back_as_written_and_in_order(tmp_path):
    folder = RunFolder(tmp_path / "new" / "run")
    folder.log_metrics(ROW)
    folder.log_metrics({**ROW, "round": 10})
    rows = read_rows(tmp_path / "new" / "run" / "metrics.jsonl")
    assert rows == [ROW, {**ROW, "round": 10}]
    assert list(rows[0]) == list(ROW)


def test_a_row_is_on_the_disk_when_the_call_returns(tmp_path):
    folder = RunFolder(tmp_path)
    for rounds in range(3):
        folder.log_round({**ROW, "round": rounds})
        assert len(read_rows(tmp_path / "rounds.jsonl")) == rounds + 1


def test_the_same_value_gives_the_same_text_whatever_holds_it(tmp_path):
    folder = RunFolder(tmp_path)
    for value in (0.25, np.float32(0.25), np.float64(0.25), jnp.float32(0.25)):
        folder.log_metrics({"loss": value, "messages": jnp.int32(3)})
    assert set((tmp_path / "metrics.jsonl").read_text().splitlines()) == {'{"loss": 0.25, "messages": 3}'}


def test_what_is_not_finite_is_null(tmp_path):
    RunFolder(tmp_path).log_metrics({"loss": float("nan"), "cross_term": jnp.inf, "accuracy": np.array([1.0, -np.inf])})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"loss": null, "cross_term": null, "accuracy": [1.0, null]}\n'


def test_a_broken_row_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 0}\n{"round": 1, "lo')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*delete the line"):
        read_rows(path)
    with pytest.raises(ValueError, match="does not exist"):
        read_rows(tmp_path / "rounds.jsonl")


def test_manifest_comes_back_led_by_the_version_and_leaves_no_temporary_file(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_manifest({"settings": {"rounds": 3}})
    folder.write_manifest({"settings": {"rounds": 4, "folder": tmp_path / "x"}})
    manifest = read_manifest(tmp_path)
    assert next(iter(manifest)) == "jaxdfl"
    assert manifest["settings"] == {"rounds": 4, "folder": str(tmp_path / "x")}
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", ".lock"}


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_manifest({"settings": 1})
    with pytest.raises(TypeError):
        folder.write_manifest({"settings": object()})
    assert read_manifest(tmp_path)["settings"] == 1


def test_a_folder_that_holds_something_is_refused(tmp_path):
    RunFolder(tmp_path).log_metrics(ROW)
    with pytest.raises(ValueError, match=f"{tmp_path} is not empty.*--overwrite"):
        RunFolder(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "metrics.jsonl")


def test_a_check_refuses_as_the_constructor_does_and_changes_nothing(tmp_path):
    assert RunFolder.check(tmp_path / "new") == tmp_path / "new"
    assert not (tmp_path / "new").exists()
    RunFolder(tmp_path).write_manifest({})
    with pytest.raises(ValueError, match="--overwrite"):
        RunFolder.check(tmp_path)
    RunFolder.check(tmp_path, overwrite=True)
    assert (tmp_path / "manifest.json").exists()


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_manifest({})
    folder.log_metrics(ROW)
    folder.checkpoints.mkdir()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "accuracy.png").touch()
    (tmp_path / "notes.txt").touch()
    folder.close()
    RunFolder(tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", ".lock"}


def test_one_process_writes_at_a_time(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} is in use: another process"):
        RunFolder(tmp_path)
    folder.close()
    RunFolder(tmp_path)


def test_rows_are_kept_by_run_and_round_and_a_torn_line_goes(tmp_path):
    folder = RunFolder(tmp_path)
    for seed in (0, 1):
        for round in (1, 2):
            folder.log_round({**ROW, "seed": seed, "round": round, "note": "\u2028 is no end of a line"})
    with open(tmp_path / "rounds.jsonl", "a") as file:
        file.write('{"method": "tad_lo')
    folder.keep_rows(lambda row: row["seed"] == 0 or row["round"] < 2)
    assert [(row["seed"], row["round"]) for row in read_rows(tmp_path / "rounds.jsonl")] == [(0, 1), (0, 2), (1, 1)]
    assert [row["round"] for row in folder.rows("rounds.jsonl", {**ROW, "seed": 1})] == [1]


def test_a_line_that_no_interruption_explains_is_never_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "lo\n{"round": 2}\n')
    with pytest.raises(ValueError, match=r"rounds\.jsonl, line 1"):
        folder.keep_rows(lambda row: True)
    assert (tmp_path / "rounds.jsonl").read_text() == '{"round": 1, "lo\n{"round": 2}\n'


@pytest.mark.parametrize("manifest", [None, "{}", "[]", "not json", "3"])
def test_overwrite_refuses_a_folder_that_is_not_ours(tmp_path, manifest):
    (tmp_path / "thesis.tex").touch()
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match=r"no manifest\.json of jaxdfl"):
        RunFolder(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_environment_is_json_without_paths(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/somebody/private --xla_cpu_enable_fast_math=false")
    found = environment()
    assert found["packages"]["jax"].count(".") >= 2
    assert found["devices"] >= 1
    assert found["xla_flags"] == ["--xla_dump_to", "--xla_cpu_enable_fast_math=false"]
    assert "/somebody" not in json.dumps(found)


def test_git_state_says_commit_and_dirty(tmp_path):
    assert run_folder._git(tmp_path) is None  # no checkout
    git = ("git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run((*git, "init", "-q"), check=True)
    assert run_folder._git(tmp_path) is None  # no commit yet
    subprocess.run((*git, "commit", "-q", "--allow-empty", "--no-verify", "-m", "first"), check=True)
    clean = run_folder._git(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert not clean["dirty"]
    (tmp_path / "new.py").touch()
    assert run_folder._git(tmp_path) == {"commit": clean["commit"], "dirty": True}
