"""Progress for people, on stderr: a live bar on a terminal, a line now and then elsewhere."""

import collections
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import tqdm

from cluster.telemetry import Event, EventLog, drain

logger = logging.getLogger(__name__)

_SHOWN: Mapping[str, str] = {
    "encode": "encode",
    "denoise": "base",
    "refine": "refine",
    "decode": "decode",
}


class Progress:
    """Rows done by stage, with rates and the time left.

    Args:
        num_rows: Rows of this run, those of parts already committed left out.
        num_refined: Of these, rows that use the refiner.
        shown: Name for people of each span that is shown.
        line_every_s: Pause between lines when stderr is not a terminal.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        num_refined: int = 0,
        shown: Mapping[str, str] = _SHOWN,
        line_every_s: float = 10.0,
    ) -> None:
        self._num_rows = num_rows
        self._shown = shown
        self._expected = {"refine": num_refined}
        self._line_every_s = line_every_s
        self._started = self._last_line = time.monotonic()
        self._done: collections.Counter[str] = collections.Counter()
        self._first_event: dict[str, float] = {}
        self._num_written = self._num_failed = 0
        self._bar = tqdm.tqdm(
            total=num_rows, unit="row", file=sys.stderr, disable=not sys.stderr.isatty()
        )

    def add_events(self, events: list[Event]) -> None:
        """Counts what the stages report."""
        for event in events:
            self._done[event.span] += event.num_rows
            self._first_event.setdefault(event.span, time.monotonic() - event.seconds)

    def add_part(self, num_rows: int, num_failed: int) -> None:
        """Counts a committed part and shows the state, at most every ``line_every_s``."""
        self._num_written += num_rows
        self._num_failed += num_failed
        self._bar.update(num_rows)

    def show(self) -> None:
        """Shows rates and the time left."""
        if not self._bar.disable:
            self._bar.set_postfix_str(self._rates(), refresh=True)
        elif time.monotonic() - self._last_line > self._line_every_s:
            self._last_line = time.monotonic()
            logger.info("%s", self.line())

    def line(self) -> str:
        """The state in one line."""
        seconds = time.monotonic() - self._started
        rate = self._num_written / seconds if seconds else 0.0
        left = (self._num_rows - self._num_written) / rate if rate else float("nan")
        eta = f"{left:.0f} s left" if rate else "no part finished yet"
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        return f"{self._num_written}/{self._num_rows} rows{failed}, {eta}; {self._rates()}"

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def _rates(self) -> str:
        now = time.monotonic()
        shown = []
        for span, name in self._shown.items():
            total = self._expected.get(span, self._num_rows)
            if not total:
                continue
            done = self._done[span]
            seconds = now - self._first_event.get(span, now)
            rate = f" {done / seconds:.1f}/s" if seconds > 0 and done else ""
            shown.append(f"{name} {done}/{total}{rate}")
        return ", ".join(shown)


def watched(
    reports: Iterator[dict[str, Any]], hub: Any, events: EventLog, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Passes reports on; takes the events of the workers out of the hub in between."""
    for report in reports:
        new = drain(hub)
        events.append(new)
        progress.add_events(new)
        yield report
        progress.show()
