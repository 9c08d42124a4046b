"""Presets of a person's own: a TOML file of settings, spelt as on the command line, over a preset known by name.

base = "minilm"             # where all else comes from; without it, the first preset of the command
methods = ["dec_lora", "tad_lora:3"]
learning-rate = 1e-3        # one value serves where there may be several
clip = "None"               # for settings that can be switched off
"""

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jaxdfl.settings import Settings, flag
from jaxdfl.spelling import did_you_mean

HINTS = get_type_hints(Settings)
OF_ONE_COMMAND = ("preset", "out", "dry_run", "overwrite", "resume")  # not of what is run: written to no file
NONE = "None"  # as the command line has it; TOML has no word for it
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}


def read(path: Path, presets: Mapping[str, Settings]) -> Settings:
    """The settings of a preset file, named after it; not yet checked for their ranges.

    Raises:
        ValueError: the file cannot be read or is no TOML, or one of its keys is unknown, comes twice or has a value of
            another type; names file, key and remedy.
    """
    try:
        found = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); name the .toml file of a preset.") from None
    except (ValueError, RecursionError) as error:  # what is no UTF-8, or no TOML
        raise ValueError(f"{path} is no TOML ({error}); write a line `setting = value` for each setting.") from None
    base = found.pop("base", next(iter(presets)))
    if not isinstance(base, str) or base not in presets:
        hint = did_you_mean(base, presets) if isinstance(base, str) else ""
        raise ValueError(f"{path}: `base` is {base!r}, no preset.{hint} Known: {', '.join(presets)}.")
    values: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name == "preset":
            raise ValueError(f"{path}: `preset` is the file itself; name the preset that it starts from by `base`.")
        if name not in HINTS:
            hint = did_you_mean(name, ["base", *HINTS])
            raise ValueError(f"{path}: unknown setting {key!r}.{hint} Known are the options of `jaxdfl run --help`.")
        if name in values:
            raise ValueError(f"{path}: {key!r} comes twice, with a dash and an underscore; keep one.")
        values[name] = _taken(value, HINTS[name])
        if not fits(values[name], HINTS[name]):
            raise ValueError(f"{path}: `{key}` must be {_in_words(HINTS[name])}, got {value!r}.")
    return replace(presets[base], **values, preset=path.stem)


def text(settings: Settings) -> str:
    """The settings as a preset file: all but those of one command (`OF_ONE_COMMAND`), so that no base matters."""
    values = {name: value for name, value in dataclasses.asdict(settings).items() if name not in OF_ONE_COMMAND}
    return "".join(f"{flag(name)[2:]} = {_written(value)}\n" for name, value in values.items())


def fits(value: Any, hint: Any) -> bool:
    """Whether the value is of the type that a setting is declared with."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(each, get_args(hint)[0]) for each in value)
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, each) for each in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def _taken(value: Any, hint: Any) -> Any:
    """A value of TOML as settings have it: arrays as tuples, one value as a tuple of one, `None`, 16 as 16.0."""
    if get_origin(hint) is tuple:
        values = value if isinstance(value, list) else [value]
        return tuple(_taken(each, get_args(hint)[0]) for each in values)
    if get_origin(hint) in (Union, UnionType):
        rest = [each for each in get_args(hint) if each is not NoneType]
        return None if value == NONE else _taken(value, rest[0])
    return float(value if abs(value) < 1e308 else math.inf) if hint is float and type(value) is int else value


def _in_words(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"{_in_words(get_args(hint)[0])}, or an array of such"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(json.dumps, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(f'"{NONE}"' if each is NoneType else _in_words(each) for each in get_args(hint))
    return WORDS[hint]


def _written(value: Any) -> str:
    """A value as TOML; JSON's numbers, texts and arrays are TOML's, but for one control character."""
    return json.dumps(NONE if value is None else value, ensure_ascii=False).replace("\x7f", "\\u007f")
