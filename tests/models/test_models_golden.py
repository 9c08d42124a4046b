"""Logits that transformers and PEFT gave once, for machines without torch. `make_golden.py` writes the files."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxdfl.data.examples import Examples
from jaxdfl.models import adapt, load
from jaxdfl.protocol import PerBlock

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=["bert", "roberta"])
def golden(request):
    model, _ = load(GOLDEN / request.param, 3, jax.random.key(0))
    arrays = {name: jnp.asarray(x) for name, x in load_file(GOLDEN / request.param / "expected.safetensors").items()}
    examples = Examples(arrays["ids"], arrays["types"], arrays["lengths"], jnp.zeros_like(arrays["lengths"]))
    return model, arrays, examples


def test_logits_are_those_of_transformers_once(golden):
    model, arrays, examples = golden
    np.testing.assert_allclose(model(examples), arrays["logits"], atol=1e-5)


def test_adapted_logits_are_those_of_peft_once(golden):
    model, arrays, examples = golden
    classifier = adapt(model, jax.random.key(0), rank=4, alpha=6.0)
    a, b = ({name[2:]: x for name, x in arrays.items() if name.startswith(f"{factor}:")} for factor in "ab")
    assert set(a) == set(classifier.blocks.a)
    logits = classifier.logits(classifier.frozen, PerBlock(a, b, {}), examples, None)
    np.testing.assert_allclose(logits, arrays["adapted_logits"], atol=1e-5)
    assert np.abs(arrays["adapted_logits"] - arrays["logits"]).max() > 0.01
