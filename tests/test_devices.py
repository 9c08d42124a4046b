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
    world = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    found = subprocess.run(
        [sys.executable, str(HERE / "toy_on_devices.py"), str(count), *SPECS], stdout=subprocess.PIPE, text=True,
        check=True, timeout=300, env=os.environ | world,
    )  # fmt: skip
    return json.loads(found.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def on_one_device():
    return on_devices(1)


# 7 clients: the last of two and of four devices has one less of its own, and eight are one too many
@pytest.mark.parametrize(("count", "held"), [(2, 4), (4, 2), (8, 1)])
def test_several_devices_give_the_numbers_of_one_and_hold_a_share_of_the_clients_each(count, held, on_one_device):
    found = on_devices(count)
    assert (found["devices"], on_one_device["devices"]) == (count, 1)
    assert (found["held"], on_one_device["held"]) == ([held], [7])
    for name, values in found["results"].items():
        for which, value in values.items():
            expected = on_one_device["results"][name][which]
            np.testing.assert_allclose(
                value, expected, rtol=2e-5, atol=5e-6, err_msg=f"{name} {which} on {count} devices"
            )
