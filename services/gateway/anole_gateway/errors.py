"""Every answer that is not a success: one class each, with OpenAI's type and code."""

import math
from typing import ClassVar

from anole_shared.errors import AnoleError


class ApiError(AnoleError):
    """An error as the client sees it."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "server_error"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, object]:
        """OpenAI's error envelope."""
        inside = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": inside}

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After, in whole seconds, where there is one."""
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


class InvalidRequest(ApiError):
    """The body is wrong; param names the field."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class UnsupportedParameter(InvalidRequest):
    """A known parameter with a value that Anole cannot honour."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit the model's context."""

    code = "context_length_exceeded"


class PathNotFound(ApiError):
    """No such route."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(PathNotFound):
    """No such model or adapter, or one that cannot be served."""

    code = "model_not_found"


class MethodNotAllowed(ApiError):
    """The route knows other methods."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self._allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        """Allow, as HTTP demands of a 405."""
        return {"Allow": self._allowed}


class BodyTooLarge(ApiError):
    """The body is over max_body_bytes."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class TooManyRequests(ApiError):
    """A limit is reached, here or behind."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True


class InternalFailure(ApiError):
    """Our fault; the log knows more."""

    code = "internal_error"


class AdapterFailed(InternalFailure):
    """The adapter's weights could not be loaded."""

    code = "adapter_failed"


class Unavailable(ApiError):
    """Something that is needed is away for now."""

    status = 503
    type = "service_unavailable_error"
    code = "service_unavailable"
    retryable = True


class WorkerLost(Unavailable):
    """Workers were lost under the request, again and again."""

    code = "worker_lost"


class RequestTimedOut(ApiError):
    """The completion took longer than request_timeout_s."""

    status = 504
    type = "timeout_error"
    code = "timeout"
    retryable = True
