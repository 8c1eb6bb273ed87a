"""Mean losses by noise level, summed up on the device and read now and then.

Legend of shape suffixes: B batch, K bands.
"""

import torch
from torch import Tensor

from sdxl_core.contract.errors import ConfigError
from sdxl_core.diffusion.schedules import NUM_TRAIN_TIMESTEPS


class LossBands:
    """Sums and counts of losses in equal bands of timesteps, from clean to noisy.

    One of these per bucket tells losses by bucket too. The host waits in ``read`` alone.

    Attributes:
        sums_K2: float64, sum of the losses and number of samples of each band since the last
            ``read``. Added over workers it gives the means of all.
    """

    def __init__(self, num_bands: int = 10, *, device: torch.device | str = "cpu") -> None:
        if not 1 <= num_bands <= NUM_TRAIN_TIMESTEPS:
            raise ConfigError(
                f"num_bands: found {num_bands}, expected 1 to {NUM_TRAIN_TIMESTEPS} noise bands"
            )
        self.sums_K2 = torch.zeros(num_bands, 2, dtype=torch.float64, device=device)

    def add(self, loss_B: Tensor, timestep_B: Tensor) -> None:
        """Counts a batch in. Losses that are not finite are left out."""
        band_B = timestep_B * len(self.sums_K2) // NUM_TRAIN_TIMESTEPS
        finite_B = loss_B.detach().isfinite()
        values_B2 = torch.stack([loss_B.detach().nan_to_num(0.0, 0.0, 0.0), finite_B], dim=1)
        self.sums_K2.index_add_(0, band_B, values_B2.double())

    def read(self) -> list[float | None]:
        """Returns the mean loss of each band, None where there was no sample, and starts anew."""
        sums = self.sums_K2.tolist()
        self.sums_K2.zero_()
        return [total / count if count else None for total, count in sums]
