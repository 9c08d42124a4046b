"""What an H100 would run, on a machine without one: `python -m benchmarks.without_gpu`.

XLA compiles a local step of the model of `benchmarks.accelerator` ahead of time. The table says what each operation
reads and writes, most bytes first; with them, what a step keeps, and how many registers our kernels take. That is not
how long it takes: XLA chooses among kernels by trying them, and cannot here. It needs JAX's compiler for CUDA 13:

    pip install jax-cuda13-plugin==JAX jax-cuda13-pjrt==JAX nvidia-cuda-nvcc     # JAX: the version of jax
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from benchmarks.accelerator import Shape, large
from jaxdfl.data.examples import Examples
from jaxdfl.models import short_attention
from jaxdfl.models.classifier import cross_entropy
from jaxdfl.trees import stack

# An H100 (SXM) as XLA describes it: NVIDIA's data sheet, and what a CUDA program reads off the card.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 7 } runtime_version { major: 13 }
"""
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}  # operations that move nothing


class Moved(NamedTuple):
    """An operation of a compiled program: what it is, and the bytes that it reads and writes."""

    what: str
    read: int
    written: int


def main() -> int:
    """Compiles, and prints."""
    shape = tyro.cli(Shape, default=Shape(layers=4), description=__doc__)
    nvidia, plugins = find_spec("nvidia"), find_spec("jax_plugins")
    assemblers = [
        each for at in (nvidia and nvidia.submodule_search_locations) or () for each in Path(at).glob("*/bin/ptxas")
    ]
    if not (plugins and assemblers):
        version = jax.__version__
        print(
            "error: JAX's compiler for GPUs is not installed: "
            f"pip install jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version} nvidia-cuda-nvcc",
            file=sys.stderr,
        )
        return 2
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # for cuDNN, which only runs need
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        program = compiled(shape, scratch)
        for kernel in ("forward", "backward"):
            print(f"{kernel}: {registers(kernel, Path(scratch), assemblers[0])}")
    operations = Counter(moved(str(program.as_text())))
    total = sum((each.read + each.written) * times for each, times in operations.items())
    table = Table("times", "MB read", "written", "operation", title=f"{total / 1e9:.1f} GB are moved")
    for each, times in sorted(operations.items(), key=lambda item: -(item[0].read + item[0].written) * item[1])[:40]:
        table.add_row(str(times), f"{each.read / 1e6:.0f}", f"{each.written / 1e6:.0f}", each.what)
    Console(width=140).print(table)
    if memory := program.memory_analysis():
        print(f"{memory.temp_size_in_bytes / 2**30:.2f} GiB are kept")
    return 0


def compiled(asked: Shape, dump: str) -> jax.stages.Compiled:
    """A local step of all clients, without the optimizer, for one H100; its kernels' code is written to `dump`."""
    classifier = large(asked)
    each = jax.vmap(jax.value_and_grad(cross_entropy(classifier), argnums=1), in_axes=(None, 0, 0))
    shape = (asked.clients, asked.batch_size, asked.length)
    number = jnp.ones(shape[:2], jnp.int32)
    examples = Examples(jnp.ones(shape, jnp.int32), jnp.zeros(shape, jnp.int8), asked.length * number, number)
    (device,) = topologies.get_topology_desc("H100", "cuda", target_config=H100, topology="1x1x1").devices
    mesh = Mesh([device], "clients")
    given = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec())),
        (classifier.frozen, stack(classifier.blocks, asked.clients), examples),
    )
    with jax.set_mesh(mesh), patch.object(short_attention, "_there_is_a_gpu", lambda: not asked.plain_attention):
        return jax.jit(each).lower(*given).compile({"xla_dump_to": dump, "xla_dump_emitter_re": "ptx"})


def moved(program: str) -> Iterator[Moved]:
    """The operations of an HLO program's entry that move a megabyte at least."""
    sizes: dict[str, int] = {}
    entry = program[program.index("\nENTRY") :]
    for name, shape, kind, rest in re.findall(r"^ +(?:ROOT )?%(\S+) = (.*?) ([\w\-]+)\((.*)$", entry, re.MULTILINE):
        sizes[name] = sum(
            BYTES[dtype] * prod(int(size) for size in dimensions.split(",") if size)
            for dtype, dimensions in re.findall(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]", shape)
        )
        read = sum(sizes[operand] for operand in re.findall(r"%([\w.\-]+)", rest.split("), ")[0]) if operand in sizes)
        if kind not in FREE and read + sizes[name] >= 1e6:
            source = re.search(r'op_name="([^"]*)"', rest)
            found = (
                re.sub(r"[.\d]+$", "", name),
                re.sub(r"{[^}]*}", "", shape),
                source[1].split("/", 1)[-1] if source else "",
            )
            yield Moved(" ".join(found), read, sizes[name])


def registers(kernel: str, dump: Path, assembler: Path) -> str:
    """What the assembler says of a kernel of `jaxdfl.models.short_attention`, or that it is not there."""
    for path in dump.glob("*.ptx"):
        if f".entry {kernel}(" in path.read_text():
            command = [assembler, "-v", "-arch=sm_90a", "-o", os.devnull, path]
            report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            _, _, rest = report.partition(f"entry function '{kernel}'")
            return ", ".join(re.findall(r"\d+ bytes spill \w+|Used \d+ registers", rest.partition("entry function")[0]))
    return "not in the program"


if __name__ == "__main__":
    sys.exit(main())
