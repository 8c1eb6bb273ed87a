"""Turns a prompt table into images, every row exactly once.

Left: a table of prompts (parquet, CSV or JSONL; a file, a folder or a glob). Right: an images
dataset. A run that was killed goes on where it was when the same command is given again; one that
is finished does nothing. To run it:

    sdxl generate prompts.csv out/images --model tiny
"""

import dataclasses
import logging
import time

from cluster.calibration import measure_flops_per_s
from cluster.ledger import Ledger, Models, RunPlan, load_or_make_plan, open_models
from cluster.pipeline import run_parts
from cluster.pools import cluster_size
from cluster.preparation import read_table_plan
from cluster.progress import Progress, watched
from cluster.resources import PoolPlan, PoolWish, plan_pools
from cluster.session import ray_session
from cluster.telemetry import EventLog, drain, start_hub
from cluster.work import GenerateWork
from jobs.generate_config import GenerateConfig, GenerateSummary
from jobs.registry import Plan
from sdxl_core.contract.config import refuse_mismatch, to_toml
from sdxl_core.contract.errors import ConfigError, JobError
from sdxl_core.storage.parts import read_run_toml, read_summary
from sdxl_core.storage.stores import Store, open_store
from sdxl_core.storage.tables import PartPlan

logger = logging.getLogger(__name__)

__all__ = ["GenerateConfig", "GenerateSummary", "plan", "run"]

# Rows that must be done before the share of failed ones says anything.
MIN_ROWS_FOR_SHARE = 100


def run(config: GenerateConfig) -> GenerateSummary:
    """Makes every image that ``config.out`` lacks.

    Raises:
        ConfigError: settings that cannot be, or other settings than those ``out`` was begun with.
        SchemaError: the prompt table cannot be used.
        ResourceError: the pools do not fit on the cluster.
        JobError: the job had to stop; what is committed stays, and a rerun goes on from there.
    """
    started = time.monotonic()
    store = _open_output(config)
    with ray_session(config.how.address, no_progress_timeout_s=config.how.no_progress_timeout_s):
        prepared = _prepare(config, store)
        ledger = Ledger(store, prepared.work, prepared.plan)
        ledger.begin(to_toml(config))
        open_parts = ledger.open_parts(retry_failed=config.retry_failed)
        if open_parts:
            _refuse_mostly_invalid(config, prepared.plan)
            ledger.reopen()
            _make(config, store, prepared, ledger, open_parts)
        else:
            logger.info("%s: all %d parts are there already", config.out, ledger.num_parts)
    return _summarise(config, store, ledger, len(open_parts), time.monotonic() - started)


def plan(config: GenerateConfig) -> Plan:
    """Says what ``run`` would do; reads the table and measures a few steps, writes nothing."""
    store = _open_output(config)
    with ray_session(config.how.address, no_progress_timeout_s=config.how.no_progress_timeout_s):
        prepared = _prepare(config, store)
        flops_per_s = measure_flops_per_s(prepared.work, prepared.pools)
        return Plan(**prepared.plan.describe(prepared.pools, flops_per_s, config.format))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prepared:
    work: GenerateWork
    plan: RunPlan
    pools: PoolPlan


def _open_output(config: GenerateConfig) -> Store:
    store = open_store(config.out, retries=config.how.retries, timeout_s=config.how.timeout_s)
    store.check()
    begun = read_run_toml(store)
    if begun is not None:
        refuse_mismatch(begun, config, out=config.out)
    return store


def _prepare(config: GenerateConfig, store: Store) -> _Prepared:
    """Everything that is decided before the pools start, in the order in which it is known."""
    cluster, how = cluster_size(), config.how
    device = config.device
    if device == "auto":
        device = "cuda" if cluster.num_gpus else "cpu"
    models = open_models(
        config.model,
        _refiner(config),
        variant=config.variant,
        dtype=config.dtype,
        vae_dtype=config.vae_dtype,
    )
    table = read_table_plan(config.prompts, config.rows_per_part)
    defaults = config.defaults.for_model(models.base.preset.native_size_px)
    run_plan = load_or_make_plan(store, config, table, models, device=device, defaults=defaults)
    pools = plan_pools(
        run_plan.flops,
        cluster,
        PoolWish(
            num_denoisers=how.denoisers,
            num_refiners=how.refiners,
            num_encoders=how.encoders,
            num_writers=how.writers,
        ),
        device=device,
        num_threads=config.cpu_threads,
        denoiser_bytes=models.unet_bytes,
    )
    work = _work(config, table, models, run_plan, device=device)
    return _Prepared(work=work, plan=run_plan, pools=pools)


