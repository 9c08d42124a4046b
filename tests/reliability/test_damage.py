"""Checkpoints that were damaged are never taken for whole, and disks that are full cost nothing that was saved."""

import random
import resource
import shutil

import jax
import numpy as np
import pytest

from jaxdfl import checkpoint, execution, experiment
from jaxdfl.checkpoint import Damaged
from jaxdfl.exit_codes import FAILED
from jaxdfl.run_folder import read_rows
from jaxdfl.simulate.sweep import sweep

STATE = {f"layer {i}": jax.random.normal(jax.random.key(i), (4, 2, 30)) for i in range(4)} | {"key": jax.random.key(0)}


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_every_flipped_byte_and_every_truncation_is_noticed(tmp_path):
    checkpoint.save(tmp_path / "whole", STATE)
    draw, noticed = random.Random(0), 0
    for number in range(200):
        shutil.copytree(tmp_path / "whole", tmp_path / "hurt")
        path = draw.choice([each for each in files(tmp_path / "hurt") if each.stat().st_size])
        content = bytearray(path.read_bytes())
        place = draw.randrange(len(content))
        if number % 2:
            content[place] ^= draw.randrange(1, 256)
        else:
            del content[place:]
        path.write_bytes(content)
        try:
            checkpoint.verify(tmp_path / "hurt")
        except Damaged:
            noticed += 1
        else:  # a space of the list of hashes, say
            restored = checkpoint.restore(tmp_path / "hurt", STATE)
            assert all(map(np.array_equal, jax.tree.leaves(restored)[1:], jax.tree.leaves(STATE)[1:]))
        shutil.rmtree(tmp_path / "hurt")
    assert noticed > 190


def test_a_file_that_is_missing_or_left_over_is_noticed(tmp_path):
    checkpoint.save(tmp_path / "whole", STATE)
    (tmp_path / "whole" / "state" / "more").touch()
    with pytest.raises(Damaged, match="more is not what was written"):
        checkpoint.restore(tmp_path / "whole", STATE)
    (tmp_path / "whole" / "state" / "more").unlink()
    checkpoint.restore(tmp_path / "whole", STATE)
    files(tmp_path / "whole" / "state")[0].unlink()
    with pytest.raises(Damaged):
        checkpoint.restore(tmp_path / "whole", STATE)


@pytest.fixture
def small_disk():
    """No file may grow beyond 100 bytes more than it takes to say so: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_state_that_does_not_fit_on_the_disk_leaves_the_earlier_ones(tmp_path, small_disk):
    checkpoint.save(tmp_path / "round-000001", STATE)
    small_disk()
    with pytest.raises(OSError, match="round-000002 cannot be saved"):
        checkpoint.save(tmp_path / "round-000002", STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]
    checkpoint.restore(tmp_path / "round-000001", STATE)


@pytest.fixture(scope="module")
def done(preset, tmp_path_factory):
    """A run with states of two rounds."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--methods", "dec_lora", "tad_lora:1", "--checkpoints", "--checkpoint-every", "2", "--out", str(out)]
    assert experiment.main({"tiny": preset}, options) == 0
    return out, options


def run_of(row):
    return row["method"], row["round"]


def texts(out):
    return [(out / name).read_text() for name in ("rounds.jsonl", "summary.csv")]


