"""Scores of pictures from a function of the user's, for sources that bring none.

The function is named ``package.module:function``. It is called once for each picture with its
pixels, uint8 of shape (height, width, 3), resized to cover the bucket and not yet cut, and returns
a number; training of a refiner takes it as the aesthetic score, on LAION's scale of about 1 to 10.
A function that needs a network loads it on its first call and keeps it: each worker process imports
the module once.
"""

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.data.filters import AESTHETIC_KEY, SampleFilters, finite_number, judge_score
from sdxl_core.data.picture_files import PictureError

Scorer = Callable[[npt.NDArray[np.uint8]], Any]


@functools.cache
def load_scorer(name: str) -> Scorer:
    """The function called ``name``.

    Raises:
        ConfigError: if there is no such module or function.
    """
    module_name, separator, function_name = name.partition(":")
    if not separator or not module_name or not function_name:
        raise ConfigError(f"scorer: found {name!r}, expected PACKAGE.MODULE:FUNCTION")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"scorer: {module_name} cannot be imported ({error}); install it, or put its folder on "
            "PYTHONPATH, here and on the cluster's machines"
        ) from error
    scorer = getattr(module, function_name, None)
    if not callable(scorer):
        offered = sorted(key for key, value in vars(module).items() if callable(value))
        raise ConfigError(
            f"scorer: {module_name} has no function {function_name!r}; it has {offered[:20]}"
        )
    return scorer  # type: ignore[no-any-return]


def picture_score(
    metadata: Mapping[str, Any],
    rgb_HWC: npt.NDArray[np.uint8],
    *,
    keys: Sequence[str],
    scorer: str | None,
    filters: SampleFilters,
) -> float | None:
    """The source's score of a picture, else what ``scorer`` says; None without either.

    Args:
        metadata: the source's numbers; its ``aesthetic``, if it has one, has been judged already.
        rgb_HWC: pixels for the scorer.
        keys: of the metadata, see ``aesthetic_score``.
        scorer: name of the function, or None.
        filters: limits on ``aesthetic`` hold for what the scorer says, and for a score of the
            source that has another name.

    Raises:
        PictureError: if the scorer says no finite number, or the score is outside of the limits.
    """
    score = aesthetic_score(metadata, keys)
    was_judged = score is not None and metadata.get(AESTHETIC_KEY) is not None
    if scorer is None or was_judged:
        return score
    if score is None:
        said = load_scorer(scorer)(rgb_HWC)
        try:
            score = float(said)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise PictureError(
                RejectReason.METADATA_INVALID, f"{scorer} said {said!r}, expected a finite number"
            )
    refusal = judge_score(score, filters)
    if refusal is not None:
        raise PictureError(*refusal)
    return score


def aesthetic_score(metadata: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    """The finite number of the first of ``keys`` that has one; None if none has."""
    found = (finite_number(metadata.get(key)) for key in keys)
    return next((number for number in found if number is not None), None)
