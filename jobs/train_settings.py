"""From the options of ``sdxl train`` to what its workers know."""

from collections.abc import Sequence

from cluster.ingest import IngestWork
from cluster.train_work import TrainWork
from jobs.train_config import TrainConfig, parse_bucket_weights
from sdxl_core.data.buckets import Bucket
from sdxl_core.data.plan import PlanSettings
from sdxl_core.nets.flops import unet_flops, vae_decode_flops, vae_encode_flops
from sdxl_core.nets.model import SdxlModel
from sdxl_core.nets.presets import ModelPreset
from sdxl_core.training.autoencoder_network import AutoencoderSettings
from sdxl_core.training.autoencoder_stage import AutoencoderObjective
from sdxl_core.training.conditions import ConditionDropout
from sdxl_core.training.lora import LoraSettings
from sdxl_core.training.objective import REFINER_TIMESTEPS
from sdxl_core.training.optimizers import AdamWSettings, LearningRate
from sdxl_core.training.seeded_objective import Objective

# Forward passes that the work of a training step is equal to, by whether all weights are trained:
# the backward pass finds gradients of activations, and those of weights as well. What an adapter
# does itself, about a hundredth, is not counted.
_PASSES = {True: 3.0, False: 2.0}


def plan_settings(config: TrainConfig) -> PlanSettings:
    """What decides which samples form which batch."""
    return PlanSettings(
        seed=config.seed,
        global_batch_size=config.batch,
        area_scaled_batches=config.area_scaled_batches,
        bucket_weights=parse_bucket_weights(config.bucket_weights) or None,
        bucket_temperature=config.bucket_temperature,
        remainder=config.remainder,
        window_units=config.window_units,
    )


def objective_of(config: TrainConfig, model: SdxlModel) -> Objective:
    """What the network is trained for.

    Raises:
        ConfigError: settings that do not go together.
    """
    last = config.max_timestep or (1000 if config.stage == "base" else REFINER_TIMESTEPS[1])
    return Objective(
        prediction_type=model.prediction_type
        if config.prediction == "model"
        else config.prediction,
        timesteps=(config.min_timestep, last),
        offset_noise=config.offset_noise,
        offset=config.offset,
        min_snr_gamma=config.min_snr_gamma,
        zero_terminal_snr=config.zero_terminal_snr or model.zero_terminal_snr,
        dropout=ConditionDropout(
            text=config.drop_text,
            text_parts=config.drop_text_parts,
            original_size=config.drop_original_size,
            crop=config.drop_crop,
            last_numbers=config.drop_last_numbers,
        ),
    )


def lora_settings(config: TrainConfig) -> LoraSettings | None:
    """The adapter that is trained; None if it is the network itself."""
    if not config.lora_rank:
        return None
    return LoraSettings(
        rank=config.lora_rank, alpha=config.lora_alpha or None, targets=config.lora_targets
    )


def autoencoder_settings(config: TrainConfig) -> AutoencoderSettings | None:
    """What the autoencoder's stage trains; None in another stage."""
    if config.stage != "vae":
        return None
    options = config.vae
    return AutoencoderSettings(
        objective=AutoencoderObjective(
            perceptual_weight=options.perceptual_weight,
            kl_weight=options.kl_weight,
            adversarial_weight=options.adversarial_weight,
            num_warmup_steps=options.discriminator_after,
        ),
        discriminator_channels=options.discriminator_channels,
        discriminator_layers=options.discriminator_layers,
        lpips=(options.lpips_vgg, options.lpips_channels) if options.lpips_vgg else None,
        inception=options.inception,
    )


def flops_of_buckets(
    config: TrainConfig, preset: ModelPreset, buckets: Sequence[Bucket]
) -> dict[Bucket, float]:
    """Operations of training on one sample of each bucket, forward and backward.

    They are those of the trained network: the discriminator, the network of the perceptual distance
    and those that samples go through are not counted.
    """
    if config.stage == "vae":
        return {
            bucket: 3.0 * (vae_encode_flops(preset, *bucket) + vae_decode_flops(preset, *bucket))
            for bucket in buckets
        }
    num_passes = _PASSES[not config.lora_rank]
    return {bucket: num_passes * unet_flops(preset, *bucket) for bucket in buckets}


def learning_rate_of(config: TrainConfig) -> LearningRate:
    """The learning rate by step."""
    return LearningRate(
        peak=config.learning_rate,
        num_warmup_steps=config.warmup_steps,
        after="cosine" if config.decay_steps else "constant",
        num_steps=config.decay_steps or None,
        floor=config.final_share,
    )


def adamw_of(config: TrainConfig) -> AdamWSettings:
    """The optimizer's constants."""
    return AdamWSettings(
        betas=(config.beta_1, config.beta_2),
        weight_decay=config.weight_decay,
        eps=config.epsilon,
    )


def work_of(
    config: TrainConfig,
    ingest: IngestWork,
    model: SdxlModel,
    *,
    objective: Objective | None,
    fingerprint: str,
    digest: str,
    device: str,
    cpus: float,
) -> TrainWork:
    """What workers have to know to train; ``digest`` is the model's. Nothing is measured beside."""
    how = config.how
    return TrainWork(
        out=config.out,
        fingerprint=fingerprint,
        stage=config.stage,
        kind=model.kind,
        model=config.model_path,
        variant=config.variant,
        is_fresh=config.fresh,
        seed=config.seed,
        prediction_type=model.prediction_type if objective is None else objective.prediction_type,
        model_digest=digest,
        ingest=ingest,
        lora=lora_settings(config),
        flops_of_bucket=flops_of_buckets(config, model.preset, ingest.manifest.buckets),
        objective=objective,
        autoencoder=autoencoder_settings(config),
        num_steps=config.steps,
        learning_rate=learning_rate_of(config),
        adamw=adamw_of(config),
        max_gradient_norm=config.max_gradient_norm,
        ema_decay=config.ema_decay,
        precision=config.dtype,
        frozen_precision=config.frozen_dtype,
        zero_stage=how.zero,
        offload_optimizer=how.offload_optimizer,
        activation_checkpointing=how.activation_checkpointing,
        channels_last=how.channels_last,
        compile=how.compile,
        device=device,
        num_threads=how.cpu_threads,
        num_encoders=how.encoders,
        min_workers=how.min_workers or ingest.world_size,
        micro_batch_size=how.micro_batch_size,
        cpus_per_worker=cpus,
        report_every=how.report_every,
        checkpoint_every=how.checkpoint_every,
        keep=how.keep_checkpoints,
        max_skipped_in_row=how.max_skipped,
        resume_from="" if config.resume in ("auto", "never") else config.resume,
        max_failures=how.max_failures,
        tensorboard=how.tensorboard,
        trackers=how.trackers,
        validation=None,
        holdout=None,
        stop_grace_s=how.stop_grace_s,
    )
