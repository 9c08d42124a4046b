"""Adapter folders: what is written is read back, and what does not fit is refused in one line."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import flax
from safetensors.numpy import load_file, save_file

from jaxdfl import peft
from jaxdfl.models import adapt, load
from jaxdfl.protocol import PerBlock

sys.path.insert(0, str(Path(__file__).parent / "models"))
from small_models import batch, tiny_model, with_random_b

RANK, ALPHA = 4, 6.0
FAMILIES = pytest.mark.parametrize("model_type", ["bert", "roberta"])


def adapted(model_type="bert", seed=0, **options):
    """A classifier whose adapters do something."""
    model, options = tiny_model(model_type, seed=seed), {"rank": RANK, "alpha": ALPHA, **options}
    classifier = adapt(model, jax.random.key(seed), **options)
    return classifier._replace(blocks=with_random_b(classifier.blocks, seed + 1)), model.config


def written(folder, model_type="bert", **options):
    classifier, config = adapted(model_type, **options)
    blocks = peft.whole(classifier, model_type)
    peft.write(folder, blocks, model_type=model_type, scale=ALPHA / RANK, base="tiny", card="# card\n")
    return classifier, config


def edit(folder, **changes):
    path = folder / peft.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def read(folder, model_type="bert", **options):
    classifier, _ = adapted(model_type, seed=5, **options)
    scale = options.get("alpha", ALPHA) / options.get("rank", RANK)
    return peft.read(folder, peft.whole(classifier, model_type), model_type=model_type, scale=scale)


def refusal(call):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are compared by the caller)
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@FAMILIES
@pytest.mark.parametrize("train_head", [False, True])
def test_a_model_started_from_a_folder_gives_the_logits_of_the_one_that_wrote_it(tmp_path, model_type, train_head):
    theirs, config = written(tmp_path / "adapter", model_type, train_head=train_head)
    fresh, _ = adapted(model_type, seed=5, train_head=not train_head)  # its head is drawn otherwise
    same_backbone = fresh._replace(frozen={path: theirs.frozen.get(path, x) for path, x in fresh.frozen.items()})
    ours = peft.started_from(same_backbone, read(tmp_path / "adapter", model_type))
    examples = batch(config)
    expected = theirs.logits(theirs.frozen, theirs.blocks, examples, None)
    np.testing.assert_array_equal(ours.logits(ours.frozen, ours.blocks, examples, None), expected)


@FAMILIES
def test_tensors_have_the_names_and_shapes_that_peft_gives_them(tmp_path, model_type):
    written(tmp_path / "adapter", model_type)
    found = {name: x.shape for name, x in load_file(tmp_path / "adapter" / peft.WEIGHTS).items()}
    layer = f"base_model.model.{model_type}.encoder.layer.1.attention.self.value"
    assert found[f"{layer}.lora_A.weight"] == (RANK, 16)
    assert found[f"{layer}.lora_B.weight"] == (16, RANK)
    head = {"bert": ["classifier"], "roberta": ["classifier.dense", "classifier.out_proj"]}[model_type]
    others = {name for name in found if ".lora_" not in name}
    assert others == {f"base_model.model.{name}.{leaf}" for name in head for leaf in ("weight", "bias")}
    assert found[f"base_model.model.{head[-1]}.weight"] == (3, 16)
    config = json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (RANK, 6, ["classifier"])
    assert config["target_modules"][0] == "encoder.layer.0.attention.self.query"


def test_alpha_of_stacked_factors_keeps_the_scale(tmp_path):
    classifier, _ = adapted()
    blocks = peft.whole(classifier, "bert")
    twice = PerBlock(
        {path: jnp.concatenate([a, a]) for path, a in blocks.a.items()},
        {path: jnp.concatenate([b, b], 1) for path, b in blocks.b.items()},
        blocks.head,
    )
    peft.write(tmp_path / "adapter", twice, model_type="bert", scale=ALPHA / RANK, base="tiny")
    config = json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (2 * RANK, 2 * ALPHA)


def test_an_adapter_without_a_head_leaves_the_models_own(tmp_path):
    classifier, _ = written(tmp_path / "adapter")
    path = tmp_path / "adapter" / peft.WEIGHTS
    save_file({name: x for name, x in load_file(path).items() if ".lora_" in name}, path)
    adapter = read(tmp_path / "adapter")
    assert adapter.head == {}
    started = peft.started_from(classifier, adapter)
    assert all((started.frozen[name] == x).all() for name, x in classifier.frozen.items())


def test_an_adapter_of_the_bare_encoder_fits_too(tmp_path):
    """As PEFT saves that of a `BertModel`: without the family's name."""
    written(tmp_path / "adapter")
    path = tmp_path / "adapter" / peft.WEIGHTS
    tensors = {name.replace("model.bert.", "model."): x for name, x in load_file(path).items()}
    expected = read(tmp_path / "adapter")
    save_file(tensors, path)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), read(tmp_path / "adapter"), expected))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_an_adapter_in_half_precision_is_read_as_float32(tmp_path, dtype):
    written(tmp_path / "adapter")
    path, expected = tmp_path / "adapter" / peft.WEIGHTS, read(tmp_path / "adapter")
    flax.save_file({name: jnp.asarray(x, dtype) for name, x in load_file(path).items()}, path)
    for found, exact in zip(jax.tree.leaves(read(tmp_path / "adapter")), jax.tree.leaves(expected), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, exact.astype(dtype).astype(jnp.float32))


