import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.contract.samples import Rejection, Sample
from sdxl_core.data.filters import SampleFilters
from sdxl_core.data.sample_maker import PictureOptions, make_samples
from sdxl_core.data.scorers import load_scorer
from tests.sdxl_core.data.pictures import file_of, photo, raw_sample

SCORERS = """
import numpy as np

def brightness(rgb_HWC):
    assert rgb_HWC.dtype == np.uint8 and rgb_HWC.ndim == 3
    return rgb_HWC.mean() / 25.5

def confused(rgb_HWC):
    return "nice"

TEN = 10
"""


@pytest.fixture
def scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a module of scorers that can be imported for the length of a test."""
    name = f"scorers_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SCORERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def made(scorer: str, metadata: dict[str, object], **filters: object) -> Sample | Rejection:
    options = PictureOptions(
        stages=(((64, 64),),),
        scorer=scorer,
        filters=SampleFilters(**filters),  # type: ignore[arg-type]
    )
    result = make_samples(
        raw_sample(file_of(Image.fromarray(photo(80, 100)), "PNG"), metadata=metadata), options
    )
    return result if isinstance(result, Rejection) else result[0]


def test_picture_without_a_score_gets_that_of_the_scorer(scorers: str) -> None:
    sample = made(f"{scorers}:brightness", {})
    assert isinstance(sample, Sample)
    expected = photo(80, 100).mean() / 25.5
    assert sample.aesthetic == pytest.approx(expected, rel=0.05)


def test_score_of_the_source_goes_before_that_of_the_scorer(scorers: str) -> None:
    sample = made(f"{scorers}:brightness", {"aesthetic": 7.5})
    assert isinstance(sample, Sample)
    assert sample.aesthetic == 7.5


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"minima": {"aesthetic": 9.9}}, RejectReason.BELOW_MIN),
        ({"maxima": {"aesthetic": 0.1}}, RejectReason.ABOVE_MAX),
    ],
)
def test_limits_on_the_score_hold_for_what_the_scorer_says(
    scorers: str, limits: dict[str, dict[str, float]], reason: RejectReason
) -> None:
    rejection = made(f"{scorers}:brightness", {}, **limits)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == reason
    assert "aesthetic is" in rejection.detail


def test_limits_hold_for_a_score_that_the_source_has_under_another_name(scorers: str) -> None:
    name, limits = f"{scorers}:brightness", {"minima": {"aesthetic": 5.0}}
    rejection = made(name, {"aesthetic_score": 3.0}, **limits)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == RejectReason.BELOW_MIN
    sample = made(name, {"aesthetic_score": 6.0}, **limits)
    assert isinstance(sample, Sample)
    assert sample.aesthetic == 6.0


def test_scorer_that_says_no_number_costs_the_row_and_is_quoted(scorers: str) -> None:
    rejection = made(f"{scorers}:confused", {})
    assert isinstance(rejection, Rejection)
    assert rejection.reason == RejectReason.METADATA_INVALID
    assert "'nice'" in rejection.detail


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brightness", "expected PACKAGE.MODULE:FUNCTION"),
        ("no_such_module_anywhere:score", "PYTHONPATH"),
        ("{}:darkness", "no function 'darkness'; it has"),
        ("{}:TEN", "no function 'TEN'"),
    ],
)
def test_scorer_that_cannot_be_had_is_refused_by_name(
    scorers: str, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_scorer(name.format(scorers))
