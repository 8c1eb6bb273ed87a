"""Classifier-free guidance for batches whose rows have different scales.

Every row's result depends on that row alone, down to the last bit, whatever the size of the batch.
"""

# Shapes: B rows, C=4 latent channels, H W latent size.

import torch
from torch import Tensor


def apply_guidance(cond_BCHW: Tensor, uncond_BCHW: Tensor, guidance_scale_B: Tensor) -> Tensor:
    """Goes from the unconditional prediction towards the conditional one and beyond.

    The result is ``u + s * (c - u)``; the paper's ``w`` (Podell et al. 2023, appendix C) is s - 1.

    Args:
        cond_BCHW: Prediction for the prompt, any float dtype.
        uncond_BCHW: Prediction for the negative side, same shape.
        guidance_scale_B: Scale of each row. Rows with 1 give ``cond`` bit for bit and may have
            anything, even NaN, on the negative side.

    Returns:
        The guided prediction, float32, or float64 if an input is. Half types are widened first: the
        difference of two nearly equal predictions has few of their bits left.
    """
    cond_BCHW, uncond_BCHW = _widen(cond_BCHW), _widen(uncond_BCHW)
    scale_B111 = _per_row(guidance_scale_B, cond_BCHW)
    guided_BCHW = uncond_BCHW + scale_B111 * (cond_BCHW - uncond_BCHW)
    return torch.where(scale_B111 == 1, cond_BCHW, guided_BCHW)


def rescale_guidance(guided_BCHW: Tensor, cond_BCHW: Tensor, rescale_B: Tensor) -> Tensor:
    """Brings the spread of guided predictions back towards that of the conditional ones.

    Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", section 3.4;
    diffusers' ``rescale_noise_cfg``.

    Args:
        guided_BCHW: Result of ``apply_guidance``.
        cond_BCHW: Prediction for the prompt, same shape.
        rescale_B: Share of the correction, 0 to 1, for each row. Rows with 0 come back bit for bit.

    Returns:
        The mix, float32, or float64 if an input is. A row without any spread comes back as it is.
    """
    guided_BCHW, cond_BCHW = _widen(guided_BCHW), _widen(cond_BCHW)
    rescale_B111 = _per_row(rescale_B, guided_BCHW)
    guided_std_B111 = _per_row(_std_per_row(guided_BCHW), guided_BCHW)
    cond_std_B111 = _per_row(_std_per_row(cond_BCHW), guided_BCHW)
    rescaled_BCHW = guided_BCHW * (cond_std_B111 / guided_std_B111)
    mixed_BCHW = rescale_B111 * rescaled_BCHW + (1 - rescale_B111) * guided_BCHW
    return torch.where((rescale_B111 == 0) | (guided_std_B111 == 0), guided_BCHW, mixed_BCHW)


def _std_per_row(values_BCHW: Tensor) -> Tensor:
    # One reduction per row: on a GPU, how a reduction over a batch is split among threads, and so
    # its rounding, may depend on the size of the batch.
    return torch.stack([values_CHW.std() for values_CHW in values_BCHW])


def _widen(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _per_row(value_B: Tensor, like_BCHW: Tensor) -> Tensor:
    return value_B.to(like_BCHW).reshape(-1, 1, 1, 1)
