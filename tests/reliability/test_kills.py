"""A run that is killed, at whatever moment and however often, ends with the numbers of one that was let be."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxdfl.checkpoint import rounds_saved

HERE = Path(__file__).parent


def begin(out: Path, *options: str) -> subprocess.Popen:
    """The run in a process of its own, its stderr in a file beside its folder: a pipe that nobody reads stops it."""
    command = [sys.executable, HERE / "short_run.py", "--out", out, "--resume", *options]
    with open(out.with_suffix(".err"), "w") as errors:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, cwd=HERE.parents[1])


def said(out: Path) -> str:
    return out.with_suffix(".err").read_text()


def finish(out: Path, *options: str) -> float:
    """Seconds from the run's first file until it is done."""
    process = begin(out, *options)
    wait_for_manifest(process, out)
    began = time.perf_counter()
    assert process.wait() == 0, said(out)
    return time.perf_counter() - began


def wait_for_manifest(process: subprocess.Popen, out: Path) -> None:
    """Until the process has written its first file, which tells that it begins or goes on."""
    path, began = out / "manifest.json", time.time_ns()
    while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns > began):
        time.sleep(0.01)


def rows(out: Path, name: str) -> list[dict]:
    """All rows, without the one quantity that is not the run's own."""
    found = [json.loads(line) for line in (out / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def rows_so_far(out: Path) -> list[str]:
    """Lines of a file that is being written, or is not there yet."""
    path = out / "rounds.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def states(out: Path) -> dict[str, dict[str, np.ndarray]]:
    """The last state of every run, as raw arrays."""
    folders = {run.name: run / f"round-{rounds_saved(run)[-1]:06d}" for run in (out / "checkpoints").iterdir()}
    with ocp.StandardCheckpointer() as checkpointer:
        restored = {name: checkpointer.restore(folder.absolute() / "state") for name, folder in folders.items()}
    return {name: {key: np.asarray(x) for key, x in arrays.items()} for name, arrays in restored.items()}


def assert_same(out: Path, reference: Path) -> None:
    for name in ("metrics.jsonl", "rounds.jsonl"):
        assert rows(out, name) == rows(reference, name)
    found, wanted = states(out), states(reference)
    assert found.keys() == wanted.keys()
    for run, arrays in wanted.items():
        assert {key: x.tobytes() for key, x in found[run].items()} == {key: x.tobytes() for key, x in arrays.items()}
    left = [str(path) for path in out.rglob("*") if path.name.endswith(".unfinished")]
    assert not left, "what was half written is gone in the end"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted run, and the seconds that it takes from its first file on, with its programs compiled."""
    folder = tmp_path_factory.mktemp("reference")
    finish(folder / "first")
    seconds = finish(folder / "second")
    assert_same(folder / "second", folder / "first")
    return folder / "first", seconds


def killed(folder: Path, kills: int, seconds: float, draw: random.Random) -> list[Path]:
    """Runs that were killed so often in all, each gone on with until it was done."""
    out = [folder / "0"]
    while kills:
        process = begin(out[-1])
        wait_for_manifest(process, out[-1])
        try:
            process.wait(draw.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills -= 1
        if process.wait() == 0:  # it was done before
            out.append(folder / str(len(out)))
        else:
            assert process.returncode == -signal.SIGKILL, said(out[-1])
    finish(out[-1])
    return out


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_killed_runs_end_with_the_numbers_of_one_let_be(kills, reference, tmp_path):
    straight, seconds = reference
    ended = killed(tmp_path, kills, seconds, random.Random(kills))
    print(f"{kills} kills of {len(ended)} runs, each of {seconds:.1f} s after its start")
    for out in ended:
        assert_same(out, straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_leaves_with_a_code_of_its_own(number, reference, tmp_path):
    out, (straight, _) = tmp_path / "run", reference
    process = begin(out)
    while not rows_so_far(out):
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == 75
    assert "stopping" in said(out)
    assert "Traceback" not in said(out)
    assert len(rows(out, "metrics.jsonl")) < len(rows(straight, "metrics.jsonl"))
    assert (out / "summary.md").exists()
    finish(out)
    assert_same(out, straight)


def test_a_run_goes_on_with_another_number_of_devices_to_rounding(reference, tmp_path):
    out, (straight, _) = tmp_path / "run", reference
    process = begin(out, "--cpu-devices", "1")
    while len(rows_so_far(out)) < 40:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    finish(out, "--cpu-devices", "3")
    for found, wanted in zip(rows(out, "rounds.jsonl"), rows(straight, "rounds.jsonl"), strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            if isinstance(value, float):
                np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-6, err_msg=f"{name} of {wanted}")
            else:
                assert found[name] == value


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    out = tmp_path / "run"
    one_long_stretch = ["--rounds", "100000", "--eval-every", "100000", "--checkpoint-every", "100000"]
    process = begin(out, "--methods", "dec_lora", "--seeds", "0", *one_long_stretch)
    while not (out / "metrics.jsonl").exists():
        time.sleep(0.05)
    time.sleep(2)  # the compiled program runs
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert "Traceback" not in said(out)
