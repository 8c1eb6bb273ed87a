"""What has to be known before the pools start: every row checked, work counted, slots fixed.

The survey is a distributed pass over the table; the driver sees only its sums and 32 bytes a row
for finding equal ids. What the survey fixes (slots, duplicate rows, identities) is written to
``_plan.json`` and ``_duplicates.parquet`` beside the output, so that a resume neither repeats the
pass nor comes to other numbers.
"""

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cluster.resources import Flops
from cluster.survey_task import survey_one
from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.prompts import check_columns
from sdxl_core.contract.request import PromptDefaults
from sdxl_core.contract.survey_totals import Survey, Work, merge_surveys
from sdxl_core.diffusion.engine import REGISTERED_SLOTS, registered_slots
from sdxl_core.diffusion.tasks import LaneKey
from sdxl_core.nets.flops import text_flops, unet_flops, vae_decode_flops
from sdxl_core.nets.presets import ModelPreset
from sdxl_core.storage.stores import Store
from sdxl_core.storage.tables import PartPlan, find_table_files, plan_parts

PLAN_FILE = "_plan.json"
DUPLICATES_FILE = "_duplicates.parquet"
PLAN_VERSION = 1

SURVEY_ROWS = 20_000

# Slots of the fullest lane at 1024 x 1024 px on a GPU; other sizes get as many as have that area.
GPU_SLOTS_1024 = 16
# On a CPU a call costs as much as two to four places before the first one, so larger batches gain
# little after this; and places that stay idle because a lane is thin cost as much as used ones.
# With six rows or more to a slot, all workers together, few of them do.
MAX_CPU_SLOTS, CPU_ROWS_PER_SLOT = 16, 6

# Rows of a part when the user does not say: few enough that a small table keeps a cluster busy.
MIN_ROWS_PER_PART, MAX_ROWS_PER_PART, MIN_PARTS = 4, 64, 16

SlotMap = Mapping[str, Mapping[LaneKey, int]]


def survey_table(
    parts: PartPlan, *, defaults: PromptDefaults, run_seed: int, has_refiner: bool = True
) -> Survey:
    """Checks every row of the table on the cluster.

    Args:
        parts: The table.
        defaults: What rows fall back to.
        run_seed: Seeds rows that bring none.
        has_refiner: Whether the run has a refiner; without one, rows that ask for it are refused.
    """
    coarse = with_rows_per_part(parts, SURVEY_ROWS)
    plan_ref = ray.put(coarse)
    task = ray.remote(num_cpus=0.5, max_retries=3)(survey_one)
    pending = [
        task.remote(plan_ref, index, defaults, run_seed, has_refiner)
        for index in range(coarse.num_parts)
    ]
    return merge_surveys(ray.get(pending))


