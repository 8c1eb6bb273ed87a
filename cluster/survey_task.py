"""The task that checks some rows of the table, alone in a module of its own.

Ray's workers import the module that a task is defined in. This one needs no torch, so a survey
begins as soon as its workers are there.
"""

from sdxl_core.contract.request import PromptDefaults
from sdxl_core.contract.survey import PartSurvey, survey_part
from sdxl_core.storage.tables import PartPlan, read_part


def survey_one(
    coarse: PartPlan,
    index: int,
    defaults: PromptDefaults,
    run_seed: int,
    has_refiner: bool,
) -> PartSurvey:
    """Checks the rows of one part.

    Args:
        coarse: The table, cut into parts for the survey.
        index: Which of them.
        defaults: What rows fall back to.
        run_seed: Seeds rows that bring none.
        has_refiner: Whether the run has a refiner.

    Raises:
        StoreError: if the part cannot be read.
    """
    place = coarse.part(index)
    return survey_part(
        read_part(place),
        first_row=place.global_first_row,
        defaults=defaults,
        run_seed=run_seed,
        part=index,
        file=place.url,
        first_row_in_file=place.first_row,
        has_refiner=has_refiner,
    )
