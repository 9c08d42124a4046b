"""Imports point down the floors of the house, and only the top floor touches files, clocks and screens."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "__init__": 0, "protocol": 0,
    "trees": 1, "spelling": 1, "exit_codes": 1, "memory": 1, "factorizations": 1,
    "lora": 2, "topology": 2, "data": 2,
    "models": 3, "peft": 3, "mixing": 3,
    "methods": 4, "metrics": 4, "diagnostics": 4, "concentration": 4, "statistics": 4, "objectives": 4,
    "simulate": 5,
    "checkpoint": 6, "settings": 6, "run_folder": 6, "trackers": 6, "report": 6, "figures": 6, "doctor": 6,
    "console": 6, "problems": 6, "presets": 6, "studies": 6, "prepare": 6, "startup": 6, "experiment": 6,
    "refusal": 6, "planner": 6, "arguments": 6, "execution": 6, "interrupts": 6, "manifest": 6, "replay": 6,
    "resume": 6, "preset_files": 6, "processes": 6,
    "export": 6, "card": 6, "drawings": 6, "comparison": 6, "tables": 6, "page": 6, "commands": 6, "__main__": 6,
    "launchers": 6,
}  # fmt: skip
TOP = max(FLOORS.values())
BESIDE = {  # what a module may import on its own floor; all others import nothing there
    "peft": {"models"}, "experiment": set(FLOORS),
    "execution": set(FLOORS) - {"experiment", "replay", "commands", "planner"},
    "planner": {"prepare", "execution", "console", "report"},
    "replay": set(FLOORS) - {"commands"}, "processes": {"resume", "settings"},
    "manifest": {"arguments", "prepare", "problems", "processes", "resume", "run_folder"},
    "resume": {"checkpoint", "settings", "run_folder"}, "problems": {"settings"}, "presets": {"settings"},
    "settings": {"startup", "trackers"}, "trackers": {"run_folder"},
    "arguments": {"settings", "preset_files", "run_folder"}, "preset_files": {"settings"},
    "studies": {"run_folder", "figures"},
    "prepare": {"settings", "run_folder", "problems", "trackers"}, "console": {"report", "run_folder", "trackers"},
    "report": {"run_folder", "figures"}, "card": {"run_folder"},
    "drawings": {"figures"}, "comparison": {"report", "run_folder", "settings"}, "tables": {"comparison", "report"},
    "page": {"comparison", "report", "tables", "drawings", "figures", "run_folder"},
    "commands": set(FLOORS), "__main__": {"commands"}, "launchers": {"interrupts", "experiment", "presets"},
    "export": {"arguments", "checkpoint", "settings", "startup", "run_folder", "problems", "card"},
}  # fmt: skip
WRITERS = {"peft"}  # adapter folders are what it is for
MODULES = sorted((ROOT / "jaxdfl").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))

every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))


def place(path: Path) -> str:
    """The name that `FLOORS` knows a module by: its top-level package or module."""
    return path.relative_to(ROOT / "jaxdfl").parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all modules imported anywhere in the file; `from x import y` gives `x.y`."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            yield from (f"{source}.{alias.name}" for alias in node.names)


def effects(path: Path) -> Iterator[str]:
    """What the file does to, or learns from, the world outside."""
    for name in imports(path):
        if name.split(".")[0] in {"logging", "time", "datetime"} or name in {"os.environ", "os.getenv"}:
            yield f"imports {name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}:
            yield f"line {node.lineno} reads {ast.unparse(node)}"
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [n.value for n in ast.walk(node) if called == "open" and isinstance(n, ast.Constant)]
        if ast.unparse(node.func) == "print" or called in {"write_text", "write_bytes"}:
            yield f"line {node.lineno} calls {called}"
        elif any(isinstance(mode, str) and set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes):
            yield f"line {node.lineno} opens a file to write"


@every_module
def test_every_module_has_a_floor_and_a_telling_name(path):
    assert place(path) in FLOORS, f"place {place(path)!r} on a floor: in design.md section 1, then in FLOORS here"
    assert path.stem not in {"utils", "util", "helpers", "misc", "common"}, "name the module after what it does"


@every_module
def test_imports_point_down(path):
    here = place(path)
    for name in imports(path):
        if name.split(".")[0] != "jaxdfl":
            continue
        part = (*name.split("."), "__init__")[1]
        there = "__init__" if part.startswith("__") else part
        assert there in FLOORS, f"place {there!r} on a floor: in design.md section 1, then in FLOORS here"
        down = there == here or FLOORS[there] < FLOORS.get(here, 0)
        assert down or there in BESIDE.get(here, ()), f"{here} may not import {name}: imports point down"


@every_module
def test_torch_is_never_imported(path):
    assert "torch" not in {name.split(".")[0] for name in imports(path)}


@every_module
def test_engines_of_a_cluster_are_imported_only_by_their_launchers(path):
    found = {name.split(".")[0] for name in imports(path)} & {"ray", "submitit"}
    assert not found or path.stem in ("on_ray", "on_slurm")
    below = ast.parse(path.read_text(encoding="utf-8")).body
    above = {name for node in below if isinstance(node, ast.ImportFrom) for name in [node.module or ""]}
    assert not {name for name in above if name.startswith("jaxdfl.launchers.on_")}, "import it where it is asked for"


@every_module
def test_only_the_top_floor_prints_writes_and_reads_clocks(path):
    if FLOORS.get(place(path), 0) < TOP and place(path) not in WRITERS:
        assert not list(effects(path))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_experiments_hold_no_loop_over_rounds(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = ast.unparse(node).split(".")[-1] if isinstance(node, ast.Name | ast.Attribute) else ""
        loops = isinstance(node, ast.For | ast.AsyncFor | ast.While) or called in {"scan", "fori_loop", "while_loop"}
        assert not loops, f"line {getattr(node, 'lineno', 0)} loops; rounds are looped over in jaxdfl/simulate alone"
