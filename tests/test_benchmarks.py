"""The benchmarks count operations as compilers do, give every system the same work, and report what was measured."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from benchmarks import accelerator, operations, record, roofline, rounds, without_gpu, workload
from benchmarks.remote import Remote
from benchmarks.systems import SYSTEMS, System
from benchmarks.worker import peak_mib
from jaxdfl.data.examples import Examples
from jaxdfl.models import EncoderConfig, adapt, cross_entropy, random_model
from jaxdfl.simulate.operations import matrix_products

WIDTH, INTERMEDIATE, LAYERS, CLASSES, SENTENCES, LENGTH, RANK = 64, 256, 3, 3, 8, 32, 4
SHAPE = operations.Shape(WIDTH, INTERMEDIATE, LAYERS, CLASSES)
CONFIG = EncoderConfig(
    "bert", vocabulary=50, positions=64, types=2, width=WIDTH, layers=LAYERS, heads=4, intermediate=INTERMEDIATE
)  # fmt: skip


def step():
    """One client's step as a function, and its arguments."""
    classifier = adapt(random_model(CONFIG, CLASSES, jax.random.key(0)), jax.random.key(1), rank=RANK)
    ones = jnp.ones((SENTENCES, LENGTH), jnp.int32)
    batch = Examples(ones, ones.astype(jnp.int8), ones.sum(-1), ones[:, 0])
    return jax.value_and_grad(cross_entropy(classifier), argnums=1), (classifier.frozen, classifier.blocks, batch, None)


def test_operations_are_those_of_the_traced_program():
    function, arguments = step()
    traced = matrix_products(jax.make_jaxpr(function)(*arguments))
    mask = 2 * SENTENCES * LENGTH**2  # which tokens belong together: a product of indicators, jaxdfl's own
    assert traced == operations.client_step(SHAPE, SENTENCES, LENGTH, RANK, only_read=True) + mask


def test_operations_are_those_that_xla_counts():
    function, arguments = step()
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    counted = operations.client_step(SHAPE, SENTENCES, LENGTH, RANK, only_read=True)
    # XLA also counts what is no product: 12 % at this width, 2 % at MiniLM's.
    assert counted < analysis["flops"] < 1.15 * counted


def test_bytes_are_those_of_what_a_program_reads_and_writes():
    program = """
%fused (p: bf16[512,4096]) -> bf16[512,4096] {
  ROOT %big = f32[512,4096]{1,0} parameter(0)
}

ENTRY %main (x: bf16[512,4096], s: f32[]) -> bf16[512,4096] {
  %x = bf16[512,4096]{1,0} parameter(0), metadata={op_name="x"}
  %s = f32[] parameter(1)
  %small.3 = f32[8]{0} broadcast(%s), dimensions={}
  %add.7 = (bf16[512,4096]{1,0}, f32[512]{0}) fusion(%x, %small.3), calls=%fused, metadata={op_name="jit(f)/add"}
  ROOT %one = bf16[512,4096]{1,0} get-tuple-element(%add.7), index=0
}
"""
    array = 512 * 4096 * 2
    assert list(without_gpu.moved(program)) == [
        without_gpu.Moved("add (bf16[512,4096], f32[512]) add", array + 8 * 4, array + 512 * 4)
    ]


def test_what_compiles_for_a_gpu_is_asked_for_by_name():
    command = [sys.executable, "-m", "benchmarks.without_gpu", "--layers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("it is installed here")
    assert done.returncode == 2
    assert f"pip install jax-cuda13-plugin=={jax.__version__}" in done.stderr


def test_operations_are_those_that_torch_counts():
    torch = pytest.importorskip("torch", reason="torch counts its own operations")
    peft = pytest.importorskip("peft", reason="the adapters are PEFT's")
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=INTERMEDIATE, max_position_embeddings=64, num_labels=CLASSES,
    )  # fmt: skip
    model = BertForSequenceClassification._from_config(config, attn_implementation="eager")
    model.requires_grad_(False)
    model = peft.PeftModel(model, peft.LoraConfig(r=RANK, target_modules=["query", "value"]))
    ones = torch.ones(SENTENCES, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ones, attention_mask=ones, labels=ones[:, 0]).loss.backward()
    assert counter.get_total_flops() == operations.client_step(SHAPE, SENTENCES, LENGTH, RANK)


@pytest.mark.parametrize("packing", [False, True])
def test_rounds_of_a_large_model_are_counted_by_what_they_compute(packing):
    asked = accelerator.Options(
        layers=LAYERS, width=WIDTH, heads=4, intermediate=INTERMEDIATE, clients=2, batch_size=SENTENCES, length=LENGTH,
        local_steps=2, rounds=3, rank=RANK, packing=packing,
    )  # fmt: skip
    seconds, _, counted, _ = accelerator.measure(asked)
    one = operations.client_step(SHAPE, SENTENCES, LENGTH, RANK, only_read=True) + 2 * SENTENCES * LENGTH**2
    assert seconds > 0
    assert counted == 2 * 2 * one


