"""Which parts are done, and what a run was begun with.

The commit records in the output are the ledger; there is no other state. ``RunPlan`` is what the
first start decided and later starts must find unchanged.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cluster.preparation import (
    SlotMap,
    count_flops,
    duplicates_by_part,
    plan_slots,
    read_plan,
    survey_table,
    write_plan,
)
from cluster.resources import Flops, PoolPlan
from cluster.work import DTYPES, GenerateWork
from sdxl_core.contract.config import fingerprint
from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.images import SCHEMA_NAME, SCHEMA_VERSION
from sdxl_core.contract.request import PromptDefaults
from sdxl_core.nets.flops import num_unet_parameters
from sdxl_core.nets.model import check_vae_preset_dtype, default_vae_dtype
from sdxl_core.nets.presets import ModelPreset
from sdxl_core.nets.weights import model_identity
from sdxl_core.storage.part_files import delete_leftovers
from sdxl_core.storage.parts import (
    DatasetInfo,
    committed_parts,
    delete_summary,
    read_part_records,
    write_run_files,
    write_summary,
)
from sdxl_core.storage.stores import Store
from sdxl_core.storage.tables import PartPlan

logger = logging.getLogger(__name__)

# Bytes of one encoded image per pixel, as measured on real SDXL pictures.
BYTES_PER_PIXEL = {"png": 1.6, "webp": 1.25, "jpeg": 0.46}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """One model: its sizes and the digest of its tensors."""

    preset: ModelPreset
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """The models of a run."""

    base: ModelIdentity
    refiner: ModelIdentity | None
    vae_dtype: str
    unet_bytes: float


def open_models(
    base: str, refiner: str | None, *, variant: str | None, dtype: str, vae_dtype: str
) -> Models:
    """Looks at the models' files: sizes and digests, no networks.

    Raises:
        ConfigError: if a refiner is given as base or the other way round, or the autoencoder's
            precision cannot be.
        WeightsError: if the files are not a model.
    """
    identities = []
    for path, kind in ((base, "base"), (refiner, "refiner")):
        if path is None:
            continue
        preset, digest = model_identity(path, variant=variant)
        if preset.kind != kind:
            raise ConfigError(f"--{'model' if kind == 'base' else kind} {path}: is a {preset.kind}")
        identities.append(ModelIdentity(preset=preset, digest=digest))
    first = identities[0]
    if vae_dtype == "auto":
        chosen = default_vae_dtype(first.preset, DTYPES[dtype])
    else:
        chosen = DTYPES[vae_dtype]
        check_vae_preset_dtype(first.preset, chosen)
    return Models(
        base=first,
        refiner=identities[1] if len(identities) > 1 else None,
        vae_dtype=next(name for name, value in DTYPES.items() if value == chosen),
        unet_bytes=sum(
            num_unet_parameters(identity.preset) * float(DTYPES[dtype].itemsize)
            for identity in identities
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What the first start of a run fixed."""

    fingerprint: str
    identities: Mapping[str, str]
    numerics_name: str
    survey: Mapping[str, Any]
    flops: Flops
    slots: SlotMap
    duplicates: Mapping[int, Any]

    def num_refined(self, num_rows: int) -> int:
        """About how many of ``num_rows`` rows use the refiner."""
        refined: int = sum(work["num_rows"] for work in self.survey["work"] if work["refiner"])
        num_surveyed: int = self.survey["num_rows"]
        return round(num_rows * refined / max(1, num_surveyed))

    def examples_text(self) -> str:
        """Some rows that cannot be used, with file, row and column."""
        return "; ".join(
            f"{example['file']} row {example['row']} column {example['column'] or '-'}: "
            f"{example['detail']}"
            for example in self.survey["examples"][:5]
        )

    def describe(self, pools: PoolPlan, flops_per_s: float, output_format: str) -> dict[str, Any]:
        """Lines for people and values for programs."""
        survey = self.survey
        num_denoisers = pools.num_denoisers + pools.num_refiners
        seconds = self.flops.total / (flops_per_s * num_denoisers)
        pixels = sum(w["num_rows"] * w["height"] * w["width"] for w in survey["work"])
        num_bytes = 0 if output_format == "dry" else pixels * BYTES_PER_PIXEL["png"]
        lines = [
            f"rows: {survey['num_rows']}, of which {survey['num_invalid']} cannot be used "
            f"{dict(survey['num_invalid_by_reason']) or ''}".rstrip(),
            f"distinct prompts: {survey['num_distinct_prompts']}",
            *(self._shape_line(work) for work in survey["work"]),
            f"work: base {self.flops.base:.3g}, refiner {self.flops.refiner:.3g}, decode "
            f"{self.flops.decode:.3g}, encode {self.flops.encode:.3g} FLOP",
            f"measured: {flops_per_s / 1e12:.4g} TFLOP/s per worker; expected {seconds:.0f} s",
            f"output: about {num_bytes / 1e9:.3g} GB",
            pools.describe(),
        ]
        if survey["examples"]:
            lines.append(f"first rows that cannot be used: {self.examples_text()}")
        values = {
            **{key: survey[key] for key in survey},
            "flops": dataclasses.asdict(self.flops),
            "expected_seconds": round(seconds, 1),
            "output_bytes": round(num_bytes),
            "pools": dataclasses.asdict(pools),
            "fingerprint": self.fingerprint,
        }
        return {"lines": tuple(lines), "values": values}

    def _shape_line(self, work: Mapping[str, Any]) -> str:
        sides = "guided" if work["guided"] else "unguided"
        refined = ", refined" if work["refiner"] else ""
        return f"  {work['height']}x{work['width']} {sides}{refined}: {work['num_rows']} rows"


