"""Settings of prepare that cannot be are refused before any work."""

from typing import Any

import pytest

from jobs import prepare_config
from jobs.prepare_config import PrepareConfig
from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage import staging_layout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_bytes": 2 << 30}, "group_bytes: found 2147483648, expected at most 1610612736"),
        ({"group_bytes": 0}, "group_bytes: found 0, expected 1 or more"),
        ({"near_duplicates": 9}, "near_duplicates: found 9, expected 0 to 8"),
        ({"near_duplicates": 0, "keep_exact_duplicates": True}, "equal files look alike as well"),
        ({"min": ("aesthetic=nan",)}, "min: found 'aesthetic=nan', expected KEY=NUMBER"),
        ({"max": ("inf",)}, "max: found 'inf', expected KEY=NUMBER"),
        ({"max_upscale": float("nan")}, "max_upscale: found nan, expected more than 0"),
        ({"multi_scale": ("256x256", "512x512")}, "expected falling areas"),
        ({"text": True}, "give --latents as well"),
        ({"latents": True}, "give the model whose autoencoder encodes"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrepareConfig(source="in", out="out", **settings)


def test_largest_group_is_the_one_that_can_be_laid_out() -> None:
    assert prepare_config.MAX_GROUP_BYTES == staging_layout.MAX_GROUP_BYTES
    PrepareConfig(source="in", out="out", group_bytes=staging_layout.MAX_GROUP_BYTES)


def test_limits_may_have_an_equals_sign_in_their_key() -> None:
    config = PrepareConfig(source="in", out="out", min=("a=b=5",), near_duplicates=8)
    assert config.min == ("a=b=5",)
