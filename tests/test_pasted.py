"""As a new user: every printed command is run in a fresh copy and a fresh environment, in the order of its page.

`python -m pytest -m slow -n 0 -s tests/test_pasted.py` also shows what each says. It takes hours on two cores, and a
package index. `JAXDFL_DATA`, a folder as docs/howto/your_data.md lays it out, serves the lines that say DATA.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections import defaultdict
from pathlib import Path

import pytest
from printed import ROOT, Step, pages, python_in

PAGES = pages()
MINUTES = 30  # for a command at most
HUB, GPU, CLUSTER = "weights and data from the hub", "gigabytes, for a GPU", "a cluster with GPUs"
LONG = "the suite itself; .ci/run runs this line"
MEASURED = "a measurement, long, and of a quiet machine; the page prints shorter ones"
NOT_RUN = {  # command -> why; all others must end with exit code 0
    "python -m pytest": LONG,
    ".ci/run": "the same in an environment of its own",
    "python -m pytest -m slow tests/reliability": "hours; test by test it is what `-m slow` runs",
    "pytest -m slow tests/reliability/test_kills.py": "1 h 46 min, as the page says",
    "python -m pytest -m slow tests/reliability/test_lost_workers.py": "part of `-m slow` as it is",
    "jaxdfl sweep --launcher ray": "spoken of, in a table of what may happen",
    "python experiments/mnli.py --preset paper": HUB,
    "jaxdfl run --preset paper": HUB,
    "jaxdfl run --preset paper --dry-run": HUB,
    "jaxdfl run --preset paper --out runs/paper": HUB,
    "pip install -e '.[demo,cuda12]'": GPU,
    "python -m benchmarks.accelerator": "RoBERTa-large's size, for a GPU",
    "python -m benchmarks.accelerator --local-steps 20 --rounds 5 --profile": "the same",
    "python -m benchmarks.without_gpu": "wants JAX's compiler for GPUs, and says how to install it",
    "python -m benchmarks.rounds --no-roof --data-dir DATA --dtype bfloat16 --tolerance 0.02 --systems jaxdfl_sweep "
    "peft_loop --batch-size 32 --local-steps 5 --warm-up 2 --repetitions 3": "360 clients, for a GPU",
    "jaxdfl sweep --preset paper --rank 4 8 --launcher ray --ray-address auto --gpus 1 --out runs/paper_ray": CLUSTER,
    "jaxdfl sweep --preset paper --rank 4 8 --launcher slurm --gpus 1 --minutes 240 --slurm partition=gpu "
    "--out runs/slurm": CLUSTER,
    "srun --nodes 2 jaxdfl run --preset paper --out runs/paper_nodes --distributed": CLUSTER,
    "jaxdfl run --preset paper --distributed": CLUSTER,
    "python -m pytest -m slow tests/reliability/test_processes.py": "part of `-m slow` as it is",
    "pip-audit": "asks pypi.org itself",
    "wandb login": "an account",
    "wandb sync runs/two_trackers/wandb/offline-run-*": "an account",
    "python -m benchmarks.rounds --data-dir DATA --out rounds.json": MEASURED,
    "BENCHMARK_FLOWER_PYTHON=flower/bin/python python -m benchmarks.rounds --data-dir DATA": MEASURED,
    "python -m benchmarks.rounds --data-dir DATA --repetitions 5 --systems jaxdfl jaxdfl_padded peft_loop "
    "peft_loop_padded jax_loop torch_stacked": MEASURED,
    "python -m benchmarks.scaling --data-dir DATA --out scaling.json": MEASURED,
    "python -m benchmarks.scaling --data-dir DATA --axes clients --rounds 2 --stretches 3": MEASURED,
    "python -m benchmarks.scaling --data-dir DATA --axes clients --sizes 4 16 64 --rounds 10 --stretches 3": MEASURED,
    "BENCHMARK_FLOWER_PYTHON=flower/bin/python python -m benchmarks.rounds --data-dir DATA --repetitions 5 --systems "
    "jaxdfl jaxdfl_padded peft_loop peft_loop_padded jax_loop torch_stacked flower": MEASURED,
}
MINILM = "python experiments/mnli.py --preset minilm --data-dir DATA"
TOO_LONG = {  # command -> the operations that `--dry-run`, which is put behind it, says: 1e15 are about an hour
    MINILM: "1.3e16",
    f"{MINILM} --topologies ring erdos_renyi:0.1 --seeds 0 1 2": "3.9e16",
    "jaxdfl run --preset minilm --data-dir DATA --weights my_model --methods dec_lora tad_lora --out runs/own": "3e16",
}
SERVERS = {  # commands that serve until they are stopped -> where
    "mkdocs serve": "http://127.0.0.1:8000/",
    "tensorboard --logdir runs": "http://127.0.0.1:6006/",
    "mlflow ui": "http://127.0.0.1:5000/",
}
FIRST = {"benchmarks/README.md": "pip install torch==2.13.0"}  # page -> what it advises: here, a build for CPUs
OUT = re.compile(r"(?:--out|--to) (\S+)")


def test_what_is_not_run_is_still_printed():
    printed = {step.text for steps in PAGES.values() for step in steps}
    assert not {*NOT_RUN, *TOO_LONG, *SERVERS} - printed


def test_no_two_commands_of_all_pages_write_one_folder():
    """Who follows one page after the other is never refused; a report may be made anew, and a run gone on with."""
    written = defaultdict(set)
    for steps in PAGES.values():
        for step in steps:
            if (named := OUT.search(step.text)) and named[1] != "report" and "--resume" not in step.text:
                written[named[1]].add(step.text)
    assert {folder: commands for folder, commands in written.items() if len(commands) > 1} == {}


class Newcomer:
    """A person with a copy of the repository, an environment, and what they bring."""

    def __init__(self, home: Path):
        self.copy, self.data, self.done = home / "jaxdfl", os.environ.get("JAXDFL_DATA"), set()
        known = {
            name: value for name, value in os.environ.items() if name == "LANG" or name.startswith(("PIP_", "SSL_"))
        }
        cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True).stdout
        self.environment = {
            **known, "HOME": str(home), "PATH": f"{home}/venv/bin:{os.environ['PATH']}", "VIRTUAL_ENV": f"{home}/venv",
            "PIP_CACHE_DIR": cache.strip(),
        }  # fmt: skip
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)

    def clones(self) -> None:
        """A fresh copy, of files that git does not know yet too, with what a person brings."""
        shutil.rmtree(self.copy, ignore_errors=True)
        git = ["git", "-C", str(ROOT)]
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.copy)], check=True)
        changed = subprocess.run([*git, "ls-files", "-mo", "--exclude-standard"], capture_output=True, text=True)
        for name in filter(lambda name: (ROOT / name).is_file(), changed.stdout.splitlines()):
            (self.copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.copy / name)
        if self.data:
            (self.copy / "DATA").symlink_to(Path(self.data).resolve())

    def has(self) -> None:
        """The files that helps and pages take for granted: a preset, weights and a matrix of one's own."""
        (preset,) = (step for step in PAGES["docs/howto/presets.md"] if step.file)
        (self.copy / preset.file).write_text(preset.text, encoding="utf-8")
        brought = "import numpy, os; from jaxdfl.models import demo_weights; "
        brought += "os.symlink(demo_weights(), 'my_model'); numpy.save('weights.npy', numpy.full((10, 10), 0.1))"
        assert self.types(f'python -c "{brought}"') == 0

    def changed(self) -> str:
        """What git says that differs from the commit."""
        status = ["git", "-C", str(self.copy), "status", "--porcelain", "--untracked-files=all"]
        return subprocess.run(status, capture_output=True, text=True, check=True).stdout

    def types(self, command: str) -> int:
        """The exit code; what it says and how long it took is printed."""
        print(f"\n$ {command}", flush=True)
        begun = time.monotonic()
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=self.copy, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=60 * MINUTES)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = process.communicate()[0] + f"\n[more than {MINUTES} minutes]"
        print(f"{said}[exit code {process.returncode}, {time.monotonic() - begun:.0f} s]", flush=True)
        return process.returncode

    def serves(self, command: str) -> bool:
        """Whether its page can be had."""
        print(f"\n$ {command}", flush=True)
        with open(self.copy.parent / "served.log", "w+") as log:
            process = subprocess.Popen(
                ["bash", "-c", command], cwd=self.copy, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            try:
                return any(answers(SERVERS[command]) or time.sleep(1) for _ in range(120))
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=60)
                log.seek(0)
                print(log.read(), flush=True)


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """Who has installed as README says."""
    person = Newcomer(tmp_path_factory.mktemp("home"))
    person.clones()
    install = PAGES["README.md"][0].text
    assert "pip install" in install
    assert person.types(install) == 0
    return person


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_as_printed(page, newcomer):
    newcomer.clones()
    newcomer.has()
    before = newcomer.changed()
    assert page not in FIRST or newcomer.types(FIRST[page]) == 0
    failed = [step.text for step in PAGES[page] if not works(step, newcomer)]
    if page.endswith(".md") and (program := python_in(ROOT / page)):
        (newcomer.copy.parent / "pasted.py").write_text(program, encoding="utf-8")
        failed += [] if newcomer.types("python ../pasted.py") == 0 else ["its Python"]
    assert failed == []
    assert newcomer.changed() == before, "the copy would be called changed; see .gitignore"


