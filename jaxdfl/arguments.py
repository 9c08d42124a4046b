"""Settings as they come from outside: from the command line, or from the manifest of an earlier run."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from jaxdfl.settings import Settings, check, flag
from jaxdfl.spelling import did_you_mean


def parse(presets: Mapping[str, Settings], argv: Sequence[str], command: str | None = None) -> Settings:
    """The command line over a preset (the first one unless `--preset` names another).

    `--help` prints and exits, as tyro does it, and calls the program `command` (None: by its file). What tyro says of
    mistakes in a box becomes one line.

    Raises:
        ValueError: unknown preset or option, a value of the wrong type, or a setting out of range.
    """
    name = next(iter(presets))
    for position, word in enumerate(argv):
        if word == "--preset" and position + 1 < len(argv):
            name = argv[position + 1]
        elif word.startswith("--preset="):
            name = word.partition("=")[2]
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}.{did_you_mean(name, presets)} Known: {', '.join(presets)}.")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            settings, unknown = tyro.cli(
                Settings, prog=command, args=list(argv), default=presets[name], description=_describe(presets),
                return_unknown_args=True,
            )  # fmt: skip
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ValueError(_unboxed(said.getvalue())) from None
    if unknown:
        flags = [flag(field.name) for field in fields(Settings)]
        raise ValueError(f"unknown option {unknown[0]!r}.{did_you_mean(unknown[0], flags)} See --help for all of them.")
    check(settings)
    return settings


def from_manifest(manifest: Mapping[str, Any]) -> Settings:
    """The settings that a run's manifest.json keeps, checked again.

    Raises:
        ValueError: a setting is missing or unknown, as in the manifest of another version of jaxdfl, is of another
            type, or out of range.
    """
    mapping = manifest.get("settings")
    if not isinstance(mapping, Mapping):
        raise ValueError(f"`settings` of the manifest should hold settings, it is {mapping!r}.")
    known = [field.name for field in fields(Settings)]
    missing = [name for name in known if name not in mapping]
    unknown = [name for name in mapping if name not in known]
    if missing or unknown:
        what = f"lacks {', '.join(missing)}" if missing else f"holds {', '.join(unknown)}, unknown here"
        raise ValueError(f"`settings` of the manifest {what}: another version of jaxdfl wrote it; use that version.")
    values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in mapping.items()}
    for name, hint in get_type_hints(Settings).items():
        if not _fits(values[name], hint):
            raise ValueError(
                f"`settings.{name}` of the manifest is {values[name]!r}, which is no {getattr(hint, '__name__', hint)}."
            )
    settings = Settings(**values)
    check(settings)
    return settings


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value is of the type that a setting is declared with."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(each, get_args(hint)[0]) for each in value)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def _describe(presets: Mapping[str, Settings]) -> str:
    lines = [f"  {name}: {p.weights}, {p.task}, {' '.join(p.topologies)}" for name, p in presets.items()]
    return (Settings.__doc__ or "") + "\n\nPresets (--preset NAME):\n" + "\n".join(lines)


def _unboxed(text: str) -> str:
    """What tyro says in a box up to its first rule, or, where it draws no box, between a title's rule and the next."""
    lines = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    parts: list[list[str]] = [[]]
    for line in lines:
        if line and set(line) <= {"─", "-"}:
            parts.append([])
        else:
            parts[-1].append(line)
    said = parts[0] if "╭" in text or len(parts) == 1 else parts[1]
    return " ".join(" ".join(said).split()).partition(" Got errors:")[0]
