"""Presets, options over them, and what is refused before anything is loaded."""

import dataclasses
import json
import sys
from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxdfl.arguments import from_manifest, parse
from jaxdfl.settings import OPTIMIZERS, Settings, check, make_optimizer, make_step_scale

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import mnli
import sst2

BASE = Settings("base", "sst2", "demo", ("dec_lora", "tad_lora"), ("ring",), clip=1.0)
MNLI = {preset.preset: preset for preset in (mnli.DEMO, mnli.MINILM, mnli.PAPER)}
OTHER = dataclasses.replace(BASE, preset="other", rounds=7, seeds=(1, 2))
PRESETS = {"base": BASE, "other": OTHER}


def changed(**changes):
    return dataclasses.replace(BASE, **changes)


def test_without_options_the_first_preset_is_taken_as_it_is():
    assert parse(PRESETS, []) == BASE


@pytest.mark.parametrize("argv", [["--preset", "other"], ["--preset=other"], ["--clients", "3", "--preset", "other"]])
def test_a_preset_is_taken_by_name_wherever_it_stands(argv):
    assert dataclasses.replace(parse(PRESETS, argv), clients=OTHER.clients) == OTHER


def test_options_replace_what_the_preset_says_and_leave_the_rest():
    asked = [
        "--preset",
        "other",
        "--methods",
        "tad_lora:3",
        "--learning-rate=0.1",
        "--clip",
        "None",
        "--no-checkpoints",
    ]
    changes = {"methods": ("tad_lora:3",), "learning_rate": (0.1,), "clip": None, "checkpoints": False}
    assert parse(PRESETS, asked) == dataclasses.replace(OTHER, **changes)