def test_loops_count_by_their_length_and_branches_by_the_costliest():
    def looped(x):
        x, _ = jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)
        return jax.lax.cond(x[0, 0] > 0, lambda c: c @ c @ c, lambda c: c, x)

    assert matrix_products(jax.make_jaxpr(looped)(jnp.ones((4, 4)))) == 7 * 2 * 4**3
    endless = jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c @ c, x))
    with pytest.raises(ValueError, match="while"):
        matrix_products(endless(jnp.ones((4, 4))))


@pytest.fixture(scope="module")
def drawn():
    """A workload of random numbers: 2 rounds, 3 clients, 2 steps, 4 sentences of up to 8 tokens."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, 9, (2, 3, 2, 4), dtype=np.int32)
    tokens = np.ones((*lengths.shape, 8), np.int32)
    path = "encoder/layers/0/attention/query"
    shape = {"width": WIDTH, "intermediate": INTERMEDIATE, "layers": LAYERS}
    return workload.Workload(
        command=["--clients", "3"], weights="nowhere", model={"shape": shape}, data={"task": "drawn"},
        modules={path: "bert.query"}, rank=RANK, alpha=16.0, rate=5e-4, ids=tokens, types=tokens.astype(np.int8),
        lengths=lengths, labels=lengths, mixing=np.ones((2, 3, 3), np.float32), a={path: np.ones((4, 64), np.float32)},
        b={path: np.zeros((64, 4), np.float32)}, head={"weight": np.ones((3, 64)), "bias": np.zeros(3)},
    )  # fmt: skip


def test_a_workload_comes_back_from_its_folder(drawn, tmp_path):
    drawn.save(tmp_path)
    found = workload.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, vars(found), vars(drawn))
    assert workload.load_command(tmp_path) == drawn.command
    assert (found.rounds, found.clients, found.steps) == (2, 3, 2)


def test_each_way_of_padding_holds_its_sentences_and_the_batch_way_is_the_shortest(drawn):
    batch, step, full = (drawn.padded(0, padding) for padding in ("batch", "step", "full"))
    assert batch.shape == step.shape == full.shape == (3, 2)
    assert (drawn.lengths[0].max(-1) == batch).all()
    assert (batch <= step).all()
    assert (step <= full).all()
    assert (full == 8).all()
    least, more = (operations.of_round(SHAPE, lengths, 4, RANK) for lengths in (batch, full))
    assert rounds.useful_gflop(drawn)[0] * 1e9 < least < more


def test_the_federation_is_one_that_jaxdfl_accepts():
    from jaxdfl import presets
    from jaxdfl.arguments import parse

    settings = parse({"benchmark": presets.MINILM}, workload.Federation(clients=7).command(5))
    assert (settings.clients, settings.rounds, settings.task) == (7, 5, "natural_logic")
    assert (settings.clip, settings.lora_dropout, settings.weight_decay, settings.checkpoints) == (None, 0, 0, False)


class NoTurns:
    """A system alone need not wait."""

    def stop(self):
        pass

    def __call__(self, **_):
        pass


@pytest.fixture(scope="module")
def tiny(weights, tmp_path_factory):
    """The folder of a real workload, on the tiny BERT: 4 rounds in which B grows from 0."""
    folder = tmp_path_factory.mktemp("workload")
    federation = workload.Federation(
        weights=str(weights), clients=3, batch_size=4, rank=2, max_length=16, train_examples=200
    )
    workload.make(federation, 4, folder / "run").save(folder)
    return folder


@pytest.fixture(scope="module")
def jaxdfl_losses(tiny):
    return SYSTEMS["jaxdfl"].load()(tiny, NoTurns()).losses


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name not in ("jaxdfl", "flower")])
def test_rivals_lose_what_jaxdfl_loses(tiny, jaxdfl_losses, name):
    for package in SYSTEMS[name].needs:
        pytest.importorskip(package, reason="a rival of the bench extra")
    result = SYSTEMS[name].load()(tiny, NoTurns(), **SYSTEMS[name].options)
    np.testing.assert_allclose(result.losses, jaxdfl_losses, rtol=1e-5)
    assert len(result.operations) == 4


ECHO = """
from benchmarks.worker import Result
def run(folder, turn, rounds):
    print("noise on standard output")
    for _ in range(rounds + 1):
        turn()
    return Result([1.5] * rounds, [2e9] * rounds, {"threads": 1})
