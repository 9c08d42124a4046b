"""`--dtype float64` is the same run in double precision: same starts, graphs, batches and draws, 1e-8 less rounding."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_wrappers import CASES

from jaxdfl import experiment
from jaxdfl.methods import METHODS
from jaxdfl.presets import BILINEAR, named
from jaxdfl.run_folder import read_rows

ROUNDING = 2e-4  # of float32, after a few steps of an optimizer that divides by the size of small gradients


def both(presets, folder, *options):
    """The folders of a float32 run and of a float64 run with the same options."""
    for dtype in ("float32", "float64"):
        out = folder / dtype
        assert experiment.main(presets, ["--dtype", dtype, "--checkpoints", "--out", str(out), *options]) == 0
    assert not jax.config.read("jax_enable_x64"), "the process computes in its own way again"
    return folder / "float32", folder / "float64"


def assert_same_run(single, double, names):
    for name in ("metrics.jsonl", "rounds.jsonl"):
        rows = zip(read_rows(single / name), read_rows(double / name), strict=True)
        for one, other in rows:
            assert one["method"] == other["method"]
            for key in (name for name in names & one.keys() if one[name] is not None):  # no loss before training
                np.testing.assert_allclose(one[key], other[key], ROUNDING, ROUNDING, err_msg=f"{one['method']} {key}")


def assert_double(folder):
    with ocp.StandardCheckpointer() as checkpointer, jax.enable_x64(True):
        for saved in (folder / "checkpoints").glob("*/round-*/state"):
            arrays = checkpointer.restore(saved.absolute())
            kinds = {key: np.asarray(x).dtype for key, x in arrays.items() if np.asarray(x).dtype.kind == "f"}
            assert kinds
            assert set(kinds.values()) == {np.dtype("float64")}, f"{saved}: {kinds}"


def test_float64_gives_an_encoder_the_same_run_with_less_rounding(preset, tmp_path):
    options = ["--topologies", "erdos_renyi:0.5", "--head", "trained", "--lora-dropout", "0.1"]
    single, double = both({"tiny": preset}, tmp_path, *options)
    assert_same_run(single, double, {"loss", "disagreement_a", "disagreement_b", "cross_term", "messages", "round"})
    assert_double(double)
    assert max(row["mean_drift"] for row in read_rows(double / "rounds.jsonl")) < 1e-14


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("names", [tuple(METHODS), tuple(f"dec_lora+{case}" for case, _ in CASES.values())])
def test_float64_gives_every_method_and_wrapper_the_same_run(names, tmp_path):
    options = ["--methods", *names, "--rounds", "4", "--eval-every", "2", "--seeds", "0", "--topologies", "chain"]
    options += ["--rank", "2"]  # the experts of ten clients side by side
    single, double = both(named(BILINEAR), tmp_path, *options)
    assert_same_run(single, double, {"loss", "messages", "round"})
    assert_double(double)
