"""Low-rank adapters (LoRA: Hu et al., 2021, arXiv 2106.09685): placement, initial factors, effective weight.

A kernel here is stored as Flax stores it, `[d_in, d_out]`, so that `y = x @ kernel`. The factors are stored as
the papers write them, A `[rank, d_in]` and B `[d_out, rank]`: the weight W0 + scale * B A of the papers is
`kernel + scale * (B A)^T` here.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def find_targets(kernels: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Paths (`encoder/layers/0/attention/query`) that some pattern matches, by `re.search`, in the given order.

    Raises:
        ValueError: a pattern matches nothing (the message lists the last parts of the known paths).
    """
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in kernels):
            known = sorted({path.rsplit("/", 1)[-1] for path in kernels})
            raise ValueError(f"no linear layer matches the LoRA target {pattern!r}; layers are called {known}.")
    return [path for path in kernels if any(re.search(pattern, path) for pattern in patterns)]


def init_factors(
    key: Key[Array, ""], shapes: Mapping[str, tuple[int, int]], rank: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """One client's first factors by path: A Kaiming-uniform as in PEFT, B zero, so that B A = 0.

    PEFT draws A from `kaiming_uniform(a=sqrt(5))`, which is uniform on +-1/sqrt(d_in). `shapes` maps a path to
    (d_in, d_out). Each path has its own key, so adding a target leaves the others' draws as they were.

    Raises:
        ValueError: `rank` is below 1 or above a target's smaller side.
    """
    a, b = {}, {}
    for path, (d_in, d_out) in shapes.items():
        if not 1 <= rank <= min(d_in, d_out):
            raise ValueError(f"`rank` must lie in 1..{min(d_in, d_out)} for {path} ({d_in} -> {d_out}), got {rank}.")
        bound = d_in**-0.5
        path_key = jax.random.fold_in(key, _stable_hash(path))
        a[path] = jax.random.uniform(path_key, (rank, d_in), jnp.float32, -bound, bound).astype(float)
        b[path] = jnp.zeros((d_out, rank))
    return a, b


def effective_kernel(
    kernel: Float[Array, "d_in d_out"],
    a: Float[Array, "rank d_in"],
    b: Float[Array, "d_out rank"],
    scale: float,
) -> Float[Array, "d_in d_out"]:
    """kernel + scale * (B A)^T, in the kernel's dtype."""
    return kernel + (scale * (b @ a).T).astype(kernel.dtype)


def _stable_hash(text: str) -> int:
    """32 bits of the text, the same in every process (`hash` is salted)."""
    value = 2166136261  # FNV-1a
    for byte in text.encode():
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value
