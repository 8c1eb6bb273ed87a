"""What every worker has to know about a run of prepare. Small and picklable: places and numbers."""

import dataclasses

from sdxl_core.data.sample_maker import PictureOptions
from sdxl_core.storage.sample_parts import SampleFormat
from sdxl_core.storage.source_plan import SourcePlan
from sdxl_core.storage.source_slices import SourceSlice
from sdxl_core.storage.stores import Store, open_store


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareWork:
    """One run of prepare, from the point of view of its workers.

    Attributes:
        out: Where the samples dataset is.
        sources: All slices of all sources.
        options: What samples are made of.
        output_format: Of the samples.
        max_attempts: Times that a slice or a group may be begun before the job stops.
        retries: Tries of one storage operation.
        timeout_s: Of one storage operation.
    """

    out: str
    sources: SourcePlan
    options: PictureOptions
    output_format: SampleFormat = "parquet"
    max_attempts: int = 6
    retries: int = 6
    timeout_s: float = 30.0

    def open_output(self) -> Store:
        """The output directory."""
        return open_store(self.out, retries=self.retries, timeout_s=self.timeout_s)


def slice_name(piece: SourceSlice) -> str:
    """A slice in words, for messages: its number and what it is of."""
    rows = f" from row {piece.first_row}" if piece.format not in ("tar", "files") else ""
    return f"slice {piece.index} ({piece.url}{rows})"
