"""Trackers are told what the rows hold, no step twice, and can neither end nor change a run."""

import json
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from jaxdfl import execution, exit_codes, experiment, trackers
from jaxdfl import replay as replaying
from jaxdfl.presets import BILINEAR, named
from jaxdfl.run_folder import RunFolder, of_run, read_manifest, read_rows
from jaxdfl.trackers import Tracking

SMALL = named(BILINEAR)
ASKED = ["--methods", "dec_lora", "tad_lora:1", "--seeds", "0", "1", "--clients", "3", "--rounds", "6"]
ASKED += ["--eval-every", "2", "--local-steps", "1", "--checkpoints", "--checkpoint-every", "2"]
ASKED += ["--checkpoints-kept", "9"]
FILES = ("rounds", "metrics")


class Recording:
    """A tracker that keeps what it is told."""

    def __init__(self, run):
        self.run, self.points, self.ends = run, [], []

    def log(self, points):
        self.points += points

    def close(self, whole):
        self.ends.append(whole)


class Broken(Recording):
    """One that fails when it is told something."""

    def log(self, points):
        raise RuntimeError("no\nnetwork")


@pytest.fixture
def backend(monkeypatch):
    """name, what begins a run -> that backend is known."""

    def add(name, begin):
        monkeypatch.setitem(trackers.BACKENDS, name, (name, name))
        monkeypatch.setitem(sys.modules, f"jaxdfl.trackers.{name}", SimpleNamespace(begin=begin))

    return add


@pytest.fixture
def recorded(backend):
    """What a backend called `recording` is told, run by run."""
    found = []
    backend("recording", lambda run: found.append(Recording(run)) or found[-1])
    return found


def run(out, *options):
    return experiment.main(SMALL, [*ASKED, "--out", str(out), *options])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of four runs that nobody tracked."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))  # all here are the same
    reset_cache()
    out = tmp_path_factory.mktemp("runs") / "done"
    assert run(out) == 0
    yield out
    jax.config.update("jax_compilation_cache_dir", before)
    reset_cache()


def rows(out, file):
    """All rows, without the one quantity that is not the run's own."""
    return [{**row, "seconds": None} for row in read_rows(out / f"{file}.jsonl")]


def expected(out, entry):
    """The rounds of a run, and every finite number of its rows there."""
    points: dict[int, dict[str, float]] = {}
    for file in FILES:
        for row in of_run(read_rows(out / f"{file}.jsonl"), entry):
            values = {f"{file}/{key}": value for key, value in row.items() if isinstance(value, int | float)}
            del values[f"{file}/seed"], values[f"{file}/round"]
            points.setdefault(row["round"], {}).update(values)
    return points


def joined(points):
    """Points by round; fails where a value is told twice."""
    found: dict[int, dict[str, float]] = {}
    for round, values in points:
        assert not values.keys() & found.get(round, {}).keys(), round
        found.setdefault(round, {}).update(values)
    return found


