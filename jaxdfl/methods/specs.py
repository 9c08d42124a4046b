"""How methods and wrappers are asked for: `tad_lora:5+event_triggered:0.1:decay=sqrt+packet_loss:0.2`.

A part is a name and its settings, separated by colons: values in the order of the constructor's arguments, or
`name=value`. What may be set are the arguments that can be given by position, apart from the one that is wrapped.
"""

import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from jaxdfl.spelling import did_you_mean

WRAPPED = ("inner", "method")  # the argument of a wrapper, or of a method, that holds what goes inside

Constructors = Mapping[str, Callable[..., Any]]


class Part(NamedTuple):
    """One name with its settings."""

    name: str
    settings: dict[str, Any]


def read_part(text: str, known: Constructors, what: str) -> Part:
    """`packet_loss:0.2` -> ("packet_loss", {"rate": 0.2}), with `known` to tell which names and settings there are.

    Raises:
        ValueError: an unknown name (the known are listed, the closest first), a setting that does not exist, comes
            twice, is missing, or is not of its type. `what` opens the message.
    """
    name, *words = text.split(":")
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    parameters = settable(known[name])
    settings: dict[str, Any] = {}
    for place, word in enumerate(words):
        key, equals, value = word.partition("=")
        if not equals:
            key, value = (list(parameters)[place] if place < len(parameters) else ""), word
        if not parameters:
            raise ValueError(f"{what} {name!r} takes no setting, got {text!r}.")
        if key not in parameters:
            takes = f"{name!r} takes {', '.join(parameters)}"
            raise ValueError(f"{what} {text!r}: {word!r} is one setting too many or none of its own; {takes}.")
        if key in settings:
            raise ValueError(f"{what} {text!r} gives `{key}` twice.")
        settings[key] = _value(f"{what} {text!r}: `{key}`", value, parameters[key].annotation)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in settings:
            raise ValueError(f"{what} {text!r} needs `{key}`: {name}:{key.upper()}.")
    return Part(name, settings)


def completed(part: Part, constructor: Callable[..., Any]) -> Part:
    """The part with the defaults of what it leaves out."""
    defaults = {name: each.default for name, each in settable(constructor).items() if name not in part.settings}
    return Part(part.name, defaults | part.settings)


def wraps(constructor: Callable[..., Any]) -> str | None:
    """`inner` or `method`: the argument that takes what is wrapped; None where there is none."""
    parameters = inspect.signature(constructor).parameters
    return next((name for name in WRAPPED if name in parameters), None)


def settable(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that a spec may set: those given by position, apart from what is wrapped."""
    parameters = inspect.signature(constructor, eval_str=True).parameters
    return {
        name: parameter
        for name, parameter in parameters.items()
        if name not in WRAPPED and parameter.kind is not parameter.KEYWORD_ONLY
    }


def _value(what: str, word: str, kind: Any) -> Any:
    """The word as a value of its type: int, float, bool, one of some words, or such a type or None."""
    if get_origin(kind) is UnionType:
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is Literal:
        if word not in get_args(kind):
            raise ValueError(f"{what} must be one of {', '.join(get_args(kind))}, got {word!r}.")
        return word
    if kind is bool:
        if word not in ("true", "false"):
            raise ValueError(f"{what} must be true or false, got {word!r}.")
        return word == "true"
    wanted = {int: "a whole number", float: "a number"}[kind]
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{what} must be {wanted}, got {word!r}.") from None
