"""manifest.json: what was run, on what, with what; written before the first round."""

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdfl.arguments import from_manifest
from jaxdfl.prepare import Prepared, batches
from jaxdfl.problems import seed_keys
from jaxdfl.processes import from_first, require_alike, together
from jaxdfl.resume import SAME, require_same
from jaxdfl.run_folder import ROWS, RunFolder, environment, read_manifest, strict
from jaxdfl.simulate.rounds import round_keys
from jaxdfl.topology.spectrum import recommended_period

Manifest = dict[str, Any]
HASHED_ROUNDS = 10


def begin(prepared: Prepared, command: Sequence[str]) -> tuple[RunFolder, Manifest]:
    """Opens the run folder and writes the manifest; where its runs are gone on with, the one there, with a line more.

    Several processes have the manifest of the first, each a folder of its own.

    Raises:
        ValueError: the runs in the folder are not these, or not those of another process; nothing is changed then.
    """
    now = json.loads(json.dumps(strict(_describe(prepared, command))))  # as it comes back from the file
    require_alike({part: now[part] for part in SAME}, "manifest.json")
    with together():
        folder, manifest = _begin(prepared, now)
    return folder, from_first(manifest)


def _begin(prepared: Prepared, now: Manifest) -> tuple[RunFolder, Manifest]:
    settings = prepared.settings
    folder = RunFolder(prepared.out, settings.overwrite, settings.resume)
    if folder.resumed:
        manifest = read_manifest(folder.path)
        from_manifest(manifest)
        require_same(manifest, now)
        for name in ROWS:
            folder.rows(name, {})  # which refuses broken ones
        manifest["resumed"] = [
            *manifest.get("resumed", []),
            {"command": now["command"], "environment": now["environment"]},
        ]
    else:
        groups = {run: number for number, runs in enumerate(prepared.groups()) for run in runs}
        manifest = now
        for run, entry in zip(prepared.runs, manifest["runs"], strict=True):
            entry["group"] = groups[run]
    manifest.setdefault("id", secrets.token_hex(4))  # by which trackers know the runs again
    folder.write_manifest(manifest)
    (folder.path / "rounds.jsonl").touch()  # a run may end in its first round
    return folder, manifest


def _describe(prepared: Prepared, command: Sequence[str]) -> Manifest:
    return {
        "command": list(command),
        "settings": dataclasses.asdict(prepared.settings),
        "model": prepared.problem.model,
        "data": prepared.problem.data,
        "partitions": prepared.problem.partitions,
        "topologies": {
            spec: {**found._asdict(), "recommended_period": _recommended(found.rho)}
            for spec, found in prepared.spectra.items()
        },
        "runs": [{**run.identity, "period": prepared.periods[run]} for run in prepared.runs],
        "streams": _streams(prepared),
        "stopped": [],
        "environment": environment(),
    }


def _streams(prepared: Prepared) -> dict[str, dict[str, str]]:
    """SHA-256 of what is drawn for the first rounds: the examples of all batches, and the mixing weights."""
    settings = prepared.settings
    first = range(min(settings.rounds, settings.eval_every, HASHED_ROUNDS))

    def weights(topology: str, seed: int) -> str:
        network, key = prepared.topologies[topology].network, seed_keys(seed).rounds
        return _sha256(*(network.weights(round_keys(key, round).network, round) for round in map(jnp.int32, first)))

    return {
        "batches": {
            f"seed {seed}": _sha256(batches(settings, seed, prepared.problem.seeded(seed).parts, first))
            for seed in settings.seeds
        },
        "weights": {
            f"{topology}, seed {seed}": weights(topology, seed)
            for topology in prepared.topologies
            for seed in settings.seeds
        },
    }


def _sha256(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _recommended(rho: float) -> int | None:
    """TAD-LoRA's period on such a network; None where the network never mixes."""
    try:
        return recommended_period(rho)
    except ValueError:
        return None
