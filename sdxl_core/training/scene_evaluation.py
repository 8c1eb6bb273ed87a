"""How often a text-to-image model does what a scene's caption says, on captions that were never
trained on."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from sdxl_core.data.scene_captions import (
    Description,
    Kind,
    describe,
    is_held_out,
    random_description,
)
from sdxl_core.data.scene_checker import SceneVerdict, check_scene
from sdxl_core.data.scenes import RgbImage

EVALUATION_SEED = 7
EVALUATION_COUNTS: dict[Kind, int] = {"one": 200, "relation": 200, "count": 100}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneScore:
    """Results of one kind of prompt.

    ``num_wrong`` counts the pictures by attribute that did not fit; one picture can miss several.
    """

    num_pictures: int
    num_right: int
    num_wrong: dict[str, int]

    @property
    def accuracy(self) -> float:
        """Share of pictures that are fully right, 0 to 1."""
        return self.num_right / self.num_pictures


def held_out_descriptions(
    counts: dict[Kind, int] | None = None, *, seed: int = EVALUATION_SEED
) -> list[Description]:
    """Draws different held-out descriptions, the same for the same seed, kind after kind."""
    rng = np.random.default_rng(seed)
    chosen: list[Description] = []
    for kind, wanted in (counts or EVALUATION_COUNTS).items():
        seen: set[str] = set()
        while len(seen) < wanted:
            description = random_description(rng, kind=kind)
            text = describe(description)
            if is_held_out(text) and text not in seen:
                seen.add(text)
                chosen.append(description)
    return chosen


def judge(
    descriptions: Sequence[Description], pictures: Sequence[RgbImage]
) -> tuple[dict[Kind, SceneScore], list[SceneVerdict]]:
    """Checks every picture by its description.

    Returns:
        The score of each kind that occurs, and the verdicts in order.
    """
    verdicts = [
        check_scene(description, picture)
        for description, picture in zip(descriptions, pictures, strict=True)
    ]
    scores: dict[Kind, SceneScore] = {}
    for kind in dict.fromkeys(description.kind for description in descriptions):
        of_kind = [
            verdict
            for description, verdict in zip(descriptions, verdicts, strict=True)
            if description.kind == kind
        ]
        wrong = collections.Counter(fault for verdict in of_kind for fault in verdict.wrong)
        scores[kind] = SceneScore(
            num_pictures=len(of_kind),
            num_right=sum(verdict.right for verdict in of_kind),
            num_wrong=dict(sorted(wrong.items())),
        )
    return scores, verdicts
