"""`jaxdfl topology`: what a network is like, in numbers and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path

from jaxdfl import drawings, figures
from jaxdfl.commands.parser import Parser, one_line
from jaxdfl.prepare import spectrum_of
from jaxdfl.report import share
from jaxdfl.topology import Spectrum, Topology, build, recommended_period, rounds_to_consensus

EXAMPLES = """\
  jaxdfl topology ring --clients 10
  jaxdfl topology erdos_renyi:0.1 --clients 10 --out erdos_renyi.png       a picture too
  jaxdfl topology random_links:0.3:torus --clients 16
  jaxdfl topology weights.npy --clients 10                                 a doubly stochastic matrix, or a stack
"""
WINDOWS = (2, 4, 8, 16, 32)  # rounds in a row


def work(argv: Sequence[str]) -> None:
    """Prints the facts; draws the picture where --out names a file."""
    parser = Parser("topology", "Spectrum, TAD-LoRA's period, contraction and connectivity of a network.", EXAMPLES)
    parser.add_argument("spec", metavar="SPEC", help="such as ring, erdos_renyi:P, small_world:D:P, or a .npy file")
    parser.add_argument("--clients", type=int, default=10, help="their number (default 10)")
    parser.add_argument("--rule", default="metropolis_hastings", help="from a graph to weights")
    parser.add_argument("--seed", type=int, default=0, help="of graphs drawn once for all rounds")
    parser.add_argument("--out", help="draw the network into this file: .png, .pdf or .svg")
    asked = parser.read(argv)
    if asked.out and Path(asked.out).suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"`--out` must end in .png, .pdf or .svg, got {asked.out!r}.")
    topology = build(asked.spec, asked.clients, rule=asked.rule, seed=asked.seed)
    found = spectrum_of(topology)
    exact = "exact" if found.rho_is_exact else f"± {found.standard_error:.3f}, {found.samples} rounds sampled"
    agreed = rounds_to_consensus(topology.network, topology.clients, topology.period)
    facts = {
        "rho": f"{found.rho:.4f} ({exact}); lambda_max(E[W'W] - J): 0 agrees at once, 1 never",
        "contraction": f"{math.sqrt(found.rho):.4f} a round, of the root mean square disagreement"
        + (f"; a tenth is left after {math.log(0.1) / math.log(math.sqrt(found.rho)):.0f} rounds"
           if 0 < found.rho < 1 else ""),
        "sigma_2": f"{found.sigma_2:.4f} of E[W]; gap {found.gap:.4f}",
        "T*": f"{_period(found.rho)}; TAD-LoRA's period",
        "messages": f"{found.links:.1f} a round",
        "connected": _connected(topology, found),
        "consensus": f"exact after {agreed} rounds" if agreed else "in the limit only" if found.rho < 1 else "never",
    }  # fmt: skip
    print(f"{topology.name}, {topology.clients} clients, {asked.rule}")
    for name, fact in facts.items():
        print(f"  {name:<12} {fact}")
    if asked.out:
        Path(asked.out).parent.mkdir(parents=True, exist_ok=True)
        figures.save(drawings.figure(topology, found), Path(asked.out))
        print(f"  {'picture':<12} {asked.out}")


def _connected(topology: Topology, found: Spectrum) -> str:
    """`0.6% of rounds alone; in 64 rounds, 22% of 2 in a row, ...`, up to the first window that always connects."""
    alone = f"{share(found.connected)} of rounds alone"
    if found.connected == 1:
        return alone
    links, said = drawings.links_by_round(topology), []
    for window in WINDOWS:
        connected = drawings.connected_within(links, window)
        said.append(f"{share(connected)} of {window} in a row")
        if connected == 1:
            break
    return f"{alone}; in {len(links)} rounds, {', '.join(said)}"


def _period(rho: float) -> str:
    try:
        return f"{recommended_period(rho)} rounds"
    except ValueError:
        return "none: the network never mixes"


main = one_line(work)
