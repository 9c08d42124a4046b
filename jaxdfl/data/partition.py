"""Which examples each client holds: one array of example indices per client.

Every partition is a function of its arguments and a seed. No client is empty and no example is given twice; where
that cannot be had, a ValueError says so.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int64, Integer, Shaped

Partition = list[Int64[np.ndarray, "_"]]  # sorted indices into the examples, one array per client
Labels = Integer[np.ndarray, " examples"]

PAPER = {  # by number of classes: a client's label proportions, and how many of ten clients have them
    2: (((0.9, 0.1), 3), ((0.1, 0.9), 3), ((0.5, 0.5), 4)),
    3: (((0.9, 0.05, 0.05), 4), ((0.05, 0.9, 0.05), 3), ((0.05, 0.05, 0.9), 3)),
}
DIRICHLET_DRAWS = 100


def build(spec: str, labels: Labels, classes: int, clients: int, seed: int) -> Partition:
    """A partition from its command line form: a name in `PARTITIONS`, a colon and its argument where it has one.

    `paper`, `dirichlet:0.5` (alpha), `shards:2` (per client), `quantity:4,2,1` (one proportion per client), `iid`.

    Raises:
        ValueError: unknown name, a missing, superfluous or unreadable argument, or an impossible partition.
    """
    name, colon, argument = spec.partition(":")
    if name not in PARTITIONS:
        raise ValueError(f"`partition` must be one of {', '.join(PARTITIONS)}, got {spec!r}.")
    form, split = PARTITIONS[name]
    if not (":" in form) == bool(colon) == bool(argument):
        raise ValueError(f"`partition` must be written {form!r}, got {spec!r}.")
    return split(labels, classes, clients, argument, seed)


def paper_mixtures(classes: int, clients: int) -> Float64[np.ndarray, "clients classes"]:
    """Label proportions of TAD-LoRA's clients (arXiv 2602.00451): for ten clients as in `PAPER`.

    Other numbers of clients keep the shares of each kind by largest remainder. Clients of one kind have neighbouring
    numbers, so on a ring or chain they are neighbours: keep that in mind when such graphs are compared.

    Raises:
        ValueError: the paper has no mixture for this number of classes.
    """
    if classes not in PAPER:
        raise ValueError(f"`classes` must be 2 or 3 for the paper's mixtures, got {classes}; take dirichlet or shards.")
    mixtures, shares = zip(*PAPER[classes], strict=True)
    return np.repeat(np.array(mixtures), _apportion(clients, np.array([shares]) / 10)[0], axis=0)


def label_mixture(labels: Labels, mixtures: Float64[np.ndarray, "clients classes"], seed: int) -> Partition:
    """Clients of equal size with stated label proportions, drawn without replacement.

    The size is the largest at which every client's counts are its proportions up to rounding (largest remainder).
    The one public re-implementation gives each client a share of all examples and fills a label that runs out from
    others; ours keeps the proportions, and may leave examples unused.

    Raises:
        ValueError: the rows of `mixtures` are not proportions, or some label is too rare.
    """
    clients, classes = mixtures.shape
    if (mixtures < 0).any() or not np.allclose(mixtures.sum(1), 1):
        raise ValueError(f"`mixtures` must have rows that are >= 0 and add up to 1, got {mixtures.tolist()}.")
    pools = np.bincount(labels, minlength=classes)
    if len(pools) > classes:
        raise ValueError(f"`mixtures` has {classes} classes, but the labels go up to {len(pools) - 1}.")
    _require_enough(len(labels), clients)
    for size in range(len(labels) // clients, 0, -1):
        counts = _apportion(size, mixtures)
        if (counts.sum(0) <= pools).all():
            break
    else:
        raise ValueError(
            f"`labels` has only {pools.tolist()} examples by class for {clients} clients; take fewer clients."
        )
    rng = np.random.default_rng(seed)
    by_class = [
        np.split(rng.permutation(np.flatnonzero(labels == label))[: need.sum()], need.cumsum()[:-1])
        for label, need in enumerate(counts.T)
    ]
    return [np.sort(np.concatenate(parts)) for parts in zip(*by_class, strict=True)]


def dirichlet(labels: Labels, clients: int, alpha: float, seed: int) -> Partition:
    """Each class is cut among the clients by shares from a symmetric Dirichlet(alpha); all examples are used.

    Small `alpha` leaves clients without examples. Such a draw is thrown away whole, up to `DIRICHLET_DRAWS` times;
    then an error is raised, since clients filled up by hand would no longer be a Dirichlet draw.

    Source: Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, 2019, arXiv 1905.12022.
    """
    if not alpha > 0 or not np.isfinite(alpha):
        raise ValueError(f"`alpha` must be positive and finite, got {alpha}.")
    _require_enough(len(labels), clients)
    rng = np.random.default_rng(seed)
    for _ in range(DIRICHLET_DRAWS):
        parts = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(clients, alpha))
            cuts = np.rint(shares.cumsum()[:-1] * len(members)).astype(np.int64)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.append(piece)
        partition = [np.sort(np.concatenate(part)) for part in parts]
        if all(map(len, partition)):
            return partition
    raise ValueError(
        f"`alpha` {alpha} left a client of {clients} without examples in each of {DIRICHLET_DRAWS} draws; "
        "raise alpha, or take shards or fewer clients."
    )


def shards(labels: Labels, clients: int, shards_per_client: int, seed: int) -> Partition:
    """Examples sorted by label, cut into equal shards, dealt at random: few labels per client; all are used.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks, 2017, arXiv 1602.05629.
    """
    if shards_per_client < 1:
        raise ValueError(f"`shards_per_client` must be at least 1, got {shards_per_client}.")
    count = clients * shards_per_client
    _require_enough(len(labels), clients)
    if len(labels) < count:
        raise ValueError(f"`shards_per_client` must be at most {len(labels) // clients}, got {shards_per_client}.")
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(len(labels))
    pieces = np.array_split(mixed[np.argsort(labels[mixed], kind="stable")], count)
    return [np.sort(np.concatenate([pieces[i] for i in hand])) for hand in rng.permutation(count).reshape(clients, -1)]


def quantity_skew(count: int, clients: int, proportions: Sequence[float], seed: int) -> Partition:
    """Random examples, in amounts proportional to `proportions` (one per client, of any sum); all are used."""
    sizes = np.array(proportions, np.float64)
    if len(sizes) != clients:
        raise ValueError(f"`proportions` must have one number for each of {clients} clients, got {len(sizes)}.")
    if not np.isfinite(sizes).all() or (sizes <= 0).any():
        raise ValueError(f"`proportions` must be positive and finite, got {list(proportions)}.")
    _require_enough(count, clients)
    counts = _apportion(count, sizes[None] / sizes.sum())[0]
    if not counts.all():
        raise ValueError(
            f"`proportions` leaves client {counts.argmin()} none of {count} examples; make them more even."
        )
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.split(order, counts.cumsum()[:-1])]


def iid(count: int, clients: int, seed: int) -> Partition:
    """Random examples, in amounts that differ by at most one; all are used."""
    return quantity_skew(count, clients, [1.0] * clients, seed)


def by_group(groups: Shaped[np.ndarray, " examples"]) -> Partition:
    """The natural partition: one client for each distinct value (an author, a genre), in sorted order of values."""
    _, client = np.unique(groups, return_inverse=True)
    return [np.flatnonzero(client == number) for number in range(client.max(initial=-1) + 1)]


def describe(partition: Partition, labels: Labels) -> Int64[np.ndarray, "clients classes"]:
    """How many examples of each class each client holds."""
    classes = int(labels.max()) + 1
    return np.stack([np.bincount(labels[part], minlength=classes) for part in partition])


def _apportion(total: int, shares: Float64[np.ndarray, "rows parts"]) -> Int64[np.ndarray, "rows parts"]:
    """Whole numbers in proportion to `shares`, each row adding up to `total`, by largest remainder (ties: earlier)."""
    exact = np.round(total * shares, 9)  # 0.3 * 10 is a hair above 3, which would count as a remainder
    counts = np.floor(exact).astype(np.int64)
    rank = np.argsort(np.argsort(-(exact - counts), axis=1, kind="stable"), axis=1)
    return counts + (rank < total - counts.sum(1, keepdims=True))


def _require_enough(count: int, clients: int) -> None:
    if clients < 1:
        raise ValueError(f"`clients` must be at least 1, got {clients}.")
    if clients > count:
        raise ValueError(f"`clients` must be at most the number of examples, {count}, got {clients}.")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"`partition` has an argument that is not a number: {text!r}.") from None


def _number(text: str) -> float:
    numbers = _numbers(text)
    if len(numbers) != 1:
        raise ValueError(f"`partition` takes one number here, got {text!r}.")
    return numbers[0]


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"`partition` takes a whole number here, got {text!r}.")
    return int(text)


Builder = Callable[[Labels, int, int, str, int], Partition]  # (labels, classes, clients, argument, seed)
PARTITIONS: dict[str, tuple[str, Builder]] = {  # name: (how it is written, builder)
    "paper": ("paper", lambda y, classes, m, _, seed: label_mixture(y, paper_mixtures(classes, m), seed)),
    "dirichlet": ("dirichlet:ALPHA", lambda y, _, m, alpha, seed: dirichlet(y, m, _number(alpha), seed)),
    "shards": ("shards:PER_CLIENT", lambda y, _, m, each, seed: shards(y, m, _whole(each), seed)),
    "quantity": ("quantity:P1,P2,...", lambda y, _, m, sizes, seed: quantity_skew(len(y), m, _numbers(sizes), seed)),
    "iid": ("iid", lambda y, _classes, m, _, seed: iid(len(y), m, seed)),
}
