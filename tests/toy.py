"""A bilinear federation: client i wants B A + head = W_i. Fast, with everything a transformer has that matters here.

The clients' targets differ, the factors are not square (a transposed product cannot hide), and there is a head.
"""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdfl.lora import init_factors
from jaxdfl.methods import build
from jaxdfl.protocol import Network, PerBlock
from jaxdfl.simulate.rounds import init
from jaxdfl.trees import stack

CLIENTS, RANK, D_IN, D_OUT = 6, 2, 7, 5
SETTINGS = {  # where a method needs some, or a small one helps
    "tad_lora": {"period": 3},
    "adf_lora": {"period": 2},
    "sparse_orthogonal_lora": {"density": 0.5, "orthogonality": "gaussian", "inference": "stacked"},  # 6 x 2 > 7
}
ROUNDING = dict.fromkeys(("flexlora", "sum_product", "fedsvd"), 5e-5)  # singular directions turn by rounding over gaps
SGD, ADAMW = optax.sgd(0.05), optax.adamw(0.02, weight_decay=0.1)
FROZEN = {"scale": jnp.float32(2.0)}
WORLD = {"rho": 0.5, "learning_rate": 0.02, "local_steps": 3}
BASE = {  # W0 / scale, for methods that start from the frozen weights
    path: jax.random.normal(jax.random.key(seed), (D_OUT, D_IN))
    for seed, path in enumerate(("layer/query", "layer/value"))
}


def make(spec):
    """A method, perhaps with wrappers, as a registry test wants it: with small settings."""
    name, _, wrappers = spec.partition("+")
    settings = [f"{key}={value}" for key, value in SETTINGS.get(name, {}).items()]
    return build("+".join(filter(None, [":".join([name, *settings]), wrappers])), **WORLD)


def blocks(clients=CLIENTS, key=0, spread=0.0, head=True):
    """Stacked blocks; `spread` > 0 gives every client its own random offset in every block."""
    a, b = init_factors(jax.random.key(key), {"layer/query": (D_IN, D_OUT), "layer/value": (D_IN, D_OUT)}, RANK)
    one = PerBlock(a, b, {"bias": jnp.zeros(D_OUT)} if head else {})
    leaves, tree = jax.tree.flatten(stack(one, clients))
    keys = jax.random.split(jax.random.key(key + 1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + spread * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def loss(frozen, blocks, batch, key):
    """Squared error of both layers against one client's noisy target."""
    error = 0.0
    for path, target in batch.items():
        product = frozen["scale"] * blocks.b[path] @ blocks.a[path] + blocks.head.get("bias", jnp.zeros(D_OUT))[:, None]
        error += jnp.mean(jnp.square(product - target))
    return error


def batches(rounds=1, clients=CLIENTS, steps=3, seed=0, noise=0.01):
    """Leaves [rounds, clients, steps, d_out, d_in]: W_i = common + client's own, plus a little noise."""
    rng = np.random.default_rng(seed)

    def leaf():
        common, own = rng.normal(size=(D_OUT, D_IN)), rng.normal(size=(64, 1, D_OUT, D_IN))[:clients]
        fresh = noise * rng.normal(size=(rounds, 64, steps, D_OUT, D_IN))[:, :clients]
        return jnp.asarray(common + 0.5 * own + fresh, jnp.float32)

    return {"layer/query": leaf(), "layer/value": leaf()}


def metropolis(adjacency):
    """Metropolis-Hastings weights, from the formula, apart from the package's own."""
    degree = adjacency.sum(1)
    weights = adjacency / (1 + jnp.maximum(degree[:, None], degree[None, :]))
    return weights + jnp.diag(1 - weights.sum(1))


def random_network(p=0.4, clients=CLIENTS):
    """Every edge of the complete graph with probability p each round; everybody does all its work."""

    def weights(key, round):
        upper = jnp.triu(jax.random.bernoulli(key, p, (clients, clients)), 1)
        return metropolis((upper | upper.T).astype(jnp.float32))

    return Network(weights, lambda key, round: jnp.ones(clients))


def complete_network(clients=CLIENTS):
    return Network(lambda key, round: jnp.full((clients, clients), 1 / clients), lambda key, round: jnp.ones(clients))


def run(run_round, state, rounds_of_batches):
    """The plain Python loop that every faster path must equal."""
    infos = []
    for t in range(jax.tree.leaves(rounds_of_batches)[0].shape[0]):
        state, info = run_round(FROZEN, state, jax.tree.map(operator.itemgetter(t), rounds_of_batches))
        infos.append(info)
    return state, infos


def start(method, optimizer=ADAMW, seed=0, **kwargs):
    return init(jax.random.key(seed), blocks(**kwargs), method, optimizer, base=BASE)


def assert_equal(left, right):
    """Bit for bit, keys included."""
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def assert_close(left, right, rtol=2e-5, atol=2e-6):
    """Equal to float32 rounding over a few dozen steps."""
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)
