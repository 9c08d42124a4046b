"""The compiled program: many rounds of many runs at once.

Runs are one more leading axis. For training it is flattened with the clients', so that one portion of clients may hold
those of several runs; everything else is mapped over it. What differs between the runs of an ablation (topology, p,
period, which blocks train or are shared, seed, learning rate) enters as data, so one program serves them all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxdfl.methods.schedules import nothing
from jaxdfl.protocol import Info, Method
from jaxdfl.simulate.clients import over_clients
from jaxdfl.simulate.rounds import Conditions, Loss, SimState, make_stages
from jaxdfl.simulate.training import Client, Trained

# Axes of the runs in a state. Their round is one number, so that what a mixer does in some rounds only is not computed
# in all of them.
RUNS = SimState(blocks=0, opt=0, mixer=0, round=None, key=0)  # pyright: ignore[reportArgumentType]


class Frozen(NamedTuple):
    """The frozen weights of several runs: what is the same array in all of them once, the rest stacked.

    `common` and `own` have the weights' structure, each with None where the other has the leaf. Each run has one of
    the variants, since the runs of a seed share theirs.
    """

    common: Any
    own: Any  # [variants, ...]
    variant: Int[Array, " runs"]

    def of(self, variant: Int[Array, ""]) -> Any:
        """One variant's weights."""
        return jax.tree.map(
            lambda one, several: one if several is None else several[variant],
            self.common, self.own, is_leaf=lambda x: x is None,
        )  # fmt: skip


Advance = Callable[[Method, Frozen, SimState, Any, Array, Conditions], tuple[SimState, Info]]


def together(weights: Sequence[Any]) -> Frozen:
    """The frozen weights of each run as one record; the same object, or the same array in it, is held once."""
    places = {identity: place for place, identity in enumerate(dict.fromkeys(map(id, weights)))}
    variants = list({id(each): each for each in weights}.values())
    common = jax.tree.map(lambda x, *others: x if all(x is each for each in others) else None, *variants)
    own = jax.tree.map(
        lambda x, *others: None if all(x is each for each in others) else jnp.stack((x, *others)), *variants
    )
    return Frozen(common, own, jnp.asarray([places[id(each)] for each in weights], jnp.int32))


def code(method: Method) -> Method:
    """What of a method is compiled: all but its schedules, which go in as data, and its start, which is over."""
    return method._replace(trains=nothing, shares=nothing, start=None)


def make_advance(
    loss: Loss, optimizer: optax.GradientTransformation, *, chunk: int | None = None, **options: Any
) -> Advance:
    """The compiled program: (code of the method, frozen, state, examples, plan, conditions) -> (state, infos).

    State, conditions and infos lead with runs, the latter two with [rounds, runs]; leaves of `examples` are
    [examples, ...] and shared by all, and `plan` [rounds, runs, clients, steps, batch] picks from them. The state is
    donated. `chunk` clients, of whichever runs, train at a time (None: all); `options` are those of `make_stages`.
    """

    @partial(jax.jit, static_argnums=0, donate_argnums=2)
    def advance(method, frozen, state, examples, plan, conditions):
        runs, clients = plan.shape[1:3]
        stages = make_stages(loss, optimizer, method, **options)
        variant = jnp.repeat(frozen.variant, clients)  # [runs * clients]

        def train(frozen: Frozen, given: tuple[Array, Client]) -> Trained:
            variant, client = given
            return stages.train(frozen.of(variant), client)

        def one_round(state: SimState, inputs: tuple[Array, Conditions]) -> tuple[SimState, Info]:
            indices, at = inputs
            batches = jax.tree.map(lambda x: x[indices], examples)
            given = jax.vmap(stages.hand_out, in_axes=(RUNS, 0, 0))(state, batches, at)
            flat = jax.tree.map(lambda x: x.reshape(runs * clients, *x.shape[2:]), given)
            trained = over_clients(train, chunk)(frozen, (variant, flat))
            trained = jax.tree.map(lambda x: x.reshape(runs, clients, *x.shape[1:]), trained)
            return jax.vmap(stages.mix, in_axes=(RUNS, 0, 0), out_axes=(RUNS, 0))(state, trained, at)

        return jax.lax.scan(one_round, state, (plan, conditions))

    return advance


def stacked(states: Sequence[SimState]) -> SimState:
    """The states of several runs as one; all are at the round of the first."""
    leaves = jax.tree.map(lambda *each: jnp.stack(each), *states)
    return leaves._replace(round=jnp.array(states[0].round))


@jax.jit
def _taken(state: Any, run: Array) -> Any:
    return jax.tree.map(lambda x: x[run], state)


def one_of(state: SimState, run: int) -> SimState:
    """A run's state among those of several, in buffers of its own."""
    return _taken(state._replace(round=()), run)._replace(round=jnp.array(state.round))
