"""Points on workers: begun again where one dies, told of in a line each, stopped and saved when asked; as jobs too."""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxdfl.commands import launching, main
from jaxdfl.exit_codes import AT_ONCE, FAILED, STOPPED
from jaxdfl.launchers import End, Point, launch
from jaxdfl.launchers.worker import Work, last_line

ROOT = Path(__file__).parents[1]
LOST = End(None, "node 3 is gone")


def point(folder, script="", name="rank=2"):
    return Point(str(folder / name), ("-c", script), str(folder), str(folder / f"{name}.log"))


class Scripted:
    """An engine whose workers do what they are told: how each try of each point ends, and in what order."""

    def __init__(self, ends, room=None):
        self.left, self.room = {name: list(each) for name, each in ends.items()}, room
        self.running, self.most, self.begun, self.stopped = [], 0, [], False

    def start(self, point):
        name = Path(point.folder).name
        if self.left[name][0] is OSError:
            raise OSError("the queue is full")
        self.running.append(point)
        self.begun.append(name)
        self.most = max(self.most, len(self.running))
        return ""

    def ended(self):
        point = self.running.pop(0)
        yield point, self.left[Path(point.folder).name].pop(0)

    def stop(self):
        self.stopped = True

    def close(self):
        pass


def launched(engine, tmp_path, **options):
    lines = []
    points = [point(tmp_path, name=name) for name in engine.left]
    ends = launch(engine, points, say=lines.append, **options)
    return [ends[each] for each in points], [line.replace(f"{tmp_path}/", "") for line in lines]


def test_a_point_whose_worker_dies_is_begun_again_and_the_others_do_not_notice(tmp_path):
    engine = Scripted({"a": [LOST, End(-9, "training"), End(0, "")], "b": [End(3, "warning: ...")]})
    ends, lines = launched(engine, tmp_path)
    assert ends == [End(0, ""), End(3, "warning: ...")]
    assert lines == [
        "[1 of 2] a: begun",
        "[2 of 2] b: begun",
        "[1 of 2] a: its worker died: node 3 is gone; try 2 of 3 follows",
        "[1 of 2] a: goes on",
        "[2 of 2] b: done, but for runs with bad numbers",
        "[1 of 2] a: its process died of signal 9; try 3 of 3 follows",
        "[1 of 2] a: goes on",
        "[1 of 2] a: done",
    ]


@pytest.mark.parametrize("tries", [1, 4])
@pytest.mark.parametrize("end", [LOST, End(-11, ""), End(STOPPED, "stopping"), End(AT_ONCE, "")])
def test_tries_are_bounded(tmp_path, tries, end):
    engine = Scripted({"a": [end] * 9})
    (found,), lines = launched(engine, tmp_path, tries=tries)
    assert engine.begun == ["a"] * tries
    assert found.code == FAILED
    assert f"given up after {tries} tries" in lines[-1]


@pytest.mark.parametrize("end", [End(2, "`--rank` is bad"), End(1, "no space left"), OSError])
def test_what_is_refused_or_breaks_off_is_not_tried_again_and_stops_nothing(tmp_path, end):
    engine = Scripted({"a": [end], "b": [End(0, "")], "c": [End(0, "")]}, room=1)
    ends, _ = launched(engine, tmp_path)
    assert [each.code for each in ends] == [FAILED if end is OSError else end.code, 0, 0]
    assert engine.begun == (["b", "c"] if end is OSError else ["a", "b", "c"])


def test_a_sweep_none_of_whose_points_can_be_begun_ends(tmp_path):
    ends, lines = launched(Scripted({"a": [OSError], "b": [OSError]}), tmp_path)
    assert [each.code for each in ends] == [FAILED, FAILED]
    assert lines[-1] == "[2 of 2] b: broke off: the queue is full"


def test_no_more_points_run_at_a_time_than_there_is_room_for(tmp_path):
    ends = {str(number): [End(0, "")] for number in range(7)}
    for room, most in ((3, 3), (None, 7)):
        engine = Scripted(ends, room=room)
        launched(engine, tmp_path)
        assert engine.most == most


def test_a_signal_lets_the_workers_save_and_begins_no_more(tmp_path):
    class Asked(Scripted):
        def ended(self):
            if not self.stopped:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)  # the signal is heard by a thread
                return []
            return super().ended()

    engine = Asked({"a": [End(STOPPED, "")], "b": [End(0, "")], "c": [LOST], "d": [End(0, "")]}, room=3)
    ends, lines = launched(engine, tmp_path)
    assert [each.code for each in ends] == [STOPPED, 0, STOPPED, STOPPED]
    assert engine.begun == ["a", "b", "c"]
    assert any("stopping" in line for line in lines)


