"""Several tasks, two domains, a choice of examples: all from the command line, on a tiny random BERT."""

import json
import shutil

import pytest

from jaxdfl import experiment

SETTINGS = ["--rounds", "2", "--eval-every", "2", "--train-examples", "60", "--eval-examples", "20"]


@pytest.fixture(scope="module")
def two_domains(data, tmp_path_factory):
    """A folder in which rotten_tomatoes is another domain of sst2."""
    folder = tmp_path_factory.mktemp("domains")
    shutil.copytree(data / "sst2", folder / "sst2")
    (folder / "rotten_tomatoes").mkdir()
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (data / "sst2" / f"{split}.jsonl").read_text().splitlines()]
        changed = [{"text": row["sentence"].replace("film", "story"), "label": row["label"]} for row in rows]
        (folder / "rotten_tomatoes" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    return folder


def run(preset, out, *argv):
    assert experiment.main({"tiny": preset}, [*SETTINGS, *argv, "--out", str(out)]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    return manifest, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_several_tasks_run_together_and_experts_are_scored_with_routing(preset, tmp_path):
    out = tmp_path / "run"
    methods = ["dec_lora", "sparse_orthogonal_lora:0.5"]
    manifest, rows = run(
        preset, out, "--task", "sst2+natural_logic", "--partition", "iid", "--methods", *methods, "--clients", "4"
    )
    assert manifest["data"]["classes"] == 5
    assert manifest["data"]["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert "natural_logic" in manifest["data"]["source"]
    last = {row["method"]: row for row in rows if row["round"] == 2}
    assert all(0 <= row["accuracy_mean"] <= 1 and 0 <= row["all_tasks_mean"] <= 1 for row in last.values())
    assert 0 <= last[methods[1]]["routed_mean"] <= 1
    assert "routed_mean" not in last["dec_lora"]
    assert "routed %" in (out / "summary.md").read_text()


def test_clients_of_one_task_hold_none_of_the_other(preset, tmp_path):
    manifest, _ = run(preset, tmp_path / "run", "--task", "sst2+natural_logic", "--partition", "iid")
    for client, counts in enumerate(manifest["partitions"]["0"]):
        assert (sum(counts[:2]) > 0, sum(counts[2:]) > 0) == ((True, False) if client % 2 == 0 else (False, True))


def test_two_domains_train_with_the_domain_adaptive_objective(preset, two_domains, tmp_path):
    manifest, rows = run(
        preset, tmp_path / "run", "--task", "domains:sst2:rotten_tomatoes", "--data-dir", str(two_domains),
        "--head", "trained", "--lora-dropout", "0.2", "--partition", "iid", "--seeds", "0", "1",
    )  # fmt: skip
    assert "rotten_tomatoes/validation.jsonl" in manifest["data"]["validation"]["source"]
    assert {row["seed"] for row in rows} == {0, 1}
    assert all(row["accuracy_mean"] is not None for row in rows)
    first, last = (next(row for row in rows if row["round"] == number) for number in (0, 2))
    assert first["disagreement_head"] == 0 < last["disagreement_head"]


def test_the_arbiter_keeps_other_examples_on_either_side(preset, tmp_path):
    losses = [
        run(preset, tmp_path / name.replace(":", "-"), "--arbiter", name)[1][-1]["loss"]
        for name in ("all", "diffuse:0.5", "concentrated:0.5")
    ]
    assert len(set(losses)) == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "domains:sst2"], "`--task` must read domains:SOURCE:TARGET"),
        (["--task", "domains:sst2:mnli"], "both must have the same labels"),
        (["--task", "domains:sst2:rotten_tomatoes"], "`--head` must be trained"),
        (["--task", "domains:sst2:rotten_tomatoes", "--head", "trained"], "`--lora-dropout` must be above 0"),
        (["--task", "sst2+sst2"], "`--task` names one twice"),
        (["--task", "sst2+mlni"], "unknown task 'mlni'. Did you mean 'mnli'?"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(preset, argv, message, tmp_path, capsys):
    assert experiment.main({"tiny": preset}, [*argv, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_some_clients_are_evaluated_and_the_averages_are_those_of_all(preset, tmp_path):
    asked = ["--methods", "dec_lora", "--clients", "6", "--partition", "iid"]
    _, every = run(preset, tmp_path / "all", *asked)
    _, some = run(preset, tmp_path / "some", *asked, "--eval-clients", "3")
    for all_, three in zip(every, some, strict=True):
        assert three["accuracy_clients"] == all_["accuracy_clients"][::2]
        for name in ("accuracy_average_model", "accuracy_average_product", "cross_term", "loss"):
            assert three[name] == all_[name]
    _, two_tasks = run(preset, tmp_path / "two", *asked, "--task", "sst2+natural_logic", "--eval-clients", "2")
    assert len(two_tasks[0]["accuracy_clients"]) == 2