def test_help_prints_options_and_presets_and_ends_well(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(PRESETS, ["--help"])
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "--local-steps" in said
    assert "other: task sst2, weights demo, on ring" in said


def test_help_breaks_its_lines_at_the_margin_alone(capsys):
    with pytest.raises(SystemExit):
        parse(PRESETS, ["--help"])
    lines = capsys.readouterr().out.replace("│", " ").splitlines()
    first = next(number for number, line in enumerate(lines) if "show this help message" in line)
    column = lines[first].index("show this help message")
    margin = max(map(len, (line.rstrip() for line in lines[first:])))
    for line, following in pairwise(map(str.rstrip, lines[first:])):
        if line[column - 2 : column] == "  " and following[:column].isspace():  # the first line's help goes on
            assert len(f"{line} {following.split()[0]}") > margin, f"{line!r} ends before {following!r}"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--preset", "othr"], "unknown preset 'othr'. Did you mean 'other'? Known: base, other."),
        (["--preset"], "--preset"),
        (["--batch_sise", "3"], "unknown option '--batch_sise'. Did you mean '--batch-size'?"),
        (["--nothing-like-it"], "unknown option '--nothing-like-it'. See --help"),
        (["--rounds", "1.5"], "--rounds: invalid literal for int() with base 10: '1.5'"),
        (["--learning-rate", "fast"], "--learning-rate: Could not find valid parse for arguments: ['fast']"),
        (["--head", "froze"], "Expected one of ('frozen', 'trained')"),
        (["--clip", "often"], "--clip"),
        (["--methods"], "`--methods` is empty"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argv, words, capsys):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are compared below, on one line)
        parse(PRESETS, argv)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "│" not in str(error.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "mnly"}, "Did you mean 'mnli'"),
        ({"methods": ("tad",)}, "unknown method 'tad'"),
        ({"topologies": ("ring", "ring")}, "names one twice: ring ring"),
        ({"seeds": (-1,)}, "`--seeds` must lie in"),
        ({"local_steps": 0}, "`--local-steps` must be at least 1, got 0"),
        ({"eval_examples": 0}, "`--eval-examples` must be at least 1"),
        ({"client_chunk": 0}, "`--client-chunk` must be at least 1"),
        ({"learning_rate": (0.1, 0.1)}, "`--learning-rate` names one twice: 0.1 0.1"),
        ({"runs_at_once": 0}, "`--runs-at-once` must be at least 1"),
        ({"learning_rate": (1e-3, 0.0)}, "`--learning-rate` must be a positive number"),
        ({"learning_rate": (float("nan"),)}, "`--learning-rate` must be a positive number"),
        ({"alpha": float("inf")}, "`--alpha` must be a positive number"),
        ({"clip": -1.0}, "`--clip` must be a positive number"),
        ({"lora_dropout": 1.0}, r"`--lora-dropout` must lie in \[0, 1.0\)"),
        ({"weight_decay": -0.1}, "`--weight-decay` must lie in"),
        ({"targets": ("(",)}, "no regular expression"),
        ({"max_length": 4}, "`--max-length` must be at least 8"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        check(changed(**changes))


def test_several_learning_rates_may_be_given():
    assert parse(PRESETS, ["--learning-rate", "1e-3", "3e-3"]).learning_rate == (1e-3, 3e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_learning_rate_schedule_falls_from_the_rate_to_zero_over_the_rounds(schedule):
    scale = make_step_scale(changed(learning_rate_schedule=schedule, rounds=10), 0.5)
    values = [float(scale(round)) for round in range(11)]
    assert values[0] == 0.5
    assert values[10] == pytest.approx(0, abs=1e-7)
    assert values == sorted(values, reverse=True)


def test_a_constant_learning_rate_stays():
    assert [make_step_scale(BASE, 0.25)(round) for round in (0, 7, 149)] == [0.25] * 3


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion"])
def test_every_optimizer_steps_against_the_gradient_at_the_learning_rate_asked_for(name):
    """The rate is a factor on the updates of one at a rate of 1: exact, weight decay included."""
    settings = changed(optimizer=name, weight_decay=0.1)
    decay = {"weight_decay": 0.1} if name in ("adamw", "lion") else {}
    weight = jnp.array([0.3, -2.0, 0.0])
    unit, at_rate = make_optimizer(settings), OPTIMIZERS[name](0.03, **decay)
    updates, _ = unit.update(jnp.ones(3), unit.init(weight), weight)
    expected, _ = at_rate.update(jnp.ones(3), at_rate.init(weight), weight)
    assert (make_step_scale(settings, 0.03)(0) * updates == expected).all()
    assert (expected < 0).all()  # the first step of each is sign or value of the gradient


# Settings that a manifest keeps


@pytest.mark.parametrize("settings", [BASE, OTHER])
def test_settings_come_back_from_the_json_of_a_manifest(settings):
    assert from_manifest(json.loads(json.dumps({"settings": dataclasses.asdict(settings)}))) == settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 1}, "holds colour, unknown here: another version of jaxdfl wrote it; use that version"),
        ({"rank": 0}, "`--rank` must be at least 1, got 0"),
    ],
)
def test_a_manifest_with_settings_unknown_or_out_of_range_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        from_manifest({"settings": {**dataclasses.asdict(BASE), **changes}})


def test_a_manifest_that_lacks_settings_is_refused_with_their_names():
    kept = {name: value for name, value in dataclasses.asdict(BASE).items() if name not in ("rank", "alpha")}
    with pytest.raises(ValueError, match="`settings` of the manifest lacks rank, alpha"):
        from_manifest({"settings": kept})


# The presets of the experiments


@pytest.mark.parametrize("presets", [MNLI, sst2.PRESETS], ids=["mnli", "sst2"])
def test_the_presets_of_an_experiment_stand(presets):
    assert list(presets) == ["demo", "minilm", "paper"]
    for name, preset in presets.items():
        assert preset.preset == name
        check(preset)
    assert presets["demo"].methods == ("dec_lora", "ffa_lora", "rolora", "tad_lora")


def test_the_paper_preset_is_the_papers_setting():
    paper = mnli.PAPER
    assert (paper.clients, paper.rounds, paper.local_steps, paper.batch_size) == (10, 150, 20, 32)
    assert (paper.max_length, paper.rank, paper.alpha, paper.lora_dropout) == (128, 8, 16, 0.1)
    assert (paper.head, paper.partition, len(paper.seeds)) == ("frozen", "paper", 3)
    assert paper.topologies == ("erdos_renyi:0.5", "erdos_renyi:0.1", "erdos_renyi:0.02")
