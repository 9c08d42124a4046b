"""Weights & Biases: a run for each run, grouped by run folder, in the project jaxdfl (or WANDB_PROJECT); step is round.

Where and as whom is for W&B's own settings to say (`wandb login`, WANDB_ENTITY, ...). With WANDB_MODE=offline all stays
in RUN/wandb/, until `wandb sync RUN/wandb/offline-run-*`.

A run that is gone on with is the same W&B run. Steps that the server has are not told again. Offline nobody knows them:
there the run is written anew, and its earlier offline folder removed.
"""

import os
import shutil
from pathlib import Path

import wandb  # pyright: ignore[reportMissingImports]

from jaxdfl.trackers import Points, Run

os.environ.setdefault("WANDB_SILENT", "true")  # the progress bar has the screen
PATIENCE = 60  # seconds for a person to answer who is not logged in


class OnlineOrOffline:
    """One run; `wandb` decides which by its settings."""

    def __init__(self, run: Run):
        quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, login_timeout=PATIENCE)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxdfl"), id=run.id, name=run.name, group=run.group,
            dir=str(run.folder), config=dict(run.config), resume="allow", reinit="create_new", settings=quiet,
        )  # fmt: skip
        self.first = self.run.starting_step  # that the server has not
        if self.run.offline:
            offline = (run.folder / "wandb").glob(f"offline-run-*/run-{run.id}.wandb")  # folders end in the id, or -1
            for file in offline:
                if file.parent.resolve() != Path(self.run.dir).resolve().parent:
                    shutil.rmtree(file.parent)

    def log(self, points: Points) -> None:
        """Values of one round become one step."""
        for round, values in points:
            if round >= self.first:
                self.run.log(dict(values), step=round)

    def close(self, whole: bool) -> None:
        """Waits for what is on its way."""
        self.run.finish(exit_code=0 if whole else 1)


begin = OnlineOrOffline
