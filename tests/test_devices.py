"""Runs and clients over several devices give the numbers of one device.

Each number of devices has a process of its own, since it is fixed when jax starts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
SPECS = ("dec_lora", "tad_lora", "gradient_tracking", "decaf", "fedex_lora", "dec_lora+event_triggered:0.01+top_k:0.5")


def on_devices(count):
    """Final factors, losses and bytes of toy runs, one by one and three at a time, by what ran."""
    found = subprocess.run(
        [sys.executable, str(HERE / "toy_on_devices.py"), str(count), *SPECS], stdout=subprocess.PIPE, text=True,
        check=True, timeout=300, env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE)},
    )  # fmt: skip
    return json.loads(found.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def on_one_device():
    return on_devices(1)


@pytest.mark.parametrize("count", [2, 4, 8])  # 6 clients: the shares of four and eight devices are filled up
def test_several_devices_give_the_numbers_of_one(count, on_one_device):
    found = on_devices(count)
    assert (found.pop("devices"), on_one_device["devices"]) == (count, 1)
    for name, values in found.items():
        for which, value in values.items():
            np.testing.assert_allclose(
                value, on_one_device[name][which], rtol=2e-5, atol=5e-6, err_msg=f"{name} {which} on {count} devices"
            )
