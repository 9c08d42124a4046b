"""Whatever is wrong with what a person gives: one line on stderr, exit code 2, and no file is changed.

Every class below is a way in; hypothesis draws what is given. docs/reliability.md counts them, and is held to it.
"""

import json
import pickle
import re
import shutil
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxdfl import experiment, preset_files
from jaxdfl.commands import main
from jaxdfl.presets import BILINEAR

drawn = settings(
    deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def many(count):
    return settings(drawn, max_examples=count)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


GIVEN = Counter()  # test -> how often something bad was given and refused


@pytest.fixture
def refused(capsys, request):
    """(call, a folder to watch) -> the one line that it was refused with."""

    def check(call, folder: Path) -> str:
        before = everything(folder)
        capsys.readouterr()
        assert call() == 2
        out, said = capsys.readouterr()
        assert out == ""
        assert said.startswith("error: ")
        assert said.count("\n") == 1, said
        assert "Traceback" not in said
        assert len(said) < 1500
        assert everything(folder) == before
        GIVEN[request.node.originalname] += 1
        return said

    return check


@pytest.fixture
def run(preset, tmp_path, refused):
    """(options, changes of the preset) -> the line that an experiment was refused with."""

    def check(*options: str, **changes) -> str:
        out = tmp_path / "out"
        asked = replace(preset, **changes)
        said = refused(lambda: experiment.main({"tiny": asked}, [*options, "--out", str(out)]), tmp_path)
        assert not out.exists()
        return said

    return check


WHOLE = ["--clients", "--rounds", "--local-steps", "--batch-size", "--rank", "--eval-every", "--checkpoint-every"]
WHOLE += ["--train-examples", "--eval-examples", "--client-chunk", "--runs-at-once", "--cpu-devices", "--max-length"]
REAL = ["--learning-rate", "--alpha", "--clip", "--checkpoint-minutes"]
SHARE = ["--weight-decay", "--lora-dropout"]
CHOICE = ["--optimizer", "--learning-rate-schedule", "--moments", "--head", "--mixing-rule", "--dtype", "--preset"]
SPEC = ["--partition", "--topologies", "--methods", "--work", "--arbiter", "--adapt-layers", "--task"]
words = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="-"), min_size=1, max_size=12)
misspelt = st.sampled_from(
    ["ring_", "Frozen", "adamx", "tad_loras", "sst", "decaf:x", "all:", "paper,iid", "bf16", "_", "1.2.3"]
)
not_whole = st.one_of(
    st.integers(max_value=0).map(str), st.floats().map(str), st.just(""), st.sampled_from(["1e3", "0x10", "³", "None1"])
)
not_positive = st.one_of(
    st.floats(max_value=0).map(str), st.sampled_from(["nan", "inf", "1e999", "", "one", "0.1.2", "١٢e"])
)
not_a_share = st.one_of(st.floats(max_value=0, exclude_max=True).map(str), st.sampled_from(["nan", "inf", "", "half"]))


def no_name(word: str) -> bool:
    """Hypothesis also draws words that it finds in this project's own code, and there names are right."""
    return re.search(r"[^a-zA-Z0-9_:+.,]", word.strip()) is not None


unknown = st.one_of(words.filter(no_name), misspelt)


class TestCommandLine:
    @many(60)
    @given(st.sampled_from(WHOLE), not_whole)
    def test_counts(self, run, flag, value):
        run(flag, value)

    @many(40)
    @given(st.sampled_from(REAL), not_positive)
    def test_positive_numbers(self, run, flag, value):
        run(flag, value)

    @many(20)
    @given(st.sampled_from(SHARE), not_a_share)
    def test_shares(self, run, flag, value):
        run(flag, value)

    @many(40)
    @given(st.sampled_from(CHOICE + SPEC), unknown)
    def test_names(self, run, flag, value):
        run(flag, value)

    @many(20)
    @given(words)
    def test_options(self, run, word):
        run("--" + word.replace("=", "").strip() + "-", "1")

    @many(30)
    @given(st.sampled_from(["dirichlet", "shards", "quantity", "own", "paper"]), st.one_of(unknown, not_positive))
    def test_partitions(self, run, name, value):
        run("--partition", f"{name}:{value}")

    @many(40)
    @given(
        st.sampled_from(["erdos_renyi", "random_links", "gap", "random_regular", "small_world", "base", "equi_static"]),
        st.one_of(unknown, st.sampled_from(["-1", "nan", "inf", "", "1e9", "0", "-0.5", "2.5"])),
    )
    def test_topologies(self, run, name, value):
        run("--topologies", f"{name}:{value}:{value}")

    @many(30)
    @given(
        st.sampled_from(["tad_lora", "rolora", "decaf", "choco", "flex_atc", "dec_lora+packet_loss", "dec_lora+top_k"]),
        st.one_of(unknown, st.sampled_from(["-1", "nan", "inf", "", "1e9", "-0.5", "2.5"])),
    )
    def test_methods(self, run, name, value):
        run("--methods", f"{name}:{value}")

    @many(20)
    @given(words.filter(lambda word: word not in ("run", "sweep")))
    def test_commands(self, refused, tmp_path, word):
        refused(lambda: main([word + "?"]), tmp_path)