def cut(out, to):
    """Rows after a round are gone, as where a run was killed; the rounds it has then."""
    for file in FILES:
        kept = [row for row in read_rows(out / f"{file}.jsonl") if row["round"] <= to]
        (out / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


def process(done, out, name, *, after, warn=pytest.fail):
    """What a process does to a backend that goes on after a round with the runs of `done`, in the folder `out`."""
    out.mkdir(exist_ok=True)
    for file in ("manifest.json", *(f"{file}.jsonl" for file in FILES)):
        shutil.copy(done / file, out / file)
    cut(out, after)
    folder = RunFolder(out, resume=True)
    tracking = Tracking(trackers.load([name]), folder, read_manifest(out), warn)
    entries = read_manifest(out)["runs"]
    tells = [tracking.begin(number) for number in range(len(entries))]
    for stop in (0, 2, 4, 6):
        for tell, entry in zip(tells, entries, strict=True):
            new = [(file, row) for file in FILES for row in of_run(read_rows(done / f"{file}.jsonl"), entry)]
            tell([(file, row) for file, row in new if max(after, stop - 2) < row["round"] <= stop])
    tracking.close()
    folder.close()


# What is told


def test_every_number_of_the_rows_is_told_once_by_round_and_run_and_changes_none(
    recorded, backend, done, tmp_path, capsys
):
    """Beside a backend that fails, which is warned of once and has no other effect."""
    backend("broken", Broken)
    assert run(tmp_path / "run", "--track", "broken", "recording") == 0
    said = capsys.readouterr()
    assert " ".join(said.out.split()).count("--track broken fails and is left out from here on: no network") == 1
    assert said.err == ""
    for file in FILES:
        assert rows(tmp_path / "run", file) == rows(done, file)
    manifest = read_manifest(tmp_path / "run")
    assert len(recorded) == 4
    for number, each in enumerate(recorded):
        entry = manifest["runs"][number]
        assert each.run.id == f"{manifest['id']}-{number:03d}"
        assert each.run.group == f"{tmp_path.name}/run"
        assert each.run.config["method"] == entry["method"]
        assert each.run.config["learning_rate"] == BILINEAR.learning_rate[0]
        assert each.run.config["rank"] == BILINEAR.rank
        assert joined(each.points) == expected(tmp_path / "run", entry)
        assert [round for round, _ in each.points] == sorted(round for round, _ in each.points)
        assert each.ends == [True]
    names = [each.run.name for each in recorded]
    assert names[0] == "dec_lora on erdos_renyi:0.1, seed 0"
    assert len(set(names)) == 4
    first = joined(recorded[0].points)
    assert set(first) == set(range(7))
    assert "rounds/loss" not in first[0]  # no round yet
    assert {"metrics/error_mean", "metrics/bytes", "rounds/bytes", "rounds/cross_term"} <= set(first[6])
    assert first[6]["metrics/bytes"] == sum(first[round]["rounds/bytes"] for round in range(1, 7))
    assert "metrics/error_clients" not in first[6]


def test_a_run_that_goes_on_is_told_whole_under_its_own_id_whoever_was_told_before(recorded, done, tmp_path):
    """Tracking begins when it is asked for, and is no part of what must be the same."""
    out = tmp_path / "run"
    shutil.copytree(done, out)
    cut(out, to=3)
    for _ in range(2):  # goes on from round 2; then there is nothing left to do
        assert run(out, "--track", "recording", "--resume") == 0
    assert sorted(map(str, rows(out, "rounds"))) == sorted(map(str, rows(done, "rounds")))
    manifest = read_manifest(out)
    assert len(recorded) == 8
    for number, each in enumerate(recorded):
        assert each.run.id == f"{manifest['id']}-{number % 4:03d}"
        assert joined(each.points) == expected(out, manifest["runs"][number % 4])
        assert each.ends == [True]


def test_numbers_that_are_none_or_not_finite_stay_in_the_rows():
    row = {"method": "local", "seed": 3, "round": 1, "loss": float("nan"), "bytes": 2, "note": "x", "each": [1.0]}
    assert trackers.numbers("rounds", row) == {"rounds/bytes": 2.0}


def test_learning_rates_are_told_apart(recorded, done, tmp_path):
    manifest = read_manifest(done)
    runs = [{**manifest["runs"][0], "learning_rate": rate} for rate in (1e-3, 2e-3)]
    tracking = Tracking(trackers.load(["recording"]), RunFolder(tmp_path), {**manifest, "runs": runs}, pytest.fail)
    for number in range(2):
        tracking.begin(number)
    assert [each.run.config["learning_rate"] for each in recorded] == [1e-3, 2e-3]
    assert recorded[1].run.name == "dec_lora @ 0.002 on erdos_renyi:0.1, seed 0"


@pytest.mark.parametrize("where", ["begin", "log", "close"])
def test_a_backend_that_fails_anywhere_is_warned_of_once_and_never_asked_again(where, backend, done, tmp_path):
    calls = []

    def fails(*_):
        calls.append(where)
        raise RuntimeError

    methods = {name: fails if name == where else lambda *_: None for name in ("log", "close")}
    backend("broken", fails if where == "begin" else lambda run: SimpleNamespace(**methods))
    said = []
    process(done, tmp_path / "run", "broken", after=-1, warn=said.append)
    assert said == ["--track broken fails and is left out from here on: RuntimeError"]
    assert len(calls) == 1


def test_a_run_that_breaks_off_is_left_as_not_whole(recorded, done, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxdfl.run_folder.RunFolder.log_metrics", full)
    assert run(tmp_path / "run", "--track", "recording") == exit_codes.FAILED
    assert [each.ends for each in recorded] == [[False]] * 4


def test_the_same_folder_written_anew_is_another_run_and_one_gone_on_with_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "execute", lambda prepared, folder, manifest: folder.close() or 0)
    ids = []
    for options in ([], ["--resume"], ["--overwrite"]):
        assert run(tmp_path / "run", *options) == 0
        ids.append(read_manifest(tmp_path / "run")["id"])
    assert ids[0] == ids[1] != ids[2]


def test_a_replay_tracks_nothing(done, tmp_path, monkeypatch):
    shutil.copytree(done, tmp_path / "run")
    manifest = read_manifest(done)
    text = json.dumps({**manifest, "settings": {**manifest["settings"], "track": ["wandb"]}})
    (tmp_path / "run" / "manifest.json").write_text(text)
    asked = []

    def execute(prepared, folder, manifest, **options):
        asked.append(prepared.settings.track)
        return execution.execute(prepared, folder, manifest, **options)

    monkeypatch.setattr(replaying, "execute", execute)
    assert replaying.replay(tmp_path / "run")[0] is None
    assert asked == [()]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["tensorbord"],
            "`--track` knows no 'tensorbord'. Did you mean 'tensorboard'? Known: tensorboard, wandb, mlflow",
        ),
        (["wandb", "wandb"], "`--track` names one twice: wandb wandb."),
        (["mlflow"], "`--track mlflow` needs the package mlflow: pip install 'jaxdfl[mlflow]'"),
    ],
)
def test_a_backend_unknown_or_absent_is_refused_in_one_line(names, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "jaxdfl.trackers.mlflow_runs", raising=False)
    assert run(tmp_path / "run", "--track", *names) == exit_codes.REFUSED
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert not (tmp_path / "run").exists()


