"""Settings as they come from outside: from the command line over a preset, or from the manifest of an earlier run."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from jaxdfl import preset_files
from jaxdfl.preset_files import OF_ONE_COMMAND, fits
from jaxdfl.run_folder import read_manifest
from jaxdfl.settings import Settings, check, flag
from jaxdfl.spelling import did_you_mean


def parse(presets: Mapping[str, Settings], argv: Sequence[str], command: str | None = None) -> Settings:
    """The command line over a preset (the first one unless `--preset` names another, a .toml file or a run folder).

    `--help` prints and exits, as tyro does it, and calls the program `command` (None: by its file). What tyro says of
    mistakes in a box becomes one line.

    Raises:
        ValueError: unknown preset or option, a value of the wrong type, or a setting out of range.
    """
    name, preset = named_preset(presets, argv)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            settings, unknown = tyro.cli(
                Settings, prog=command, args=list(argv), default=preset, description=_describe(presets),
                return_unknown_args=True, registry=_REGISTRY,
            )  # fmt: skip
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ValueError(_unboxed(said.getvalue())) from None
    if unknown:
        flags = [flag(field.name) for field in fields(Settings)]
        raise ValueError(f"unknown option {unknown[0]!r}.{did_you_mean(unknown[0], flags)} See --help for all of them.")
    settings = replace(settings, preset=preset.preset)  # of a file, its name, and nobody's folders
    try:
        check(settings)
    except ValueError as error:
        raise ValueError(str(error) if name in presets else f"{error} (The preset is {name}.)") from None
    return settings


def named_preset(presets: Mapping[str, Settings], argv: Sequence[str]) -> tuple[str, Settings]:
    """What `--preset` says, and the settings that it stands for.

    Raises:
        ValueError: it is no name, and neither the file of a preset nor a run folder.
    """
    name = next(iter(presets))
    for position, word in enumerate(argv):
        if word == "--preset" and position + 1 < len(argv):
            name = argv[position + 1]
        elif word.startswith("--preset="):
            name = word.partition("=")[2]
    if name in presets:
        return name, presets[name]
    if name.endswith(".toml"):
        return name, preset_files.read(Path(name), presets)
    if _is_folder(name):
        return name, _again(Path(name))
    hint, known = did_you_mean(name, presets), ", ".join(presets)
    raise ValueError(f"unknown preset {name!r}.{hint} Known: {known}. A .toml file or a run folder serves too.")


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # too long for a path, say
        return False


def _again(folder: Path) -> Settings:
    """The settings of the runs in a folder, but for those of one command."""
    usual = {field.name: field.default for field in fields(Settings) if field.name in OF_ONE_COMMAND}
    return replace(from_manifest(read_manifest(folder)), **{**usual, "preset": folder.resolve().name})


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
        if not fits(values[name], hint):
            raise ValueError(
                f"`settings.{name}` of the manifest is {values[name]!r}, which is no {getattr(hint, '__name__', hint)}."
            )
    settings = Settings(**values)
    check(settings)
    return settings


def _describe(presets: Mapping[str, Settings]) -> str:
    lines = [
        f"  {name}: task {p.task}, weights {p.weights}, on {' '.join(p.topologies)}" for name, p in presets.items()
    ]
    return (
        (Settings.__doc__ or "")
        + "\n\nPresets (--preset NAME, or your own FILE.toml, or a run folder):\n"
        + "\n".join(lines)
    )


def _options(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The options of `Settings` as tyro would have them itself, but for the breaks of lines in its docstrings.

    tyro (1.0) keeps those of indented lines, and the help then breaks its lines there as well as at its own margin.
    """
    if info.type is not Settings:
        return None
    told = {
        each.arg_name: " ".join(each.description.split())
        for each in docstring_parser.parse_from_object(Settings).params
        if each.description
    }
    options = (
        StructFieldSpec(name, hint, getattr(info.default, name), told.get(name))
        for name, hint in get_type_hints(Settings).items()
    )
    return StructConstructorSpec(Settings, tuple(options))


_REGISTRY = ConstructorRegistry()
_REGISTRY.struct_rule(_options)


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
