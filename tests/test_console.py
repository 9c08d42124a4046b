"""What a person sees: it fits a screen of 80 columns, and does not flood a log."""

import io

import pytest
from rich.console import Console

from jaxdfl import console

TOPOLOGIES = ("erdos_renyi:0.1", "random_links:0.25:torus", "networks/of[2]/my-own-weights-at-every-round.npy")
NETWORK = {
    "rho": 0.812345, "rho_is_exact": False, "standard_error": 0.0041, "sigma_2": 0.851, "links": 9.05,
    "connected": 0.01, "recommended_period": 7,
}  # fmt: skip
MANIFEST = {
    "settings": {
        "methods": ["dec_lora", "tad_lora"], "seeds": [0, 1], "clients": 10, "rounds": 150, "local_steps": 20,
        "batch_size": 32, "optimizer": "adamw", "learning_rate": [5e-4], "learning_rate_schedule": "constant",
        "moments": "reset_each_round", "rank": 8, "alpha": 16.0, "lora_dropout": 0.1, "head": "frozen",
        "targets": ["layers/[01]/attention/[qv]"], "partition": "dirichlet:0.5", "work": "steady", "arbiter": "all",
    },
    "model": {"name": "tiny", "architecture": "bert", "parameters": 22_714_371, "dtype": "float32",
              "initialised": ["classifier/kernel"], "note": "Seen before."},
    "data": {"source": "data[1]/train.jsonl", "train": {"examples": 9999}, "length": 128,
             "validation": {"source": "data[1]/validation.jsonl", "examples": 300}},
    "topologies": {**dict.fromkeys(TOPOLOGIES, NETWORK), "isolated": {
        **NETWORK, "rho": 1.0, "rho_is_exact": True, "recommended_period": None}},
    "runs": [{}] * 16,
    "environment": {"device": "cpu", "devices": 1, "packages": {"jax": "0.10.1"}},
}  # fmt: skip


@pytest.fixture
def screen(monkeypatch):
    """What is printed, on 80 columns and no terminal, until a test asks for one."""
    made = Console(width=80, file=io.StringIO(), markup=False, highlight=False)
    monkeypatch.setattr(console, "OUT", made)
    return made.file


def test_the_setup_says_model_data_device_and_spectrum(screen):
    console.show_setup(MANIFEST)
    said = screen.getvalue()
    for words in ("tiny (bert, 22.7M, float32)", "Seen before.", "9999 examples", "cpu (jax 0.10.1)", "0.812 ± 0.004"):
        assert words in said
    assert "layers/[01]/attention/[qv]" in said  # not read as markup
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if line.startswith("isolated")).split() == [
        "isolated",
        "1.000",
        "0.851",
        "9.1",
        "1%",
        "none",
    ]


def test_a_long_name_of_a_topology_is_folded_and_never_cut(screen):
    console.show_setup(MANIFEST)
    said = screen.getvalue()
    start = said.index("networks/of")
    assert "…" not in said
    assert "round" in said[start:]


def test_progress_in_a_log_is_one_line_at_the_end_where_rounds_are_quick(screen):
    with console.progress(500) as moved:
        for _ in range(500):
            moved("dec_lora on ring, seed 0", 1, 1)
    lines = screen.getvalue().splitlines()
    assert len([line for line in lines if line.strip()]) == 1
    assert lines[0].startswith("500 of 500 rounds, ")
    assert lines[0].endswith("0 s left; dec_lora on ring, seed 0")


def test_progress_in_a_log_is_a_line_a_minute_where_rounds_are_slow(screen, monkeypatch):
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(console.time, "perf_counter", lambda: float(next(clock)))
    with console.progress(100) as moved:
        for _ in range(12):
            moved("dec_lora on ring, seed 0", 1, 1)
    assert len(screen.getvalue().splitlines()) == 4  # of 300 seconds
    assert "3 of 100 rounds, 0.04 rounds/s, 40 min left" in screen.getvalue()


def test_the_first_of_many_runs_in_one_program_speaks_for_all(screen, monkeypatch):
    clock = iter([0.0, 100.0])
    monkeypatch.setattr(console.time, "perf_counter", lambda: float(next(clock)))
    with console.progress(1000) as moved:
        moved("dec_lora on ring, seed 0", 5, 100)
    assert "5 of 1000 rounds, 5 rounds/s, 2 min left" in screen.getvalue()


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (89.0, "89 s"), (600.0, "10 min"), (5e4, "13.9 h")])
def test_a_duration_is_told_in_the_unit_that_suits_it(seconds, words):
    assert console.duration(seconds) == words


def test_compile_time_is_counted_while_the_block_is_open_and_not_after(monkeypatch):
    import jax

    with console.compile_time() as spent:
        jax.jit(lambda x: x * 3.25)(1.0)
        assert spent() > 0
        within = spent()
    jax.jit(lambda x: x * 4.25)(1.0)
    assert spent() == within
