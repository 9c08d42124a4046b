"""Memory that is free goes back to the system."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FREES = """
import numpy
from jaxdfl.memory import return_freed
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
for _ in range(2):  # glibc keeps what is freed only once such blocks have been freed before
    blocks = [numpy.ones(2**19) for _ in range(20)]  # of 4 MiB
    before = resident()
    del blocks[::2]
    kept = resident()
    return_freed()
    print(before - kept, kept - resident())
    del blocks
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_is_free_goes_back_to_the_system():
    world = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FREES], env=world, capture_output=True, text=True)
    by_itself, asked = map(int, done.stdout.splitlines()[1].split())
    assert by_itself < 2**22 < 9 * 2**22 < asked, done.stderr
