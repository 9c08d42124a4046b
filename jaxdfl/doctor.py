"""Is this machine fit to trust? `python -m jaxdfl.doctor` prints versions, devices, memory and a numerical self-test.

The self-test knows one compiler fault by its face: jaxlib 0.10.2 compiles a batched matrix-vector product on CPUs
such that, from 32769 rows on, a row comes out wrong by an amount of order 1 (jax issue 39103). No error is raised,
so every figure made there would be quietly wrong.
"""

import importlib.metadata
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.console import Console
from rich.table import Table

from jaxdfl import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "transformers", "datasets", "numpy")
ROWS = 32769  # the first count that shows the fault


class NumericsError(RuntimeError):
    """Compiled code gives wrong numbers on this machine."""


def check_numerics() -> None:
    """Compares a compiled batched matrix-vector product with NumPy, in well under a second.

    All entries are integers between -2 and 2, which bfloat16, TF32 and float32 hold exactly, so the answers must agree
    to the last bit on every kind of device.

    Raises:
        NumericsError: some row differs.
    """
    matrix = (np.arange(9) % 5 - 2).reshape(3, 3).astype(np.float32)
    rows = (np.arange(3 * ROWS) % 5 - 2).reshape(ROWS, 3).astype(np.float32)
    expected = np.square(rows @ matrix.T).sum(1)
    difference = np.abs(np.asarray(_squared_norms(jnp.asarray(matrix), jnp.asarray(rows))) - expected)
    wrong = int(np.sum(~(difference == 0)))  # not `difference > 0`, which a NaN passes
    if wrong:
        raise NumericsError(
            f"jax {jax.__version__} miscompiles a batched matrix-vector product on {jax.default_backend()}: {wrong} of "
            f"{ROWS} rows are wrong, by up to {difference.max():.3g}. Results made here cannot be trusted; take "
            f"another version: pip install 'jax!={jax.__version__}'"
        )


@jax.jit
def _squared_norms(matrix: Float[Array, "n n"], rows: Float[Array, "rows n"]) -> Float[Array, " rows"]:
    return jax.vmap(lambda row: jnp.sum(jnp.square(matrix @ row)))(rows)


def main() -> int:
    """Prints the report; 0 where the self-test passes, else 1."""
    try:
        check_numerics()
        verdict, failed = "[green]passed[/]", False
    except NumericsError as error:
        verdict, failed = f"[red]FAILED[/] {error}", True
    report = Table("what", "found", title=f"jaxdfl {__version__}", show_header=False)
    report.add_row("python", sys.version.split()[0])
    for package in PACKAGES:
        report.add_row(package, _version(package))
    report.add_section()
    for device in jax.devices():
        limit = (device.memory_stats() or {}).get("bytes_limit")
        memory = f", {limit / 2**30:.1f} GiB" if limit else ""
        report.add_row(f"device {device.id}", f"{device.platform}: {device.device_kind}{memory}")
    report.add_row("host", f"{os.cpu_count()} cores, {_host_memory()}")
    report.add_section()
    report.add_row("self-test", verdict)
    Console().print(report)
    return int(failed)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "[yellow]not installed[/]"


def _host_memory() -> str:
    if not hasattr(os, "sysconf"):  # Windows
        return "memory unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB memory"


if __name__ == "__main__":
    sys.exit(main())