"""


def test_workers_take_turns_and_a_dead_one_says_why(drawn, tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text(ECHO)
    (tmp_path / "sitecustomize.py").write_text(
        "from benchmarks.systems import SYSTEMS, System\n"
        "for name in 'ab': SYSTEMS[name] = System('echo', name, options={'rounds': 2})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(rounds, "REST", 0.0)
    for name in "ab":
        monkeypatch.setitem(SYSTEMS, name, System("echo", name))
    found = rounds.take_turns(["a", "b"], tmp_path, tmp_path, 2)
    assert [len(system["seconds"]) for system in found.values()] == [2, 2]
    assert found["a"]["losses"] == [1.5, 1.5]
    assert found["a"]["peak_mib"] > 1
    assert "noise" in (tmp_path / "a.log").read_text()
    with Remote("a", tmp_path, tmp_path / "log", no_such=1) as remote, pytest.raises(RuntimeError, match="no_such"):
        remote.hear()


def test_the_record_compares_shows_and_writes(tmp_path):
    def system(*seconds):
        return {
            "seconds": list(seconds), "setup_seconds": 3.0, "peak_mib": 100.0, "losses": [1.0, 1.0, 1.0],
            "operations": [6e9] * 3, "facts": {"threads": 2},
        }  # fmt: skip

    slow = system(30.0, 2.0, 9.0) | {"losses": [1.0, 1.0, 1.001]}
    found = {
        "options": {"federation": {"clients": 3, "local_steps": 2, "batch_size": 4, "rank": 8, "data_dir": None}},
        "left_out": {"flower": ["flwr"]}, "machine": record.machine(), "packages": record.packages(("jax", "nothing")),
        "model": {}, "data": {"task": "drawn", "source": "a test", "length": 8}, "useful_gflop": [3.0] * 3,
        "roofline_gflops": {"jax": {"1x1x1": 12.0}}, "systems": {"jaxdfl": system(9.0, 1.0, 3.0), "peft_loop": slow},
    }  # fmt: skip
    found["compared"] = rows = record.compare(found, "jaxdfl", warm_up=1)
    assert rows["jaxdfl"]["seconds"] == 2.0
    assert rows["peft_loop"]["ratio"] == 2.5  # the median of 2 and 3, not 5.5 / 2
    assert rows["peft_loop"]["loss_difference"] == pytest.approx(1e-3)
    assert rows["jaxdfl"]["roof_share"] == pytest.approx(4 / 12)
    assert rows["jaxdfl"]["useful_share"] == 0.5

    screen = io.StringIO()
    record.show(found, Console(file=screen))
    for said in ("2.50x", "flower was left out: no flwr", "Generated sentences", f"jax {jax.__version__}"):
        assert said in screen.getvalue()
    record.write(tmp_path / "made" / "found.json", found)
    assert json.loads((tmp_path / "made" / "found.json").read_text())["compared"] == rows


def test_the_roof_is_the_best_that_was_measured_at_any_time():
    before, after = (
        {"jax": {"small": 3.0, "large": 9.0}, "torch": {"small": 1.0}},
        {"jax": {"small": 5.0, "large": 8.0}},
    )
    assert roofline.best(before, after) == {"jax": {"small": 5.0, "large": 9.0}, "torch": {"small": 1.0}}
    assert roofline.roof(before) == 9.0


def test_a_process_knows_its_peak_of_memory():
    before = peak_mib()
    held = np.ones(2**25)  # 256 MiB
    assert peak_mib() >= before
    assert held.nbytes / 2**20 < peak_mib()


def test_turns_leave_out_what_follows_the_stop(monkeypatch):
    from benchmarks.worker import Turn

    monkeypatch.setattr("sys.stdin", io.StringIO("go\n"))
    replies = io.StringIO()
    turn = Turn(replies)
    turn.stop()
    time.sleep(0.05)
    turn(round=3)
    reply = json.loads(replies.getvalue())
    assert reply["round"] == 3
    assert reply["seconds"] < 0.05


@pytest.mark.slow
def test_scaling_measures_every_point_that_it_shows(tmp_path):
    """In processes of their own; generated pairs, few clients."""
    out = tmp_path / "scaling.json"
    command = [sys.executable, "-m", "benchmarks.scaling", "--axes", "clients", "runs", "--quick", "--stretches", "2"]
    subprocess.run([*command, "--out", str(out)], check=True, cwd=Path(__file__).parents[1])
    points = json.loads(out.read_text())["points"]
    assert [(point["axis"], point["size"]) for point in points] == [
        ("clients", 2),
        ("clients", 4),
        ("runs", 1),
        ("runs", 2),
    ]
    assert all(point["client-step ms"] > 0 for point in points)
