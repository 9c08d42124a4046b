"""What all tests share: a tiny BERT with sentences for it, and that compiled programs are dropped after each module.

XLA keeps memory maps for every program it has compiled, Linux allows a process 65,530 of them, and this suite compiles
thousands of programs. A process that runs out is aborted in the middle of a compilation.
"""

import json
import os
import tempfile

# Programs here run for milliseconds, and LLVM would optimise them for minutes. (At level 0 some bounds on rounding
# would have to give.) As users run them: XLA_FLAGS=--xla_backend_optimization_level=3 python -m pytest
if "xla_backend_optimization_level" not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=1".strip()

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from safetensors.numpy import save_file
from tiny import CLIENTS, POSITIONS, VOCABULARY, WIDTH, WORDS

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="jaxdfl-tests-")  # of child processes too: not the user's own


@pytest.fixture(scope="module", autouse=True)
def programs_dropped_after_each_module():
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def programs_compiled_once(tmp_path_factory):
    """For modules whose experiments compile programs of their own, of which most are the same."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for settings in (options, before):
        for name, value in settings.items():
            jax.config.update(name, value)
        reset_cache()
        if settings is options:
            yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A BERT in Hugging Face layout: config.json, model.safetensors, vocab.txt."""
    folder, draw = tmp_path_factory.mktemp("weights") / "tiny-bert", np.random.default_rng(0)
    folder.mkdir()
    config = {
        "model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
    }  # fmt: skip
    norms = {"embeddings.LayerNorm": WIDTH}
    tables = {"word_embeddings": len(VOCABULARY), "position_embeddings": POSITIONS, "token_type_embeddings": 2}
    layer = "encoder.layer.0."
    linears = {f"{layer}attention.self.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
    linears |= {f"{layer}attention.output.dense": (WIDTH, WIDTH), "pooler.dense": (WIDTH, WIDTH)}
    linears |= {f"{layer}intermediate.dense": (24, WIDTH), f"{layer}output.dense": (WIDTH, 24)}
    norms |= {f"{layer}attention.output.LayerNorm": WIDTH, f"{layer}output.LayerNorm": WIDTH}
    tensors = {f"embeddings.{name}.weight": draw.normal(size=(rows, WIDTH)) for name, rows in tables.items()}
    tensors |= {f"{name}.weight": draw.normal(size=shape) / WIDTH**0.5 for name, shape in linears.items()}
    tensors |= {f"{name}.bias": np.zeros(shape[0]) for name, shape in linears.items()}
    tensors |= {f"{name}.weight": np.ones(size) for name, size in norms.items()}
    tensors |= {f"{name}.bias": np.zeros(size) for name, size in norms.items()}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    save_file({f"bert.{name}": x.astype(np.float32) for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """sst2 in the hub's columns and split names: 80 sentences to train on, 20 to validate."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(1)
    (folder / "sst2").mkdir()
    for split, count in (("train", 80), ("validation", 20)):
        rows = [{"sentence": f"a {draw.choice(WORDS[i % 2])} film {i % 7}", "label": i % 2} for i in range(count)]
        (folder / "sst2" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def preset(weights, data):
    from jaxdfl.settings import Settings  # not above: jaxdfl must not be imported before its type checks are hooked in

    return Settings(
        preset="tiny", task="sst2", weights=str(weights), data_dir=str(data), methods=("dec_lora",),
        topologies=("ring",), clients=CLIENTS, rounds=4, local_steps=2, batch_size=4, learning_rate=(1e-2,), rank=2,
        max_length=16, eval_every=2, checkpoints=False,
    )  # fmt: skip
