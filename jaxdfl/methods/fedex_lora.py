"""FedEx-LoRA: factors are averaged, and what that loses of the average product is added to the frozen weights.

Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large
Language Models", ACL 2025, arXiv 2410.09432.
A = mean A_i, B = mean B_i, and W0 gains scale (mean(B_i A_i) - B A), so that the new function is the mean of the old.

Departures: the paper has a server. In this gossip port each client has a dense residual R_i of its own beside W0, which
must be mixed too: R_i <- sum_j W_ij (R_j + B_j A_j) - (sum_j W_ij B_j)(sum_j W_ij A_j), a reconstruction of ours. The
whole product R_i + B_i A_i thus follows plain gossip on any graph, its mean is kept by doubly stochastic W, and on the
complete graph all R_i are the server's residual. Every message carries the whole product beside the factors, and is
paid for in full; on the complete graph it could be computed from the factors. The residual is added as [d_out, d_in];
the official code adds it transposed, which for square layers goes unnoticed. LoRA dropout, where there is any, also
acts on the input of the residual.
"""

from functools import cache

import jax
import jax.numpy as jnp

from jaxdfl.methods.residuals import Residuals, leading_residuals, no_residuals, products
from jaxdfl.methods.schedules import both_factors
from jaxdfl.mixing import gossip
from jaxdfl.protocol import Exchange, Info, Method, Mixer, PerBlock, State
from jaxdfl.trees import bytes_per_client


def fedex_lora(*, inner: Mixer = gossip()) -> Method:
    """Both factors train and gossip in every round; so do the whole products, and the difference stays merged."""
    return Method(both_factors, both_factors, exact(inner), merged=leading_residuals)


@cache
def exact(inner: Mixer) -> Mixer:
    """Mixes factors and whole products by one message of `inner`; its state is (the residuals, that of `inner`)."""

    def message(blocks: PerBlock, residuals: Residuals) -> PerBlock:
        """The whole products go with the head, since they have no gauge either."""
        return blocks._replace(head=(blocks.head, jax.tree.map(jnp.add, residuals, products(blocks))))

    def init(blocks: PerBlock) -> State:
        residuals = no_residuals(blocks)
        return residuals, inner.init(message(blocks, residuals))

    def mix(exchange: Exchange, blocks: PerBlock, state: State) -> tuple[PerBlock, State, Info]:
        residuals, within = state
        payload = exchange.payload or PerBlock(*map(bytes_per_client, blocks))
        payload = payload._replace(head=payload.head + bytes_per_client(residuals))
        heard, within, info = inner.mix(exchange._replace(payload=payload), message(blocks, residuals), within)
        head, wholes = heard.head
        mixed = heard._replace(head=head)
        return mixed, (jax.tree.map(jnp.subtract, wholes, products(mixed)), within), info

    return Mixer(init, mix)
