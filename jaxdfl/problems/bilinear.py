"""A bilinear federation: the smallest problem in which averaging factors is not averaging products.

In each of two layers, client i regresses y = (W0 + W_i) x + noise on x, with the model y = (W0 + scale B_i A_i) x: in
expectation its loss is 1/2 ||scale B_i A_i - W_i||_F^2 and a constant, summed over the layers. Its target
W_i = W* + h E_i has a common part of the adapter's rank and one of its own; the own parts sum to zero over the clients,
so that the best common adapter is W* itself, without error.
h sets how far the clients are apart (1: own and common parts have equal norm), and small batches make gradients noisy.
Ours, after the stand-in that the project's notes suggest; no paper uses it as it stands.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxdfl.diagnostics import average, average_product
from jaxdfl.lora import effective_kernel, init_factors
from jaxdfl.metrics import Columns
from jaxdfl.problems import Problem, Seeded, seed_keys
from jaxdfl.protocol import PerBlock
from jaxdfl.settings import Settings, flag
from jaxdfl.simulate.rounds import Loss, adapters

LAYERS = ("layers/0/map", "layers/1/map")  # side by side; two, so that a part of an adapter can be sent or lost
D_IN, D_OUT = 24, 16  # not square: a transposed product cannot hide
INPUTS = 256  # of each client
NOISE = 0.1  # standard deviation of the noise on every output; those of the common part have deviation 1


ONLY = {  # settings of other problems, with the one value that says nothing
    "partition": "own", "weights": "none", "head": "frozen", "targets": ("query", "value"), "lora_dropout": 0.0,
    "adapt_layers": "all", "max_length": 128, "data_dir": None, "train_examples": None, "eval_examples": None,
    "eval_clients": None, "init_adapter": None,
}  # fmt: skip


class Pairs(NamedTuple):
    """Inputs and outputs of both layers; leading axes are free."""

    x: Float[Array, "... layers d_in"]
    y: Float[Array, "... layers d_out"]


class Frozen(NamedTuple):
    """What does not train."""

    kernel: Float[Array, "layers d_in d_out"]  # W0
    target: Float[
        Array, "layers d_out d_in"
    ]  # W*: the best common adapter's product, scale included; for the score alone


class Federation(NamedTuple):
    """One seed's clients."""

    frozen: Frozen
    pairs: Pairs  # [clients, inputs, layers, ...]


@partial(jax.jit, static_argnums=(1, 2))
def draw(key: Key[Array, ""], clients: int, rank: int, heterogeneity: float | Float[Array, ""]) -> Federation:
    """The clients of one seed. Client i's draws are its own, but the centring of the targets knows all of them."""
    keys = jax.random.split(key, 4)
    count = len(LAYERS)
    left, right = _normal(keys[0], (count, D_OUT, rank)), _normal(keys[1], (count, rank, D_IN))
    target = left @ right / np.sqrt(rank * D_IN)  # entries of variance 1 / d_in, so that outputs have variance 1
    kernel = _normal(keys[2], (count, D_IN, D_OUT)) / np.sqrt(D_IN)

    def of_client(client: Array) -> tuple[Array, Array, Array]:
        own, inputs, noise = jax.random.split(jax.random.fold_in(keys[3], client), 3)
        return (
            _normal(own, (count, D_OUT, D_IN)),
            _normal(inputs, (INPUTS, count, D_IN)),
            NOISE * _normal(noise, (INPUTS, count, D_OUT)),
        )

    own, x, noise = jax.vmap(of_client)(jnp.arange(clients))
    own = own - own.mean(0)
    size = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(own), axis=(1, 2, 3))))  # root mean square norm over clients
    own = heterogeneity * jnp.linalg.norm(target) * own / jnp.maximum(size, 1e-12)  # one client alone has no own part
    kernels = kernel + jnp.swapaxes(target + own, 2, 3)  # [clients, layers, d_in, d_out]
    y = jnp.einsum("cnli,clio->cnlo", x, kernels, precision="highest") + noise
    return Federation(Frozen(kernel, target), Pairs(x, y))


