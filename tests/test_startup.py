"""What a process asks of JAX: harmless where it cannot be had, and nothing of it stays behind in tests."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxdfl.startup import programs_kept, split_cpu

ROOT = Path(__file__).parents[1]
COMPILES = """
from jaxdfl import startup
import jax
startup.WORTH_KEEPING = 0.0
startup.split_cpu(3)
def step(x):
    return x @ x.T + 1
with startup.programs_kept(True):
    print(jax.jit(step)(jax.numpy.eye(7)).sum(), len(jax.devices()))
"""


def test_programs_are_kept_in_the_users_cache_folder_and_used_again_without_a_word(tmp_path):
    world = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    world.pop("TF_CPP_MIN_LOG_LEVEL", None)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", COMPILES], env=world, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout.split()[1] == "3"
    kept = [path.name for path in (tmp_path / "jaxdfl" / "xla").iterdir()]
    assert len([name for name in kept if name.startswith("jit_step") and name.endswith("-cache")]) == 1, kept


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with programs_kept(True):
        assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("on", [True, False])
def test_a_folder_that_is_set_already_stays(on, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        with programs_kept(on):
            assert jax.config.jax_compilation_cache_dir == str(tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert not (tmp_path / "other").exists()


def test_a_process_that_has_begun_keeps_its_devices():
    count = jax.device_count()
    split_cpu(count + 1)
    assert jax.device_count() == count
