"""Why a row of an image-text source gave no sample: a closed list.

The word is what the column ``reason`` of the rejected rows holds and what counts are grouped by;
the sentence is for people.
"""

from enum import StrEnum
from typing import Final


class RejectReason(StrEnum):
    """Why a source row gave no sample: one word of the column ``reason``. A closed list."""

    MISSING_IMAGE = "missing_image"
    MISSING_CAPTION = "missing_caption"
    EMPTY_IMAGE = "empty_image"
    NOT_AN_IMAGE = "not_an_image"
    CORRUPT_IMAGE = "corrupt_image"
    TRUNCATED_IMAGE = "truncated_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    ASPECT_OUT_OF_RANGE = "aspect_out_of_range"
    UPSCALE_TOO_LARGE = "upscale_too_large"
    CAPTION_TOO_SHORT = "caption_too_short"
    CAPTION_TOO_LONG = "caption_too_long"
    BELOW_MIN = "below_min"
    ABOVE_MAX = "above_max"
    METADATA_MISSING = "metadata_missing"
    METADATA_INVALID = "metadata_invalid"
    DUPLICATE_KEY = "duplicate_key"
    DUPLICATE_EXACT = "duplicate_exact"
    DUPLICATE_NEAR = "duplicate_near"
    UNSAFE_MEMBER = "unsafe_member"
    UNKNOWN_MEMBER = "unknown_member"
    TRUNCATED_ARCHIVE = "truncated_archive"
    UNREADABLE_ROW = "unreadable_row"
    FILE_MISSING = "file_missing"
    NON_FINITE_LATENTS = "non_finite_latents"
    UNKNOWN_BUCKET = "unknown_bucket"
    OUT_OF_MEMORY = "out_of_memory"
    INTERNAL_ERROR = "internal_error"

    @property
    def explanation(self) -> str:
        """One line for the person who looks at the rejected rows."""
        return _EXPLANATIONS[self]

    @property
    def is_filter(self) -> bool:
        """Was the row left out as the settings ask, rather than for something wrong with it."""
        return self in _FILTERS


_EXPLANATIONS: Final = {
    RejectReason.MISSING_IMAGE: "the row has no image",
    RejectReason.MISSING_CAPTION: "the row has no caption",
    RejectReason.EMPTY_IMAGE: "the image has no bytes",
    RejectReason.NOT_AN_IMAGE: "the bytes are no image file, whatever their name says",
    RejectReason.CORRUPT_IMAGE: "the image file is damaged",
    RejectReason.TRUNCATED_IMAGE: "the image file ends too early",
    RejectReason.UNSUPPORTED_FORMAT: "an image format that is not read, such as SVG",
    RejectReason.TOO_MANY_PIXELS: "more pixels than the limit; it was not decoded",
    RejectReason.TOO_SMALL: "the shorter side is below the smallest allowed",
    RejectReason.ASPECT_OUT_OF_RANGE: "too long or too tall a shape",
    RejectReason.UPSCALE_TOO_LARGE: "to fill its bucket the image would be enlarged too much",
    RejectReason.CAPTION_TOO_SHORT: "no caption is long enough",
    RejectReason.CAPTION_TOO_LONG: "no caption is short enough",
    RejectReason.BELOW_MIN: "a value of the source is below the smallest allowed",
    RejectReason.ABOVE_MAX: "a value of the source is above the largest allowed",
    RejectReason.METADATA_MISSING: "the source has no value that a filter asks for",
    RejectReason.METADATA_INVALID: "a value that a filter asks for is not a finite number",
    RejectReason.DUPLICATE_KEY: "an earlier member of the source has the same key and suffix",
    RejectReason.DUPLICATE_EXACT: "another row has exactly the same image file",
    RejectReason.DUPLICATE_NEAR: "another row has an image that looks almost the same",
    RejectReason.UNSAFE_MEMBER: "an archive member that is no plain file inside of the archive",
    RejectReason.UNKNOWN_MEMBER: "an archive member that belongs to no image or caption",
    RejectReason.TRUNCATED_ARCHIVE: "the archive ends or breaks here; what follows is not readable",
    RejectReason.UNREADABLE_ROW: "the row of the source table could not be read",
    RejectReason.FILE_MISSING: "the file was there when the run was planned and is gone",
    RejectReason.NON_FINITE_LATENTS: "the autoencoder gave NaN or infinity",
    RejectReason.UNKNOWN_BUCKET: "the sample's size is none of the buckets of this run",
    RejectReason.OUT_OF_MEMORY: "there was not enough memory for this row alone",
    RejectReason.INTERNAL_ERROR: "an unexpected error; the detail names it",
}

_FILTERS: Final = frozenset(
    {
        RejectReason.TOO_MANY_PIXELS,
        RejectReason.TOO_SMALL,
        RejectReason.ASPECT_OUT_OF_RANGE,
        RejectReason.UPSCALE_TOO_LARGE,
        RejectReason.CAPTION_TOO_SHORT,
        RejectReason.CAPTION_TOO_LONG,
        RejectReason.BELOW_MIN,
        RejectReason.ABOVE_MAX,
        RejectReason.METADATA_MISSING,
        RejectReason.DUPLICATE_EXACT,
        RejectReason.DUPLICATE_NEAR,
    }
)