def test_rank_stabilised_scale_is_understood(tmp_path):
    written(tmp_path / "adapter")
    edit(tmp_path / "adapter", use_rslora=True, lora_alpha=ALPHA / RANK * RANK**0.5)
    read(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"r": 8},
            "its adapter has rank 8 and scale 0.75, and this run has rank 4 and scale 1.5; pass --rank 8 --alpha 6",
        ),
        ({"lora_alpha": 8}, "pass --rank 4 --alpha 8."),
        ({"use_rslora": True}, "pass --rank 4 --alpha 12."),
        ({"r": "four"}, "needs numbers `r` and `lora_alpha`, got 'four' and 6"),
        ({"use_dora": True}, "`use_dora` True; only plain LoRA (False) is supported"),
        ({"eva_config": {"rho": 2.0}}, "`eva_config` {'rho': 2.0}"),
        ({"peft_type": "IA3"}, "`peft_type` 'IA3'"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights` 'pissa'"),
        ({"rank_pattern": {"query": 8}}, "`rank_pattern` {'query': 8}"),
    ],
)
def test_another_kind_of_adapter_is_refused(tmp_path, changes, words):
    written(tmp_path / "adapter")
    edit(tmp_path / "adapter", **changes)
    assert words in refusal(lambda: read(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": ("query",)}, "4 unexpected (base_model.model.bert.encoder.layer.0.attention.self.value.lora_A"),
        ({"targets": ("query", "value", "key")}, "4 missing (base_model.model.bert.encoder.layer.0.attention.self.key"),
        ({"model_type": "roberta"}, "its adapter is for a bert model, and this model is a roberta"),
    ],
)
def test_tensors_that_do_not_fit_are_counted_and_named(tmp_path, options, words):
    written(tmp_path / "adapter")
    assert words in refusal(lambda: read(tmp_path / "adapter", **options))


def test_a_head_for_other_classes_is_refused(tmp_path):
    written(tmp_path / "adapter")
    path = tmp_path / "adapter" / peft.WEIGHTS
    tensors = load_file(path)
    save_file({name: x[:2] if "classifier" in name else x for name, x in tensors.items()}, path)
    assert "2 misshaped (base_model.model.classifier.bias (2,) for (3,), " in refusal(
        lambda: read(tmp_path / "adapter")
    )


def test_pickled_damaged_and_absent_files_are_refused(tmp_path):
    written(tmp_path / "adapter")
    (tmp_path / "adapter" / peft.WEIGHTS).write_bytes(b"\x80\x04pickled")
    assert "damaged or cut off" in refusal(lambda: read(tmp_path / "adapter"))
    (tmp_path / "adapter" / peft.WEIGHTS).rename(tmp_path / "adapter" / "adapter_model.bin")
    assert "pickled adapters (adapter_model.bin) are never read" in refusal(lambda: read(tmp_path / "adapter"))
    assert "no adapter_config.json; name a folder" in refusal(lambda: read(tmp_path / "nowhere"))


def test_only_an_empty_folder_is_written_to(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "is not an empty folder" in refusal(lambda: written(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_adapter_beside_the_head_is_refused(tmp_path):
    assert "PEFT saves the head whole" in refusal(
        lambda: written(tmp_path / "a", targets=("query", "^classifier"), rank=2)
    )
    assert not (tmp_path / "a").exists()


def test_nothing_that_a_config_says_is_opened(tmp_path):
    written(tmp_path / "adapter")
    edit(tmp_path / "adapter", base_model_name_or_path="../../../etc/passwd", revision="../..")
    assert read(tmp_path / "adapter").a


# Against PEFT itself


@FAMILIES
def test_a_folder_that_peft_saved_once_is_read_as_the_factors_it_had(model_type):
    """`make_golden.py` saved it: for machines without torch."""
    golden = Path(__file__).parent / "models" / "golden" / model_type
    expected = load_file(golden / "expected.safetensors")
    found = peft.read(
        golden / "adapter", peft.whole(adapted(model_type)[0], model_type), model_type=model_type, scale=1.5
    )
    assert found.head == {}
    for factor in "ab":
        arrays = getattr(found, factor)
        assert len(arrays) == 4
        for path, x in arrays.items():
            np.testing.assert_array_equal(x, expected[f"{factor}:{path}"])


@pytest.fixture
def golden_maker():
    for package in ("torch", "peft"):
        pytest.importorskip(package, reason="parity is measured against torch and PEFT")
    import make_golden

    return make_golden


@FAMILIES
def test_peft_gives_the_same_logits_with_a_folder_of_ours(golden_maker, tmp_path, model_type):
    from peft import PeftModel

    _, config = adapted(model_type)
    theirs = golden_maker.torch_model(config)
    theirs.save_pretrained(tmp_path / "base")
    model, _ = load(tmp_path / "base", 3, jax.random.key(0))
    ours = adapt(model, jax.random.key(2), rank=RANK, alpha=ALPHA)
    blocks = with_random_b(ours.blocks, 3)
    head = {path: 1.5 * x + 0.1 for path, x in peft.whole(ours, model_type).head.items()}  # not the checkpoint's
    peft.write(tmp_path / "a", blocks._replace(head=head), model_type=model_type, scale=ALPHA / RANK, base="tiny")
    wrapped = PeftModel.from_pretrained(theirs, str(tmp_path / "a")).eval()
    ours = peft.started_from(ours, blocks._replace(head=head))
    examples = batch(config)
    expected = ours.logits(ours.frozen, ours.blocks, examples, None)
    np.testing.assert_allclose(golden_maker.torch_logits(wrapped, examples), expected, atol=1e-4)


@FAMILIES
def test_a_folder_that_peft_saved_gives_the_same_logits_here(golden_maker, tmp_path, model_type):
    import peft as rival
    import torch

    _, config = adapted(model_type)
    theirs = golden_maker.torch_model(config)
    theirs.save_pretrained(tmp_path / "base")
    asked = rival.LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, target_modules=["query", "value"])
    wrapped = rival.get_peft_model(theirs, asked).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:  # factors, and the head's own copy
                parameter.add_(0.3 * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "a")
    model, _ = load(tmp_path / "base", 3, jax.random.key(0))
    ours = adapt(model, jax.random.key(2), rank=RANK, alpha=ALPHA)
    like = peft.whole(ours, model_type)
    ours = peft.started_from(ours, peft.read(tmp_path / "a", like, model_type=model_type, scale=ALPHA / RANK))
    examples = batch(config)
    logits = ours.logits(ours.frozen, ours.blocks, examples, None)
    np.testing.assert_allclose(logits, golden_maker.torch_logits(wrapped, examples), atol=1e-4)