class TestPresetFiles:
    @many(60)
    @given(st.integers(0, 9), st.integers(0, 10**6), st.binary(min_size=1, max_size=60))
    def test_preset_files(self, run, preset, tmp_path, kind, place, junk):
        lines = preset_files.text(preset).splitlines()
        number = place % len(lines)
        key, _, value = lines[number].partition(" = ")
        wrong = ["[[]]", "{x = 1}", "2026-11-27", "[{}]", "{}", "00:10:00"][place % 6]
        content = {
            0: lambda: b"\xff" + junk,
            1: lambda: "\n".join([*lines[:number], f"{key} ="]).encode(),  # cut off
            2: lambda: "\n".join([*lines[:number], f'{key} = "{value.strip(chr(34))}']).encode(),  # in a text
            3: lambda: "\n".join([*lines[:number], f"{key} = {wrong}", *lines[number + 1 :]]).encode(),
            4: lambda: "\n".join([*lines, lines[number]]).encode(),  # twice
            5: lambda: "\n".join([*lines, f"{key}-{len(junk)} = {value}"]).encode(),  # unknown
            6: lambda: f"base = {json.dumps(junk.hex())}".encode(),
            7: lambda: f"[{key}]\n{lines[number]}".encode(),  # a table
            8: lambda: "\n".join(lines).encode("utf-16"),
            9: lambda: f"{key} = ".encode() + b"[" * (1 + place % 5000) + junk[:1],
        }[kind]()
        path = tmp_path / "mine.toml"
        path.write_bytes(content)
        assert "mine.toml" in run("--preset", str(path))


def matrix_file(path: Path, matrix: np.ndarray) -> Path:
    np.save(path, matrix, allow_pickle=False)
    return path


class TestMatrices:
    @many(40)
    @given(st.integers(0, 9), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**32 - 1))
    def test_matrices_that_mix_nothing_right(self, run, tmp_path, kind, row, column, seed):
        good, draw = np.full((4, 4), 0.25), np.random.default_rng(seed)
        bad = {
            0: lambda: np.where(np.arange(16).reshape(4, 4) == 4 * row + column, np.nan, good),
            1: lambda: np.where(np.arange(16).reshape(4, 4) == 4 * row + column, np.inf, good),
            2: lambda: np.where(np.arange(16).reshape(4, 4) == 4 * row + column, -0.25, good),
            3: lambda: good * 1.1,
            4: lambda: np.full((5, 5), 0.2),
            5: lambda: np.full((4, 3), 1 / 3),
            6: lambda: np.float64(1.0),
            7: lambda: good.astype(complex),
            8: lambda: np.zeros((0, 4, 4)),
            9: lambda: (each := draw.random((4, 4))) / each.sum(1, keepdims=True),  # rows alone
        }[kind]()
        run("--topologies", str(matrix_file(tmp_path / "w.npy", bad)))

    @many(30)
    @given(st.binary(max_size=200), st.integers(0, 3))
    def test_files_that_are_no_matrices(self, run, tmp_path, junk, kind):
        path = tmp_path / "w.npy"
        whole = matrix_file(path, np.full((4, 4), 0.25)).read_bytes()
        header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
        content = {
            0: junk,
            1: whole[: len(whole) - 1 - len(junk) % 100],
            2: pickle.dumps({"evil": junk}),
            3: header
            + b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999, 99999, 99999), }".ljust(117)
            + b"\n",
        }[kind]
        path.write_bytes(content)
        run("--topologies", str(path))

    def test_an_array_of_objects_is_not_unpickled(self, run, tmp_path):
        np.save(tmp_path / "w.npy", np.array([[{}]], dtype=object), allow_pickle=True)
        run("--topologies", str(tmp_path / "w.npy"))


