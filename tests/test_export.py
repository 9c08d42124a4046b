"""Adapters of finished runs as PEFT folders: they score what the rows say, and serve as a start."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdfl import experiment, methods, peft
from jaxdfl.arguments import from_manifest
from jaxdfl.export import export
from jaxdfl.problems import backbone, text
from jaxdfl.protocol import PerBlock
from jaxdfl.run_folder import read_manifest, read_rows
from jaxdfl.simulate.rounds import SimState

METHODS = ("dec_lora", "fedex_lora", "federa")  # two of which merge factors beside those that train
RANKS = {"dec_lora": 2, "fedex_lora": 2 + 16, "federa": 2 + 2}


@pytest.fixture(scope="module")
def run(preset, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "run"
    asked = ["--methods", *METHODS, "--head", "trained", "--checkpoints", "--learning-rate", "3e-2"]
    assert experiment.main({"tiny": preset}, [*asked, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def problem(run):
    return text.problem(from_manifest(read_manifest(run)))


def last_row(run, method):
    return next(row for row in read_rows(run / "metrics.jsonl") if row["method"] == method and row["round"] == 4)


def adapter_in(folder, problem):
    """The adapter, whatever its rank."""
    rank = json.loads((folder / peft.CONFIG).read_text())["r"]
    first = problem.seeded(0).blocks
    a = {path: jnp.zeros((rank, a.shape[1])) for path, a in first.a.items()}
    b = {path: jnp.zeros((b.shape[0], rank)) for path, b in first.b.items()}
    return peft.read(folder, PerBlock(a, b, first.head), model_type="bert", scale=16 / 2)


def accuracy(problem, *adapters):
    """Mean accuracy of clients with these adapters."""
    blocks = jax.tree.map(lambda *each: jnp.stack(each), *adapters)
    state = SimState(blocks, blocks, (), jnp.int32(0), jax.random.key(0))
    return problem.scores(problem.seeded(0), methods.build("dec_lora"), state)


@pytest.mark.parametrize("method", METHODS)
def test_exported_adapters_score_what_the_row_says(run, problem, tmp_path, method):
    row, number = last_row(run, method), METHODS.index(method)
    for client in ("average", "average-product", *map(str, range(4))):
        export(run, tmp_path / client, client=client, run=number)
    found = {folder.name: adapter_in(folder, problem) for folder in tmp_path.iterdir()}
    assert next(iter(found["0"].a.values())).shape[0] == RANKS[method]
    assert next(iter(found["average-product"].a.values())).shape[0] == min(4 * RANKS[method], 16)  # of 16
    of_clients = accuracy(problem, *(found[str(client)] for client in range(4)))
    for name in ("mean", "worst", "std"):
        assert of_clients[f"accuracy_{name}"] == pytest.approx(row[f"accuracy_{name}"])
    for client in ("average", "average-product"):
        expected = row["accuracy_average_model" if client == "average" else "accuracy_average_product"]
        assert accuracy(problem, found[client])["accuracy_mean"] == pytest.approx(expected)


@pytest.fixture
def adapter(run, tmp_path):
    export(run, tmp_path / "adapter", run=0)
    return tmp_path / "adapter"


def test_every_client_starts_from_the_adapter_asked_for(preset, run, adapter, tmp_path):
    asked = ["--init-adapter", str(adapter), "--rounds", "1", "--seeds", "7", "--out", str(tmp_path / "again")]
    assert experiment.main({"tiny": preset}, asked) == 0
    first = read_rows(tmp_path / "again" / "metrics.jsonl")[0]
    assert first["round"] == 0
    assert first["accuracy_mean"] == first["accuracy_worst"] == last_row(run, "dec_lora")["accuracy_average_model"]
    found = read_manifest(tmp_path / "again")["model"]["init_adapter"]
    assert found == peft.identity(adapter)
    assert len(found["sha256"]) == 64


def test_the_card_says_what_the_adapter_is_and_names_no_path(run, adapter, weights):
    card = (adapter / "README.md").read_text()
    for words in (
        "base_model: tiny-bert", "library_name: peft", "# dec_lora on ring, seed 0", "average of all clients",
        "4 rounds x 2 steps x 4 examples", "rank 2, alpha 16", "sst2, 80 examples", "| accuracy_average_model | 0.",
        "PeftModel.from_pretrained",
    ):  # fmt: skip
        assert words in card
    for file in adapter.iterdir():
        assert str(weights.parent).encode() not in file.read_bytes()


def refusal(call):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the words are compared by the caller)
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "holds 3 runs; name one by --run: 0 dec_lora on ring, seed 0; 1 fedex_lora"),
        ({"run": 3}, "`--run` must be one of 0 dec_lora on ring, seed 0;"),
        ({"run": 0, "client": "4"}, "`--client` must be average, average-product or a number below 4, got '4'"),
        ({"run": 0, "client": "../1"}, "got '../1'"),
    ],
)
def test_what_is_not_in_the_run_is_refused(run, tmp_path, asked, words):
    assert words in refusal(lambda: export(run, tmp_path / "adapter", **asked))
    assert not (tmp_path / "adapter").exists()


def test_other_weights_than_the_runs_are_refused(run, tmp_path):
    manifest = read_manifest(run)
    manifest["model"]["sha256"] = {"model.safetensors": "0" * 64}
    (tmp_path / "run" / "checkpoints" / "000-x" / "round-000004").mkdir(parents=True)
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    assert "are not the weights of the run" in refusal(lambda: export(tmp_path / "run", tmp_path / "a", run=0))


def test_a_run_without_checkpoints_is_refused(preset, run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text((run / "manifest.json").read_text())
    assert "no checkpoint of run 0; run it with --checkpoints" in refusal(
        lambda: export(tmp_path / "run", tmp_path, run=0)
    )


def test_a_method_with_a_start_of_its_own_takes_no_adapter(preset, capsys):
    asked = ["--init-adapter", "somewhere", "--methods", "dec_lora", "federa"]
    assert experiment.main({"tiny": preset}, asked) == 2
    assert "method 'federa' starts from factors of its own" in capsys.readouterr().err


def test_an_adapter_of_another_rank_is_refused_with_the_options_to_pass(preset, adapter, tmp_path, capsys):
    asked = ["--init-adapter", str(adapter), "--rank", "4", "--out", str(tmp_path / "again")]
    assert experiment.main({"tiny": preset}, asked) == 2
    assert capsys.readouterr().err.strip().endswith("pass --rank 2 --alpha 16.")
    assert not (tmp_path / "again").exists()


# Against PEFT itself


@pytest.fixture(params=["bert", "roberta"])
def family(request, preset, weights, tmp_path):
    """The preset with weights of the family, in Hugging Face layout."""
    transformers = pytest.importorskip("transformers")
    for package in ("torch", "peft"):
        pytest.importorskip(package, reason="parity is measured against torch and PEFT")
    if request.param == "bert":
        return preset
    theirs = json.loads((weights / "config.json").read_text())
    shape = {**theirs, "model_type": "roberta", "pad_token_id": 1, "type_vocab_size": 1}
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**shape), add_pooling_layer=False)
    model.save_pretrained(tmp_path / "roberta")
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="[UNK]", unk_token="[UNK]",
    )  # fmt: skip
    words.save_pretrained(tmp_path / "roberta")  # [UNK] is number 1, RoBERTa's padding
    return dataclasses.replace(preset, weights=str(tmp_path / "roberta"))


@pytest.mark.parametrize("client", ["2", "average"])
def test_peft_computes_the_logits_of_an_exported_adapter(family, client, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    asked = ["--checkpoints", "--learning-rate", "3e-2", "--out", str(tmp_path / "run")]
    assert experiment.main({"tiny": family}, asked) == 0
    export(tmp_path / "run", tmp_path / "adapter", client=client)
    base = AutoModelForSequenceClassification.from_pretrained(family.weights, num_labels=2)
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()

    model = backbone.backbone(family, 2, train_head=False)
    fresh, model_type = model.classifier(0), model.identity["architecture"]
    like = peft.whole(fresh, model_type)
    ours = peft.started_from(fresh, peft.read(tmp_path / "adapter", like, model_type=model_type, scale=16 / 2))
    assert any(np.abs(b).max() > 1e-3 for b in ours.blocks.b.values())
    examples = jax.tree.map(lambda x: x[:8], text.problem(family).examples)
    mask = np.arange(examples.ids.shape[1]) < np.asarray(examples.lengths)[:, None]
    with torch.no_grad():
        ids, mask = (torch.tensor(np.asarray(x, np.int64)) for x in (examples.ids, mask))
        logits = theirs(input_ids=ids, attention_mask=mask).logits.numpy()
    np.testing.assert_allclose(ours.logits(ours.frozen, ours.blocks, examples, None), logits, atol=1e-4)
