"""Processes on one machine that are one run, through `jax.distributed` on the loopback address."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxdfl.exit_codes import REFUSED, STOPPED
from jaxdfl.preset_files import text

HERE = Path(__file__).parent
SHORT = [str(HERE / "short_run.py"), "--resume"]  # checkpoints in every round
FEW = ["--methods", "dec_lora", "--rounds", "4", "--eval-every", "2"]


def start(
    out: Path, *options: str, count: int = 2, command: list[str] = SHORT, own: dict[int, list[str]] | None = None
):
    """Processes with a CPU device each, their words in files beside the run folder. `own`: options of one alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [sys.executable, *command, "--distributed", "--cpu-devices", "1", "--out", str(out), *options]
    world = {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    found = []
    for number in range(count):
        with open(out.with_suffix(f".{number}"), "w") as file:
            process = subprocess.Popen(
                [*words, *(own or {}).get(number, [])], cwd=HERE.parents[1], stdout=file, stderr=file,
                env={**os.environ, **world, "JAX_PROCESS_ID": str(number)},
            )  # fmt: skip
        found.append(process)
    return found


def codes(processes: list[subprocess.Popen]) -> list[int]:
    try:
        return [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()


def said(out: Path, number: int) -> str:
    return out.with_suffix(f".{number}").read_text()


def alone(out: Path, *options: str, command: list[str] = SHORT) -> None:
    """One process with two devices."""
    words = [sys.executable, *command, "--cpu-devices", "2", "--out", str(out), *options]
    subprocess.run(words, cwd=HERE.parents[1], check=True, stdout=subprocess.DEVNULL, timeout=600)


def rows(out: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def assert_close(out: Path, reference: Path, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    """The same rows, numbers to the rounding of a few rounds in float32."""
    for name in ("metrics.jsonl", "rounds.jsonl"):
        for found, wanted in zip(rows(out, name), rows(reference, name), strict=True):
            assert found.keys() == wanted.keys()
            for key in wanted.keys() - {"seconds"}:
                if isinstance(wanted[key], float | list):
                    np.testing.assert_allclose(found[key], wanted[key], rtol=rtol, atol=atol, err_msg=f"{name} {key}")
                else:
                    assert found[key] == wanted[key], (name, key)


def test_two_processes_have_the_rows_of_one_with_two_devices_and_write_them_once(tmp_path):
    alone(tmp_path / "one", *FEW, "--seeds", "0")
    assert codes(start(tmp_path / "two", *FEW, "--seeds", "0")) == [0, 0], said(tmp_path / "two", 0)
    assert_close(tmp_path / "two", tmp_path / "one")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "two", "two.0", "two.1"]
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["environment"]["devices"] == 2
    assert "error:" not in said(tmp_path / "two", 1)


def test_a_process_with_other_settings_is_refused_and_so_are_the_others(tmp_path):
    out = tmp_path / "run"
    assert codes(start(out, *FEW, own={1: ["--rank", "2"]})) == [REFUSED, REFUSED]
    assert "process 1 has --rank = 2, the first one" in said(out, 1)
    assert "another process of this run refuses" in said(out, 0)
    assert not out.exists()


@pytest.mark.slow
def test_what_the_first_process_refuses_ends_all_of_them(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "mine.txt").touch()
    assert codes(start(out, *FEW)) == [REFUSED, REFUSED]
    assert "no manifest.json of jaxdfl" in said(out, 0)
    assert "another process of this run refuses" in said(out, 1)


@pytest.mark.slow
def test_who_the_others_are_must_be_known_and_the_first_must_come(tmp_path):
    world = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COORDINATOR")}
    command = [sys.executable, *SHORT, "--distributed", "--out", str(tmp_path / "run")]
    found = subprocess.run(command, capture_output=True, text=True, env=world, timeout=120)
    assert found.returncode == REFUSED
    assert "JAX_COORDINATOR_ADDRESS" in found.stderr
    code = "from jaxdfl.processes import join\ntry: join(patience=2)\nexcept ValueError as error: print(error)"
    world |= {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=world, timeout=120)
    assert "no process listens at 127.0.0.1:1, waited 2 s" in found.stdout, found.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_signal_to_any_of_them_stops_all_at_one_round_and_they_go_on_from_it(tmp_path):
    """The second time with the first process alone, on one device."""
    straight, out = tmp_path / "straight", tmp_path / "run"
    assert codes(start(straight)) == [0, 0], said(straight, 0)
    processes = start(out)
    while not (out / "rounds.jsonl").exists() or len((out / "rounds.jsonl").read_text().splitlines()) < 10:
        time.sleep(0.05)
        assert processes[0].poll() is None, said(out, 0)
    processes[1].send_signal(signal.SIGTERM)
    assert codes(processes) == [STOPPED, STOPPED], said(out, 0)
    assert len(rows(out, "rounds.jsonl")) < len(rows(straight, "rounds.jsonl"))
    assert codes(start(out)) == [0, 0], said(out, 0)
    for name in ("metrics.jsonl", "rounds.jsonl"):
        assert [{**row, "seconds": 0} for row in rows(out, name)] == [
            {**row, "seconds": 0} for row in rows(straight, name)
        ]


@pytest.mark.slow
def test_a_transformer_and_methods_that_carry_states_in_two_processes(preset, tmp_path):
    """Three seeds for two devices: a program whose clients are shared; and one client with all data, who is not."""
    file = tmp_path / "tiny.toml"
    file.write_text(text(preset))
    command = ["-m", "jaxdfl", "run", "--preset", str(file)]
    options = ["--methods", "dec_lora", "gradient_tracking", "centralized", "--seeds", "0", "1", "2", "--clients", "3"]
    alone(tmp_path / "one", *options, command=command)
    assert codes(start(tmp_path / "two", *options, command=command)) == [0, 0], said(tmp_path / "two", 0)
    assert_close(tmp_path / "two", tmp_path / "one", rtol=1e-3, atol=1e-5)
