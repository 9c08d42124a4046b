"""What a process asks of JAX before it computes: a device for each core, and a place to keep compiled programs.

And of the libraries beside it, that they say nothing where an error of ours says it in one line.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# XLA says of every program that it loads for a CPU, at length and as an error, that the machine prefers no gathers.
# It can be hushed only before jax is imported; errors that matter come as exceptions.
LOUD = "jax" in sys.modules and os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3"
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # what jax itself sets it to, here or in a parent process
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

# transformers, imported after this, would remark that PyTorch is absent; the hub's client, of each of six tries, that
# there is no network.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "error")

import jax  # noqa: E402
from jax.experimental.compilation_cache.compilation_cache import reset_cache  # noqa: E402

MOST_DEVICES = 8  # each holds the frozen weights
WORTH_KEEPING = 0.1  # seconds of compilation


def split_cpu(devices: int | None) -> None:
    """Lets XLA see so many devices in a CPU (None: its cores, 8 at most), to which a sweep deals its runs.

    Nothing happens where the number is set already, by a flag or an option, or JAX has begun.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or _option("jax_num_cpu_devices") > 0:
        return
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices or min(os.cpu_count() or 1, MOST_DEVICES))


@contextmanager
def programs_kept(on: bool) -> Iterator[None]:
    """Keeps programs whose compilation takes a while under the user's cache folder, for later processes.

    A folder that is set already (JAX_COMPILATION_CACHE_DIR) stays; one that cannot be written is done without, and so
    is a CPU's where XLA would be loud about it: where jax was imported before this module.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdfl" / "xla"
    if not on or _option("jax_compilation_cache_dir") or not _writable(folder) or (LOUD and _on_cpu()):
        yield
        return
    usual = _option("jax_persistent_cache_min_compile_time_secs")
    try:
        _keep_in(str(folder), WORTH_KEEPING)
        yield
    finally:
        _keep_in(None, usual)


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Lets JAX compute in float64 where `dtype` says so, and its own way again afterwards."""
    usual = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", usual or dtype == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", usual)


def _option(name: str) -> Any:
    return getattr(jax.config, name)


def _keep_in(folder: str | None, seconds: float) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    reset_cache()  # else JAX goes on as it began


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