def _refiner(config: GenerateConfig) -> str | None:
    """Where the refiner is; ``auto`` pairs the embedded model with its own."""
    if config.refiner == "auto":
        return "tiny-refiner" if config.model == "tiny" else None
    return None if config.refiner == "none" else config.refiner


def _work(
    config: GenerateConfig, table: PartPlan, models: Models, run_plan: RunPlan, *, device: str
) -> GenerateWork:
    """What the workers have to know."""
    return GenerateWork(
        out=config.out,
        parts=table,
        duplicates=run_plan.duplicates,
        defaults=config.defaults.for_model(models.base.preset.native_size_px),
        run_seed=config.seed,
        base=config.model,
        refiner=_refiner(config),
        variant=config.variant,
        model_digest=models.base.digest,
        refiner_digest=None if models.refiner is None else models.refiner.digest,
        spacing=None if config.timestep_spacing == "model" else config.timestep_spacing,
        dtype=config.dtype,
        vae_dtype=models.vae_dtype,
        numerics=config.numerics,
        numerics_name=run_plan.numerics_name,
        slots=run_plan.slots,
        device=device,
        num_threads=config.cpu_threads,
        output_format=config.format,
        image_format=config.image_format,
        retry_failed=config.retry_failed,
        max_attempts=config.how.max_attempts,
        retries=config.how.retries,
        timeout_s=config.how.timeout_s,
    )


def _make(
    config: GenerateConfig,
    store: Store,
    prepared: _Prepared,
    ledger: Ledger,
    open_parts: list[int],
) -> None:
    """Runs the open parts, with progress, events and the limit on failed rows."""
    logger.info("%s", prepared.pools.describe())
    num_rows = ledger.num_rows_open
    progress = Progress(num_rows, num_refined=prepared.plan.num_refined(num_rows))
    events, hub = EventLog(store), start_hub()
    reports = run_parts(
        prepared.work,
        open_parts,
        prepared.pools,
        hub,
        num_in_flight=config.how.parts_in_flight,
    )
    try:
        for report in watched(reports, hub, events, progress):
            ledger.add(report)
            progress.add_part(report["num_rows_now"], report["num_by_status"].get("failed", 0))
            _check_failed_share(config, ledger)
    finally:
        progress.close()
        events.append(drain(hub))
        events.flush()


def _refuse_mostly_invalid(config: GenerateConfig, run_plan: RunPlan) -> None:
    survey = run_plan.survey
    share = survey["num_invalid"] / survey["num_rows"]
    if survey["num_rows"] >= MIN_ROWS_FOR_SHARE and share > config.how.max_failed_share:
        raise ConfigError(
            f"{config.prompts}: {survey['num_invalid']} of {survey['num_rows']} rows "
            f"({share:.1%}) cannot be used, more than how.max_failed_share="
            f"{config.how.max_failed_share}. By reason: {survey['num_invalid_by_reason']}. "
            f"First ones: {run_plan.examples_text()}. Mend the table, or raise the limit"
        )


def _check_failed_share(config: GenerateConfig, ledger: Ledger) -> None:
    tally = ledger.tally
    if tally.num_rows < MIN_ROWS_FOR_SHARE:
        return
    share = tally.num_failed / tally.num_rows
    if share > config.how.max_failed_share:
        raise JobError(
            f"stopped: {tally.num_failed} of {tally.num_rows} rows have failed ({share:.1%}), more "
            f"than how.max_failed_share={config.how.max_failed_share}. By reason: "
            f"{tally.num_by_reason}. `detail` in {config.out}/table says why. Finished parts stay; "
            "mend the cause and run again, with --retry-failed for rows that have failed"
        )


def _summarise(
    config: GenerateConfig, store: Store, ledger: Ledger, num_made: int, seconds: float
) -> GenerateSummary:
    tally = ledger.tally
    # A run that was killed between its last part and its summary has made nothing now.
    is_new = bool(num_made) or read_summary(store) is None
    with_gallery = config.how.gallery_rows and config.format != "dry"
    if with_gallery and (is_new or not store.exists("gallery.html")):
        from sdxl_core.storage.gallery import write_gallery

        write_gallery(store, max_rows=config.how.gallery_rows)
    summary = GenerateSummary(
        out=config.out,
        num_rows=tally.num_rows,
        num_ok=tally.num_rows - tally.num_failed,
        num_failed=tally.num_failed,
        num_by_reason=tally.num_by_reason,
        num_parts=ledger.num_parts,
        num_parts_made_now=num_made,
        seconds=round(seconds, 3),
        images_per_s=round(ledger.num_rows_made_now / seconds, 3),
        fingerprint=ledger.fingerprint,
        gallery=store.join("gallery.html") if with_gallery else None,
    )
    if is_new:
        ledger.finish(dataclasses.asdict(summary))
    return summary
