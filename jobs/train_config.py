"""Settings and summary of ``sdxl train``; what they do is in ``jobs.train``."""

import dataclasses
import json
from typing import Annotated, Literal

import tyro

from jobs.train_how import Flag, TrainHow, check
from jobs.train_vae import AutoencoderOptions
from sdxl_core.contract.config import NOT_WHAT, Location, config
from sdxl_core.contract.errors import ConfigError

__all__ = ["TrainConfig", "TrainHow", "TrainSummary", "parse_bucket_weights"]

_Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@config
class TrainConfig:
    """Train a base or a refiner on prepared samples, exactly resumable."""

    samples: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="SAMPLES")]
    """Output of `sdxl prepare`; local or s3://."""
    out: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Where checkpoints, reports and the trained model go; local or s3://."""
    also: Annotated[tuple[str, ...], NOT_WHAT, tyro.conf.UseAppendAction] = ()
    """One more samples dataset; may be given again. URL@0.5 sees half of its rows in each epoch."""
    stage: Literal["base", "refiner", "vae"] = "base"
    """What is trained; vae: the autoencoder of either, on pictures."""
    model: Location = "auto"
    """Networks to begin with: tiny, diffusers folder or .safetensors file; auto is the tiny one."""
    variant: str | None = None
    """Read files of this variant of a diffusers folder, for example fp16."""
    fresh: Flag = False
    """Begin with random weights of the model's sizes; text encoders and autoencoder are kept."""
    resume: Location = "auto"
    """auto goes on from the newest checkpoint in OUT; never refuses if there is one; or a path."""
    export: Annotated[Literal["ema", "raw", "none"], NOT_WHAT] = "ema"
    """Weights of the diffusers folder OUT/model at the end: the running mean, or the last ones."""
    validate: Location = "none"
    """Prompt table as of generate, up to 64 rows: rendered into OUT/validation now and then."""
    any_latents: Annotated[bool, NOT_WHAT, tyro.conf.FlagCreatePairsOff] = False
    """Train on latents even if they cannot be shown to be of this model's autoencoder."""

    holdout: float = 0.0
    """Share of the samples, by a hash of their ids, that is never trained on; their loss is
    reported every --how.validate-every steps."""
    holdout_samples: Annotated[int, NOT_WHAT] = 256
    """The most of these whose loss is measured."""

    steps: Annotated[int, NOT_WHAT] = 1000
    """Global batches in all; a finished run goes on when it is given more."""
    batch: int = 64
    """Samples of a global batch, over all workers and accumulated passes."""
    area_scaled_batches: Flag = False
    """Let smaller buckets have larger batches, of about as many pixels; batch is the largest's."""
    batch_multiple: int = 1
    """With area-scaled batches: all batches are multiples of this, which the workers must share."""
    bucket_weights: _Repeated = ()
    """HEIGHTxWIDTH=FACTOR for the share of a bucket in an epoch; may be given again."""
    bucket_temperature: float = 1.0
    """1 draws buckets by their size, more evens them out."""
    remainder: Literal["carry", "drop", "repeat"] = "carry"
    """Rows that fill no batch at an epoch's end: begin the next, are left out, or are filled up."""
    window_units: int = 16
    """Row groups whose rows are mixed with each other."""
    texts: Literal["auto", "live", "stored"] = "auto"
    """Encode captions in training, or take what prepare --text stored; auto: stored if there."""
    seed: int = 0
    """Of the order, captions, noise, dropout and fresh weights."""

    learning_rate: float = 1e-5
    """The highest one."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises."""
    decay_steps: int = 0
    """Step at which a cosine has brought the learning rate down; 0 keeps it constant."""
    final_share: float = 0.0
    """Share of the learning rate at the end of the cosine."""
    beta_1: float = 0.9
    """Of AdamW."""
    beta_2: float = 0.999
    """Of AdamW."""
    epsilon: float = 1e-8
    """Of AdamW."""
    weight_decay: float = 0.01
    """Of AdamW."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema_decay: float = 0.9999
    """What the running mean of the weights keeps at each step; less in the first ones."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the trained network; the optimizer's weights are float32."""
    frozen_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the text encoders."""

    prediction: Literal["model", "epsilon", "v_prediction"] = "model"
    """What the network says: noise or velocity; model: as its files say."""
    min_timestep: int = 0
    """The least noisy of the 1000 levels that is trained."""
    max_timestep: int = 0
    """The level after the noisiest one; 0: all for a base, 200 for a refiner."""
    offset_noise: float = 0.0
    """Standard deviation of a constant added to the noise; SDXL's last stage: 0.05."""
    offset: Literal["per-channel", "scalar"] = "per-channel"
    """Whether that constant is one per sample and channel, or one per sample."""
    min_snr_gamma: float | None = None
    """Weigh noise levels by min-SNR with this gamma, 5 in its paper."""
    zero_terminal_snr: Flag = False
    """Rescale the schedule so that nothing is left at the last level; needs v_prediction. A model
    that was trained so keeps it."""
    drop_text: float = 0.1
    """Share of samples without caption."""
    drop_text_parts: Literal["together", "apart"] = "together"
    """Drop all of a caption at once, or each encoder's part by a draw of its own."""
    drop_original_size: float = 0.0
    """Share of samples without original size."""
    drop_crop: float = 0.0
    """Share of samples without crop."""
    drop_last_numbers: float = 0.0
    """Share of samples without target size (base) or aesthetic score (refiner)."""

    lora_rank: int = 0
    """Train an adapter of this rank and leave the network's own weights as they are; 0: train them.
    """
    lora_alpha: float = 0.0
    """What an adapter adds has the factor alpha / rank; 0: alpha is the rank."""
    lora_targets: Literal["attention", "transformer"] = "attention"
    """Layers with an adapter: the attentions' four, or all linear ones of the transformers."""
    vae: AutoencoderOptions = AutoencoderOptions()
    how: TrainHow = TrainHow()

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "batch_multiple", "window_units"):
            check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("warmup_steps", "decay_steps", "min_timestep", "max_timestep"):
            check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        check("learning_rate", self.learning_rate, self.learning_rate > 0, "more than 0")
        for name in ("final_share", "beta_1", "beta_2", "ema_decay"):
            check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "0 to 1")
        check("ema_decay", self.ema_decay, self.ema_decay < 1, "less than 1")
        for name in ("lora_rank", "lora_alpha"):
            check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        check("holdout", self.holdout, 0 <= self.holdout < 1, "0 to less than 1")
        check("holdout_samples", self.holdout_samples, self.holdout_samples >= 1, "1 or more")
        if not self.lora_rank and (self.lora_alpha or self.lora_targets != "attention"):
            raise ConfigError(
                "lora_alpha, lora_targets: found without lora_rank, which would train the whole "
                "network; give --lora-rank as well"
            )
        if self.lora_rank and self.fresh:
            raise ConfigError(
                "fresh: an adapter beside random weights is of no use; leave --fresh away, or "
                "--lora-rank"
            )
        if self.stage == "vae":
            self._refuse_other_stages()
        if self.decay_steps and self.decay_steps <= self.warmup_steps:
            raise ConfigError(
                f"decay_steps: found {self.decay_steps}, expected more than warmup_steps="
                f"{self.warmup_steps}"
            )
        parse_bucket_weights(self.bucket_weights)

    def _refuse_other_stages(self) -> None:
        for name, is_used in (
            ("lora_rank", bool(self.lora_rank)),
            ("validate", self.validate != "none"),
            ("how.zero 3", self.how.zero == 3),
            ("how.compile", self.how.compile),
            ("how.encoders", bool(self.how.encoders)),
        ):
            if is_used:
                raise ConfigError(
                    f"{name}: is for the stages base and refiner; leave it away in the stage vae"
                )

    @property
    def model_path(self) -> str:
        """Where the networks are."""
        if self.model != "auto":
            return self.model
        return "tiny-refiner" if self.stage == "refiner" else "tiny"


def parse_bucket_weights(texts: tuple[str, ...]) -> dict[tuple[int, int], float]:
    """``HEIGHTxWIDTH=FACTOR`` texts as factors by bucket (height, width).

    Raises:
        ConfigError: if one is not such a text.
    """
    weights: dict[tuple[int, int], float] = {}
    for text in texts:
        size, _, factor = text.partition("=")
        height, _, width = size.partition("x")
        try:
            weights[int(height), int(width)] = float(factor)
        except ValueError:
            raise ConfigError(
                f"bucket_weights: found {text!r}, expected HEIGHTxWIDTH=FACTOR, such as 512x2048=2"
            ) from None
    return weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """How far the run has come. ``loss`` is the last report's, NaN if nothing was done now."""

    out: str
    step: int
    num_steps_now: int
    num_samples: int
    num_skipped: int
    loss: float | None
    seconds: float
    fingerprint: str
    checkpoint: str
    model: str | None
    adapter: str | None

    @property
    def exit_code(self) -> int:
        """0: the run is finished."""
        return 0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))
