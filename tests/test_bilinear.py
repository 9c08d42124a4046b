"""The bilinear federation is what its docstring says, and an experiment runs on it from the command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl import experiment, presets
from jaxdfl.problems.bilinear import D_IN, D_OUT, INPUTS, LAYERS, Frozen, Pairs, draw, errors, loss
from jaxdfl.protocol import PerBlock

CLIENTS, RANK, SCALE = 5, 3, 2.0


def factors(key, clients=None):
    lead = () if clients is None else (clients,)
    keys = iter(jax.random.split(jax.random.key(key), 4))
    return PerBlock(
        {layer: jax.random.normal(next(keys), (*lead, RANK, D_IN)) for layer in LAYERS},
        {layer: jax.random.normal(next(keys), (*lead, D_OUT, RANK)) for layer in LAYERS},
        {},
    )


def own_targets(found):
    """W_i of every client by least squares on its noisy pairs, [clients, layers, d_out, d_in]."""
    x, y = np.asarray(found.pairs.x, np.float64), np.asarray(found.pairs.y, np.float64)
    return np.array(
        [
            [
                (np.linalg.lstsq(x[i, :, k], y[i, :, k], rcond=None)[0] - np.asarray(found.frozen.kernel[k])).T
                for k in range(len(LAYERS))
            ]
            for i in range(len(x))
        ]
    )


@pytest.mark.parametrize("heterogeneity", [0.0, 0.5, 2.0])
def test_clients_targets_average_to_the_common_one_and_lie_as_far_apart_as_asked(heterogeneity):
    """To the error of least squares on 256 noisy pairs: 0.1 sqrt(1 / 256) on each of 768 entries, 0.2 in norm."""
    found = draw(jax.random.key(0), CLIENTS, RANK, heterogeneity)
    targets, common = own_targets(found), np.asarray(found.frozen.target)
    np.testing.assert_allclose(targets.mean(0), common, atol=0.02)
    apart = np.sqrt(np.mean(np.sum(np.square(targets - common), axis=(1, 2, 3)))) / np.linalg.norm(common)
    assert apart == pytest.approx(heterogeneity, abs=0.05)


def test_the_common_target_has_the_adapters_rank_so_that_it_can_be_learned():
    target = np.asarray(draw(jax.random.key(0), CLIENTS, RANK, 1.0).frozen.target)
    for layer in target:
        values = np.linalg.svd(layer)[1]
        assert (values > 1e-6 * values[0]).sum() == RANK


def test_the_loss_is_the_mean_squared_error_of_both_layers_summed():
    found, blocks = draw(jax.random.key(1), CLIENTS, RANK, 1.0), factors(0)
    batch = jax.tree.map(lambda x: x[2, :7], found.pairs)
    expected = 0.0
    for k, layer in enumerate(LAYERS):
        weight = np.asarray(found.frozen.kernel[k]).T + SCALE * np.asarray(blocks.b[layer] @ blocks.a[layer])
        missed = np.asarray(batch.x[:, k]) @ weight.T - np.asarray(batch.y[:, k])
        expected += 0.5 * np.mean(np.sum(missed**2, axis=1))
    np.testing.assert_allclose(loss(SCALE)(found.frozen, blocks, batch, None), expected, rtol=1e-5)


def test_the_expected_gradient_is_that_of_the_distance_to_the_clients_target():
    """On inputs whose second moment is exactly the identity, without noise."""
    found, blocks = draw(jax.random.key(1), 1, RANK, 0.0), factors(1)
    x = np.sqrt(D_IN) * np.eye(D_IN)[:, None].repeat(len(LAYERS), 1)  # [inputs, layers, d_in]
    kernels = found.frozen.kernel + jnp.swapaxes(found.frozen.target, 1, 2)
    batch = Pairs(jnp.float32(x), jnp.einsum("nli,lio->nlo", jnp.float32(x), kernels))
    gradient = jax.grad(lambda blocks: loss(SCALE)(found.frozen, blocks, batch, None))(blocks)
    for k, layer in enumerate(LAYERS):
        missed = SCALE * (SCALE * blocks.b[layer] @ blocks.a[layer] - found.frozen.target[k])
        np.testing.assert_allclose(gradient.b[layer], missed @ blocks.a[layer].T, rtol=2e-4, atol=1e-3)
        np.testing.assert_allclose(gradient.a[layer], blocks.b[layer].T @ missed, rtol=2e-4, atol=1e-3)


def test_the_error_is_zero_at_the_common_target_and_one_at_zero():
    target = draw(jax.random.key(0), CLIENTS, RANK, 1.0).frozen.target
    u, s, v = np.linalg.svd(np.asarray(target, np.float64), full_matrices=False)
    a = {layer: jnp.float32(v[None, k, :RANK]) for k, layer in enumerate(LAYERS)}
    b = {layer: jnp.float32(u[None, k, :, :RANK] * s[k, :RANK] / SCALE) for k, layer in enumerate(LAYERS)}
    exact, nothing = PerBlock(a, b, {}), PerBlock(a, jax.tree.map(jnp.zeros_like, b), {})
    assert errors(target, SCALE, exact)[0] < 1e-5
    assert errors(target, SCALE, nothing)[0] == pytest.approx(1)


def test_a_client_draws_the_same_inputs_whatever_the_number_of_clients():
    few, many = (draw(jax.random.key(3), clients, RANK, 1.0) for clients in (2, 7))
    np.testing.assert_array_equal(few.pairs.x, many.pairs.x[:2])
    assert few.pairs.x.shape == (2, INPUTS, len(LAYERS), D_IN)
    assert isinstance(few.frozen, Frozen)


def test_an_experiment_runs_on_it_and_learns(tmp_path):
    argv = ["--rounds", "20", "--eval-every", "10", "--seeds", "0", "1", "--methods", "dec_lora", "tad_lora:2"]
    assert experiment.main(presets.named(presets.BILINEAR), [*argv, "--out", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for method in ("dec_lora", "tad_lora:2"):
        of_seed = [row["error_mean"] for row in rows if row["method"] == method and row["seed"] == 1]
        assert of_seed[0] == pytest.approx(1)  # B = 0
        assert of_seed[-1] < 0.9
    text = (tmp_path / "run" / "summary.md").read_text()
    assert "relative distance to the best common adapter" in text
    assert "chance" not in text
    assert (tmp_path / "run" / "figures" / "error.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "bilinear:much"], "`--task` bilinear:HETEROGENEITY needs a number of at least 0"),
        (["--partition", "iid"], "`--partition` means nothing for bilinear:1"),
        (["--weights", "demo"], "`--weights` means nothing for bilinear:1"),
        (["--lora-dropout", "0.1"], "`--lora-dropout` means nothing for bilinear:1"),
        (["--work", "lazy"], "`--work` lazy: unknown work 'lazy'"),
        (["--topologies", "erdos_renyi:2"], "`--topologies` erdos_renyi:2: `p` must lie in [0, 1]"),
        (["--methods", "dec_lora+ranks:9"], "dec_lora+ranks:9 on erdos_renyi:0.1: `lowest`"),
        (["--arbiter", "diffuse:2"], "`--arbiter` must be all, diffuse:SHARE or concentrated:SHARE"),
        (["--task", "mnli+mnli"], "`--task` names one twice"),
        (["--rank", "17"], "`--rank` must lie in 1..16"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(argv, message, tmp_path, capsys):
    assert experiment.main(presets.named(presets.BILINEAR), [*argv, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
