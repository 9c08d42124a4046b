"""A checkpoint comes back bit for bit, or says why it cannot."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl import checkpoint
from jaxdfl.protocol import PerBlock


class Carried(NamedTuple):
    round: Any
    key: Any
    blocks: Any
    mixer: Any


def state(seed: int = 0, rank: int = 2, dtype: Any = jnp.float32) -> Carried:
    key = jax.random.key(seed)
    a = {"layers/0/query": jax.random.normal(key, (3, rank, 5)), "layers.0": jnp.array([-0.0, jnp.nan, 1e-42])}
    b = {"layers/0/query": jax.random.normal(key, (3, 4, rank), dtype)}
    return Carried(jnp.int32(seed), jax.random.split(key, 3), PerBlock(a, b, {}), ((), jnp.zeros((0, 3)), [None]))


def bits(tree: Any) -> list[bytes]:
    raw = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(raw)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_round_trip_keeps_every_bit_and_the_structure(tmp_path, dtype):
    checkpoint.save(tmp_path / "new" / "round_7", state(7, dtype=dtype))
    restored = checkpoint.restore(tmp_path / "new" / "round_7", like=state(0, dtype=dtype))
    assert jax.tree.structure(restored) == jax.tree.structure(state())
    assert [leaf.dtype for leaf in jax.tree.leaves(restored)] == [x.dtype for x in jax.tree.leaves(state(dtype=dtype))]
    assert bits(restored) == bits(state(7, dtype=dtype))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["round_7"]  # nothing temporary is left


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_restored_keys_draw_the_same_numbers(tmp_path, impl):
    checkpoint.save(tmp_path / "key", {"key": jax.random.key(3, impl=impl)})
    restored = checkpoint.restore(tmp_path / "key", like={"key": jax.random.key(0, impl=impl)})
    assert jax.random.normal(restored["key"]) == jax.random.normal(jax.random.key(3, impl=impl))


def test_a_relative_path_and_a_leftover_of_a_killed_run_are_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "round_1.orbax-checkpoint-tmp").mkdir()
    checkpoint.save("round_1", state(1))
    assert bits(checkpoint.restore("round_1", like=state())) == bits(state(1))


def test_an_existing_checkpoint_is_not_replaced(tmp_path):
    checkpoint.save(tmp_path / "one", state(1))
    with pytest.raises(ValueError, match="exists already"):
        checkpoint.save(tmp_path / "one", state(2))
    assert bits(checkpoint.restore(tmp_path / "one", like=state())) == bits(state(1))


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            state(rank=3),
            r"leaf \.blocks\.a\['layers/0/query'\] is float32\[3, 2, 5\] in .* to be float32\[3, 3, 5\]; restore",
        ),
        (
            state(dtype=jnp.bfloat16),
            r"leaf \.blocks\.b\['layers/0/query'\] is float32\[3, 4, 2\] in .* bfloat16\[3, 4, 2\]",
        ),
        (state()._replace(round=()), r"leaf \.round is int32\[\] in the checkpoint, .* to be absent"),
        (state()._replace(mixer=jnp.ones(2)), r"leaf \.mixer is absent in the checkpoint, .* to be float32\[2\]"),
        (state()._replace(key=jnp.zeros((3, 4), jnp.uint32)), r"leaf \.key is uint32\[3, 2\] in .* uint32\[3, 4\]"),
    ],
)
def test_the_first_leaf_that_differs_is_named(tmp_path, like, message):
    checkpoint.save(tmp_path / "one", state())
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path / "one", like)


def test_a_folder_without_checkpoint_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="holds no checkpoint"):
            checkpoint.restore(path, like=state())


def test_shardings_come_from_like(tmp_path):
    mesh = jax.make_mesh((1,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))
    checkpoint.save(tmp_path / "one", {"x": jnp.arange(4.0)})
    restored = checkpoint.restore(tmp_path / "one", like={"x": jax.device_put(jnp.zeros(4), sharding)})
    assert restored["x"].sharding == sharding
