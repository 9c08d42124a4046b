"""The clients axis over several devices gives the numbers of one device.

Each case runs in a process of its own, since the number of CPU devices is fixed when jax starts.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
SPECS = ("dec_lora", "tad_lora", "gradient_tracking", "decaf", "fedex_lora", "dec_lora+event_triggered:0.01+top_k:0.5")


def run_toy(devices, clients, *more, processes=1):
    """Final factors and per-round infos of the toy federation, from a fresh process (or several that share it)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, str(HERE / "sharded_toy.py"), str(devices), str(clients), *more]
    workers = [
        subprocess.Popen(
            [*command, address, str(processes), str(rank)] if processes > 1 else command,
            stdout=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE)},
        )
        for rank in range(processes)
    ]  # fmt: skip
    said = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * processes
    return json.loads(said[0].splitlines()[-1])


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for spec in wanted:
        for name in wanted[spec]:
            np.testing.assert_allclose(
                found[spec][name], wanted[spec][name], rtol=2e-5, atol=2e-6, err_msg=f"{spec} {name}"
            )


@pytest.fixture(scope="module")
def on_one_device():
    return {clients: run_toy(1, clients, *SPECS) for clients in (6, 8)}


@pytest.mark.parametrize(
    ("devices", "clients"), [(2, 6), (4, 6), (8, 8)]
)  # 6 clients on 4 devices: a share is filled up
def test_several_devices_give_the_numbers_of_one(devices, clients, on_one_device):
    found = run_toy(devices, clients, *SPECS)
    assert found.pop("devices") == devices
    assert found.pop("traces") == on_one_device[clients]["traces"], "a second chunk of rounds must compile nothing"
    assert_same(found, {spec: on_one_device[clients][spec] for spec in SPECS})


def test_two_processes_share_the_clients_of_one_run(on_one_device):
    found = run_toy(2, 8, "dec_lora", "tad_lora", processes=2)  # two devices in each
    assert found.pop("devices") == 4
    found.pop("traces")
    assert_same(found, {spec: on_one_device[8][spec] for spec in ("dec_lora", "tad_lora")})
