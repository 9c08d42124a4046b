"""Factorizations of many matrices are those of each, and no program of ours asks LAPACK for several at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxdfl import factorizations
from jaxdfl.methods import METHODS
from jaxdfl.simulate.rounds import make_round

LAPACK = {  # primitives that jaxlib deals to threads on CPUs
    "svd", "geqrf", "geqp3", "householder_product", "ormqr", "qr", "lu", "eigh", "eig", "cholesky", "triangular_solve",
    "schur", "hessenberg", "tridiagonal",
}  # fmt: skip
WRAPPED = ("dec_lora+aligned", "dec_lora+aligned:softness=0.5", "tad_lora+aligned")
X = jax.random.normal(jax.random.key(0), (4, 3, 5, 5))


@pytest.mark.parametrize("name", ["svd", "qr", "det"])
def test_each_matrix_has_the_factors_it_has_alone(name):
    function = getattr(factorizations, name)
    together, mapped = jax.jit(function)(X), jax.jit(jax.vmap(function))(X)
    alone = [[function(x) for x in row] for row in X]
    alone = jax.tree.map(lambda *rows: jnp.stack(rows), *(jax.tree.map(lambda *x: jnp.stack(x), *row) for row in alone))
    for one, other, expected in zip(*map(jax.tree.leaves, (together, mapped, alone)), strict=True):
        np.testing.assert_array_equal(one, expected)
        np.testing.assert_array_equal(other, expected)


def test_solving_undoes_a_product():
    right = X[..., :2]
    np.testing.assert_allclose(jax.vmap(factorizations.solve)(X, X @ right), right, atol=1e-3)


def test_orthogonal_matrices_are_those_of_jax():
    found = factorizations.orthogonal(jax.random.key(1), 6, 4)
    np.testing.assert_allclose(found, jax.random.orthogonal(jax.random.key(1), 4, (6,)), atol=1e-6)


def batches_asked_of_lapack(jaxpr):
    """Names and shapes of the operations on several matrices at a time, wherever they are in the program."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in LAPACK and equation.invars[0].aval.ndim > 2:
            found.append((equation.primitive.name, equation.invars[0].aval.shape))
        for inner in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found += batches_asked_of_lapack(inner)
    return found


def test_batches_are_found_where_there_are_any():
    def nested(x):
        return jax.lax.map(lambda x: jax.jit(jnp.linalg.svd)(x), x)

    assert batches_asked_of_lapack(jax.make_jaxpr(nested)(X).jaxpr) == [("svd", (3, 5, 5))]
    assert batches_asked_of_lapack(jax.make_jaxpr(jax.vmap(factorizations.svd))(X).jaxpr) == []


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="on accelerators batches are faster, and nobody waits")
@pytest.mark.parametrize("name", [*METHODS, *WRAPPED])
def test_no_round_of_several_runs_asks_lapack_for_a_batch(name):
    method = toy.make(name)
    one = toy.start(method), jax.tree.map(lambda x: x[0], toy.batches())
    two = jax.tree.map(lambda x: jnp.stack([x, x]), one)
    every_run = jax.vmap(make_round(toy.loss, toy.ADAMW, method, toy.random_network()), in_axes=(None, 0, 0))
    assert batches_asked_of_lapack(jax.make_jaxpr(every_run)(toy.FROZEN, *two).jaxpr) == []