def read_table_plan(prompts: str, rows_per_part: int) -> PartPlan:
    """Counts the rows of the prompt table and cuts it into parts; 0 rows per part decides.

    Raises:
        SchemaError: if a file is no table, or there is no prompt column.
    """
    parts = plan_parts(find_table_files(prompts), rows_per_part or MAX_ROWS_PER_PART)
    check_columns(parts.schema.names, file=prompts)
    if rows_per_part:
        return parts
    fair = -(-parts.num_rows // MIN_PARTS)
    return with_rows_per_part(parts, min(MAX_ROWS_PER_PART, max(MIN_ROWS_PER_PART, fair)))


def with_rows_per_part(parts: PartPlan, rows_per_part: int) -> PartPlan:
    """The same table cut into parts of another size."""
    num_rows = np.diff(parts.first_rows, prepend=0)
    return dataclasses.replace(
        parts,
        rows_per_part=rows_per_part,
        first_parts=np.cumsum(-(-num_rows // rows_per_part)),
    )


def duplicates_by_part(survey: Survey, parts: PartPlan) -> dict[int, Any]:
    """The survey's duplicate rows, by the parts of the run instead of those of the survey."""
    if not survey.duplicates:
        return {}
    pairs = np.concatenate(list(survey.duplicates.values()))
    file = np.searchsorted(parts.first_rows, pairs[:, 0], side="right") - 1
    owner = parts.first_parts[file] + (pairs[:, 0] - parts.first_rows[file]) // parts.rows_per_part
    return {int(part): pairs[owner == part] for part in np.unique(owner)}


def plan_slots(
    survey: Survey, *, device: str, slots: int, has_refiner: bool
) -> dict[str, dict[LaneKey, int]]:
    """A slot number for every lane of each network, from the table alone.

    Args:
        survey: Rows per shape.
        device: ``cpu`` or ``cuda``.
        slots: What the user fixed for every lane; 0 decides.
        has_refiner: Whether the run has a refiner.

    Raises:
        ConfigError: if ``slots`` is not a registered number.
    """
    if slots and slots not in REGISTERED_SLOTS:
        raise ConfigError(f"slots: found {slots}, expected one of {REGISTERED_SLOTS}, or 0")
    rows: dict[str, dict[LaneKey, int]] = {"base": {}, **({"refiner": {}} if has_refiner else {})}
    for work in survey.work:
        key = LaneKey(
            latent_height=work.height // 8, latent_width=work.width // 8, guided=work.guided
        )
        for stage, lanes in rows.items():
            if stage == "base" or work.refiner:
                lanes[key] = lanes.get(key, 0) + work.num_rows
    return {
        stage: {key: slots or _num_slots(device, key, num_rows) for key, num_rows in lanes.items()}
        for stage, lanes in rows.items()
    }


def _num_slots(device: str, key: LaneKey, num_rows: int) -> int:
    if device == "cpu":
        fair = max(1, min(MAX_CPU_SLOTS, num_rows // CPU_ROWS_PER_SLOT))
        return max(number for number in REGISTERED_SLOTS if number <= fair)
    share = (1024 * 1024) / (key.height_px * key.width_px)
    max_slots = max(1, min(REGISTERED_SLOTS[-1], math.floor(GPU_SLOTS_1024 * share)))
    return registered_slots(num_rows, max_slots=max_slots)


def count_flops(survey: Survey, base: ModelPreset, refiner: ModelPreset | None) -> Flops:
    """The table's work, exactly, from the networks' own operation counts."""
    totals = {"base": 0.0, "refiner": 0.0, "decode": 0.0}
    for work in survey.work:
        sides = 2 if work.guided else 1
        size = (work.height, work.width)
        totals["base"] += work.num_base_evaluations * sides * unet_flops(base, *size)
        totals["decode"] += work.num_rows * vae_decode_flops(base, *size)
        if refiner is not None:
            evaluations = work.num_refiner_evaluations * sides
            totals["refiner"] += evaluations * unet_flops(refiner, *size)
    encode = survey.num_distinct_prompts * float(text_flops(base))
    return Flops(encode=encode, **totals)


def write_plan(
    store: Store, plan: Mapping[str, Any], slots: SlotMap, duplicates: Mapping[int, Any]
) -> None:
    """Writes what a resume must not decide again."""
    lanes = [
        dataclasses.asdict(key) | {"stage": stage, "num_slots": num_slots}
        for stage, by_lane in slots.items()
        for key, num_slots in by_lane.items()
    ]
    pairs = [(part, row, first) for part, rows in duplicates.items() for row, first in rows]
    table = pa.table(
        {
            name: pa.array([pair[index] for pair in pairs], pa.int64())
            for index, name in enumerate(("part", "row", "first_row"))
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    store.write_bytes(DUPLICATES_FILE, sink.getvalue())
    document = {"version": PLAN_VERSION, **plan, "slots": lanes}
    store.write_bytes(PLAN_FILE, json.dumps(document, indent=1).encode())


def read_plan(
    store: Store,
) -> tuple[dict[str, Any], dict[str, dict[LaneKey, int]], dict[int, Any]] | None:
    """What ``write_plan`` wrote: plan, slots, duplicates; None if there is none."""
    if not store.exists(PLAN_FILE):
        return None
    plan = json.loads(store.read_bytes(PLAN_FILE))
    slots: dict[str, dict[LaneKey, int]] = {}
    for lane in plan.pop("slots"):
        stage, num_slots = lane.pop("stage"), lane.pop("num_slots")
        slots.setdefault(stage, {})[LaneKey(**lane)] = num_slots
    table = pq.read_table(io.BytesIO(store.read_bytes(DUPLICATES_FILE)))
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    pairs = np.stack([columns["row"], columns["first_row"]], axis=1)
    duplicates = {int(part): pairs[columns["part"] == part] for part in np.unique(columns["part"])}
    return plan, slots, duplicates


def survey_work(plan: Mapping[str, Any]) -> list[Work]:
    """The work that a stored plan counts."""
    return [Work(**work) for work in plan["survey"]["work"]]
