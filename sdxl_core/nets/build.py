"""Builds the networks of a preset, with random weights.

The networks are those of diffusers (UNet, autoencoder), transformers (text encoder 1) and open_clip
(text encoder 2), as in the released models; nothing is subclassed. They come up on the device that
the caller's context gives, so ``with torch.device("meta")`` builds a full-size model in no memory.
"""

from torch import nn

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.presets import ModelPreset, TextPreset
from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops

declare_missing_torchvision_ops()

from diffusers.models.attention_processor import AttnProcessor  # noqa: E402
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # noqa: E402
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # noqa: E402
from open_clip.transformer import QuickGELU, TextTransformer  # noqa: E402
from transformers.models.clip.configuration_clip import CLIPTextConfig  # noqa: E402
from transformers.models.clip.modeling_clip import CLIPTextModel  # noqa: E402

__all__ = [
    "AttnProcessor",
    "AutoencoderKL",
    "CLIPTextModel",
    "TextTransformer",
    "UNet2DConditionModel",
    "build_networks",
    "build_text_1",
    "build_text_2",
    "build_unet",
    "build_vae",
    "clip_text_config",
]


def build_unet(preset: ModelPreset) -> UNet2DConditionModel:
    """Returns the UNet of ``preset`` in evaluation mode."""
    return UNet2DConditionModel(**preset.unet.diffusers_config()).eval()


def build_vae(preset: ModelPreset) -> AutoencoderKL:
    """Returns the autoencoder of ``preset`` (factor 8, 4 latent channels) in evaluation mode."""
    return AutoencoderKL(**preset.vae.diffusers_config()).eval()


def build_text_1(preset: ModelPreset) -> CLIPTextModel:
    """Returns text encoder 1 (CLIP ViT-L's tower in the released base) in evaluation mode.

    Raises:
        ConfigError: if ``preset`` is a refiner, which has no encoder 1.
    """
    if preset.text_1 is None:
        raise ConfigError(f"preset {preset.name!r} has no text encoder 1; refiners use encoder 2")
    return CLIPTextModel(clip_text_config(preset.text_1)).eval()


def build_text_2(preset: ModelPreset) -> TextTransformer:
    """Returns text encoder 2 (OpenCLIP bigG's tower in the released models) in evaluation mode."""
    sizes = preset.text_2
    return TextTransformer(
        context_length=sizes.num_positions,
        vocab_size=sizes.vocab_size,
        width=sizes.width,
        heads=sizes.num_heads,
        layers=sizes.num_layers,
        mlp_ratio=sizes.mlp_width / sizes.width,
        output_dim=sizes.projection_width,
        pool_type="argmax",
        act_layer=nn.GELU if sizes.activation == "gelu" else QuickGELU,
    ).eval()


def build_networks(preset: ModelPreset) -> dict[str, nn.Module]:
    """Returns all networks of ``preset`` by their folder names in the diffusers layout.

    The keys are ``text_encoder`` (absent for a refiner), ``text_encoder_2``, ``unet`` and ``vae``.
    """
    networks: dict[str, nn.Module] = {}
    if preset.text_1 is not None:
        networks["text_encoder"] = build_text_1(preset)
    networks["text_encoder_2"] = build_text_2(preset)
    networks["unet"] = build_unet(preset)
    networks["vae"] = build_vae(preset)
    return networks


def clip_text_config(sizes: TextPreset) -> CLIPTextConfig:
    """Returns the transformers configuration of a tower, as the released ``config.json`` has it."""
    return CLIPTextConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp_width,
        projection_dim=sizes.projection_width,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        max_position_embeddings=sizes.num_positions,
        hidden_act=sizes.activation,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        # Not the real end token (49407): with 2, transformers pools at the highest id, which is
        # what open_clip does and what the released files say.
        eos_token_id=2,
    )
