"""The canonical status codes that REST and gRPC answers share."""

from __future__ import annotations

from grpc import StatusCode

HTTP_CODES = {
    StatusCode.OK: 200,
    StatusCode.CANCELLED: 499,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.DEADLINE_EXCEEDED: 504,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.ABORTED: 409,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.UNAUTHENTICATED: 401,
}
"""HTTP status of a canonical code; every other code is 500."""

BY_NUMBER: dict[int, StatusCode] = {code.value[0]: code for code in StatusCode}
"""TensorFlow numbers its error codes as gRPC does."""


class StatusError(Exception):
    """A failure with a canonical code, as both interfaces report it."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def http_code(self) -> int:
        return HTTP_CODES.get(self.code, 500)


def status_of(error: Exception) -> StatusError:
    """A failure as a status: one of TensorFlow's has its own code, any other that is none is UNKNOWN."""
    if isinstance(error, StatusError):
        return error
    code = BY_NUMBER.get(getattr(error, "error_code", None), StatusCode.UNKNOWN)  # type: ignore[arg-type]
    return StatusError(code, getattr(error, "message", "") or f"{type(error).__name__}: {error}")


def invalid(message: str) -> StatusError:
    return StatusError(StatusCode.INVALID_ARGUMENT, message)
