"""The opponent of an autoencoder: a network that tells patches of pictures from patches of decoded
ones.

Patches, hinge loss and the weight that balances the two sides' gradients are those of latent
diffusion (arXiv:2112.10752, appendix G; arXiv:2012.09841, equations 6 and 7), whose autoencoder
SDXL's is.

Legend of shape suffixes: B batch, C channels, H height, W width.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_CHANNELS_TIMES = 8
_MOST_NORM_GROUPS = 32


class PatchDiscriminator(nn.Module):
    """Gives every patch of a picture a number: high for a real one (arXiv:1611.07004).

    A patch is 70 px wide with three layers, 34 with two. Activations are normalised within a
    picture rather than over the batch, so a picture's numbers do not depend on its neighbours, and
    workers have nothing to exchange.
    """

    def __init__(self, *, num_channels: int = 64, num_layers: int = 3) -> None:
        """Draws small random weights from torch's global generator.

        Args:
            num_channels: of the first layer, a power of two; each further layer doubles them, up to
                eight times as many.
            num_layers: layers that halve the picture.
        """
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, num_channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = num_channels
        for depth in range(1, num_layers + 1):
            last = depth == num_layers
            wider = num_channels * min(2**depth, _MOST_CHANNELS_TIMES)
            layers += [
                nn.Conv2d(width, wider, 4, 1 if last else 2, 1, bias=False),
                nn.GroupNorm(min(_MOST_NORM_GROUPS, wider // 2), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns the patches' numbers, (B, 1, h, w), for pictures in [-1, 1] of any dtype."""
        dtype = next(self.parameters()).dtype
        scores_B1HW: Tensor = self.layers(images_BCHW.to(dtype))
        return scores_B1HW


def discriminator_loss(
    discriminator: nn.Module, images_BCHW: Tensor, decoded_BCHW: Tensor
) -> Tensor:
    """Hinge loss of the discriminator, a scalar: real patches should get 1 or more, decoded ones -1
    or less.

    Args:
        discriminator: the network, or a launcher's wrapper of it.
        images_BCHW: real pictures in [-1, 1].
        decoded_BCHW: the same, decoded; nothing flows back through them.
    """
    batch_size = len(images_BCHW)
    both = torch.cat([images_BCHW, decoded_BCHW.detach().to(images_BCHW.dtype)])
    real, decoded = discriminator(both).float().split(batch_size)
    loss: Tensor = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + decoded).mean())
    return loss


def adversarial_loss(discriminator: nn.Module, decoded_BCHW: Tensor) -> Tensor:
    """What the discriminator says against decoded pictures, a scalar; the autoencoder lowers it.

    The discriminator gets no gradient of it.
    """
    with frozen(discriminator):
        loss: Tensor = -discriminator(decoded_BCHW).float().mean()
    return loss


def adaptive_weight(
    kept: Tensor, adversarial: Tensor, last_weight: Tensor, *, most: float = 1e4
) -> Tensor:
    """Returns the factor that makes the adversarial gradient as long as that of the other losses.

    Both are looked at where they enter the decoder, at its last layer.

    Args:
        kept: the other losses, a scalar.
        adversarial: from ``adversarial_loss``.
        last_weight: weight of the decoder's last layer; both losses depend on it.
        most: upper bound.

    Returns:
        A 0-d tensor without gradient, 0 to ``most``. The host does not wait for it.
    """
    (kept_gradient,) = torch.autograd.grad(kept, last_weight, retain_graph=True)
    (adversarial_gradient,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    ratio = kept_gradient.float().norm() / (adversarial_gradient.float().norm() + 1e-4)
    factor: Tensor = ratio.clamp(0.0, most).detach()
    return factor


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Lets gradients flow through a module, but not into its parameters, for a while."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
