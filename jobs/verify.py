"""Checks an output of generate: is every row there once, and do rows come out the same again.

Left: the output directory of ``sdxl generate``. Nothing is written. A few rows, spread over the
output, are made again in this process with the settings, slots, precision and threads that the run
recorded, and their images compared byte for byte. The exit code is 0 if all is well, 3 if the
output is incomplete or damaged or a row differs; the summary lists them. To run it:

    sdxl verify out/demo --num-rows 8
"""

import bisect
import hashlib
import itertools
import logging
import random
import tempfile
from pathlib import Path
from typing import Any

from cluster.preparation import read_plan
from cluster.regeneration import Regenerator, read_profile
from jobs.generate_config import GenerateConfig
from jobs.verify_config import HINT, VerifyConfig, VerifySummary
from sdxl_core.contract.config import load_toml
from sdxl_core.contract.errors import ConfigError, RowError, SchemaError, SdxlError
from sdxl_core.storage.integrity import check_dataset
from sdxl_core.storage.parts import RUN_FILE, read_part_records, read_run_toml
from sdxl_core.storage.sinks import read_image, read_part_table
from sdxl_core.storage.stores import Store, open_store

logger = logging.getLogger(__name__)

__all__ = ["VerifyConfig", "VerifySummary", "run", "sample_rows"]


def run(config: VerifyConfig) -> VerifySummary:
    """Reads all of ``config.out`` and makes some of its rows again.

    Raises:
        SchemaError: it is not the output of generate.
        ConfigError: its rows cannot be made again here.
        StoreError: it cannot be read.
    """
    store = open_store(config.out)
    check = check_dataset(store, checksums=config.checksums)
    for problem in check.problems:
        logger.error("%s", problem)
    rows = sample_rows(store, config.num_rows, seed=config.seed)
    differences = _differences(config, store, rows) if rows else []
    for difference in differences:
        logger.error("%s", difference)
    if differences:
        logger.warning("%s", HINT)
    return VerifySummary(
        out=store.url,
        check=check,
        num_rows_made_again=len(rows),
        differences=tuple(differences),
    )


def sample_rows(store: Store, num_rows: int, *, seed: int) -> list[dict[str, Any]]:
    """Up to ``num_rows`` rows with an image: one from each stretch of the output.

    Args:
        store: The output.
        num_rows: How many.
        seed: Chooses the row within each stretch.
    """
    records = list(read_part_records(store))
    ends = list(itertools.accumulate(record.num_by_status.get("ok", 0) for record in records))
    total = ends[-1] if ends else 0
    count = min(num_rows, total)
    chance = random.Random(seed)
    places = [int((stretch + chance.random()) * total / count) for stretch in range(count)]
    rows = []
    for place in places:
        index = bisect.bisect_right(ends, place)
        table = read_part_table(store, records[index])
        made = [row for row in table.to_pylist() if row["status"] == "ok"]
        rows.append(made[place - ends[index]])  # negative: counted from the end of the part
    return rows


def _differences(config: VerifyConfig, store: Store, rows: list[dict[str, Any]]) -> list[str]:
    """What is wrong with each of ``rows`` that is not as the run made it."""
    settings = _run_settings(store)
    if settings.format == "dry":
        raise ConfigError(f"{store.url}: a dry run has no images to compare; use `sdxl fsck`")
    again = _regenerator(config, store, settings, rows)
    found = []
    for row in rows:
        where = f"row {row['input_row']} (id {row['id']!r}, {row['path'] or 'in the table'})"
        try:
            stored = _sha256(read_image(store, row))
            made = _sha256(again.image(row))
        except RowError as error:
            found.append(f"{where}: fails now: {error}")
            continue
        except SdxlError as error:
            found.append(f"{where}: {error}")
            continue
        if stored != row["sha256"]:
            found.append(f"{where}: the stored image is not the one that its row describes")
        if made != row["sha256"]:
            found.append(
                f"{where}: made again it is {made[:12]}, the run made {row['sha256'][:12]}"
            )
    return found


def _regenerator(
    config: VerifyConfig, store: Store, settings: GenerateConfig, rows: list[dict[str, Any]]
) -> Regenerator:
    plan = read_plan(store)
    if plan is None:
        raise SchemaError(f"{store.url} is not the output of generate: it has no plan")
    identities, slots = plan[0]["identities"], plan[1]
    base = config.model or settings.model
    refiner = config.refiner or settings.refiner
    if refiner == "auto":
        refiner = "tiny-refiner" if base == "tiny" else "none"
    models: dict[Any, tuple[str, str]] = {"base": (base, identities["model"])}
    if any(row["refiner"] for row in rows):
        models["refiner"] = (refiner, identities["refiner"])
    return Regenerator(
        read_profile(identities["numerics"]),
        models=models,
        variant=settings.variant,
        spacing=None if settings.timestep_spacing == "model" else settings.timestep_spacing,
        slots=slots,
        image_format=settings.image_format,
    )


def _run_settings(store: Store) -> GenerateConfig:
    text = read_run_toml(store)
    if text is None:
        raise SchemaError(f"{store.url} is not the output of a job: it has no {RUN_FILE}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / RUN_FILE
        path.write_text(text)
        return load_toml(GenerateConfig, path)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
