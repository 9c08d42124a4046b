"""A preset of a person's own is a TOML file: read over a preset known by name, written from any settings."""

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdfl import preset_files
from jaxdfl.arguments import from_manifest, parse
from jaxdfl.commands import main
from jaxdfl.presets import PRESETS
from jaxdfl.run_folder import RunFolder

WHOLE = dataclasses.replace(
    PRESETS["paper"], weights='a "quoted" \\ path\nand\x7f a \t tab', clip=None, train_examples=7, packing=False
)


@pytest.fixture
def file(tmp_path):
    """A text -> the path of a file that holds it."""

    def write(text: str) -> str:
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        return str(tmp_path / "mine.toml")

    return write


def test_a_file_changes_what_it_names_and_takes_the_rest_from_its_base(file):
    path = file('base = "paper"\nmethods = ["dec_lora"]\nlearning-rate = 1e-3\nlora_dropout = 0\nclip = "None"\n')
    changes = {"methods": ("dec_lora",), "learning_rate": (1e-3,), "lora_dropout": 0.0, "clip": None}
    found = parse(PRESETS, ["--preset", path])
    assert found == dataclasses.replace(PRESETS["paper"], preset="mine", **changes)
    assert isinstance(found.lora_dropout, float)


def test_without_a_base_the_first_preset_is_taken(file):
    assert parse(PRESETS, ["--preset", file("")]) == dataclasses.replace(PRESETS["demo"], preset="mine")


@pytest.mark.parametrize("argv", [["--rounds", "9", "--preset"], ["--preset"]])
def test_the_command_line_replaces_what_the_file_says(file, argv):
    path = file("rounds = 3\nseeds = [0, 1]\n")
    assert parse(PRESETS, [*argv, path, *(() if "--rounds" in argv else ("--rounds", "9"))]).rounds == 9
    assert parse(PRESETS, [f"--preset={path}", "--seeds", "4"]).seeds == (4,)


def test_help_shows_the_defaults_of_the_file(file, capsys):
    with pytest.raises(SystemExit):
        parse(PRESETS, ["--preset", file("rounds = 4321"), "--help"])
    assert "4321" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rouns = 3", "unknown setting 'rouns'. Did you mean 'rounds'? Known are the options of `jaxdfl run --help`."),
        ("[run]\nrounds = 3", "unknown setting 'run'."),
        ("rounds = '3'", "`rounds` must be a whole number, got '3'."),
        ("rounds = 3.0", "`rounds` must be a whole number, got 3.0."),
        ("rounds = true", "`rounds` must be a whole number, got True."),
        ("clip = 'often'", "`clip` must be a number or \"None\", got 'often'."),
        ("packing = 1", "`packing` must be true or false, got 1."),
        ("methods = [3]", "`methods` must be text in quotes, or an array of such, got [3]."),
        ("learning-rate = 2026-11-27", "`learning-rate` must be a number, or an array of such"),
        ("[alpha]\nrounds = 3", "`alpha` must be a number, got {'rounds': 3}."),
        ("head = 'froze'", '`head` must be one of "frozen", "trained", got \'froze\'.'),
        ("local-steps = 3\nlocal_steps = 3", "'local_steps' comes twice"),
        ("preset = 'demo'", "name the preset that it starts from by `base`"),
        ("base = 'papr'", "`base` is 'papr', no preset. Did you mean 'paper'? Known: demo,"),
        ("base = 3", "`base` is 3, no preset. Known: demo,"),
        ("rounds = ", "is no TOML (Invalid value (at end of document)); write a line `setting = value`"),
        ("rounds = 3\nrounds = 4", "is no TOML (Cannot overwrite a value"),
        ("x = " + "[" * 5000, "is no TOML ("),
        ("x = " + "9" * 5000, "is no TOML ("),
        ("rank = 0", "`--rank` must be at least 1, got 0. (The preset is "),
        ("alpha = " + "9" * 400, "`--alpha` must be a positive number, got inf."),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_file_key_and_remedy(file, text, words):
    path = file(text)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are compared below)
        parse(PRESETS, ["--preset", path])
    assert words in str(error.value)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_absent_or_a_folder_is_named(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    for name in ("absent.toml", "folder.toml"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.+\); name the .toml file of a preset"):
            parse(PRESETS, ["--preset", str(tmp_path / name)])


@pytest.mark.parametrize("settings", [*PRESETS.values(), WHOLE], ids=lambda settings: settings.preset)
def test_what_is_written_comes_back_whatever_the_first_preset_is(file, settings):
    path = file(preset_files.text(settings))
    for presets in (PRESETS, dict(reversed(PRESETS.items()))):
        assert preset_files.read(Path(path), presets) == dataclasses.replace(settings, preset="mine")


@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.floats(allow_nan=False)), st.none() | st.floats())
def test_any_text_and_any_number_comes_back(weights, rates, clip):
    if clip is not None and clip - clip != 0:
        clip = 0.0  # infinities and NaN are in no setting that was checked
    rates = [rate for rate in rates if rate - rate == 0]
    settings = dataclasses.replace(WHOLE, weights=weights, learning_rate=tuple(rates), clip=clip)
    found = tomllib.loads(preset_files.text(settings))
    assert (found["weights"], found["learning-rate"]) == (weights, rates)
    assert found["clip"] == ("None" if clip is None else clip)


def test_a_run_folder_serves_as_a_preset_and_becomes_a_file(tmp_path, monkeypatch, capsys):
    """All but the settings of that one command, such as its folder."""
    ran = dataclasses.replace(WHOLE, weights="w", out="runs/first", overwrite=True)
    RunFolder(tmp_path / "runs" / "first").write_manifest({"settings": dataclasses.asdict(ran)})
    monkeypatch.chdir(tmp_path)
    expected = dataclasses.replace(ran, preset="first", out=None, overwrite=False)
    assert parse(PRESETS, ["--preset", "runs/first"]) == expected
    assert main(["preset", "runs/first", "--rounds", "3"]) == 0
    Path("mine.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert parse(PRESETS, ["--preset", "mine.toml"]) == dataclasses.replace(expected, preset="mine", rounds=3)
    kept = json.loads(json.dumps({"settings": dataclasses.asdict(parse(PRESETS, ["--preset", "mine.toml"]))}))
    assert from_manifest(kept).preset == "mine"


def test_a_folder_that_is_no_run_is_no_preset(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json is missing or not a manifest"):
        parse(PRESETS, ["--preset", str(tmp_path)])
