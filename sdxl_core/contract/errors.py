"""The errors that a user can meet.

Every message says where, what was found, what was expected and what to do.
"""

from typing import Any


class SdxlError(Exception):
    """Base of all errors that this project raises on purpose."""


class ConfigError(SdxlError):
    """A recipe, a flag or an argument asks for what cannot be. Nothing has been done yet."""


class SchemaError(SdxlError):
    """A table or a dataset does not have the columns or the types that it must have."""


class RowError(SdxlError):
    """One row cannot be used; the job goes on.

    ``reason`` is a word of ``sdxl_core.contract.reasons``, ``detail`` is for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.detail)


class StoreError(SdxlError):
    """Bytes could not be read or written.

    ``retryable`` tells a passing failure from a lasting one.
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable

    def __reduce__(self) -> tuple[Any, ...]:
        return _store_error, (str(self), self.retryable)


class WeightsError(SdxlError):
    """A weights file is missing, unreadable, or does not fit the networks.

    The message lists the keys.
    """


class ResourceError(SdxlError):
    """The cluster or the device cannot hold what was asked; the message shows the arithmetic."""


class JobError(SdxlError):
    """The job itself failed: too many failed rows, or a failure that is not one row's."""


def _store_error(message: str, retryable: bool) -> StoreError:
    """Rebuilds a pickled StoreError, whose ``retryable`` is keyword-only."""
    return StoreError(message, retryable=retryable)
