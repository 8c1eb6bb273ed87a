"""Errors keep what they carry on their way between processes."""

import pickle

from sdxl_core.contract.errors import RowError, SdxlError, StoreError


def test_row_error_travels_with_its_reason_and_detail() -> None:
    sent = RowError("invalid_size", "width 1023 is not a multiple of 8")
    error = pickle.loads(pickle.dumps(sent))
    assert (error.reason, error.detail) == ("invalid_size", "width 1023 is not a multiple of 8")
    assert str(error) == "invalid_size: width 1023 is not a multiple of 8"


def test_store_error_travels_with_its_message_and_retryable_flag() -> None:
    error = pickle.loads(pickle.dumps(StoreError("s3://b/k: throttled", retryable=True)))
    assert (str(error), error.retryable) == ("s3://b/k: throttled", True)
    assert isinstance(error, SdxlError)
