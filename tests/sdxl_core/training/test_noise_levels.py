"""Tables by timestep: what is left of the data, and how errors are weighted."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.model import PredictionType
from sdxl_core.training.noise_levels import kept_shares, min_snr_weights


def _scheduler(*, zero_terminal_snr: bool = False) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        rescale_betas_zero_snr=zero_terminal_snr,
    )


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_kept_shares_agree_with_the_diffusers_scheduler(zero_terminal_snr: bool) -> None:
    expected_T = _scheduler(zero_terminal_snr=zero_terminal_snr).alphas_cumprod
    kept_T = kept_shares(zero_terminal_snr=zero_terminal_snr)
    torch.testing.assert_close(kept_T, expected_T, rtol=2e-4, atol=1e-7)


def test_kept_shares_with_zero_terminal_snr_leave_nothing_at_the_end_and_the_first_as_it_was() -> (
    None
):
    plain_T, rescaled_T = kept_shares(), kept_shares(zero_terminal_snr=True)
    assert rescaled_T[-1] == 0
    assert rescaled_T[0] == pytest.approx(float(plain_T[0]), rel=1e-7)
    assert (rescaled_T.diff() < 0).all()
    # Algorithm 1 keeps the shape of the square roots: an affine map of the old ones.
    slopes_T = rescaled_T.double().sqrt().diff() / plain_T.double().sqrt().diff()
    torch.testing.assert_close(slopes_T, slopes_T.mean().expand(999), rtol=1e-3, atol=0)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_agree_with_those_of_the_diffusers_training_script(
    prediction_type: PredictionType, gamma: float
) -> None:
    snr_T = compute_snr(_scheduler(), torch.arange(1000))
    divisor_T = snr_T + 1 if prediction_type == "v_prediction" else snr_T
    weight_T = min_snr_weights(kept_shares(), prediction_type=prediction_type, gamma=gamma)
    torch.testing.assert_close(weight_T, snr_T.clamp(max=gamma) / divisor_T, rtol=1e-4, atol=0)


def test_min_snr_weights_count_the_same_picture_error_whatever_is_predicted() -> None:
    kept_T = kept_shares()
    snr_T = kept_T / (1 - kept_T)
    # An error e of the picture is an error e * sqrt(snr) of the noise, e * sqrt(snr + 1) of the
    # velocity.
    by_noise_T = min_snr_weights(kept_T, prediction_type="epsilon") * snr_T
    by_velocity_T = min_snr_weights(kept_T, prediction_type="v_prediction") * (snr_T + 1)
    torch.testing.assert_close(by_noise_T, by_velocity_T, rtol=1e-4, atol=0)
    assert by_noise_T.max() == pytest.approx(5.0, rel=1e-4)


def test_min_snr_weights_of_the_velocity_are_finite_where_no_data_is_left() -> None:
    weight_T = min_snr_weights(kept_shares(zero_terminal_snr=True), prediction_type="v_prediction")
    assert weight_T.isfinite().all()
    assert weight_T[-1] == 0


def test_min_snr_weights_refuse_what_cannot_be_weighted() -> None:
    with pytest.raises(ConfigError, match="expected v_prediction"):
        min_snr_weights(kept_shares(zero_terminal_snr=True), prediction_type="epsilon")
    with pytest.raises(ConfigError, match="found 0"):
        min_snr_weights(kept_shares(), prediction_type="epsilon", gamma=0)
