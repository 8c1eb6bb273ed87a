"""diffusers' own pipelines around the micro models, for oracles."""

from pathlib import Path

from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sdxl_core.nets.model import SdxlModel


def base_pipeline(model: SdxlModel, folder: Path) -> StableDiffusionXLPipeline:
    """diffusers' text-to-image pipeline around the same UNet, autoencoder and encoder 1.

    Args:
        model: The base.
        folder: An export of it; encoder 2, which diffusers takes from transformers, is read there.
    """
    return _quiet(
        StableDiffusionXLPipeline(
            vae=model.vae,
            text_encoder=model.text_1,
            text_encoder_2=_exported_text_2(folder),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            unet=model.unet,
            scheduler=EulerDiscreteScheduler(),
            force_zeros_for_empty_prompt=model.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
    )


def refiner_pipeline(model: SdxlModel, folder: Path) -> StableDiffusionXLImg2ImgPipeline:
    """diffusers' image-to-image pipeline around the refiner; see ``base_pipeline``."""
    return _quiet(
        StableDiffusionXLImg2ImgPipeline(
            vae=model.vae,
            text_encoder=None,
            text_encoder_2=_exported_text_2(folder),
            tokenizer=None,
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            unet=model.unet,
            scheduler=EulerDiscreteScheduler(),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=model.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
    )


def _exported_text_2(folder: Path) -> CLIPTextModelWithProjection:
    encoder, loading = CLIPTextModelWithProjection.from_pretrained(
        folder / "text_encoder_2", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    return encoder.eval()


def _quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
