"""The command line: what is printed can be typed, mistakes take one line, and commands do what they say."""

import contextlib
import csv
import dataclasses
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from printed import ROOT, pages, printed_commands

from jaxdfl import __version__, experiment, presets
from jaxdfl.arguments import parse
from jaxdfl.commands import COMMANDS, launching, main
from jaxdfl.commands.methods import file_of, paper, spelt
from jaxdfl.commands.sweep import folder_name, split
from jaxdfl.methods import METHODS, WRAPPERS
from jaxdfl.prepare import spectrum_of
from jaxdfl.processes import DISTRIBUTED
from jaxdfl.report import share
from jaxdfl.run_folder import RunFolder, read_manifest
from jaxdfl.settings import check
from jaxdfl.topology import build


def said(capsys, *argv, code=0):
    """What a command prints, on stdout or, with one line, on stderr."""
    assert main(argv) == code
    out, err = capsys.readouterr()
    if code:
        assert (out, err.count("\n")) == ("", 1)
    return out or err


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A folder with what printed commands name: the preset file of docs/, and the runs whose settings are taken."""
    (file,) = (step for steps in pages().values() for step in steps if step.file)
    (tmp_path / file.file).write_text(file.text)
    named = re.findall(r"preset (runs/\w+)", "\n".join(printed_commands("jaxdfl ")))
    for name in sorted(set(named)):
        RunFolder(tmp_path / name).write_manifest({"settings": dataclasses.asdict(presets.PRESETS["demo"])})
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", printed_commands("jaxdfl "))
def test_every_printed_command_is_one_that_can_be_typed(command, at_home, capsys):
    _, name, *argv = shlex.split(command)
    assert name in COMMANDS
    if "--help" in argv:
        return
    if ">" in argv:
        assert main([name, *argv[: argv.index(">")]]) == 0
        assert tomllib.loads(capsys.readouterr().out)
        return
    if name in ("run", "sweep"):
        ours, argv = launching.apart(argv)
        launching.read(ours)
        grid = split(argv)
        words = [*grid.common, *(word for flag, (first, *_) in grid.axes.items() for word in (flag, first))]
        parse(presets.PRESETS, [word for word in words if (name, word) != ("run", DISTRIBUTED)])
    elif "--out" in argv or "--to" in argv:
        assert argv[argv.index("--out" if "--out" in argv else "--to") + 1]
    if name == "topology" and not argv[0].endswith(".npy"):
        build(argv[0], int(argv[argv.index("--clients") + 1]))


@pytest.mark.parametrize("command", printed_commands("python experiments/"))
def test_every_printed_experiment_is_one_that_can_be_started(command, monkeypatch):
    _, script, *argv = shlex.split(command)
    known = []
    monkeypatch.setattr(experiment, "main", lambda presets, study=None: known.append(presets) or 0)
    monkeypatch.syspath_prepend(ROOT / "experiments")  # as Python does for a script
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    parse(known[0], argv)


def test_help_lists_every_command_and_every_command_has_a_help_with_examples(capsys):
    text = said(capsys, "--help")
    assert said(capsys) == text
    for name, about in COMMANDS.items():
        assert about in text
        with contextlib.suppress(SystemExit):
            main([name, "--help"])
        shown = capsys.readouterr().out
        assert "examples:" in shown
        assert f"usage: jaxdfl {name}" in shown
    assert said(capsys, "--version").strip() == __version__


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("exprot runs/a", "unknown command 'exprot'. Did you mean 'export'? Known: run, sweep,"),
        ("run --preset huge", "unknown preset 'huge'"),
        ("run --ranks 3", "unknown option '--ranks'. Did you mean '--rank'?"),
        ("sweep --preset bilinear --rank 2 0", "`--rank` must be at least 1, got 0"),
        ("sweep --rank 2 2", "`--rank` takes one value, or different ones where it spans a grid, got 2 2"),
        ("sweep --out a b", "`--out` takes one value"),
        ("sweep --launcher slrum --rank 2 4", "argument --launcher: invalid choice: 'slrum' (choose from"),
        ("sweep --launcher ray --rank 2 4 --workers 1 8", "unknown option '8'"),
        ("sweep --launcher ray --workers 0", "`--workers` must be at least 1, got 0"),
        ("sweep --workers 2", "`--workers` goes with `--launcher ray or slurm`, here it is local"),
        ("sweep --launcher ray --minutes 5", "`--minutes` goes with `--launcher slurm`, here it is ray"),
        ("sweep --launcher slurm", "`--launcher slurm` needs `--minutes`"),
        (
            "sweep --launcher slurm --minutes 5 --slurm gpu",
            "`--slurm` takes KEY=VALUE, such as partition=gpu, got 'gpu'",
        ),
        ("sweep --launcher ray --dry-run", "`--dry-run` writes nothing and runs here; leave out `--launcher`"),
        ("topology rign", "unknown topology 'rign'; known are ring"),
        ("topology ring --client 3", "unknown option '--client'. Did you mean '--clients'?"),
        ("topology ring --clients three", "argument --clients: invalid int value: 'three'."),
        ("topology ring --out picture.gif", "`--out` must end in .png, .pdf or .svg, got 'picture.gif'"),
        ("topology", "the following arguments are required: SPEC."),
        ("methods tadlora", "unknown method 'tadlora'. Did you mean 'tad_lora'?"),
        ("export nowhere --to a", "nowhere/manifest.json is missing"),
        ("preset", "name a preset, a .toml file or a run folder first. Known presets: demo,"),
        ("preset demo --ranks 3", "unknown option '--ranks'. Did you mean '--rank'?"),
        ("doctor --nurse", "unknown option '--nurse'"),
    ],
)
def test_a_mistake_is_answered_in_one_line(capsys, argv, words):
    assert words in said(capsys, *argv.split(), code=2)


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxdfl", "--version"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == __version__


def test_topology_says_what_a_ring_is_and_draws_it(capsys, tmp_path):
    text = said(capsys, "topology", "ring", "--clients", "6", "--out", str(tmp_path / "new" / "ring.png"))
    sigma = 1 / 3 + 2 / 3 * np.cos(np.pi / 3)  # Metropolis-Hastings: a third each
    for words in (
        f"rho          {sigma**2:.4f} (exact)",
        f"{sigma:.4f} a round",
        "12.0 a round",
        "100% of rounds alone",
    ):
        assert words in text
    assert (tmp_path / "new" / "ring.png").read_bytes().startswith(b"\x89PNG")


def test_topology_and_a_report_say_the_same_of_single_rounds_however_few_connect(capsys):
    connected = spectrum_of(build("erdos_renyi:0.1", 10)).connected
    assert 0.003 < connected < 0.0095
    text = said(capsys, "topology", "erdos_renyi:0.1", "--clients", "10")
    assert f"connected    {share(connected)} of rounds alone; in 64 rounds, " in text
    shares = {0.0: "0%", 0.00025: "0.03%", 0.0058: "0.6%", 0.0096: "1%", 0.0104: "1%", 1.0: "100%"}
    assert {part: share(part) for part in shares} == shares


def test_topology_knows_networks_that_agree_exactly_or_never(capsys):
    assert "exact after 3 rounds" in said(capsys, "topology", "one_peer_exponential", "--clients", "8")
    text = said(capsys, "topology", "isolated", "--clients", "3")
    assert "none: the network never mixes" in text
    assert "0% of 32 in a row" in text


def test_methods_lists_every_registered_name_with_a_file_that_exists(capsys):
    text = said(capsys, "methods")
    for name, constructor in (METHODS | WRAPPERS).items():
        assert spelt(name, constructor) in text
        assert (ROOT / file_of(constructor)).is_file()
    assert paper(METHODS["tad_lora"]) == "arXiv 2602.00451"
    assert "Departures" in said(capsys, "methods", "tad_lora")


def test_doctor_passes_here(capsys):
    assert "self-test" in said(capsys, "doctor")


def test_the_presets_of_run_stand():
    for name, preset in presets.PRESETS.items():
        assert preset.preset == name
        check(preset)


def test_a_grid_takes_only_settings_of_one_value_as_axes():
    grid = split(["--rank=2", "--alpha", "4", "8", "--methods", "local", "dec_lora", "--local_steps", "1", "2"])
    assert grid.axes == {"--alpha": ["4", "8"], "--local-steps": ["1", "2"]}
    assert grid.common == ["--rank", "2", "--methods", "local", "dec_lora"]
    assert folder_name(grid.axes, ("4", "a/b")) == "alpha=4,local-steps=a_b"
    assert folder_name({}, ()) == "all"


def test_a_sweep_asks_for_every_point_and_joins_their_summaries(tmp_path, monkeypatch):
    asked = []

    def run(known, argv, command):
        asked.append(argv[:-2])
        folder = Path(argv[-1])
        folder.mkdir(parents=True)
        (folder / "summary.csv").write_text(f"method,error_mean\nlocal,{len(asked)}\n")
        return 0

    monkeypatch.setattr(experiment, "main", run)
    words = "sweep --preset bilinear --rank 1 2 --methods local --alpha 4 8"
    assert main([*words.split(), "--out", str(tmp_path)]) == 0
    common = ["--preset", "bilinear", "--methods", "local", "--out", str(tmp_path)]
    points = [("1", "4"), ("1", "8"), ("2", "4"), ("2", "8")]
    assert asked == [[*common, "--rank", rank, "--alpha", alpha] for rank, alpha in points]
    assert {path.name for path in tmp_path.iterdir()} == {f"rank={r},alpha={a}" for r, a in points} | {"sweep.csv"}
    table = (tmp_path / "sweep.csv").read_text().splitlines()
    assert table == [
        "rank,alpha,method,error_mean",
        *(f"{r},{a},local,{i}" for i, (r, a) in enumerate(points, start=1)),
    ]


@pytest.mark.slow
def test_a_sweep_leaves_a_run_folder_for_every_point_and_one_table(tmp_path):
    asked = "sweep --preset bilinear --rank 1 2 --seeds 0 --methods local --topologies ring --rounds 2 --clients 3"
    assert main([*asked.split(), "--out", str(tmp_path)]) == 0
    manifests = {rank: read_manifest(tmp_path / f"rank={rank}") for rank in (1, 2)}
    assert [manifest["settings"]["rank"] for manifest in manifests.values()] == [1, 2]
    assert manifests[1]["command"][:2] == ["jaxdfl", "run"]
    with open(tmp_path / "sweep.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["method"]) for row in rows] == [("1", "local"), ("2", "local")]


def test_a_sweep_stops_where_a_point_is_refused(tmp_path, capsys):
    asked = ["sweep", "--preset", "bilinear", "--rank", "99", "3", "--out", str(tmp_path)]
    assert main(asked) == 2
    assert "`--rank` must lie in 1..16" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_run_is_the_same_as_an_experiment_and_says_so_in_its_manifest(tmp_path, monkeypatch):
    commands = []

    def execute(prepared, folder, manifest):
        commands.append(manifest["command"])
        return 0

    monkeypatch.setattr(experiment, "execute", execute)
    asked = ["--preset", "bilinear", "--seeds", "0", "--clients", "3", "--out", str(tmp_path / "run")]
    assert main(["run", *asked]) == 0
    assert commands == [["jaxdfl", "run", *asked]]
