"""The text encoders of a preset, with random weights.

Encoder 1 is transformers', encoder 2 open_clip's; importing this imports both libraries.
"""

from torch import nn

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.presets import ModelPreset, TextPreset
from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops

declare_missing_torchvision_ops()

from open_clip.transformer import QuickGELU, TextTransformer  # noqa: E402
from transformers.models.clip.configuration_clip import CLIPTextConfig  # noqa: E402
from transformers.models.clip.modeling_clip import CLIPTextModel  # noqa: E402

__all__ = [
    "CLIPTextModel",
    "TextTransformer",
    "build_text_1",
    "build_text_2",
    "clip_text_config",
]


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
