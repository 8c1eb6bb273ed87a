"""All that is decided, and refused, before ``sdxl train`` takes a step."""

import dataclasses
import logging
from collections.abc import Sequence

from cluster.ingest import IngestWork, check_shares
from cluster.resources import ClusterSize
from cluster.train_size import accumulated_passes, beside_encoders, plan_worker_cpus
from cluster.train_start import SampleKind, look_at_samples, refuse_other_latents
from cluster.train_validation import Validation, read_validation_prompts
from cluster.train_work import Holdout, TrainWork
from jobs.train_config import TrainConfig
from jobs.train_identity import scheduler_digest, training_fingerprint
from jobs.train_preflight import refuse_impossible, refuse_one_picture, refuse_workers
from jobs.train_settings import objective_of, plan_settings, work_of
from sdxl_core.contract.config import refuse_mismatch
from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.holdout import set_aside
from sdxl_core.data.manifest import SampleManifest, manifest_of
from sdxl_core.data.plan import EpochPlan, plan_epoch
from sdxl_core.data.plan_settings import batch_sizes
from sdxl_core.nets.presets import ModelPreset
from sdxl_core.nets.weights import load_model, model_identity
from sdxl_core.storage.parts import read_run_toml
from sdxl_core.storage.source_listing import split_weight
from sdxl_core.storage.stores import Store, open_store
from sdxl_core.training.autoencoder_network import refuse_small_pictures
from sdxl_core.training.checkpoint_store import committed_steps, open_checkpoint
from sdxl_core.training.seeded_batches import SampleView

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """What a run needs: what workers know, the first epoch, the sizes of the network."""

    work: TrainWork
    epoch: EpochPlan
    preset: ModelPreset


def open_output(config: TrainConfig) -> Store:
    """The output's store.

    Raises:
        ConfigError: settings that cannot work, it was begun with others, or ``resume`` says what
            cannot be.
        StoreError: it cannot be reached.
    """
    refuse_impossible(config)
    store = open_store(config.out, retries=config.how.retries, timeout_s=config.how.timeout_s)
    store.check()
    begun = read_run_toml(store)
    if begun is not None:
        refuse_mismatch(begun, config, out=config.out)
    steps = committed_steps(store)
    if config.resume == "never" and steps:
        raise ConfigError(
            f"--resume never: {config.out} has checkpoints, the newest of step {steps[-1]}. Use "
            "another OUT, or delete them"
        )
    if config.resume not in ("auto", "never"):
        _check_named_checkpoint(config, store, steps)
    return store


def start(config: TrainConfig, size: ClusterSize) -> Start:
    """Looks at samples and model; what is cheap to look at comes first.

    Args:
        config: all settings.
        size: of the cluster.

    Raises:
        ConfigError: settings that do not go together, or with the samples.
        SchemaError: the samples are not a finished dataset.
        ResourceError: the workers do not fit on the cluster.
    """
    how = config.how
    device = how.device if how.device != "auto" else ("cuda" if size.num_gpus else "cpu")
    size = beside_encoders(size, how.encoders, device)
    num_workers = how.workers or (int(size.num_gpus) if device == "cuda" else 1)
    sizes = refuse_workers(config, num_workers)
    cpus = plan_worker_cpus(how.cpu_threads, sizes[0], sizes[-1], device, size)
    preset, digest = model_identity(config.model_path, variant=config.variant)
    if config.stage not in (preset.kind, "vae"):
        raise ConfigError(f"stage {config.stage}: {config.model_path} is a {preset.kind}")
    _refuse_checkpoint_of_another_model(config, digest)
    model = load_model(config.model_path, variant=config.variant, components=())
    objective = None if config.stage == "vae" else objective_of(config, model)
    urls, manifest = read_manifest(config)
    found = look_at_samples(manifest, retries=how.retries, timeout_s=how.timeout_s)
    _check_samples(config, found, manifest)
    if config.stage == "vae":
        refuse_small_pictures(manifest.buckets, num_layers=config.vae.discriminator_layers)
    elif found.pixels == "latents" and not config.any_latents:
        refuse_other_latents(urls, config.model_path, config.variant, digest)
    ingest = _ingest(config, manifest, found, num_workers=num_workers)
    _check_batches(config, ingest, sizes)
    validation = _validation(config, preset)
    fingerprint = training_fingerprint(
        config, samples=manifest.digest, model=digest, scheduler=scheduler_digest(model)
    )
    kept, held = _set_aside(config, manifest)  # reads the ids of all samples: nearly all is checked
    ingest = dataclasses.replace(ingest, manifest=kept)
    epoch = plan_epoch(kept, ingest.plan, 0, world_batch_multiple=config.batch_multiple)
    check_epoch(config, epoch, ingest)
    work = work_of(
        config,
        ingest,
        model,
        objective=objective,
        fingerprint=fingerprint,
        digest=digest,
        device=device,
        cpus=cpus,
    )
    work = dataclasses.replace(work, validation=validation, holdout=held)
    return Start(work=work, epoch=epoch, preset=preset)


def read_manifest(config: TrainConfig) -> tuple[list[str], SampleManifest]:
    """The datasets' URLs, and all their units."""
    pairs = [split_weight(text) for text in (config.samples, *config.also)]
    urls, weights = [url for url, _ in pairs], [weight for _, weight in pairs]
    return urls, manifest_of(urls, weights, retries=config.how.retries)


