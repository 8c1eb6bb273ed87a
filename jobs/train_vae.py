"""Settings of ``sdxl train --stage vae``, beside those of every stage."""

from jobs.train_how import check
from sdxl_core.contract.config import Location, config
from sdxl_core.contract.errors import ConfigError


@config
class AutoencoderOptions:
    """Of the autoencoder's stage alone. The defaults are those of latent diffusion's code."""

    perceptual_weight: float = 1.0
    """Of the perceptual distance, beside L1."""
    kl_weight: float = 1e-6
    """Of the posterior's divergence from a unit normal."""
    adversarial_weight: float = 0.5
    """Length of the discriminator's gradient as a share of the others'; 0 trains without one."""
    discriminator_after: int = 50_000
    """Steps before the discriminator begins to learn and to have a say."""
    discriminator_channels: int = 64
    """Of its first layer, a power of two."""
    discriminator_layers: int = 3
    """Layers that halve the picture: a patch is 70 px wide with 3, 34 with 2."""
    lpips_vgg: Location = ""
    """Torchvision's VGG-16 as safetensors, a local file here and on every worker; without it a
    fixed random network looks."""
    lpips_channels: Location = ""
    """Channel weights of LPIPS 0.1 for VGG as safetensors, a local file here and on every
    worker."""
    inception: Location = ""
    """FID's Inception network as safetensors, a local file here and on every worker: rFID of the
    --holdout pictures is measured with it."""

    def __post_init__(self) -> None:
        channels = self.discriminator_channels
        is_power = channels >= 2 and not channels & (channels - 1)
        check("vae.discriminator_channels", channels, is_power, "a power of two, 2 or more")
        layers = self.discriminator_layers
        check("vae.discriminator_layers", layers, 1 <= layers <= 5, "1 to 5")
        if bool(self.lpips_vgg) != bool(self.lpips_channels):
            raise ConfigError(
                "vae.lpips_vgg, vae.lpips_channels: found one of them, expected both files or none"
            )