# TensorBoard


def events(path: Path):
    """The events of a file, each checked by its length."""
    from tensorboardX.proto.event_pb2 import Event

    content, place = path.read_bytes(), 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        yield Event.FromString(content[place + 12 : place + 12 + length])
        place += 12 + length + 4
    assert place == len(content)


def scalars(folder: Path):
    """round -> name -> value of a run's only event file."""
    (path,) = folder.iterdir()
    return joined(
        (e.step, {v.tag: v.simple_value for v in e.summary.value if v.HasField("simple_value")}) for e in events(path)
    )


def close_to(points):
    """Points as float32 holds them."""
    return {round: pytest.approx(values, rel=1e-6) for round, values in points.items()}


def test_tensorboard_holds_every_run_and_no_step_twice_after_it_went_on(done, tmp_path):
    pytest.importorskip("tensorboardX")
    for after in (-1, 3):
        process(done, tmp_path / "run", "tensorboard", after=after)
    folders = sorted((tmp_path / "run" / "tensorboard").iterdir())
    assert folders[1].name == "001 tad_lora_1 on erdos_renyi_0.1, seed 0"
    for folder, entry in zip(folders, read_manifest(done)["runs"], strict=True):
        assert scalars(folder) == close_to(expected(done, entry))
    assert next(events(next(folders[0].iterdir()))).file_version == "brain.Event:2"


