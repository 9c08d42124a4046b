"""How well sentences are classified: every client, the averages, and experts where there are any."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdfl.data.examples import Examples
from jaxdfl.data.multitask import Offsets, confusion_by_task
from jaxdfl.data.packing import pack_split
from jaxdfl.diagnostics import average, average_product
from jaxdfl.metrics import Columns, over_clients, score
from jaxdfl.mixing.expert_bank import Bank
from jaxdfl.models.classifier import Logits
from jaxdfl.problems import Seeded
from jaxdfl.problems.backbone import Portions
from jaxdfl.protocol import Method
from jaxdfl.simulate.evaluate import in_batches, make_evaluate
from jaxdfl.simulate.experts import gather, latent_codes, routed, word_means
from jaxdfl.simulate.rounds import SimState, adapters

ROUTED_BATCH = 16  # examples at once where each meets experts of its own
Counts = np.ndarray  # confusion counts [..., classes, classes], true class first


def scoring(
    logits: Logits,
    examples: Any,
    validation: Examples,
    offsets: Offsets,
    metric: str | None,
    at_once: Portions,
    evaluated: int | None = None,
) -> Callable[[Seeded, Method, SimState], Columns]:
    """The columns of a metrics row, from a state.

    Of one task: its accuracy, and its own `metric`. Of several: accuracy of each client on its own task; `all_tasks` is
    the clients' accuracy over all tasks, and so is that of the averages. Where a method keeps a bank of experts,
    `routed_mean` is the clients' accuracy over all tasks when each input goes to the nearest expert they know.

    Args:
        examples: for training, leaves [examples, ...]: experts are known by what they were trained on.
        validation: leaves [examples, ...].
        evaluated: so many clients are, evenly spaced; None: all. Averages are of all clients.
    """
    evaluate = make_evaluate(logits, offsets[-1], chunk=at_once.eval_clients)
    of_experts = make_evaluate(routed(logits, word_means, temperature=0.0), offsets[-1], chunk=at_once.eval_clients)
    rows = jax.tree.map(jnp.asarray, pack_split(validation, at_once.eval_room)[0])

    def scores(seeded: Seeded, method: Method, state: SimState) -> Columns:
        seen = adapters(method, state)
        some = chosen(len(seeded.parts), evaluated)
        with_average = jax.tree.map(lambda x, mean: jnp.concatenate([x[some], mean]), seen, average(seen))
        counts = np.asarray(evaluate(seeded.frozen, with_average, rows))
        product = np.asarray(evaluate(seeded.frozen, average_product(seen), rows))[0]
        if metric is not None:
            columns = of_one_task(metric, counts[:-1], counts[-1], product)
        else:
            columns = of_own_task(offsets, some, counts[:-1], counts[-1], product)
        if isinstance(state.mixer, Bank):
            known = latent_codes(word_means, seeded.frozen, examples, seeded.parts)
            blocks = gather(state.blocks, state.mixer, known)
            batches = in_batches(validation, ROUTED_BATCH)
            by_task = over_tasks(np.asarray(of_experts(seeded.frozen, blocks, batches)), offsets)
            columns["routed_mean"] = float(by_task.mean())
        return columns

    return scores


def of_one_task(metric: str, *counts: Counts) -> Columns:
    """Accuracy, and the task's own metric where it has another."""
    both = [over_clients(name, *counts) for name in dict.fromkeys(("accuracy", metric))]
    columns = {name: value for each in both for name, value in each.items()}
    return {**columns, "accuracy_clients": score("accuracy", counts[0]).tolist()}


def of_own_task(
    offsets: Offsets, numbers: np.ndarray, clients: Counts, average_model: Counts, average_product: Counts
) -> Columns:
    """Every client's accuracy on its own task; over all tasks that of the averages, and of the clients (all_tasks).

    `numbers` are those of the clients that were evaluated.
    """
    by_client, of_model, of_product = (over_tasks(each, offsets) for each in (clients, average_model, average_product))
    own = by_client[np.arange(len(clients)), np.array(tasks_of_clients(int(numbers.max()) + 1, offsets))[numbers]]
    return {
        "accuracy_mean": float(own.mean()),
        "accuracy_worst": float(own.min()),
        "accuracy_std": float(own.std()),
        "accuracy_average_model": float(of_model.mean()),
        "accuracy_average_product": float(of_product.mean()),
        "all_tasks_mean": float(by_client.mean()),
        "accuracy_clients": own.tolist(),
    }


def over_tasks(counts: Counts, offsets: Offsets) -> np.ndarray:
    """Accuracy on every task, [..., tasks]."""
    return np.stack([score("accuracy", each) for each in confusion_by_task(counts, offsets)], axis=-1)


def chosen(clients: int, evaluated: int | None) -> np.ndarray:
    """The numbers of the clients to evaluate, evenly spaced from 0 on."""
    count = min(evaluated or clients, clients)
    return np.arange(count) * clients // count


def tasks_of_clients(clients: int, offsets: Offsets) -> list[int]:
    """The number of each client's task: 0, 1, ..., 0, 1, ..."""
    return [client % (len(offsets) - 1) for client in range(clients)]