def test_a_run_with_a_damaged_state_goes_on_from_the_one_before_with_a_warning(done, preset, tmp_path, capsys):
    out, options = tmp_path / "run", done[1]
    shutil.copytree(done[0], out)
    last = sorted((out / "checkpoints").glob("*/round-000004"))
    assert len(last) == 2
    path = max(files(last[1]), key=lambda each: each.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    assert experiment.main({"tiny": preset}, [*options[:-1], str(out), "--resume"]) == 0
    assert "001-tad_lora_1-ring-seed0/round-000004 is damaged" in (said := capsys.readouterr()).err
    assert "Traceback" not in said.err
    assert sorted(texts(out)[0].splitlines()) == sorted(texts(done[0])[0].splitlines())
    assert texts(out)[1].split(",seconds")[0] == texts(done[0])[1].split(",seconds")[0]
    checkpoint.verify(last[1])


@pytest.mark.parametrize("fewer", [["--runs-at-once", "1"], ["--no-sweep"]])
def test_a_resumed_run_goes_in_as_small_portions_as_are_asked_for(fewer, done, preset, tmp_path, monkeypatch):
    """As after a run that took too much memory."""
    out, options, together = tmp_path / "run", done[1], []
    shutil.copytree(done[0], out)
    for path in (out / "checkpoints").glob("*/round-000004"):
        shutil.rmtree(path)

    def counted(advance, cases, *rest, **more):
        together.append(len(cases))
        return sweep(advance, cases, *rest, **more)

    monkeypatch.setattr(execution, "sweep", counted)
    assert experiment.main({"tiny": preset}, [*options[:-1], str(out), "--resume", *fewer]) == 0
    assert together == [1, 1]
    here, there = ({run_of(row): row["loss"] for row in read_rows(each / "rounds.jsonl")} for each in (out, done[0]))
    assert here == pytest.approx(there, rel=1e-5)  # to rounding, as of any runs that go together or apart


def test_with_no_state_left_a_run_starts_over(done, preset, tmp_path):
    out, options = tmp_path / "run", done[1]
    shutil.copytree(done[0], out)
    shutil.rmtree(out / "checkpoints")
    lines = (out / "rounds.jsonl").read_text().splitlines()
    (out / "rounds.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # torn
    assert experiment.main({"tiny": preset}, [*options[:-1], str(out), "--resume"]) == 0
    assert texts(out)[0] == texts(done[0])[0]


def test_another_run_is_not_gone_on_with_and_stays_as_it_is(done, preset, capsys):
    out, options = done
    before = {path: path.read_bytes() for path in files(out)}
    for change, named in [
        (["--rank", "3"], "--rank = 2, now it is 3"),
        (["--rounds", "9"], "--rounds = 4, now it is 9"),
        (["--seeds", "1"], "--seeds = [0], now it is [1]"),
        (["--eval-examples", "9"], "--eval-examples = None, now it is 9"),
    ]:
        assert experiment.main({"tiny": preset}, [*options, "--resume", *change]) == 2
        assert named in capsys.readouterr().err
    assert {path: path.read_bytes() for path in files(out)} == before


def test_the_same_sentences_in_another_order_are_another_run(done, preset, data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data" / "sst2" / "train.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    before = {each: each.read_bytes() for each in files(done[0])}
    assert experiment.main({"tiny": preset}, [*done[1], "--resume", "--data-dir", str(tmp_path / "data")]) == 2
    assert "--data-dir" in capsys.readouterr().err
    shutil.copy(path, data / "sst2" / "moved.jsonl")
    (data / "sst2" / "train.jsonl").rename(tmp_path / "kept")
    (data / "sst2" / "moved.jsonl").rename(data / "sst2" / "train.jsonl")
    try:
        assert experiment.main({"tiny": preset}, [*done[1], "--resume"]) == 2
        assert "data.train.sha256" in capsys.readouterr().err
    finally:
        (tmp_path / "kept").rename(data / "sst2" / "train.jsonl")
    assert {each: each.read_bytes() for each in files(done[0])} == before


def test_a_row_that_cannot_be_written_ends_the_run_in_one_line(preset, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "rounds.jsonl")

    monkeypatch.setattr("jaxdfl.run_folder.RunFolder.log_round", full)
    assert experiment.main({"tiny": preset}, ["--out", str(tmp_path / "run")]) == FAILED
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'rounds.jsonl'\n"


def test_no_memory_left_is_said_with_what_to_lower(preset, tmp_path, monkeypatch, capsys):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")

    monkeypatch.setattr(execution, "sweep", exhausted)
    assert experiment.main({"tiny": preset}, ["--out", str(tmp_path / "run")]) == FAILED
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory: lower --client-chunk")
    assert said.count("\n") == 1


def test_a_run_whose_numbers_go_wrong_ends_and_the_others_do_not(preset, tmp_path, capsys):
    options = ["--checkpoints", "--rounds", "6", "--optimizer", "sgd"]
    rates = ["--learning-rate", "1e-2", "1e38"]
    assert experiment.main({"tiny": preset}, [*options, *rates, "--out", str(tmp_path / "both")]) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "learning rate 1e+38 ends: " in said
    manifest = execution_manifest(tmp_path / "both")
    (ended,) = manifest["stopped"]
    assert ended["learning_rate"] == 1e38
    assert "not finite" in ended["why"]
    rows = [row for row in _rows(tmp_path / "both", "rounds.jsonl") if row["learning_rate"] == 1e38]
    assert [row["round"] for row in rows] == list(range(1, ended["round"] + 1))
    assert all(row["loss"] is not None for row in rows[:-1])
    assert None in rows[-1].values()
    last = [row for row in _rows(tmp_path / "both", "metrics.jsonl") if row["learning_rate"] == 1e38][-1]
    assert last["round"] == ended["round"]
    assert last["accuracy_mean"] is None
    assert "n/a" in (tmp_path / "both" / "summary.md").read_text()  # and not the score that it started with
    good = next((tmp_path / "both" / "checkpoints").glob("*/last-good-*"))
    checkpoint.verify(good)
    assert good.name.endswith(f"{ended['round'] - 1:06d}")
    assert experiment.main({"tiny": preset}, [*options, *rates[:2], "--out", str(tmp_path / "one")]) == 0
    alone = [row["loss"] for row in _rows(tmp_path / "one", "rounds.jsonl")]
    beside = [row["loss"] for row in _rows(tmp_path / "both", "rounds.jsonl") if row["learning_rate"] == 1e-2]
    np.testing.assert_allclose(beside, alone, rtol=1e-6)
    assert experiment.main({"tiny": preset}, [*options, *rates, "--out", str(tmp_path / "both"), "--resume"]) == 3


def execution_manifest(out):
    from jaxdfl.run_folder import read_manifest

    return read_manifest(out)


def _rows(out, name):
    from jaxdfl.run_folder import read_rows

    return read_rows(out / name)
