"""Around every route: request ids, errors in OpenAI's shape, counting."""

import logging
import secrets

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from anole_gateway.errors import (
    ApiError,
    InternalFailure,
    InvalidRequest,
    MethodNotAllowed,
    PathNotFound,
)
from anole_gateway.metrics import Metrics

log = logging.getLogger(__name__)

MODEL = web.RequestKey("model", str)
"""The model's name, once it is known to exist: the metrics' label."""
REQUEST_ID = web.RequestKey("request_id", str)
"""The client's x-request-id, or one of ours."""
STATUS = web.RequestKey("status", int)
"""What became of an answer that had begun as a success."""

_MAX_REQUEST_ID_CHARS = 128
CLIENT_GONE = 499
"""nginx's status for a client that did not wait."""


def json_response(
    body: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """A JSON answer."""
    return web.Response(
        body=orjson.dumps(body), status=status, headers=headers, content_type="application/json"
    )


def error_of(http_request: web.Request, fault: Exception) -> ApiError:
    """What the client is told of a fault; one that nobody foresaw is logged, not told."""
    match fault:
        case ApiError():
            return fault
        case web.HTTPNotFound():
            return PathNotFound(
                f"there is no {http_request.path!r}; the API is /v1/chat/completions, "
                "/v1/completions and /v1/models"
            )
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(fault.allowed_methods))
            return MethodNotAllowed(
                f"{http_request.path} takes {allowed}, not {fault.method}", allowed=allowed
            )
        case web.HTTPException() if fault.status < web.HTTPInternalServerError.status_code:
            return InvalidRequest(fault.text or fault.reason)
    log.error("request %s failed", http_request[REQUEST_ID], exc_info=fault)
    return InternalFailure(
        f"the gateway failed; its log says more under request id {http_request[REQUEST_ID]}"
    )


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give every request an id: the client's own, if it is fit to be repeated."""
    given = request.headers.get("x-request-id", "")
    is_sane = 0 < len(given) <= _MAX_REQUEST_ID_CHARS and given.isascii() and given.isprintable()
    request[REQUEST_ID] = given if is_sane else secrets.token_hex(12)
    return await handler(request)


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Put the request's id on its answer (a signal: streams send their head early)."""
    response.headers["x-request-id"] = request[REQUEST_ID]


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever was raised into an answer."""
    try:
        return await handler(request)
    except Exception as fault:  # noqa: BLE001  (error_of logs what it does not know)
        error = error_of(request, fault)
        return json_response(error.body, status=error.status, headers=error.headers)


def counting(metrics: Metrics) -> Middleware:
    """Count every answer by route, model and status."""

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        status = CLIENT_GONE
        try:
            response = await handler(request)
            status = request.get(STATUS, response.status)
        finally:
            resource = request.match_info.route.resource
            route = resource.canonical if resource is not None else "unmatched"
            metrics.requests.labels(route, request.get(MODEL, ""), str(status)).inc()
        return response

    return count