def _ingest(
    config: TrainConfig, manifest: SampleManifest, found: SampleKind, *, num_workers: int
) -> IngestWork:
    """What is to be delivered, of all samples."""
    how = config.how
    return IngestWork(
        manifest=manifest,
        plan=plan_settings(config),
        batch_multiple=config.batch_multiple,
        view=SampleView(
            run_seed=config.seed,
            pixels=found.pixels,
            texts="stored" if _takes_stored_texts(config, found) else "live",
            with_aesthetic=config.stage == "refiner",
        ),
        world_size=num_workers,
        num_accumulated=accumulated_passes(config.batch, num_workers, how.micro_batch_size),
        num_ahead=how.batches_ahead,
        retries=how.retries,
        timeout_s=how.timeout_s,
        holdout=config.holdout,
    )


def _set_aside(
    config: TrainConfig, manifest: SampleManifest
) -> tuple[SampleManifest, Holdout | None]:
    """What is trained on, and what is measured."""
    if not config.holdout:
        return manifest, None
    kept, rows = set_aside(
        manifest,
        config.holdout,
        num_measured=config.holdout_samples,
        retries=config.how.retries,
        timeout_s=config.how.timeout_s,
    )
    refuse_one_picture(config, len(rows))
    return kept, Holdout(rows=tuple(rows), every=config.how.validate_every)


def _check_batches(config: TrainConfig, ingest: IngestWork, num_workers: Sequence[int]) -> None:
    """Refuses batches of some bucket that workers of one of these numbers cannot share."""
    sizes = batch_sizes(
        ingest.manifest.buckets, ingest.plan, world_batch_multiple=ingest.batch_multiple
    )
    for number in num_workers:
        passes = accumulated_passes(config.batch, number, config.how.micro_batch_size)
        shared = dataclasses.replace(ingest, world_size=number, num_accumulated=passes)
        for size in sizes:
            check_shares(size, shared)


def check_epoch(config: TrainConfig, epoch: EpochPlan, ingest: IngestWork) -> None:
    """Refuses a plan that has no batch; says which rows are lost.

    Raises:
        ConfigError: see above.
    """
    rows = ingest.manifest.rows_of_bucket
    thin = [
        f"{height}x{width} has {rows[height, width]} samples"
        for height, width in epoch.buckets
        if rows[height, width] < epoch.batch_size_of((height, width))
    ]
    if thin and config.remainder == "drop":
        raise ConfigError(
            f"--remainder drop: {len(thin)} buckets never fill a batch: {', '.join(thin[:6])}. Use "
            "--remainder carry or repeat, a smaller --batch, --bucket-weights SIZE=0 to leave them "
            "out, or prepare with --merge-thin"
        )
    if not epoch.num_batches:
        raise ConfigError(
            f"samples: {ingest.manifest.num_rows} rows give no batch of {config.batch} in an epoch;"
            " use a smaller --batch, or --remainder repeat"
        )


def _check_named_checkpoint(config: TrainConfig, store: Store, steps: list[int]) -> None:
    run, record = open_checkpoint(config.resume)
    other = read_run_toml(open_store(run))
    if other is not None:
        refuse_mismatch(other, config, out=run)
    if steps and (run != store.url or steps[-1] != record.step):
        raise ConfigError(
            f"--resume {config.resume}: {config.out} has a checkpoint of step {steps[-1]} of its "
            "own. Delete those that are not wanted, or use another OUT"
        )


def _refuse_checkpoint_of_another_model(config: TrainConfig, digest: str) -> None:
    """A checkpoint that the user names goes on beside the networks that it began with."""
    if config.resume in ("auto", "never"):
        return
    found = open_checkpoint(config.resume)[1].model.get("digest", digest)
    if found != digest:
        raise ConfigError(
            f"--resume {config.resume}: was trained with the model {found[:16]}, and "
            f"{config.model_path} is {digest[:16]}. Give the same --model; to train another run's "
            "result on, give its OUT/model as --model and leave --resume away"
        )


def _check_samples(config: TrainConfig, found: SampleKind, manifest: SampleManifest) -> None:
    if config.stage == "vae" and found.pixels == "latents":
        raise ConfigError(
            f"stage vae: {manifest.files[0]} has latents, expected pictures; prepare without "
            "--latents"
        )
    if config.stage == "refiner" and found.without_aesthetic:
        raise ConfigError(
            f"stage refiner: {found.without_aesthetic} has rows without an aesthetic score, which "
            "a refiner is conditioned on; prepare the samples from a source with such a column"
        )
    if config.how.encoders and found.pixels == "latents" and _takes_stored_texts(config, found):
        raise ConfigError(
            f"how.encoders: found {config.how.encoders}, but latents and texts are stored in "
            f"{manifest.files[0]}: nothing is left to encode. Leave it away, or use --texts live"
        )
    if config.texts == "stored" and not found.has_texts:
        raise ConfigError(
            f"texts stored: {manifest.files[0]} has none; prepare with --text, or use --texts live"
        )
    if config.texts == "stored" and config.stage == "refiner":
        raise ConfigError("texts stored: those are a base's; a refiner encodes captions: live")


def _takes_stored_texts(config: TrainConfig, found: SampleKind) -> bool:
    return found.has_texts and config.texts != "live" and config.stage == "base"


def _validation(config: TrainConfig, preset: ModelPreset) -> Validation | None:
    if config.validate == "none":
        return None
    requests = read_validation_prompts(
        config.validate,
        native_size_px=preset.native_size_px,
        seed=config.seed,
        retries=config.how.retries,
        timeout_s=config.how.timeout_s,
    )
    return Validation(requests=requests, every=config.how.validate_every)
