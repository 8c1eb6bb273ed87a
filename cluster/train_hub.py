"""The line between the driver of a training run and its workers: reports one way, requests the
other. A small actor on the driver's node."""

import logging
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.telemetry import DRAIN_TIMEOUT_S

logger = logging.getLogger(__name__)


# A hub that dies comes back empty: some reports are lost, and a wish to stop has to be said again.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class _TrainHub:
    """Holds what has not been taken yet."""

    def __init__(self) -> None:
        self._reports: list[dict[str, float]] = []
        self._stop = False
        self._fatal = ""

    def report(self, values: dict[str, float]) -> None:
        self._reports.append(values)

    def drain(self) -> list[dict[str, float]]:
        reports, self._reports = self._reports, []
        return reports

    def request_stop(self) -> None:
        self._stop = True

    def is_stop_wanted(self) -> bool:
        return self._stop

    def fail(self, message: str) -> None:
        """The run cannot go on; the first message counts."""
        self._fatal = self._fatal or message

    def fatal(self) -> str:
        return self._fatal


def start_train_hub(name: str) -> Any:
    """Starts the hub on the driver's node; workers find it by name. It ends with the driver."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    options = _TrainHub.options(scheduling_strategy=here, name=name)  # type: ignore[attr-defined]
    return options.remote()


def drain_reports(hub: Any) -> list[dict[str, float]]:
    """Takes the reports that have come in; a hub that does not answer has none."""
    try:
        reports: list[dict[str, float]] = ray.get(hub.drain.remote(), timeout=DRAIN_TIMEOUT_S)
    except RayError as error:
        logger.warning("reports are missing: %s", " ".join(str(error).split())[:200])
        return []
    return reports


class StopFlag:
    """Asks the hub, without waiting for its answer, whether the run shall stop.

    Args:
        hub: of the run.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._asked = hub.is_stop_wanted.remote()

    def is_wanted(self) -> bool:
        """What the hub said the last time that it was asked and has answered; asks again."""
        done, _ = ray.wait([self._asked], timeout=0)
        if not done:
            return False
        answer = bool(ray.get(self._asked))
        if not answer:
            self._asked = self._hub.is_stop_wanted.remote()
        return answer
