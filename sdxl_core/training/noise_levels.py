"""Tables over the 1000 timesteps: how much of the data is left at each, and how much its error
counts.

Shape suffix: T the 1000 timesteps.
"""

import torch
from torch import Tensor

from sdxl_core.contract.errors import ConfigError
from sdxl_core.diffusion.schedules import scaled_linear_alphas_cumprod
from sdxl_core.nets.model import PredictionType


def kept_shares(*, zero_terminal_snr: bool = False) -> Tensor:
    """Returns the share ``a`` of the data's variance that is left at each timestep, float32[T].

    Args:
        zero_terminal_snr: rescale the schedule so that nothing is left at the last timestep and the
            first is unchanged (arXiv:2305.08891, algorithm 1). The released models were trained
            without. Only a network that predicts the velocity can learn such a schedule: at the
            last timestep the noise is its input.
    """
    root_T = torch.tensor(scaled_linear_alphas_cumprod()).sqrt()
    if zero_terminal_snr:
        root_T = (root_T - root_T[-1]) * (root_T[0] / (root_T[0] - root_T[-1]))
    return root_T.square().float()


def min_snr_weights(
    kept_T: Tensor, *, prediction_type: PredictionType, gamma: float = 5.0
) -> Tensor:
    """Returns min-SNR weights of the squared error at each timestep (arXiv:2303.09556), float32[T].

    With ``snr = a / (1 - a)`` an error in the picture counts ``min(snr, gamma)``. An error of the
    noise is ``snr`` times as large, one of the velocity ``snr + 1`` times: their weights are
    ``min(snr, gamma) / snr`` and ``min(snr, gamma) / (snr + 1)``. Under a schedule with zero
    terminal SNR the last timestep's weight is 0.

    Args:
        kept_T: from ``kept_shares``.
        prediction_type: what the network says.
        gamma: 5 in the paper; > 0.

    Raises:
        ConfigError: gamma is not positive, or the noise is predicted where no data is left.
    """
    if not gamma > 0:
        raise ConfigError(f"min_snr_gamma: found {gamma}, expected a number above 0; the paper: 5")
    snr_T = kept_T.double() / (1 - kept_T.double())
    counted_T = snr_T.clamp(max=gamma)
    if prediction_type == "v_prediction":
        return (counted_T / (snr_T + 1)).float()
    check_learnable(prediction_type, zero_terminal_snr=bool((snr_T == 0).any()))
    return (counted_T / snr_T).float()


def check_learnable(prediction_type: PredictionType, *, zero_terminal_snr: bool) -> None:
    """Refuses to train a network to predict the noise from noise alone.

    Raises:
        ConfigError: zero terminal SNR with epsilon.
    """
    if zero_terminal_snr and prediction_type == "epsilon":
        raise ConfigError(
            "zero_terminal_snr: found true with prediction_type epsilon, expected v_prediction; "
            "at the last timestep the noise is the network's input and teaches it nothing"
        )