def test_a_full_disk_ends_tensorboard_alone(done, tmp_path, monkeypatch):
    event_files = pytest.importorskip("jaxdfl.trackers.event_files", exc_type=ImportError)

    class Full(event_files.RecordWriter):
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_files, "RecordWriter", Full)
    said = []
    process(done, tmp_path / "run", "tensorboard", after=-1, warn=said.append)
    assert len(said) == 1
    assert "tensorboard fails and is left out from here on: [Errno 28]" in said[0]


def test_tensorboards_own_reader_agrees_also_where_it_watches_a_run_that_goes_on(done, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    process(done, tmp_path / "run", "tensorboard", after=-1)
    folder = min((tmp_path / "run" / "tensorboard").iterdir())
    watching = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    for _ in range(2):
        watching.Reload()
        told = [(e.step, {tag: e.value}) for tag in watching.Tags()["scalars"] for e in watching.Scalars(tag)]
        assert joined(told) == close_to(expected(done, read_manifest(done)["runs"][0]))
        process(done, tmp_path / "run", "tensorboard", after=3)
    assert watching.Tags()["tensors"] == ["settings/text_summary"]


# Weights & Biases, offline


def offline_history(path: Path):
    """step -> values of a .wandb file: LevelDB's log of W&B's records, in blocks of 32768 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts, found = path.read_bytes(), 7, b"", {}
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # the rest of a block that has no room for a header
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            record, parts = Record.FromString(parts), b""
            if record.WhichOneof("record_type") == "history":
                values = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                assert values["_step"] not in found
                found[values["_step"]] = {key: value for key, value in values.items() if not key.startswith("_")}
    return found


def test_wandb_offline_holds_every_run_and_no_step_twice_after_it_went_on(done, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for after in (-1, 3, 4):
        process(done, tmp_path / "run", "wandb", after=after)
        wandb.teardown()  # as a process that ends; until then W&B's own may still be writing
    manifest = read_manifest(done)
    for number, entry in enumerate(manifest["runs"]):
        name = f"{manifest['id']}-{number:03d}"
        (file,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{name}.wandb")
        assert offline_history(file) == expected(done, entry)


def test_a_wandb_run_goes_on_after_the_steps_that_the_server_has(monkeypatch):
    module = pytest.importorskip("jaxdfl.trackers.weights_and_biases", exc_type=ImportError)
    logged = []
    server = SimpleNamespace(starting_step=3, offline=False, log=lambda values, step: logged.append((step, values)))
    monkeypatch.setattr(module.wandb, "init", lambda **_: server)
    described = trackers.Run(0, "id-000", "name", "runs/first", Path("."), {})
    module.begin(described).log([(2, {"a": 1.0}), (3, {"a": 2.0}), (3, {"b": 3.0})])
    assert logged == [(3, {"a": 2.0}), (3, {"b": 3.0})]


# MLflow


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A client of a store of its own."""
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return mlflow.MlflowClient(uri)


def test_mlflow_holds_every_run_and_no_step_twice_after_it_went_on(store, done, tmp_path):
    for after in (-1, 3):
        process(done, tmp_path / "run", "mlflow", after=after)
    experiment_id = store.get_experiment_by_name(f"{tmp_path.name}/run").experiment_id
    found = {each.data.tags["jaxdfl.run"]: each for each in store.search_runs([experiment_id])}
    manifest = read_manifest(done)
    assert len(found) == 4
    for number, entry in enumerate(manifest["runs"]):
        each = found[f"{manifest['id']}-{number:03d}"]
        assert each.info.status == "FINISHED"
        assert (each.data.params["method"], each.data.params["rank"]) == (entry["method"], str(BILINEAR.rank))
        told = [
            (metric.step, {name: metric.value})
            for name in each.data.metrics
            for metric in store.get_metric_history(each.info.run_id, name)
        ]
        assert joined(told) == expected(done, entry)


def test_an_mlflow_server_that_is_gone_is_warned_of_once(done, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = []
    process(done, tmp_path / "run", "mlflow", after=-1, warn=said.append)
    assert len(said) == 1
    assert said[0].startswith("--track mlflow fails and is left out from here on: ")
