"""Checks of arguments that several modules of this package share."""


def require_clients(clients: int) -> None:
    """Raises ValueError for a network without clients."""
    if clients < 1:
        raise ValueError(f"`clients` must be at least 1, got {clients}.")


def require_probability(name: str, value: float) -> None:
    """Raises ValueError unless `value` lies in [0, 1]; NaN does not."""
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")
