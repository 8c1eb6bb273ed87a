"""What a failed S3 request means: passing or lasting, and what the person can do."""

import os
from typing import Any

from sdxl_core.contract.errors import StoreError
from sdxl_core.storage.store_errors import local_error, redact

_ACCESS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or the profile) and what they may do"
_CLOCK = "check this machine's clock"
_BUCKET = "check the bucket's name and the endpoint; buckets are not created by jobs"
_LASTING = {
    "AccessDenied": ("access denied", _ACCESS),
    "403": ("access denied", _ACCESS),
    "AllAccessDisabled": ("access denied", _ACCESS),
    "InvalidAccessKeyId": ("the access key is not known there", _ACCESS),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key", _ACCESS),
    "ExpiredToken": ("the session token has expired", _ACCESS),
    "InvalidToken": ("the session token is not valid", _ACCESS),
    "RequestTimeTooSkewed": ("the request's time is too far off", _CLOCK),
    "NoSuchBucket": ("no such bucket", _BUCKET),
    "InvalidBucketName": ("not a bucket name", _BUCKET),
    "PermanentRedirect": (
        "the bucket is in another region",
        "set AWS_DEFAULT_REGION to its region",
    ),
    "301": ("the bucket is in another region", "set AWS_DEFAULT_REGION to its region"),
    "NoSuchKey": ("no such object", "check the URL"),
    "404": ("no such object", "check the URL"),
    "QuotaExceeded": (
        "storage quota used up",
        "free space or choose another place, then run again",
    ),
    "EntityTooLarge": ("the object is too large for the server", "use smaller parts"),
}
_PASSING = {
    "InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "RequestTimeTooSlow",
    "Throttling", "ThrottlingException", "OperationAborted", "RequestLimitExceeded",
    "BandwidthLimitExceeded", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
    "TooManyRequests", "429", "500", "502", "503", "504",
}  # fmt: skip
_NO_CREDENTIALS = (
    "no credentials found",
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, where every worker sees it",
)
_MALFORMED = "check AWS_ENDPOINT_URL and the URL"
_LOST = "check AWS_ENDPOINT_URL, the network and the server, then run the same command again"


def s3_failures() -> tuple[type[Exception], ...]:
    """The exceptions by which s3fs and what is below it report a failed request."""
    import aiohttp
    from botocore import exceptions  # type: ignore[import-untyped]

    return (
        OSError,  # s3fs' translations, sockets, timeouts
        exceptions.BotoCoreError,
        exceptions.ClientError,
        aiohttp.ClientError,
        ValueError,  # botocore on a malformed endpoint
    )


def s3_error(error: Exception, *, action: str, url: str) -> StoreError:
    """The ``StoreError`` for ``error``, with the endpoint named and every credential cut out."""
    if isinstance(error, OSError) and error.filename is not None:  # the local end of a copy
        return local_error(error, action=action, url=str(error.filename))
    found, advice, retryable = _meaning(error)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    where = f"{url} (endpoint {endpoint or 'of AWS'})"
    return StoreError(redact(f"cannot {action} {where}: {found}; {advice}"), retryable=retryable)


def _meaning(error: Exception) -> tuple[str, str, bool]:
    """What was found, what to do, and whether trying again may help."""
    from botocore import exceptions

    code, server_message = _server_answer(error)
    if code in _LASTING:
        return *_LASTING[code], False
    if code is not None:
        found = f"the server answered {code} {server_message}".rstrip()
        if code in _PASSING:
            return found, "the server is busy or failing; try again later", True
        return found, "see what the server says", False
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return *_NO_CREDENTIALS, False
    if isinstance(error, exceptions.ProfileNotFound):
        return str(error), "check AWS_PROFILE", False
    if isinstance(error, ValueError | exceptions.ParamValidationError):
        return str(error), _MALFORMED, False
    return f"{type(error).__name__}: {error}", _LOST, True


def _server_answer(error: BaseException) -> tuple[str | None, str]:
    """Error code and message of the server's answer, looked up through the chain of causes."""
    seen: BaseException | None = error
    while seen is not None:
        response: Any = getattr(seen, "response", None)
        if isinstance(response, dict) and "Error" in response:
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
            return str(response["Error"].get("Code") or status), str(
                response["Error"].get("Message", "")
            )
        seen = seen.__cause__
    return None, ""
