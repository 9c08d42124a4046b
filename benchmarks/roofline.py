"""The largest throughput of a float32 matrix product that this machine reaches: `python -m benchmarks.roofline`.

Each library measures in a process of its own, on all cores. A size counts by its median; the roof is the best median.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.remote import ROOT

SIZES = (  # rows, columns, inner
    (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 1024),
    (2048, 1536, 384), (1024, 384, 1536),  # a batch through MiniLM's feed-forward
)  # fmt: skip
SECONDS = 0.4  # a size, at least
LIBRARIES = ("jax", "torch", "numpy")


def measure(library: str) -> dict[str, float]:
    """GFLOP/s by size, in this process."""
    multiply = _product(library)
    draw = np.random.default_rng(0)
    found = {}
    for rows, columns, inner in SIZES:
        x, y = (draw.standard_normal(shape, np.float32) for shape in ((rows, inner), (inner, columns)))
        run = multiply(x, y)
        run()
        times: list[float] = []
        while sum(times) < SECONDS or len(times) < 5:
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        found[f"{rows}x{inner}x{columns}"] = 2 * rows * columns * inner / statistics.median(times) / 1e9
    return found


def _product(library: str) -> Callable[[np.ndarray, np.ndarray], Callable[[], Any]]:
    if library == "numpy":
        return lambda x, y: lambda: x @ y
    if library == "torch":
        import torch  # pyright: ignore[reportMissingImports]

        return lambda x, y: (lambda x, y: lambda: torch.mm(x, y))(torch.tensor(x), torch.tensor(y))
    import jax

    product = jax.jit(lambda x, y: jax.lax.dot(x, y, precision="highest"))
    return lambda x, y: (lambda x, y: lambda: product(x, y).block_until_ready())(jax.device_put(x), jax.device_put(y))


def roofline() -> dict[str, dict[str, float]]:
    """GFLOP/s by library and size, of the libraries that are installed."""
    found = {}
    for library in LIBRARIES:
        words = (sys.executable, "-m", "benchmarks.roofline", library)
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            found[library] = json.loads(done.stdout.splitlines()[-1])
    if not found:
        raise RuntimeError("no library could multiply matrices; run `python -m benchmarks.roofline jax` to see why.")
    return found


def best(*measured: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The larger throughput at every size: a disturbance can only lower it."""
    return {
        library: {size: max(found[library][size] for found in measured if library in found) for size in by_size}
        for library, by_size in measured[0].items()
    }


def roof(found: dict[str, dict[str, float]]) -> float:
    """The best of all, in GFLOP/s."""
    return max(value for by_size in found.values() for value in by_size.values())


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    found = roofline()
    print("GFLOP/s, float32, all cores")
    for library, by_size in found.items():
        print(f"  {library:6}", "  ".join(f"{size}: {value:.0f}" for size, value in by_size.items()))
    print(f"roof: {roof(found):.0f}")


if __name__ == "__main__":
    main()
