"""A task of one's own through whole experiments, on a tiny random BERT."""

import json
import shutil
from dataclasses import replace

import datasets
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CLIENTS, WORDS

from jaxdfl import checkpoint, experiment
from jaxdfl.data.own import own
from jaxdfl.data.tasks import TASKS
from jaxdfl.export import export
from jaxdfl.prepare import prepare
from jaxdfl.run_folder import read_manifest, read_rows

pytestmark = pytest.mark.usefixtures("programs_compiled_once")
LABELS = ("bad", "good")


def table(draw, count):
    classes = draw.permutation(np.arange(count) % 2)
    return {"text": [f"a {draw.choice(WORDS[each])} film" for each in classes], "label": classes}


DRAW = np.random.default_rng(0)
TABLES = [table(DRAW, 10 + client) for client in range(CLIENTS)]  # 10 to 13 examples
GIVEN = [datasets.Dataset.from_dict(TABLES[0]), *TABLES[1:]], table(DRAW, 20)


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    monkeypatch.setitem(TASKS, "mine", own(*GIVEN, labels=LABELS))


def run(preset, out, *argv):
    asked = ["--task", "mine", "--partition", "own", "--checkpoints", "--checkpoint-every", "2", *argv]
    return experiment.main({"tiny": preset}, [*asked, "--out", str(out)])


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(preset, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("own") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "mine", own(*GIVEN, labels=LABELS))
        assert run(preset, folder) == 0
    return folder


def test_every_client_trains_on_its_own_examples_and_is_scored_on_the_common_ones(whole):
    manifest = read_manifest(whole)
    counts = [np.bincount(each["label"], minlength=2).tolist() for each in TABLES]
    assert manifest["partitions"] == {"0": counts}
    assert (manifest["data"]["labels"], manifest["data"]["validation"]["examples"]) == (list(LABELS), 20)
    assert "note" not in manifest["data"]
    assert len(read_rows(whole / "metrics.jsonl")[-1]["accuracy_clients"]) == CLIENTS


def test_a_run_goes_on_and_its_adapters_are_exported_like_those_of_any_task(preset, whole, tmp_path):
    halved = tmp_path / "halved"
    shutil.copytree(whole, halved)
    for folder in (halved / "checkpoints").iterdir():
        shutil.rmtree(checkpoint.round_folder(folder, 4))
    assert run(preset, halved, "--resume") == 0
    assert losses(halved) == losses(whole)
    assert "rank 2" in export(whole, tmp_path / "adapter")


def test_a_loss_of_ones_own_trains_and_is_named_and_no_run_goes_on_with_it(
    preset, whole, tmp_path, monkeypatch, capsys
):
    def doubled(logits, labels):
        return 2 * optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    monkeypatch.setitem(TASKS, "mine", own(*GIVEN, labels=LABELS, loss=doubled))
    assert run(preset, tmp_path / "doubled") == 0
    # Adam's steps don't depend on the scale of a loss, but for its epsilon of 1e-8 beside gradients of 1e-2
    np.testing.assert_allclose(losses(tmp_path / "doubled"), 2 * np.array(losses(whole)), rtol=1e-3)
    assert "Trained by a loss of its own: doubled" in (tmp_path / "doubled" / "summary.md").read_text()
    capsys.readouterr()
    assert run(preset, whole, "--resume") == 2
    assert "data.note = 'absent', now it is 'Trained by a loss" in capsys.readouterr().err


def test_the_same_examples_can_be_dealt_anew(preset):
    dealt = prepare(replace(preset, task="mine", partition="iid", clients=2))
    assert [len(part) for part in dealt.problem.seeded(0).parts] == [23, 23]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--clients", "3"], "`--clients` must be 4, got 3: so many hold the examples of mine."),
        (["--train-examples", "1"], "`--clients` must be 1, got 4: so many hold the examples of mine that --train"),
        (["--task", "sst2"], "`--partition` own: nobody holds the examples of sst2 yet"),
        (["--task", "mine+sst2"], "`partition` must be one of paper, dirichlet"),
        (["--task", "theirs"], "unknown task 'theirs'."),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(preset, tmp_path, capsys, argv, said):
    code = run(preset, tmp_path / "run", *argv)
    err = capsys.readouterr().err
    assert (code, said in err, err.count("\n")) == (2, True, 1), err


def test_a_loss_of_its_own_is_for_one_task_alone(preset, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(TASKS, "mine", own(*GIVEN, labels=LABELS, loss=lambda logits, labels: jnp.zeros(len(labels))))
    assert run(preset, tmp_path / "run", "--task", "mine+sst2", "--partition", "iid") == 2
    assert "mine has a loss of its own; run it alone." in capsys.readouterr().err
