"""Contrastive training of the text encoders against a small image tower, with open_clip's loss.

Both encoders are trained at once against one image tower: encoder 2 through its own projection,
encoder 1 (which has none in SDXL) through a projection that is thrown away afterwards. What stays
of the tower gives a CLIP score that means something for the scenes.

Legend of shape suffixes: B batch, C channels, H height, W width, T tokens, D width of an encoder, P
width of the shared space.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_TOWER_SIZE_PX = 64
_CHANNELS = (24, 48, 64, 64)
_LEAST_LOGIT_SCALE = math.log(1 / 0.07)
_MOST_LOGIT_SCALE = math.log(100)


class ImageTower(nn.Module):
    """Four strided convolutions and a linear layer: a 64 x 64 picture to one unit vector.

    The last 4 x 4 grid is flattened, not averaged, because captions speak of places.
    """

    def __init__(self, projection_width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for channels in _CHANNELS:
            layers += [
                nn.Conv2d(previous, channels, 3, stride=2, padding=1),
                nn.GroupNorm(4, channels),
                nn.SiLU(),
            ]
            previous = channels
        grid = IMAGE_TOWER_SIZE_PX // 2 ** len(_CHANNELS)
        # The first layer sees the colours themselves: a norm before it would erase a flat picture.
        self.features = nn.Sequential(*[layer for i, layer in enumerate(layers) if i != 1])
        self.projection = nn.Linear(_CHANNELS[-1] * grid * grid, projection_width)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Maps float pictures in [-1, 1] of any size to unit vectors of shape (B, P)."""
        size = (IMAGE_TOWER_SIZE_PX, IMAGE_TOWER_SIZE_PX)
        if images_BCHW.shape[-2:] != size:
            images_BCHW = F.interpolate(images_BCHW, size, mode="area")
        return F.normalize(self.projection(self.features(images_BCHW).flatten(1)).float(), dim=-1)


class ContrastiveHeads(nn.Module):
    """What contrastive training needs beside the encoders: temperature and encoder 1's passing
    projection."""

    def __init__(self, text_1_width: int, projection_width: int) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(_LEAST_LOGIT_SCALE))
        self.text_1_projection = nn.Linear(text_1_width, projection_width, bias=False)

    def scale(self) -> Tensor:
        """Returns the factor of the cosine similarities, bounded as in CLIP to at most 100."""
        return self.logit_scale.clamp(0.0, _MOST_LOGIT_SCALE).exp()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveLoss:
    """Loss and top-1 accuracies within the batch (image to text), each a scalar."""

    total: Tensor
    accuracy_1: Tensor
    accuracy_2: Tensor


def clip_loss(image_BP: Tensor, text_BP: Tensor, scale: Tensor) -> Tensor:
    """The symmetric cross entropy of open_clip's ``ClipLoss`` on one device.

    Args:
        image_BP: unit vectors of the pictures.
        text_BP: unit vectors of the captions, row for row.
        scale: factor of the cosine similarities.
    """
    logits_BB = scale * image_BP @ text_BP.T
    labels_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, labels_B) + F.cross_entropy(logits_BB.T, labels_B)) / 2


def contrastive_loss(
    image_BP: Tensor, pooled_1_BD: Tensor, pooled_2_BP: Tensor, heads: ContrastiveHeads
) -> ContrastiveLoss:
    """Mean of both encoders' losses against the same pictures.

    Args:
        image_BP: unit vectors of the image tower.
        pooled_1_BD: encoder 1's final states at the end-of-text token.
        pooled_2_BP: encoder 2's projected pooled states.
        heads: temperature and encoder 1's projection.
    """
    text_1_BP = F.normalize(heads.text_1_projection(pooled_1_BD).float(), dim=-1)
    text_2_BP = F.normalize(pooled_2_BP.float(), dim=-1)
    scale = heads.scale()
    labels_B = torch.arange(len(image_BP), device=image_BP.device)
    accuracy_1, accuracy_2 = (
        ((image_BP @ text_BP.T).argmax(1) == labels_B).float().mean()
        for text_BP in (text_1_BP, text_2_BP)
    )
    total = (clip_loss(image_BP, text_1_BP, scale) + clip_loss(image_BP, text_2_BP, scale)) / 2
    return ContrastiveLoss(
        total=total, accuracy_1=accuracy_1.detach(), accuracy_2=accuracy_2.detach()
    )


@torch.no_grad()
def scale_residual_stream(encoder: nn.Module, factor: float) -> None:
    """Multiplies the penultimate states of a pre-norm text encoder by ``factor``; pooled output
    does not change.

    Everything that writes into the residual stream (embeddings, attention and MLP outputs) is
    scaled. Layer norms undo it wherever the stream is read, so the encoder computes the same, up to
    their epsilon. It serves to give the states unit scale: a diffusion model's cross-attention
    reads them without a norm.
    """
    for name, parameter in encoder.named_parameters():
        writes = (
            "token_embedding.weight",
            "position_embedding.weight",
            "positional_embedding",
            "out_proj.weight",
            "out_proj.bias",
            "mlp.fc2.weight",
            "mlp.fc2.bias",
            "mlp.c_proj.weight",
            "mlp.c_proj.bias",
        )
        if name.endswith(writes):
            parameter.mul_(factor)
