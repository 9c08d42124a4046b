"""A network as a picture: who may ever hear whom, who does in the first rounds, and how fast agreement spreads.

Drawn on Matplotlib's Agg canvas through its object interface, as `jaxdfl.figures` does.
"""

from collections.abc import Mapping, Sequence

import jax
import networkx as nx
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from jaxdfl.figures import COLORS
from jaxdfl.topology import Topology
from jaxdfl.topology.spectrum import Spectrum

ROUNDS = 64  # that are looked at
LEAST = 1e-7  # of what was apart at first; what is less is float32 rounding
NAMED = 40  # up to so many clients carry their numbers
FEW = 60  # clients whose places a spring layout finds; more stand on a circle


def links_by_round(topology: Topology, rounds: int = ROUNDS) -> Bool[np.ndarray, "rounds clients clients"]:
    """[t, i, j]: j sends to i in round t, as one key draws it."""
    draw = jax.jit(topology.network.weights)
    weights = np.stack([np.asarray(draw(jax.random.fold_in(jax.random.key(0), t), t)) for t in range(rounds)])
    return (weights > 0) & ~np.eye(topology.clients, dtype=bool)


def connected_within(links: Bool[np.ndarray, "rounds clients clients"], window: int) -> float:
    """Share of windows of so many rounds whose links, taken together, connect all clients (one way is not enough)."""
    starts = range(len(links) - window + 1)
    unions = (np.asarray(links[start : start + window].any(0), float) for start in starts)
    connected = [nx.is_strongly_connected(nx.from_numpy_array(union, create_using=nx.DiGraph)) for union in unions]
    return sum(connected) / len(connected)


def disagreement(topology: Topology, rounds: int = ROUNDS) -> Float[np.ndarray, " rounds"]:
    """||W_t ... W_1 - J|| / ||I - J|| (Frobenius) after each of the rounds: how far apart first values still are."""
    draw = jax.jit(topology.network.weights)
    apart = np.eye(topology.clients) - 1 / topology.clients
    first, found = max(np.linalg.norm(apart), 1e-30), []
    for t in range(rounds):
        apart = np.asarray(draw(jax.random.fold_in(jax.random.key(0), t), t), np.float64) @ apart
        found.append(np.linalg.norm(apart) / first)
    return np.array(found)


def figure(topology: Topology, spectrum: Spectrum) -> Figure:
    """The graph on the left, the disagreement by round on the right."""
    made = Figure(figsize=(7.2, 3.4), dpi=160, layout="constrained")
    left, right = made.subplots(1, 2)
    graph(left, topology)
    decay(right, topology, spectrum)
    return made


def holdings(counts: Sequence[Sequence[int]], labels: Sequence[str], seed: int) -> Figure:
    """A heat map of how many examples of each label each client holds; `counts` is [clients, labels]."""
    table = np.asarray(counts).T
    made = Figure(figsize=(1.8 + 0.42 * table.shape[1], 1.3 + 0.36 * len(labels)), dpi=160, layout="constrained")
    axes = made.add_subplot()
    image = axes.imshow(table, cmap="cividis", aspect="auto", vmin=0)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xticks(range(0, table.shape[1], 1 + table.shape[1] // 20))
    axes.set_xlabel(f"client (seed {seed})", fontsize=9)
    axes.tick_params(labelsize=8)
    made.colorbar(image, ax=axes, label="examples").ax.tick_params(labelsize=8)
    return made


def scores(panels: Mapping[str, Mapping[str, Sequence[float]]], label: str, unit: int, seed: int) -> Figure:
    """A heat map for each topology: methods down, clients across, one scale for all."""
    methods = max(map(len, panels.values()))
    height = (0.75 + 0.3 * methods) * len(panels) + 0.3
    made = Figure(figsize=(7.2, height), dpi=160, layout="constrained")
    tables = {topology: unit * np.array(list(found.values()), float) for topology, found in panels.items()}
    every = np.concatenate([table.ravel() for table in tables.values()])
    scale = {"vmin": np.nanmin(every), "vmax": np.nanmax(every)}
    several = made.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (topology, table) in zip(several, tables.items(), strict=True):
        image = axes.imshow(table, cmap="cividis", aspect="auto", **scale)
        axes.set_title(topology, fontsize=10)
        axes.set_yticks(range(len(table)), list(panels[topology]), fontsize=8)
        axes.set_xticks(range(0, table.shape[1], 1 + table.shape[1] // 20))
        axes.tick_params(labelsize=8)
    several[-1].set_xlabel(f"client (seed {seed})", fontsize=9)
    made.colorbar(image, ax=several.tolist(), label=label).ax.tick_params(labelsize=8)
    return made


def graph(axes: Axes, topology: Topology) -> None:
    """Grey: who may ever hear whom. Coloured: who does in the first round, where that is less."""
    links, clients = links_by_round(topology, 1)[0], topology.clients
    places = _places(topology)
    for lines, color, width, alpha in ((topology.adjacency, "#999999", 0.8, 0.45), (links, COLORS[0], 1.4, 0.9)):
        pairs = np.argwhere(np.triu(lines | lines.T))
        axes.add_collection(LineCollection(list(places[pairs]), colors=color, linewidths=width, alpha=alpha))
    axes.scatter(*places.T, s=max(12, 2400 / max(clients, 12)), color=COLORS[0], zorder=2)
    if clients <= NAMED:
        for number, (x, y) in enumerate(places):
            axes.annotate(str(number), (x, y), color="#ffffff", fontsize=6.5, ha="center", va="center")
    axes.set_title(topology.name, fontsize=10)
    axes.set_aspect("equal")
    axes.margins(0.12)
    axes.axis("off")


def decay(axes: Axes, topology: Topology, spectrum: Spectrum, rounds: int = 32) -> None:
    """Disagreement of one draw, and the line that rho promises in the mean round."""
    after, found = np.arange(rounds + 1), np.concatenate([[1.0], disagreement(topology, rounds)])
    promised = spectrum.rho ** (after / 2)
    axes.plot(after, np.maximum(found, LEAST), color=COLORS[0], label="one draw", linewidth=1.5)
    label = f"$\\rho^{{t/2}}$, $\\rho$ = {spectrum.rho:.3f}"
    axes.plot(after, np.maximum(promised, LEAST), "--", color=COLORS[1], label=label, linewidth=1.2)
    axes.set_yscale("log")
    axes.set_ylim(LEAST if found[-1] < 1e3 * LEAST else None, 1.3)
    axes.set_xlabel("rounds", fontsize=9)
    axes.set_ylabel("disagreement left", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)


def _places(topology: Topology) -> Float[np.ndarray, "clients 2"]:
    """Where the clients stand: on a circle if all are linked or they are many, else where springs would pull them."""
    adjacency, clients = topology.adjacency, topology.clients
    whole = nx.from_numpy_array(adjacency | adjacency.T)
    circle = clients > FEW or nx.density(whole) > 0.6 or all(degree == 2 for _, degree in nx.degree(whole))
    found = nx.circular_layout(whole) if circle else nx.kamada_kawai_layout(whole)
    return np.array([found[number] for number in range(clients)])