class TestData:
    @many(60)
    @given(st.integers(0, 11), st.integers(0, 79), st.binary(min_size=1, max_size=30))
    def test_sentences(self, run, data, tmp_path, kind, line, junk):
        folder = tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(data, folder)
        path = folder / "sst2" / "train.jsonl"
        lines = path.read_text().splitlines()
        rows = [json.loads(each) for each in lines]

        def change(**changes):
            rows[line].update(changes)
            return "\n".join(map(json.dumps, rows)).encode()

        content = {
            0: lambda: b"",
            1: lambda: "\n".join([*lines[:line], lines[line][:9], *lines[line + 1 :]]).encode(),
            2: lambda: "\n".join(lines).encode()[:-1] + b"\xff\xfe\n",
            3: lambda: change(label=7),
            4: lambda: change(label=None),
            5: lambda: change(label=0.5),
            6: lambda: change(sentence=3),
            7: lambda: "\n".join(json.dumps({"text": row["sentence"], "label": 1}) for row in rows).encode(),
            8: lambda: change(label="positive?"),
            9: lambda: b"\x80\x04" + junk,
            10: lambda: b"[]\n" * 5,
            11: lambda: change(sentence=None),
        }[kind]()
        path.write_bytes(content)
        run(data_dir=str(folder))

    def test_folders_and_links_that_lead_nowhere(self, run, data, tmp_path):
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        (tmp_path / "file").touch()
        (tmp_path / "empty").mkdir()
        (tmp_path / "split" / "sst2" / "train.jsonl").mkdir(parents=True)
        for name in ("loop", "file", "empty", "split", "absent", "nul\0name", "x" * 5000):
            run(data_dir=str(tmp_path / name))
            run(weights=str(tmp_path / name))

    @pytest.mark.slow
    def test_a_sentence_of_ten_million_characters_is_cut(self, preset, data, tmp_path):
        shutil.copytree(data, tmp_path / "data")
        path = tmp_path / "data" / "sst2" / "train.jsonl"
        path.write_text(json.dumps({"sentence": "good " * 2_000_000, "label": 1}) + "\n" + path.read_text())
        asked = replace(preset, data_dir=str(tmp_path / "data"))
        assert experiment.main({"tiny": asked}, ["--out", str(tmp_path / "out")]) == 0


