"""How a tensor is called in the diffusers layout and in the single file of the released models.

The networks of this project carry the names of their libraries. Those are the names of the
diffusers layout for the UNet and the autoencoder, with or without ``text_model.`` for text encoder
1, and open_clip's, which are the single file's, for text encoder 2. Sources: the released files,
and the constructors of Stability-AI/generative-models (``openaimodel.py``, ``model.py``).
"""

import re
from collections.abc import Callable, Sequence

LAYERS_PER_BLOCK = 2
"""ResNet blocks per level of every SDXL UNet and autoencoder; their decoders have one more."""

_Rule = tuple[str, str | Callable[[re.Match[str]], str]]

# Entries per level among input_blocks and output_blocks of the single file.
_STRIDE = LAYERS_PER_BLOCK + 1


def unet_single_name(name: str, *, up_block_types: Sequence[str]) -> str:
    """Returns the single file's name, without prefix, of a UNet tensor.

    Args:
        name: as in diffusers, for example ``down_blocks.1.attentions.0.proj_in.weight``.
        up_block_types: of the preset; where a level has no attention, its upsampler moves up.
    """

    def upsampler(match: re.Match[str]) -> str:
        level = int(match[1])
        position = 2 if "CrossAttn" in up_block_types[level] else 1
        return f"output_blocks.{_STRIDE * level + LAYERS_PER_BLOCK}.{position}.conv."

    return _renamed(name, [(r"^up_blocks\.(\d+)\.upsamplers\.0\.conv\.", upsampler), *_UNET_RULES])


def vae_single_name(name: str, *, num_levels: int) -> str:
    """Returns the single file's name, without prefix, of an autoencoder tensor.

    Args:
        name: as in diffusers, for example ``decoder.up_blocks.0.resnets.2.conv1.weight``.
        num_levels: of the preset; the single file counts the decoder's levels from the end.
    """

    def up_level(match: re.Match[str]) -> str:
        return f"decoder.up.{num_levels - 1 - int(match[1])}."

    return _renamed(name, [(r"^decoder\.up_blocks\.(\d+)\.", up_level), *_VAE_RULES])


def text_2_diffusers_names(name: str) -> tuple[str, ...]:
    """Returns the diffusers names of an open_clip text tensor.

    There are three, to be stacked in this order on the first axis, for the projection that
    open_clip fuses and transformers splits into query, key and value.
    """
    fused = re.match(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$", name)
    if fused:
        layer, kind = fused.groups()
        prefix = f"text_model.encoder.layers.{layer}.self_attn"
        return tuple(f"{prefix}.{part}_proj.{kind}" for part in "qkv")
    return (_renamed(name, _TEXT_2_RULES),)


def text_1_stored_name(name: str) -> str:
    """Returns the name of a text encoder 1 tensor in both layouts.

    transformers drops the prefix ``text_model.`` from its networks from version 5 on; the released
    files have it.
    """
    return f"text_model.{name.removeprefix('text_model.')}"


def canonical_diffusers_name(component: str, stored_name: str) -> str:
    """Returns the released name of a tensor that another version of a library may call otherwise.

    transformers 5 saves text encoder 1 without the prefix ``text_model.``; diffusers before 0.18
    called the autoencoder's attention projections query, key, value and proj_attn.
    """
    if component == "text_encoder":
        return text_1_stored_name(stored_name)
    if component == "vae":
        return _renamed(stored_name, _OLD_VAE_RULES)
    return stored_name


def _renamed(name: str, rules: Sequence[_Rule]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _input_block(match: re.Match[str]) -> str:
    level, layer = int(match[1]), int(match[3])
    return f"input_blocks.{_STRIDE * level + layer + 1}.{_BRANCH[match[2]]}."


def _output_block(match: re.Match[str]) -> str:
    level, layer = int(match[1]), int(match[3])
    return f"output_blocks.{_STRIDE * level + layer}.{_BRANCH[match[2]]}."


def _downsampler(match: re.Match[str]) -> str:
    return f"input_blocks.{_STRIDE * (int(match[1]) + 1)}.0.op."


# Place of a ResNet block and of an attention block inside one entry of the single file.
_BRANCH = {"resnets": 0, "attentions": 1}

_UNET_RULES: list[_Rule] = [
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"(resnets\.\d+)\.norm1\.", r"\1.in_layers.0."),
    (r"(resnets\.\d+)\.conv1\.", r"\1.in_layers.2."),
    (r"(resnets\.\d+)\.time_emb_proj\.", r"\1.emb_layers.1."),
    (r"(resnets\.\d+)\.norm2\.", r"\1.out_layers.0."),
    (r"(resnets\.\d+)\.conv2\.", r"\1.out_layers.3."),
    (r"(resnets\.\d+)\.conv_shortcut\.", r"\1.skip_connection."),
    (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv\.", _downsampler),
    (r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.", _input_block),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
    (r"^up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.", _output_block),
]

_VAE_RULES: list[_Rule] = [
    (r"\.down_blocks\.", ".down."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.resnets\.", ".block."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
]

_OLD_VAE_RULES: list[_Rule] = [
    (r"(\.attentions\.0)\.query\.", r"\1.to_q."),
    (r"(\.attentions\.0)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.0)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
]

_TEXT_2_RULES: list[_Rule] = [
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^text_projection$", "text_projection.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
]