def _normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Drawn in float32, so that float64 has the same numbers."""
    return jax.random.normal(key, shape, jnp.float32).astype(float)


def loss(scale: float) -> Loss:
    """1/2 mean ||y - (W0 + scale B A) x||^2 over a batch, summed over the layers."""

    def of_batch(frozen: Frozen, blocks: PerBlock, batch: Pairs, key: Array | None = None) -> Float[Array, ""]:
        a, b = (jnp.stack([factor[layer] for layer in LAYERS]) for factor in (blocks.a, blocks.b))
        kernels = jax.vmap(effective_kernel, in_axes=(0, 0, 0, None))(frozen.kernel, a, b, scale)
        missed = jnp.einsum("nli,lio->nlo", batch.x, kernels) - batch.y
        return 0.5 * jnp.mean(jnp.sum(jnp.square(missed), axis=(1, 2)))

    return of_batch


def errors(target: Float[Array, "layers d_out d_in"], scale: float, blocks: PerBlock) -> Float[Array, " clients"]:
    """||scale B_i A_i - W*||_F / ||W*||_F of every client, over both layers."""
    missed = [
        scale * jnp.matmul(blocks.b[layer], blocks.a[layer], precision="highest") - target[place]
        for place, layer in enumerate(LAYERS)
    ]
    return jnp.sqrt(sum(jnp.sum(jnp.square(each), axis=(1, 2)) for each in missed)) / jnp.linalg.norm(target)


def problem(settings: Settings) -> Problem:
    """`bilinear:HETEROGENEITY`, with the rank and alpha of the settings.

    Raises:
        ValueError: no such heterogeneity, a rank above the smaller side, or a setting that means nothing here.
    """
    heterogeneity = _heterogeneity(settings.task)
    if settings.rank > min(D_IN, D_OUT):
        raise ValueError(f"`--rank` must lie in 1..{min(D_IN, D_OUT)} for {settings.task}, got {settings.rank}.")
    for name, only in ONLY.items():
        if (given := getattr(settings, name)) != only:
            raise ValueError(
                f"`{flag(name)}` means nothing for {settings.task}, which makes its own data and model; got {given}."
            )
    if settings.dtype == "bfloat16":
        raise ValueError(f"`--dtype` must be float32 or float64 for {settings.task}, got bfloat16.")
    scale, clients = settings.alpha / settings.rank, settings.clients
    of_seed = {
        seed: draw(jax.random.fold_in(seed_keys(seed).head, 1), clients, settings.rank, heterogeneity)
        for seed in settings.seeds
    }
    # One table of examples for all seeds, as the engine takes it; a seed's clients hold indices into their own part.
    stacked = jax.tree.map(lambda *each: jnp.concatenate(each), *(found.pairs for found in of_seed.values()))
    examples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked)
    first = {seed: place * clients * INPUTS for place, seed in enumerate(of_seed)}

    def seeded(seed: int) -> Seeded:
        a, b = init_factors(seed_keys(seed).factors, dict.fromkeys(LAYERS, (D_IN, D_OUT)), settings.rank)
        parts = [np.arange(INPUTS) + first[seed] + client * INPUTS for client in range(clients)]
        frozen = of_seed[seed].frozen
        base = {layer: frozen.kernel[place].T / scale for place, layer in enumerate(LAYERS)}
        return Seeded(frozen, PerBlock(a, b, {}), base, parts)

    return Problem(
        loss=loss(scale),
        examples=examples,
        seeded=seeded,
        scores=lambda seeded, method, state: _scores(seeded.frozen.target, scale, adapters(method, state)),
        chunk=None,
        model={
            "name": f"bilinear {len(LAYERS)} x {D_OUT} x {D_IN}", "revision": None, "sha256": {},
            "architecture": "y = (W0 + s B A) x",
            "parameters": len(LAYERS) * D_IN * D_OUT, "initialised": ["frozen"], "note": "",
            "dtype": "float64" if settings.dtype == "float64" else "float32",
        },
        data={
            "task": settings.task, "metric": "error", "source": "draws of the seed",
            "score": "relative distance to the best common adapter, less is better",
            "train": {"examples": clients * INPUTS},
        },
        partitions={},
    )  # fmt: skip


_errors = jax.jit(errors, static_argnums=1)


def _scores(target: Array, scale: float, blocks: PerBlock) -> Columns:
    of_clients = np.asarray(_errors(target, scale, blocks), np.float64)
    return {
        "error_mean": float(of_clients.mean()),
        "error_worst": float(of_clients.max()),
        "error_std": float(of_clients.std()),
        "error_average_model": float(_errors(target, scale, average(blocks))[0]),
        "error_average_product": float(_errors(target, scale, average_product(blocks))[0]),
        "error_clients": of_clients.tolist(),
    }


def _heterogeneity(task: str) -> float:
    _, _, word = task.partition(":")
    try:
        value = float(word or "1")
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"`--task` bilinear:HETEROGENEITY needs a number of at least 0, got {task!r}.")
    return value
