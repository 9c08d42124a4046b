"""Specs: a name and its parameters, separated by colons, such as `small_world:4:0.2`."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple


class Family(NamedTuple):
    """One line of a catalogue: what a name stands for and the parameters that pick one of its kind."""

    about: str
    parameters: Mapping[str, type]  # name -> int, float, or any type whose reader `values` is given
    build: Callable[..., Any]


def values(spec: str, parameters: Mapping[str, type], readers: Mapping[type, Callable[[str], Any]] = {}) -> list[Any]:
    """The values a spec gives to the parameters of its family, in their order; the last one keeps any colons left.

    `readers` turn words into values of types that are not their own readers.

    Raises:
        ValueError: too few or too many values, or one that is not of its type.
    """
    name, colon, rest = spec.partition(":")
    words = rest.split(":", len(parameters) - 1) if colon else []
    if len(words) != len(parameters):
        raise ValueError(f"`spec` must read {':'.join([name, *parameters])!r}, got {spec!r}.")
    return [
        readers[kind](word) if kind in readers else _number(spec, parameter, kind, word)
        for (parameter, kind), word in zip(parameters.items(), words, strict=True)
    ]


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Says that a name is unknown and lists the known ones, the closest first."""
    closest = difflib.get_close_matches(name, known := list(known))
    listed = dict.fromkeys([*closest, *known])  # each once, in this order
    return f"unknown {what} {name!r}; known are {', '.join(listed)}"


def _number(spec: str, parameter: str, kind: type, word: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"`{parameter}` in {spec!r} must be {wanted}, got {word!r}.") from None
