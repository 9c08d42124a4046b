"""Tables of one's own as a task: any container, the same examples; what is wrong is named with its client and row."""

import datasets
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxdfl.data.own import own
from jaxdfl.data.tasks import TASKS, load

LABELS = ("bad", "good")
TEXTS, CLASSES = ["a dull film", "a fine film", "a sad story"], [0, 1, 0]
ONE = {"text": TEXTS, "label": CLASSES}
OTHER = {"text": ["a good story"], "label": [1]}
CONTAINERS = {
    "lists": dict,
    "arrays": lambda table: {"text": np.array(table["text"]), "label": np.array(table["label"])},
    "objects": lambda table: {"text": np.array(table["text"], object), "label": np.array(table["label"], np.int8)},
    "data frame": pd.DataFrame,
    "Dataset": datasets.Dataset.from_dict,
    "names": lambda table: {**table, "label": [LABELS[label] for label in table["label"]]},
    "more columns": lambda table: {"author": ["x"] * len(table["text"]), **table},
}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_any_container_gives_the_same_examples(container, monkeypatch):
    task = own([container(ONE), container(OTHER)], container(OTHER), labels=LABELS)
    monkeypatch.setitem(TASKS, "mine", task)
    texts = load("mine", "train", data_dir="nowhere")
    assert texts.first == [*TEXTS, "a good story"]
    assert all(type(text) is str for text in texts.first)
    assert (texts.labels.tolist(), texts.holders.tolist()) == ([0, 1, 0, 1], [0, 0, 0, 1])
    assert load("mine", "validation").first == ["a good story"]
    assert texts.sha256 == own([ONE, OTHER], OTHER, labels=LABELS).given["train"].sha256


def test_pairs_have_two_columns_under_names_of_their_own():
    table = {"question": ["who?"], "answer": ["nobody"], "right": [1]}
    task = own([table], table, labels=LABELS, columns=("question", "answer"), label="right")
    assert (task.given["train"].first, task.given["train"].second) == (["who?"], ["nobody"])


def test_a_random_part_keeps_who_holds_what(monkeypatch):
    tables = [{"text": [f"{client} {i}" for i in range(30)], "label": [0] * 30} for client in range(3)]
    monkeypatch.setitem(TASKS, "mine", own(tables, ONE, labels=LABELS))
    texts = load("mine", "train", limit=40)
    assert texts.holders.tolist() == [int(text.split()[0]) for text in texts.first]


REFUSED = {
    "no such column": ([ONE, {"sentence": TEXTS, "label": CLASSES}], "client 1: no column 'text', there is sentence,"),
    "empty client": ([ONE, {"text": [], "label": []}], "client 1: no examples in it; leave it out"),
    "no client": ([], "`clients` is empty"),
    "label too large": (
        [{"text": TEXTS, "label": [0, 1, 2]}],
        "client 0, row 2: label must be one of 0 (bad), 1 (good",
    ),
    "hidden label": ([{"text": TEXTS, "label": [0, -1, 0]}], "client 0, row 1: label -1 marks a hidden test label"),
    "label as a fraction": ([{"text": TEXTS, "label": [0.0, 1.0, 0.0]}], "client 0, row 0: label must be one of"),
    "other lengths": (
        [{"text": TEXTS, "label": [0]}],
        "client 0: columns of several lengths, 3 in 'text', 1 in 'label'",
    ),
    "empty text": ([{"text": ["a", " "], "label": [0, 1]}], "client 0, row 1: column 'text' must be a text"),
    "missing text": ([pd.DataFrame({"text": ["a", None], "label": [0, 1]})], "client 0, row 1: column 'text' must be"),
    "one value alone": ([{"text": "a", "label": 1}], "client 0: column 'text' must hold a value for each example"),
    "a list of texts": ([TEXTS], "client 0: a table with columns is wanted, such as a dict of lists"),
    "a table, not a list of them": (ONE, "client 0: a table with columns is wanted"),
}


@pytest.mark.parametrize(("clients", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_named_with_client_and_row(clients, said):
    with pytest.raises(ValueError) as error:  # noqa: PT011, compared below
        own(clients, ONE, labels=LABELS)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_validation_table_is_refused():
    with pytest.raises(ValueError, match=r"^validation: no examples in it"):
        own([ONE], {"text": [], "label": []}, labels=LABELS)


@pytest.mark.parametrize("columns", ["text", (), ("a", "b", "c")])
def test_columns_are_one_or_two_names(columns):
    with pytest.raises(ValueError, match="`columns` must be one name or two"):
        own([ONE], ONE, labels=LABELS, columns=columns)


@pytest.mark.parametrize("labels", ["bad", ("bad",), ("bad", "bad")])
def test_labels_are_two_names_or_more(labels):
    with pytest.raises(ValueError, match="`labels` must be two names or more"):
        own([ONE], ONE, labels=labels)


@pytest.mark.parametrize("loss", [lambda logits, labels: logits.mean(), lambda logits, labels: logits])
def test_a_loss_that_is_no_value_for_each_example_is_refused(loss):
    with pytest.raises(ValueError, match="`loss` must give one value for each example: shape"):
        own([ONE], ONE, labels=LABELS, loss=loss)
    own([ONE], ONE, labels=LABELS, loss=lambda logits, labels: jnp.take_along_axis(logits, labels[:, None], 1)[:, 0])
