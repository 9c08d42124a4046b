"""Our encoders against transformers and PEFT, and RoBERTa's layout against BERT's."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from small_models import CONFIGS, attention_mask, batch, compiled, needs_demo, tiny_model

from jaxdfl.data.examples import Examples, one_a_row
from jaxdfl.models import EncoderConfig, adapt, demo_weights, load
from jaxdfl.models.names import checkpoint_name
from jaxdfl.models.paths import take_apart
from jaxdfl.protocol import PerBlock

PAD = 1  # RoBERTa's


@pytest.fixture
def golden_maker():
    for package in ("torch", "peft"):
        pytest.importorskip(package, reason="parity is measured against torch and PEFT")
    import make_golden

    return make_golden


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_logits_equal_transformers(golden_maker, tmp_path, model_type, activation):
    config = dataclasses.replace(CONFIGS[model_type], activation=activation, epsilon=1e-5)
    theirs = golden_maker.torch_model(config, seed=2)
    theirs.save_pretrained(tmp_path)
    ours, weights = load(tmp_path, 3, jax.random.key(0))
    assert ours.config == config
    assert weights.initialised == []
    assert weights.parameters == theirs.num_parameters()
    for lengths in ((12, 7, 1, 9), (12, 12, 12, 12), (2, 3, 1, 5)):
        examples = batch(config, lengths)
        np.testing.assert_allclose(ours(examples), golden_maker.torch_logits(theirs, examples), atol=1e-4)


@pytest.mark.parametrize("targets", [("query", "value"), ("attention/key",)])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_adapted_logits_equal_peft(golden_maker, tmp_path, model_type, targets):
    config = CONFIGS[model_type]
    theirs = golden_maker.torch_model(config)
    theirs.save_pretrained(tmp_path)
    ours, _ = load(tmp_path, 3, jax.random.key(0))
    theirs, factors = golden_maker.add_adapters(theirs, [target.split("/")[-1] for target in targets])
    classifier = adapt(ours, jax.random.key(0), rank=4, alpha=6.0, targets=targets)
    blocks = PerBlock(*({path: jnp.asarray(x) for path, x in factors[f].items()} for f in "ab"), {})
    assert set(blocks.a) == set(classifier.blocks.a)
    examples = batch(config)
    logits = classifier.logits(classifier.frozen, blocks, examples, None)
    np.testing.assert_allclose(logits, golden_maker.torch_logits(theirs, examples), atol=1e-4)


@needs_demo
def test_minilm_reads_sentences_as_transformers_does():
    torch = pytest.importorskip("torch", reason="parity is measured against torch")
    import transformers

    folder = demo_weights()
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    ours, weights = load(folder, 2, jax.random.key(0))
    examples = batch(EncoderConfig.from_transformers(theirs.config))
    with torch.no_grad():
        inputs = [np.asarray(x, np.int64) for x in (examples.ids, attention_mask(examples), examples.types)]
        expected = theirs(*map(torch.tensor, inputs)).pooler_output.numpy()
    rows = one_a_row(examples)
    first = compiled(ours.encoder, ours.embeddings(rows), rows.sentence, rows.firsts)[:, 0]
    pooled = jnp.tanh(ours.pooler(first))
    np.testing.assert_allclose(pooled, expected, atol=1e-4)
    assert sorted(weights.initialised) == ["classifier/bias", "classifier/kernel"]
    assert "MultiNLI" in weights.note


@pytest.mark.parametrize("which", ["tiny", pytest.param("minilm", marks=needs_demo)])
def test_a_bert_rewritten_in_robertas_layout_gives_the_same_logits(tmp_path, which):
    bert = tiny_model() if which == "tiny" else load(demo_weights(), 3, jax.random.key(0))[0]
    _write_as_roberta(bert, tmp_path)
    roberta, _ = load(tmp_path, 3, jax.random.key(1))
    assert (roberta.config.position_offset, roberta.config.types) == (PAD + 1, 1)
    examples = batch(bert.config)
    one_segment = Examples(examples.ids, jnp.zeros_like(examples.types), examples.lengths, examples.labels)
    np.testing.assert_allclose(compiled(roberta, one_segment), compiled(bert, one_segment), atol=1e-6)


def _write_as_roberta(bert, folder):
    """The position table moves down by PAD + 1 rows, and the first segment's vector is folded into it."""
    _, arrays = take_apart(bert)
    arrays = {path: np.asarray(x) for path, x in arrays.items()}
    segment = arrays["embeddings/type/table"][:1]
    shifted = np.pad(arrays["embeddings/position/table"] + segment, ((PAD + 1, 0), (0, 0)), constant_values=1e30)
    arrays |= {"embeddings/position/table": shifted, "embeddings/type/table": np.zeros_like(segment)}
    named = {
        checkpoint_name("roberta", path): np.ascontiguousarray(x.T if path.endswith("/kernel") else x)
        for path, x in arrays.items()
    }
    save_file(
        {n if n.startswith("classifier.") else f"roberta.{n}": x for n, x in named.items()},
        folder / "model.safetensors",
    )
    config = bert.config
    settings = {
        "model_type": "roberta",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.positions + PAD + 1,
        "type_vocab_size": 1,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
        "layer_norm_eps": config.epsilon,
        "pad_token_id": PAD,
    }
    (folder / "config.json").write_text(json.dumps(settings))
