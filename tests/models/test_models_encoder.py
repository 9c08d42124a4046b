from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIGS, batch, compiled, tiny_model
from transformers import AutoConfig

from jaxdfl.data.examples import Examples, one_a_row
from jaxdfl.models import EncoderConfig, random_model
from jaxdfl.models.layers import Sight


def test_the_last_layer_at_one_position_equals_the_whole_layer_there():
    model = tiny_model()
    rows = one_a_row(batch(model.config))
    sight = Sight(rows.sentence[:, None] == rows.sentence[:, :, None])
    hidden = model.embeddings(rows)
    for layer in model.encoder.layers:
        hidden = layer(hidden, hidden, sight)
    shortcut = model.encoder(model.embeddings(rows), rows.sentence, rows.firsts)
    np.testing.assert_allclose(shortcut[:, 0], hidden[:, 0], atol=1e-6)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_padding_changes_nothing(model_type):
    model = tiny_model(model_type)
    examples = batch(model.config)
    junk = jnp.where(jnp.arange(12) < examples.lengths[:, None], examples.ids, 7)
    longer = batch(model.config, length=12)._replace(
        ids=jnp.pad(junk, ((0, 0), (0, 4))), types=jnp.zeros((4, 16), jnp.int8)
    )
    longer = longer._replace(types=longer.types.at[:, :12].set(examples.types))
    np.testing.assert_allclose(compiled(model, longer), model(examples), atol=1e-6)


def test_a_row_without_tokens_stays_finite():
    model = tiny_model()
    assert np.isfinite(model(batch(model.config, lengths=(0, 3, 12, 5)))).all()


def test_mask_may_differ_by_query_so_that_packed_sentences_do_not_meet():
    model = tiny_model()
    layer = partial(compiled, model.encoder.layers[0])
    left, right = jax.random.normal(jax.random.key(0), (2, 1, 5, 16))
    segments = jnp.repeat(jnp.arange(2), 5)
    packed = jnp.concatenate([left, right], 1)
    out = layer(packed, packed, Sight(segments[None, :, None] == segments[None, None]))
    alone = [layer(x, x, Sight(jnp.ones((1, 1, 5), bool))) for x in (left, right)]
    np.testing.assert_allclose(out, jnp.concatenate(alone, 1), atol=1e-6)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_bfloat16_backbone_keeps_a_float32_head_and_stays_close(model_type):
    exact, rounded = tiny_model(model_type), tiny_model(model_type, dtype=jnp.bfloat16)
    assert rounded.encoder.layers[0].attention.query.kernel.dtype == jnp.bfloat16
    assert rounded.classifier.kernel.dtype == jnp.float32
    assert (rounded.pooler.kernel.dtype == jnp.float32) == (model_type == "roberta")
    examples = batch(exact.config)
    logits = compiled(rounded, examples)
    assert logits.dtype == jnp.float32
    # Eight bits of mantissa through two layers: about a percent of the logits.
    np.testing.assert_allclose(logits, exact(examples), atol=0.03 * np.abs(exact(examples)).max())


def test_too_long_sentences_are_refused_rather_than_clamped():
    model = tiny_model("roberta")  # 24 rows, of which two are for padding
    assert jax.eval_shape(model, batch(model.config, (22,), length=22)).shape == (1, 3)
    with pytest.raises(ValueError, match="23 tokens; the model takes 22"):
        jax.eval_shape(model, batch(model.config, (23,), length=23))


def test_robertas_first_token_has_position_two():
    config = EncoderConfig.from_transformers(AutoConfig.for_model("roberta"))
    assert config.position_offset == 2
    model = tiny_model("roberta")
    model.embeddings.position.table[...] = model.embeddings.position.table[...].at[:2].set(jnp.nan)
    assert np.isfinite(model(batch(model.config))).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported; supported are \\['bert', 'roberta'\\]"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "relative_key"),
        ({"model_type": "bert", "is_decoder": True}, "is_decoder"),
        ({"model_type": "bert", "hidden_act": "mish"}, "'mish' is not supported; supported are \\['gelu'"),
        ({"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}, "multiple of `heads`, got 30 and 4"),
        ({"model_type": "roberta", "pad_token_id": None}, "pad_token_id"),
    ],
)
def test_unsupported_configs_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig.from_transformers(AutoConfig.for_model(**settings))


def test_a_direct_config_is_checked_too():
    with pytest.raises(ValueError, match="'t5' is not supported"):
        EncoderConfig("t5", 50, 24, 2, 16, 2, 4, 24)


def test_random_models_depend_on_the_key_alone():
    one, same, other = (random_model(CONFIGS["bert"], 3, jax.random.key(seed)) for seed in (0, 0, 1))
    examples = batch(CONFIGS["bert"])
    np.testing.assert_array_equal(one(examples), same(examples))
    assert np.abs(one(examples) - other(examples)).max() > 0
    with pytest.raises(ValueError, match="`classes`"):
        random_model(CONFIGS["bert"], 0, jax.random.key(0))
    with pytest.raises(ValueError, match="float16"):
        random_model(CONFIGS["bert"], 3, jax.random.key(0), jnp.float16)


def test_labels_are_not_read():
    model = tiny_model()
    examples = batch(model.config)
    unlabelled = Examples(*examples[:3], jnp.full_like(examples.labels, -1))
    np.testing.assert_array_equal(model(examples), model(unlabelled))