def test_a_worker_returns_the_exit_code_and_the_last_line(tmp_path):
    refused = point(tmp_path, "import sys; print('error: no such file', file=sys.stderr); sys.exit(2)")
    assert Work()(refused) == End(2, "no such file")
    assert Work()(point(tmp_path, "import os; os.kill(os.getpid(), 9)")).code == -9
    assert last_line(refused.log) == "no such file", "tries share a log"


def test_a_worker_gives_xla_its_share_of_the_cores_unless_told_otherwise(tmp_path, monkeypatch):
    seen = point(tmp_path, "import os; print(os.environ.get('NPROC'), os.environ.get('OMP_NUM_THREADS'))")
    for name in ("NPROC", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert Work()(seen, threads=3).said == "3 3"
    assert Work()(seen).said == "None None"
    monkeypatch.setenv("NPROC", "7")
    assert Work()(seen, threads=3).said == "7 3"


SAVES = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
saved = pathlib.Path("saved")
if not saved.exists():
    saved.write_text("once")
    print("waits", flush=True)
    time.sleep(60)
print("went on")
"""


def said(point):
    return last_line(point.log) if Path(point.log).exists() else ""


def until(condition):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 60
        time.sleep(0.05)


def test_sigterm_goes_on_to_the_process_of_the_point(tmp_path):
    asked = point(tmp_path, SAVES)

    def ask():
        until(lambda: said(asked) == "waits")
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=ask).start()
    assert Work()(asked).code == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_that_ray_cancels_lets_the_process_save(tmp_path):
    asked = point(tmp_path, SAVES)

    def cancel():
        until(lambda: said(asked) == "waits")
        _thread.interrupt_main()  # as Ray does it: no signal is sent, so no system call ends early

    threading.Thread(target=cancel).start()
    assert Work()(asked).code == 75


def alive(pid):
    """Whether a process runs; a zombie does not."""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


reads_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")


@reads_proc
def test_a_killed_worker_leaves_no_process_that_would_write_on(tmp_path):
    runs = """
import threading, time
from jaxdfl.launchers.__main__ import end_with_the_worker
threading.Thread(target=end_with_the_worker, daemon=True).start()
print("runs", flush=True)
time.sleep(60)
"""
    asked = point(tmp_path, runs)._replace(directory=str(ROOT))
    call = f"from jaxdfl.launchers import Point; from jaxdfl.launchers.worker import Work; Work()({asked!r})"
    worker = subprocess.Popen([sys.executable, "-c", call], cwd=ROOT)
    until(lambda: said(asked) == "runs")
    (child,) = children(worker.pid)
    assert alive(child)
    worker.kill()
    worker.wait()
    until(lambda: not alive(child))


class Rows(Scripted):
    """Workers that write the summary of a point, and keep what they were asked for."""

    asked = ()

    def start(self, point):
        folder = Path(point.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text('{"jaxdfl": "0"}')
        (folder / "summary.csv").write_text("method,error_mean\nlocal,1\n")
        self.asked = (*self.asked, point)
        return super().start(point)


def swept(monkeypatch, tmp_path, ends, *options):
    engine = Rows(ends)
    monkeypatch.setattr(launching, "_engine", lambda how, out: engine)
    words = f"sweep --preset bilinear --methods local --rank 1 2 --launcher ray --out {tmp_path}/new".split()
    return main([*words, *options]), engine


def test_a_sweep_on_workers_leaves_the_same_folders_and_table(tmp_path, monkeypatch):
    code, engine = swept(monkeypatch, tmp_path, {"rank=1": [LOST, End(0, "")], "rank=2": [End(3, "")]})
    assert code == 0
    assert (tmp_path / "new" / "sweep.csv").read_text() == "rank,method,error_mean\n1,local,1\n2,local,1\n"
    first = engine.asked[0]
    again = ("--rank", "1", "--out", f"{tmp_path}/new/rank=1", "--no-overwrite", "--resume")
    assert first.python[:2] == ("-m", "jaxdfl.launchers")
    assert first.python[-6:] == again
    assert (first.directory, first.log) == (os.getcwd(), f"{tmp_path}/new/rank=1.log")
    assert engine.asked.count(first) == 2


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (End(2, "`--rank` is bad"), 2, "1 of 2 points refused. {}/new/rank=2: `--rank` is bad"),
        (
            End(1, "no space left"),
            1,
            "1 of 2 points not done; the same command with --resume goes on. {}/new/rank=2: no",
        ),
    ],
)
def test_a_sweep_ends_with_the_code_and_the_line_of_the_point_that_is_not_done(
    tmp_path, monkeypatch, capsys, end, code, words
):
    assert swept(monkeypatch, tmp_path, {"rank=1": [End(0, "")], "rank=2": [end]})[0] == code
    assert words.format(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "new" / "sweep.csv").exists()


def test_folders_are_checked_before_anything_is_launched_and_replaced_once(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "new" / "rank=2"
    folder.mkdir(parents=True)
    for name, text in (("manifest.json", '{"jaxdfl": "0"}'), ("rounds.jsonl", "{}\n")):
        (folder / name).write_text(text)
    ends = {"rank=1": [End(0, "")], "rank=2": [LOST, End(0, "")]}
    code, engine = swept(monkeypatch, tmp_path, ends)
    assert (code, engine.asked) == (2, ())
    assert "is not empty" in capsys.readouterr().err
    assert swept(monkeypatch, tmp_path, ends, "--resume")[0] == 0
    assert (folder / "rounds.jsonl").exists()
    assert swept(monkeypatch, tmp_path, ends, "--overwrite")[0] == 0
    assert not (folder / "rounds.jsonl").exists()


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm --minutes 5", "submitit")])
def test_an_engine_that_is_absent_is_named_with_its_extra(tmp_path, monkeypatch, capsys, launcher, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"jaxdfl.launchers.on_{launcher.split()[0]}", raising=False)
    words = f"sweep --preset bilinear --rank 1 2 --out {tmp_path} --launcher {launcher}"
    assert main(words.split()) == 2
    assert f"needs {package}: pip install 'jaxdfl[{launcher.split()[0]}]'" in capsys.readouterr().err


@pytest.fixture
def slurm(tmp_path):
    pytest.importorskip("submitit")
    from jaxdfl.launchers.on_slurm import Slurm

    return Slurm(
        tmp_path / "slurm", room=None, cpus=None, gpus=0, minutes=5, options={"cluster": "local", "partition": "gpu"}
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, 'Could not detect "srun"'), ({"cluster": "local", "partitoin": "gpu"}, "Unknown argument 'partitoin'")],
)
def test_slurm_that_is_absent_and_options_that_it_does_not_know_are_refused(tmp_path, monkeypatch, options, words):
    pytest.importorskip("submitit")
    from jaxdfl.launchers.on_slurm import Slurm

    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=words):
        Slurm(tmp_path, room=None, cpus=None, gpus=0, minutes=5, options=options)


def test_a_job_returns_how_its_point_ended_and_one_that_is_killed_is_begun_again(tmp_path, slurm):
    kills_its_worker_once = """
import os, pathlib
if not pathlib.Path("once").exists():
    pathlib.Path("once").touch()
    os.kill(os.getppid(), 9)
print("went on")
"""
    points = [point(tmp_path, kills_its_worker_once), point(tmp_path, "raise SystemExit(2)", name="rank=4")]
    points.append(point(tmp_path, name="rank=8")._replace(directory=str(tmp_path / "of another machine")))
    lines = []
    slurm_job = type(slurm.executor._executor).job_class
    slurm_job._results_timeout_s, before = 1, slurm_job._results_timeout_s  # seconds that submitit waits for slow disks
    try:
        ends = launch(slurm, points, say=lines.append)
    finally:
        slurm_job._results_timeout_s = before
    assert [ends[each].code for each in points] == [0, 2, 1]
    assert "No such file or directory" in ends[points[2]].said
    assert ends[points[0]].said == "went on"
    assert any("its worker died: job" in line and "try 2 of 3 follows" in line for line in lines)


@reads_proc
def test_a_job_that_is_preempted_saves_and_is_queued_again(tmp_path, slurm):
    asked = point(tmp_path, SAVES)
    slurm.start(asked)
    until(lambda: said(asked) == "waits")
    (job,) = children(slurm.running[asked].job_id)  # of the process that stands in for Slurm
    os.kill(int(job), signal.SIGUSR2)
    ends = {}
    until(lambda: ends.update(slurm.ended()) or ends)
    assert ends == {asked: End(0, "went on")}
    (log,) = (tmp_path / "slurm").glob("*_log.out")
    assert "Requeued job" in log.read_text()
