"""The systems that are compared, by name. A variant of a system is one more line."""

import importlib
import importlib.util
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.worker import System as Run

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
FLOWER_PYTHON = "BENCHMARK_FLOWER_PYTHON"  # environment variable: the interpreter that has flwr


@dataclass(frozen=True)
class System:
    """Where a system is and how it is run."""

    module: str  # its `run` is a `benchmarks.worker.System`
    says: str
    needs: tuple[str, ...] = ()  # modules to import
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    python: str | None = None  # environment variable that names the interpreter, where it may be another

    def load(self) -> "Run":
        return importlib.import_module(self.module).run

    def interpreter(self, usual: str) -> str:
        return os.environ.get(self.python or "", usual)

    def missing(self, usual: str) -> list[str]:
        """What cannot be imported; nothing is known of another interpreter."""
        if self.interpreter(usual) != usual:
            return []
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


TORCH = {"OMP_NUM_THREADS": str(CORES)}

SYSTEMS = {
    # jaxdfl's variants: `options` are further settings on its command line, `environment` its devices and flags.
    "jaxdfl": System("benchmarks.jaxdfl_itself", "jaxdfl, as its command line runs it"),
    "jaxdfl_padded": System(
        "benchmarks.jaxdfl_itself", "the same, padded to the task's longest", options={"more": ["--no-packing"]}
    ),
    "jaxdfl_sweep": System(
        "benchmarks.jaxdfl_itself", "36 such runs (seeds) as one program; a round is one run's share",
        options={"more": ["--seeds", *map(str, range(36))]},
    ),
    "peft_loop": System(
        "benchmarks.rivals.peft_loop", "PyTorch + PEFT, loop over clients, padded to the batch's longest",
        ("torch", "peft"), {"padding": "batch"}, TORCH,
    ),
    "peft_loop_padded": System(
        "benchmarks.rivals.peft_loop", "the same, padded to the task's longest", ("torch", "peft"),
        {"padding": "full"}, TORCH,
    ),
    "torch_stacked": System(
        "benchmarks.rivals.torch_stacked", "PyTorch, all clients in one batch, adapters stacked by hand", ("torch",),
        {"padding": "step"}, TORCH,
    ),
    "jax_loop": System(
        "benchmarks.rivals.jax_loop", "JAX, one jitted step, Python loop over clients, padded to the task's longest",
    ),
    "flower": System(
        "benchmarks.rivals.flower", "Flower's simulation engine (Ray) with the PEFT client",
        ("flwr", "ray", "torch", "peft"), {"padding": "batch"}, python=FLOWER_PYTHON,
    ),
}  # fmt: skip
