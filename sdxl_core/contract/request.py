"""``Request``: one image to make, fully described. ``PromptDefaults``: what rows fall back to."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from sdxl_core.contract.cells import SAMPLERS
from sdxl_core.contract.config import config
from sdxl_core.contract.errors import ConfigError, RowError
from sdxl_core.contract.prompt_fields import (
    PROMPT_COLUMNS,
    PROMPT_FIELDS,
    ColumnError,
    PromptField,
    read_value,
    refusal,
)
from sdxl_core.contract.reasons import Reason

# Stands where ``Request.__post_init__`` puts the image's own size: readers see plain integers.
_FROM_SIZE: Final[Any] = None

# Stands for the model's own size while defaults are checked.
_ANY_SIZE_PX = 1024

NEGATIVE_SIZES = (
    "negative_original_height",
    "negative_original_width",
    "negative_target_height",
    "negative_target_width",
)
NEGATIVE_CROPS = ("negative_crop_top", "negative_crop_left")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image to make. Every value is checked and resolved.

    Sizes and crops are pixels. The ``original``, ``crop`` and ``target`` values are SDXL's
    micro-conditioning; they do not change the size of the image. The ``negative_`` ones are those
    of the unconditional branch: all None (the same as the positive ones) or all set.

    Raises:
        RowError: a value has the wrong type or is out of range; the detail names the column.
    """

    prompt: str
    id: str = "0"
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    seed: int = 0
    height: int = 1024
    width: int = 1024
    steps: int = 30
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    sampler: str = "euler"
    refiner: bool = False
    handoff: float = 0.8
    strength: float | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    original_height: int = _FROM_SIZE
    original_width: int = _FROM_SIZE
    crop_top: int = 0
    crop_left: int = 0
    target_height: int = _FROM_SIZE
    target_width: int = _FROM_SIZE
    negative_original_height: int | None = None
    negative_original_width: int | None = None
    negative_crop_top: int | None = None
    negative_crop_left: int | None = None
    negative_target_height: int | None = None
    negative_target_width: int | None = None

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in PROMPT_COLUMNS}
        for field in PROMPT_FIELDS:
            values[field.name] = _check_value(field, values[field.name])
        _fill_micro_conditioning(values)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def guided(self) -> bool:
        """Whether the unconditional branch runs too: above 1, as in diffusers."""
        return self.guidance_scale > 1.0


@config
class PromptDefaults:
    """What a row gets in a column that the table lacks, or that is null in the row.

    A height and width of None are the model's own; ``for_model`` puts them in.

    Raises:
        ConfigError: a default is out of range.
    """

    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    height: int | None = None
    width: int | None = None
    steps: int = 30
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    sampler: str = "euler"
    refiner: bool = False
    handoff: float = 0.8
    strength: float | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    original_height: int | None = None
    original_width: int | None = None
    crop_top: int = 0
    crop_left: int = 0
    target_height: int | None = None
    target_width: int | None = None
    negative_original_height: int | None = None
    negative_original_width: int | None = None
    negative_crop_top: int | None = None
    negative_crop_left: int | None = None
    negative_target_height: int | None = None
    negative_target_width: int | None = None

    def __post_init__(self) -> None:
        values = asdict(self)
        for side in ("height", "width"):
            values[side] = default_of(self, side)
        try:
            Request(prompt="", **values)
        except RowError as error:
            raise ConfigError(f"a default for the rows cannot be used: {error.detail}") from error

    def for_model(self, native_size_px: int) -> "PromptDefaults":
        """The defaults with a size: sides that are None become ``native_size_px``."""
        return replace(
            self,
            height=native_size_px if self.height is None else self.height,
            width=native_size_px if self.width is None else self.width,
        )


def default_of(defaults: PromptDefaults, name: str) -> Any:
    """The default of one column; for a size that was left to the model, any size that is valid.

    Jobs put the model's own size in before they resolve rows (``PromptDefaults.for_model``).
    """
    value = getattr(defaults, name, None)
    return _ANY_SIZE_PX if value is None and name in ("height", "width") else value


def _check_value(field: PromptField, value: Any) -> Any:
    if value is None and field.nullable:
        return None
    # Text for a number, or DiffusionDB's sampler names, belong in tables; in a program or a recipe
    # they are mistakes.
    is_text_for_number = isinstance(value, str) and field.kind not in ("id", "text", "sampler")
    is_foreign_sampler = field.kind == "sampler" and value not in SAMPLERS
    if value is None or is_text_for_number or is_foreign_sampler:
        raise refusal(field, value)
    return read_value(field, value)


def _fill_micro_conditioning(values: dict[str, Any]) -> None:
    """Resolve sizes and crops in place; half a size is refused."""
    for kind in ("original", "target"):
        height, width = f"{kind}_height", f"{kind}_width"
        if (values[height] is None) != (values[width] is None):
            missing = height if values[height] is None else width
            raise ColumnError(
                Reason.INVALID_SIZE, missing, "nothing", "a value beside its other half"
            )
        if values[height] is None:
            values[height], values[width] = values["height"], values["width"]
    for crop in ("crop_top", "crop_left"):
        values[crop] = values[crop] or 0
    missing_sizes = [name for name in NEGATIVE_SIZES if values[name] is None]
    if not missing_sizes:
        for crop in NEGATIVE_CROPS:
            values[crop] = values[crop] or 0
    elif len(missing_sizes) < len(NEGATIVE_SIZES) or any(
        values[crop] is not None for crop in NEGATIVE_CROPS
    ):
        expected = "all of the negative original and target sizes, or none of the negative ones"
        raise ColumnError(Reason.INVALID_SIZE, missing_sizes[0], "nothing", expected)