def load_or_make_plan(
    store: Store,
    config: Any,
    parts: PartPlan,
    models: Models,
    *,
    device: str,
    defaults: PromptDefaults,
) -> RunPlan:
    """The plan that the output was begun with, or a new one from a survey of the table.

    Raises:
        ConfigError: if the table, a model or the device is not the one the output was begun with.
    """
    numerics_name = f"{config.numerics}:{device}:{config.dtype}:vae-{models.vae_dtype}" + (
        f":threads-{config.cpu_threads}" if device == "cpu" else ""
    )
    identities = {
        "prompts": parts.digest,
        "model": models.base.digest,
        "refiner": "" if models.refiner is None else models.refiner.digest,
        "numerics": numerics_name,
    }
    refiner = None if models.refiner is None else models.refiner.preset
    begun = read_plan(store)
    if begun is not None:
        stored, slots, duplicates = begun
        _refuse_other_inputs(stored["identities"], identities, store.url)
        return RunPlan(
            fingerprint=stored["fingerprint"],
            identities=identities,
            numerics_name=numerics_name,
            survey=stored["survey"],
            flops=Flops(**stored["flops"]),
            slots=slots,
            duplicates=duplicates,
        )
    survey = survey_table(
        parts, defaults=defaults, run_seed=config.seed, has_refiner=refiner is not None
    )
    return RunPlan(
        fingerprint=fingerprint(config, **identities),
        identities=identities,
        numerics_name=numerics_name,
        survey=survey.to_json(),
        flops=count_flops(survey, models.base.preset, refiner),
        slots=plan_slots(
            survey, device=device, slots=config.slots, has_refiner=refiner is not None
        ),
        duplicates=duplicates_by_part(survey, parts),
    )


def _refuse_other_inputs(old: Mapping[str, str], new: Mapping[str, str], out: str) -> None:
    lines = [f"{key}: {old[key]} -> {new[key]}" for key in old if old[key] != new.get(key)]
    if lines:
        raise ConfigError(
            f"{out} was begun with other inputs (digests of content):\n  "
            + "\n  ".join(lines)
            + "\nUse the same table, weights and device to go on, or another OUT."
        )


@dataclasses.dataclass
class RowTally:
    """Rows that are committed, by status and reason."""

    num_rows: int = 0
    num_failed: int = 0
    num_by_reason: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(
        self, num_rows: int, by_status: Mapping[str, int], by_reason: Mapping[str, int]
    ) -> None:
        """Adds one part."""
        self.num_rows += num_rows
        self.num_failed += by_status.get("failed", 0)
        self.num_by_reason = dict(Counter(self.num_by_reason) + Counter(by_reason))


class Ledger:
    """Parts of one output: which are open, and the counts of those that are committed.

    Attributes:
        num_parts: Of the whole output.
        tally: Rows of committed parts that are not open.
        reopened: Finished parts that are open for their failed rows.
        num_rows_open: Rows to make in open parts.
        num_rows_made_now: Rows that this run has made or tried.
    """

    def __init__(self, store: Store, work: GenerateWork, plan: RunPlan) -> None:
        self._store = store
        self._work = work
        self._plan = plan
        self.num_parts = work.parts.num_parts
        self.fingerprint = plan.fingerprint
        self.tally = RowTally()
        self.num_rows_open = 0
        self.num_rows_made_now = 0
        self.reopened: set[int] = set()

    def begin(self, run_toml: str) -> None:
        """Writes what the run is, before its first part."""
        info = DatasetInfo(
            name=SCHEMA_NAME,
            version=SCHEMA_VERSION,
            num_parts=self.num_parts,
            num_rows=self._work.parts.num_rows,
        )
        write_run_files(self._store, run_toml, info)
        if read_plan(self._store) is None:
            head = {
                "fingerprint": self._plan.fingerprint,
                "identities": dict(self._plan.identities),
                "survey": dict(self._plan.survey),
                "flops": dataclasses.asdict(self._plan.flops),
            }
            write_plan(self._store, head, self._plan.slots, self._plan.duplicates)

    def open_parts(self, *, retry_failed: bool) -> list[int]:
        """Parts to make, in order; the counts of the others are in ``tally`` afterwards.

        With ``retry_failed`` finished parts that have failed rows are among them.
        """
        done = committed_parts(self._store)
        self.reopened, self.num_rows_open = set(), 0
        for record in read_part_records(self._store, sorted(done)):
            num_failed = record.num_by_status.get("failed", 0)
            if retry_failed and num_failed:
                self.reopened.add(record.part)
                self.num_rows_open += num_failed
            else:
                self.tally.add(record.num_rows, record.num_by_status, record.num_by_reason)
        missing = [part for part in range(self.num_parts) if part not in done]
        self.num_rows_open += sum(self._work.parts.part(part).num_rows for part in missing)
        return sorted([*missing, *self.reopened])

    def reopen(self) -> None:
        """Takes the summary away before any part is made, so that it never speaks of an old state.

        All that a run which is killed from here on lacks is its summary: the records of finished
        parts hold until the one put of a new one, and the next run writes the summary.
        """
        delete_summary(self._store)

    def add(self, report: Mapping[str, Any]) -> None:
        """Counts a part that has just been committed."""
        self.tally.add(report["num_rows"], report["num_by_status"], report["num_by_reason"])
        self.num_rows_made_now += report["num_rows_now"]

    def finish(self, summary: dict[str, Any]) -> None:
        """Deletes what attempts have left, then writes ``_SUMMARY.json``: all parts are in."""
        for path in delete_leftovers(self._store, self.reopened):
            logger.info("%s: left over by a run that was stopped, deleted", path)
        write_summary(self._store, summary)
