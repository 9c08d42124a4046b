"""manifest.json: what was run, on what, with what; written before the first round."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from jaxdfl.prepare import Prepared
from jaxdfl.resume import require_same
from jaxdfl.topology.spectrum import recommended_period
from jaxdfl.trackers import environment, read_manifest, strict

Manifest = dict[str, Any]


def begin(prepared: Prepared, command: Sequence[str]) -> Manifest:
    """Writes the manifest of the runs; where they are gone on with, the one that is there, with a line about it.

    Raises:
        ValueError: the runs in the folder are not these; nothing is changed then.
    """
    folder = prepared.folder
    now = json.loads(json.dumps(strict(_describe(prepared, command))))  # as it comes back from the file
    if folder.resumed:
        manifest = read_manifest(folder.path)
        require_same(manifest, now)
        manifest["resumed"] = [
            *manifest.get("resumed", []),
            {"command": now["command"], "environment": now["environment"]},
        ]
    else:
        groups = {run: number for number, runs in enumerate(prepared.groups()) for run in runs}
        manifest = now
        for run, entry in zip(prepared.runs, manifest["runs"], strict=True):
            entry["group"] = groups[run]
    folder.write_manifest(manifest)
    return manifest


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
        "stopped": [],
        "environment": environment(),
    }


def _recommended(rho: float) -> int | None:
    """TAD-LoRA's period on such a network; None where the network never mixes."""
    try:
        return recommended_period(rho)
    except ValueError:
        return None
