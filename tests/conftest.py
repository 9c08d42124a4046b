"""What all tests share: compiled programs are dropped after each module.

XLA keeps memory maps for every program it has compiled, Linux allows a process 65,530 of them, and this suite compiles
thousands of programs. A process that runs out is aborted in the middle of a compilation.
"""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def programs_dropped_after_each_module():
    yield
    jax.clear_caches()