def works(step: Step, newcomer: Newcomer) -> bool:
    """Types it, unless it is left out, or has worked on an earlier page and leaves nothing that this one needs."""
    command, again = step.text, not re.search("--out|--to|>|--resume", step.text)
    if step.file:
        (newcomer.copy / step.file).write_text(command, encoding="utf-8")
        return True
    if command in NOT_RUN or (again and command in newcomer.done):
        return True
    if re.search(r"\bDATA\b", command) and not newcomer.data:
        warnings.warn(f"not run, JAXDFL_DATA names no folder: {command}", stacklevel=1)
        return True
    newcomer.done.add(command)
    if command in SERVERS:
        return newcomer.serves(command)
    return newcomer.types(command + " --dry-run" * (command in TOO_LONG)) == 0


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_first_cells_of_every_notebook_install_jaxdfl_where_it_is_missing(tmp_path):
    """As on Colab, but that the notebook lies in a copy of the repository: IPython is there, jaxdfl is not."""
    person = Newcomer(tmp_path)
    person.clones()
    assert person.types("pip install ipython") == 0
    failed = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][:2]
        (person.copy / "notebooks" / "first_cells.py").write_text("\n".join(first), encoding="utf-8")
        failed += [] if person.types("cd notebooks && python first_cells.py") == 0 else [path.name]
    assert failed == []
