"""All that is decided before ``sdxl prepare`` makes a picture, and found again by a resume."""

import dataclasses
import logging
from collections.abc import Mapping

from cluster.pools import cluster_size
from cluster.prepare_latents import EncodeWork
from cluster.prepare_passes import plan_encoders
from cluster.prepare_state import (
    Counts,
    PreparePlan,
    read_counts,
    read_plan,
    refuse_other_inputs,
    write_plan,
)
from cluster.prepare_survey import count_all, merge_thin
from cluster.prepare_work import PrepareWork
from cluster.work import DTYPES
from jobs.prepare_config import PrepareConfig
from jobs.prepare_options import find_sources, source_lines, work_of
from sdxl_core.contract.config import fingerprint, parse_toml, to_toml
from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.samples import SAMPLES_SCHEMA_NAME, SAMPLES_SCHEMA_VERSION
from sdxl_core.data.scorers import load_scorer
from sdxl_core.nets.model import check_vae_preset_dtype
from sdxl_core.nets.weights import model_identity
from sdxl_core.storage.parts import (
    DatasetInfo,
    committed_parts,
    read_dataset_info,
    read_run_toml,
    read_summary,
    write_run_files,
)
from sdxl_core.storage.source_plan import SourcePlan
from sdxl_core.storage.stores import Store

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What the passes need: the plan, rows of every slice, what workers know, what encodes."""

    plan: PreparePlan
    counts: Counts
    work: PrepareWork
    encode: EncodeWork | None


def is_finished(config: PrepareConfig, store: Store) -> bool:
    """Has a run with these settings finished here. The source is only looked at if it is another.

    Raises:
        ConfigError: if one has, with other inputs.
    """
    begun, info = read_run_toml(store), read_dataset_info(store)
    if read_summary(store) is None or begun is None or info is None or info.num_parts is None:
        return False
    if committed_parts(store) != set(range(info.num_parts)):
        return False
    old, new = (parse_toml(text, where=config.out) for text in (begun, to_toml(config)))
    plan = read_plan(store)
    if plan is not None and any(old.get(name) != new.get(name) for name in _PLACES):
        digests = {"sources": find_sources(config).digest}
        if config.latents:
            digests["model"] = model_identity(config.model_path)[1]
        refuse_other_inputs(plan, {**plan.identities, **digests}, config.out)
    return True


_PLACES = ("source", "also", "model")


def start(config: PrepareConfig, store: Store, sources: SourcePlan) -> Start:
    """What the first start fixed; the source is surveyed if this is the first.

    Raises:
        ConfigError: if the inputs are not those that the output was begun with, or the model
            cannot encode as asked.
        ResourceError: if the encoders do not fit on the cluster.
    """
    if config.scorer is not None:
        load_scorer(config.scorer)  # refuses before any work
    encode, model_digest = _encoding(config)
    if encode is not None:
        plan_encoders(encode, config.how.encoders)  # refuses before any work
    identities = _identities(sources, model_digest, encode)
    plan = read_plan(store)
    if plan is not None:
        refuse_other_inputs(plan, identities, config.out)
        counts = read_counts(store)
        if counts is None:  # what was staged is gone; it is made again, the same
            counts = count_all(work_of(config, sources))
    else:
        plan, counts = _survey(config, store, sources, identities)
    return Start(
        plan=plan, counts=counts, work=work_of(config, sources, plan.merged), encode=encode
    )


def dataset_info(num_parts: int | None) -> DatasetInfo:
    """What ``_schema.json`` says; the number of parts is known once all is staged."""
    return DatasetInfo(
        name=SAMPLES_SCHEMA_NAME, version=SAMPLES_SCHEMA_VERSION, num_parts=num_parts
    )


def _survey(
    config: PrepareConfig, store: Store, sources: SourcePlan, identities: Mapping[str, str]
) -> tuple[PreparePlan, Counts]:
    write_run_files(store, to_toml(config), dataset_info(None))
    work = work_of(config, sources)
    counts = count_all(work)
    num_rows = int(counts.sum())
    logger.info("%d rows in %d slices", num_rows, len(counts))
    merged = merge_thin(work, config.merge_thin) if config.merge_thin else {}
    if merged:
        logger.info("%d thin buckets are merged into others", len(merged))
    plan = PreparePlan(
        fingerprint=fingerprint(config, **identities),
        identities=identities,
        num_rows=num_rows,
        num_slices=len(counts),
        merged=merged,
        sources=source_lines(sources),
    )
    write_plan(store, plan, counts)
    return plan, counts


def _encoding(config: PrepareConfig) -> tuple[EncodeWork | None, str]:
    """What encodes latents, and the digest of its model; None and "" for pictures."""
    if not config.latents:
        return None, ""
    preset, digest = model_identity(config.model_path)
    check_vae_preset_dtype(preset, DTYPES[config.vae_dtype])
    if config.text and preset.kind == "refiner":
        raise ConfigError(f"text: {config.model} is a refiner, which has one text encoder only")
    device = config.device
    if device == "auto":
        device = "cuda" if cluster_size().num_gpus else "cpu"
    encode = EncodeWork(
        model=config.model_path,
        vae_dtype=config.vae_dtype,
        device=device,
        num_threads=config.cpu_threads,
        batch_size=config.encode_batch,
        stored_dtype=config.latents_dtype,
        text=config.text,
    )
    return encode, digest


def _identities(
    sources: SourcePlan, model_digest: str, encode: EncodeWork | None
) -> dict[str, str]:
    """What lies at the locations, and what else fixes the bits of latents."""
    identities = {"sources": sources.digest}
    if encode is not None:
        threads = f":threads-{encode.num_threads}" if encode.device == "cpu" else ""
        identities |= {"model": model_digest, "numerics": encode.device + threads}
    return identities
