"""A sweep on workers that are killed half way ends with the numbers of a sweep that was run here and let be."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_kills import assert_same

from jaxdfl.launchers.worker import last_line
from jaxdfl.run_folder import read_rows

ROOT = Path(__file__).parents[2]
GRID = """
    --preset bilinear --rank 2 3 4 --methods dec_lora tad_lora:2 gradient_tracking --seeds 0 1
    --clients 4 --rounds 400 --eval-every 20 --checkpoint-every 40 --checkpoints
"""
POINTS = ["rank=2", "rank=3", "rank=4"]
VICTIM, HALF = POINTS[1], 200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc"),
]


def begin(out: Path, *options: str) -> subprocess.Popen:
    """The sweep in a process of its own, what it says in a file beside its folder."""
    command = [sys.executable, "-m", "jaxdfl", "sweep", *GRID.split(), "--out", out, *options]
    with open(out.with_suffix(".said"), "w") as said:
        return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT)


def said(out: Path) -> str:
    return out.with_suffix(".said").read_text()


def process_of(folder: Path) -> int:
    """The process that runs a point."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:  # it has ended meanwhile
            continue
        if "jaxdfl.launchers" in words and str(folder) in words:
            return int(path.parent.name)
    raise AssertionError(f"nobody runs {folder}")


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until_half_way(sweep: subprocess.Popen, folder: Path) -> None:
    """Until half of the rounds of its first program have their rows."""
    path = folder / "metrics.jsonl"
    while not path.exists() or max((row["round"] for row in read_rows(path, torn=True)), default=0) < HALF:
        assert sweep.poll() is None, said(folder.parent)
        time.sleep(0.02)


def table(out: Path) -> list[dict[str, str]]:
    """sweep.csv, without the one quantity that is not the runs' own."""
    with open(out / "sweep.csv", encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(file)]


def assert_same_sweep(out: Path, reference: Path) -> None:
    for name in POINTS:
        assert_same(out / name, reference / name)
    assert table(out) == table(reference)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The sweep on this machine, one point after another."""
    out = tmp_path_factory.mktemp("sweeps") / "here"
    assert begin(out).wait() == 0, said(out)
    return out


@pytest.mark.parametrize("victim", ["the process of a point", "the worker of the engine"])
@pytest.mark.parametrize("launcher", ["ray --workers 2", "slurm --workers 2 --minutes 60 --slurm cluster=local"])
def test_a_sweep_whose_worker_is_killed_ends_with_the_numbers_of_one_that_ran_here(launcher, victim, here, tmp_path):
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[launcher.split()[0]])
    out = tmp_path / "sweep"
    sweep = begin(out, "--launcher", *launcher.split())
    wait_until_half_way(sweep, out / VICTIM)
    process = process_of(out / VICTIM)
    os.kill(process if victim == "the process of a point" else parent_of(process), signal.SIGKILL)
    assert sweep.wait() == 0, said(out)
    assert "try 2 of 3 follows" in said(out)
    assert f"{VICTIM}: goes on" in said(out)
    assert "Traceback" not in said(out)
    assert (out / VICTIM / "manifest.json").read_text().count('"resumed"') == 1
    assert_same_sweep(out, here)


def test_a_machine_of_a_ray_that_is_lost_is_done_without(here, tmp_path):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        other = cluster.add_node(num_cpus=1)
        out = tmp_path / "sweep"
        sweep = begin(out, "--launcher", "ray", "--ray-address", cluster.address)
        for name in POINTS[:2]:
            wait_until_half_way(sweep, out / name)
        cluster.remove_node(other, allow_graceful=False)
        assert sweep.wait() == 0, said(out)
    finally:
        cluster.shutdown()
    assert "try 2 of 3 follows" in said(out)
    assert_same_sweep(out, here)


@pytest.mark.parametrize("launcher", ["ray --workers 2", "slurm --workers 2 --minutes 60 --slurm cluster=local"])
def test_a_sweep_that_is_stopped_lets_its_workers_save_and_is_gone_on_with(launcher, here, tmp_path):
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[launcher.split()[0]])
    out = tmp_path / "sweep"
    sweep = begin(out, "--launcher", *launcher.split())
    wait_until_half_way(sweep, out / VICTIM)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait() == 75, said(out)
    assert "points stopped; the same command with --resume goes on" in said(out)
    assert not (out / "sweep.csv").exists()
    if launcher.startswith("ray"):  # submitit's stand-in for Slurm kills its jobs after a second
        assert "stopping at the next evaluated round" in (out / f"{VICTIM}.log").read_text()
        assert last_line(str(out / f"{VICTIM}.log")).startswith("Compiling took")
    sweep = begin(out, "--launcher", *launcher.split(), "--resume")
    assert sweep.wait() == 0, said(out)
    assert_same_sweep(out, here)
