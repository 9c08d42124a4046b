"""MLflow: a run for each run, in an experiment for each run folder, in the store that MLFLOW_TRACKING_URI names.

Without that it is MLflow's own default. A run that is gone on with is found by its tag, and the rounds that a metric
has are not told again.
"""

import logging
import os
import time

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody is told but the store
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # a server that is gone is given up within two minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

from jaxdfl.trackers import Points, Run

logging.getLogger("mlflow").setLevel(logging.WARNING)  # the progress bar has the screen
TAG = "jaxdfl.run"
AT_A_TIME = 1000  # metrics, which is all that MLflow takes


class Entry:
    """One run."""

    def __init__(self, run: Run):
        self.client = MlflowClient()
        known = self.client.get_experiment_by_name(run.group)
        experiment = known.experiment_id if known else self.client.create_experiment(run.group)
        found = self.client.search_runs([experiment], f"tags.`{TAG}` = '{run.id}'")
        self.again = bool(found)
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, "RUNNING")
        else:
            self.id = self.client.create_run(experiment, run_name=run.name, tags={TAG: run.id}).info.run_id
        self.client.log_batch(self.id, params=[Param(name, str(value)) for name, value in run.config.items()])
        self.there: dict[str, set[int]] = {}

    def log(self, points: Points) -> None:
        """Rounds that are there are left out, metric by metric."""
        now = int(time.time() * 1000)
        found = [
            Metric(name, value, now, round)
            for round, values in points
            for name, value in values.items()
            if round not in self._there(name)
        ]
        for first in range(0, len(found), AT_A_TIME):
            self.client.log_batch(self.id, metrics=found[first : first + AT_A_TIME])

    def close(self, whole: bool) -> None:
        """Says how the run ended."""
        self.client.set_terminated(self.id, "FINISHED" if whole else "KILLED")

    def _there(self, name: str) -> set[int]:
        """The rounds of a metric that an earlier process has told of."""
        if name not in self.there:
            history = self.client.get_metric_history(self.id, name) if self.again else ()
            self.there[name] = {metric.step for metric in history}
        return self.there[name]


begin = Entry