class TestWeights:
    @many(60)
    @given(st.integers(0, 11), st.integers(0, 10**6), st.integers(1, 255))
    def test_checkpoints(self, run, weights, tmp_path, kind, place, flip):
        folder = tmp_path / "weights"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(weights, folder)
        path, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
        arrays, whole = load_file(path), path.read_bytes()
        name = sorted(arrays)[place % len(arrays)]
        length = struct.unpack("<Q", whole[:8])[0]
        if kind == 0:
            path.write_bytes(whole[: place % (len(whole) - 1)])
        elif kind == 1:
            path.write_bytes(whole[:8] + bytes([whole[8] ^ flip]) + whole[9:])
        elif kind == 2:
            save_file({key: x for key, x in arrays.items() if key != name}, path)
        elif kind == 3:
            save_file({**arrays, name: np.zeros((3, 3, 3), np.float32)}, path)
        elif kind == 4:
            save_file({**arrays, name: np.full_like(arrays[name], np.nan)}, path)
        elif kind == 5:
            path.unlink()
            (folder / "pytorch_model.bin").write_bytes(pickle.dumps(arrays))
        elif kind == 6:
            (folder / "config.json").write_text(
                json.dumps({**config, "model_type": ["gpt2", "", "../bert"][place % 3]})
            )
        elif kind == 7:
            wrong = [-1, 0, 10**12, "8", None, 1.5, float("nan")][place % 7]
            key = ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"][place % 4]
            (folder / "config.json").write_text(json.dumps({**config, key: wrong}))
        elif kind == 8:
            (folder / "config.json").write_bytes((folder / "config.json").read_bytes()[: place % 20])
        elif kind == 9:
            path.write_bytes(struct.pack("<Q", length * 10**6) + whole[8:])
        elif kind == 10:
            (folder / "vocab.txt").unlink()
        else:
            (folder / "config.json").write_text(
                json.dumps({**config, "auto_map": {"AutoModel": "x.py"}, "model_type": "x"})
            )
        run(weights=str(folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    small = replace(BILINEAR, preset="small", seeds=(0,), rounds=2, eval_every=1, clients=3, checkpoints=True)
    assert experiment.main({"small": small}, ["--out", str(out)]) == 0
    return out, small


class TestRunFolders:
    @many(60)
    @given(st.sampled_from(["replay", "export", "resume"]), st.integers(0, 7), st.integers(0, 10**6))
    def test_manifests(self, finished, refused, tmp_path, command, kind, place):
        folder, small = tmp_path / "run", finished[1]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished[0], folder)
        path = folder / "manifest.json"
        manifest, text = json.loads(path.read_text()), path.read_text()
        settings_ = manifest["settings"]
        key = sorted(settings_)[place % len(settings_)]
        changed = {
            0: lambda: text[: place % (len(text) - 3)],
            1: lambda: "[]",
            2: lambda: json.dumps({**manifest, "settings": {k: v for k, v in settings_.items() if k != key}}),
            3: lambda: json.dumps({**manifest, "settings": {**settings_, "evil": 1}}),
            4: lambda: json.dumps({**manifest, "settings": {**settings_, "rounds": "many"}}),
            5: lambda: json.dumps({**manifest, "settings": {**settings_, "rank": -place}}),
            6: lambda: json.dumps({**manifest, "settings": None}),
            7: lambda: json.dumps({key: value for key, value in manifest.items() if key != "settings"}),
        }[kind]()
        path.write_text(changed)
        calls = {
            "replay": lambda: main(["replay", str(folder)]),
            "export": lambda: main(["export", str(folder), "--to", str(tmp_path / "adapter")]),
            "resume": lambda: experiment.main({"small": small}, ["--out", str(folder), "--resume"]),
        }
        refused(calls[command], tmp_path)

    @many(20)
    @given(st.integers(0, 10**6), st.binary(min_size=1, max_size=20))
    def test_rows(self, finished, refused, tmp_path, place, junk):
        folder, small = tmp_path / "run", finished[1]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished[0], folder)
        path = folder / ["metrics.jsonl", "rounds.jsonl"][place % 2]
        lines = path.read_bytes().splitlines()
        lines[place % (len(lines) - 1)] = b"\xff" + junk.replace(b"\n", b"")
        path.write_bytes(b"\n".join(lines) + b"\n")
        shutil.rmtree(folder / "checkpoints")  # so that there is something left to do
        refused(lambda: experiment.main({"small": small}, ["--out", str(folder), "--resume"]), folder)


PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
ROWS = (  # of its table of bad input, the tests behind each
    ("test_counts", "test_positive_numbers", "test_shares"),
    ("test_names", "test_options", "test_commands"),
    ("test_preset_files",),
    ("test_partitions", "test_topologies", "test_methods"),
    ("test_matrices_that_mix_nothing_right",),
    ("test_files_that_are_no_matrices", "test_an_array_of_objects_is_not_unpickled"),
    ("test_sentences",),
    ("test_folders_and_links_that_lead_nowhere",),
    ("test_checkpoints",),
    ("test_manifests",),
    ("test_rows",),
)


def test_the_page_counts_what_was_given():
    """Stands last: it counts what the tests above have done."""
    if left_out := {name for row in ROWS for name in row} - GIVEN.keys():
        pytest.skip(f"not all were run: {', '.join(sorted(left_out))}")
    section = PAGE.read_text(encoding="utf-8").partition("## Bad input\n")[2].partition("\n## ")[0]
    assert [int(count) for count in re.findall(r"\| (\d+) \|$", section, re.MULTILINE)] == [
        sum(GIVEN[name] for name in row) for row in ROWS
    ]
    assert re.findall(r"(\d+) in all", section) == [str(sum(GIVEN.values()))]
    assert set(GIVEN) == {name for row in ROWS for name in row}
