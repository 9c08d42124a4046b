"""FLoRA: all clients' factors are stacked into the exact average product, merged into W0; adapters then start afresh.

Wang, Shen, He, Sun, Wang, Lyu, Li, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
Adaptations", NeurIPS 2024, arXiv 2409.05976.

    [B_1, ..., B_m] [A_1 / m; ...; A_m / m] = (1/m) sum_i B_i A_i

whatever the clients' gauges: there is no cross term.

Departures: clients have equal weight (the paper weighs by data size). The server is the complete graph, on which every
client sends its factors to every other; the network's own graph is not used. The average product is taken directly,
which is what the stack multiplies to; messages are paid for as factors. Merged is a dense residual beside W0, of which
every client has its own: the same for all, unless a wrapper loses messages. B restarts from 0 and A from a draw in the
way of PEFT, common to all clients and new in each round. The official code starts a new optimizer in every round too:
that is `--moments reset_each_round`. LoRA dropout, where there is any, also acts on the input of the residual.
"""

from functools import cache

import jax
import jax.numpy as jnp

from jaxdfl.lora import init_factors
from jaxdfl.methods.residuals import leading_residuals, no_residuals, products
from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import everyone, gossip
from jaxdfl.protocol import Exchange, Info, Method, Mixer, PerBlock, RoundKey, State
from jaxdfl.trees import bytes_per_client, stack


def flora(*, inner: Mixer = gossip()) -> Method:
    """Both factors train and are sent; the average product is merged, and the round ends with fresh factors."""
    return Method(both_factors, both_factors, merging(everyone(inner)), merged=leading_residuals)


@cache
def merging(inner: Mixer) -> Mixer:
    """R_i <- R_i + sum_j W_ij B_j A_j, and new factors; its state is (the residuals, that of `inner`)."""

    def message(blocks: PerBlock) -> PerBlock:
        """The products go with the head, since they have no gauge either."""
        return PerBlock(a={}, b={}, head=(blocks.head, products(blocks)))

    def init(blocks: PerBlock) -> State:
        return no_residuals(blocks), inner.init(message(blocks))

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        residuals, within = state
        own, key = jax.random.split(exchange.key)
        payload = exchange.payload or PerBlock(*map(bytes_per_client, blocks))
        stacked = PerBlock(0, 0, payload.head + payload.a + payload.b)  # a product is sent as its factors
        heard, within, info = inner.mix(exchange._replace(key=key, payload=stacked), message(blocks), within)
        head, average = heard.head
        residuals = jax.tree.map(jnp.add, residuals, average)
        return _fresh(own, blocks)._replace(head=head), (residuals, within), info

    return Mixer(init, mix)


def _fresh(key: RoundKey, blocks: PerBlock) -> PerBlock:
    """New first factors, the same for all clients, in the place of those of `blocks`."""
    shapes = {path: (a.shape[-1], blocks.b[path].shape[1]) for path, a in blocks.a.items()}
    clients, rank = next(iter(blocks.a.values())).shape[:2]
    a, b = stack(init_factors(key, shapes, rank), clients)
    like = PerBlock(a, b, blocks.head)
    return jax.tree.map(lambda new, old: new.astype(old.dtype), like, blocks)
