"""Floating point operations of matrix products, counted in a traced program."""

from math import prod
from typing import Any


def matrix_products(jaxpr: Any, turns: int | float | None = None) -> float:
    """Operations (a multiplication and an addition are two) of the matrix products of `jax.make_jaxpr`'s result.

    Of a `cond` the costliest branch counts. `turns` is how often a `while` around products turns.

    Raises:
        ValueError: there is such a `while`, and nobody knows how often it turns.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            total += (
                2 * prod(equation.outvars[0].aval.shape) * prod(equation.invars[0].aval.shape[i] for i in contracted)
            )
        elif name == "pallas_call":  # a kernel, for every place of its grid
            total += matrix_products(parameters["jaxpr"], turns) * prod(parameters["grid_mapping"].grid)
        elif name == "cond":
            total += max(matrix_products(branch, turns) for branch in parameters["branches"])
        else:
            inner = sum(
                matrix_products(each, turns)
                for each in parameters.values()
                if hasattr(each, "eqns") or hasattr(each, "jaxpr")
            )
            if name == "while" and inner:
                if turns is None:
                    raise ValueError("the program multiplies matrices in a `while` loop; say how often it turns.")
                inner *= turns
            total += inner * (parameters["length"] if name == "scan" else 1)
    return total
