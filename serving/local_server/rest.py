"""The REST interface of TF Serving: Predict, Classify, Regress, model status, metadata, and the Prometheus page."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf import json_format
from grpc import StatusCode

from serving.local_server import HEADER, inference, metrics, tensors
from serving.local_server.messages import metadata_response, status_response
from serving.local_server.status import StatusError, invalid
from serving.local_server.versions import LARGEST_VERSION, Versions

MAX_BODY_BYTES = 32 * 2**20
TOO_LARGE = f"The body is larger than {MAX_BODY_BYTES >> 20} MiB: ask for fewer lists at once"
MAX_WAITING = 256
"""Requests that may wait for a thread."""
_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(_MODEL + r":(?P<verb>predict|classify|regress)")
_GET = re.compile(_MODEL + r"(?P<metadata>/metadata)?")

log = logging.getLogger(__name__)
App = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


def app(versions: Versions, *, metrics_path: str | None, timeout_s: float, threads: int) -> App:
    """The ASGI application.

    Args:
        metrics_path: path of the Prometheus page, None for none.
        timeout_s: a Predict that takes longer is answered 504.
        threads: how many requests run at once.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="predict")
    # A request that timed out keeps its thread until TensorFlow is done with it: it counts until then.
    places = asyncio.Semaphore(threads + MAX_WAITING)

    async def handle(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        method, path = scope["method"], scope["path"]
        if method == "GET" and path == metrics_path:
            return await _send(send, 200, metrics.render().encode(), b"text/plain")
        body = bytearray()
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body") or len(body) > MAX_BODY_BYTES:
                break
        if len(body) > MAX_BODY_BYTES:
            code, content = _failure(invalid(TOO_LARGE))
        elif places.locked():
            code, content = _failure(StatusError(StatusCode.UNAVAILABLE, "Too many requests wait already"))
        else:
            await places.acquire()
            packed = b"gzip" in dict(scope["headers"]).get(b"content-encoding", b"")
            call = asyncio.get_running_loop().run_in_executor(pool, answer, versions, method, path, bytes(body), packed)
            call.add_done_callback(lambda _: places.release())
            try:
                code, content = await asyncio.wait_for(asyncio.shield(call), timeout_s)
            except TimeoutError:
                code, content = _failure(StatusError(StatusCode.DEADLINE_EXCEEDED, "Timed out"))
        await _send(send, code, content, b"application/json")

    return handle


async def _send(send: Callable[[Any], Awaitable[None]], code: int, content: bytes, content_type: bytes) -> None:
    header = (HEADER[0].encode(), HEADER[1].encode())
    length = (b"content-length", str(len(content)).encode())
    headers = [(b"content-type", content_type), length, header]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def answer(versions: Versions, method: str, path: str, body: bytes, packed: bool = False) -> tuple[int, bytes]:
    """HTTP status and JSON body of one request.

    Args:
        packed: the body is packed with gzip.
    """
    start_s = time.perf_counter()
    try:
        if method == "POST" and (match := _POST.fullmatch(path)):
            model, api = match["name"], match["verb"]
            content = _counted_answer(versions, match, _unpacked(body) if packed else body)
        elif method == "GET" and (match := _GET.fullmatch(path)):
            model, api = match["name"], ""
            content = _describe(versions, match)
        else:
            raise invalid(f"Malformed request: {method} {path}")
    except StatusError as error:
        return _failure(error)
    except Exception as error:
        log.exception("%s %s", method, path)
        return _failure(StatusError(StatusCode.INTERNAL, f"{type(error).__name__}: {error}"))
    metrics.observe_latency(model, api, "REST", time.perf_counter() - start_s)
    return 200, content


def _unpacked(body: bytes) -> bytes:
    unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        content = unpack.decompress(body, MAX_BODY_BYTES)
    except zlib.error as error:
        raise invalid(f"The body is not packed with gzip, as Content-Encoding says: {error}") from None
    if unpack.unconsumed_tail:
        raise invalid(TOO_LARGE)
    if not unpack.eof:
        raise invalid("The body, packed with gzip, is cut off")
    return content


def _failure(error: StatusError) -> tuple[int, bytes]:
    return error.http_code, json.dumps({"error": error.message}, ensure_ascii=False).encode(errors="replace")


def _counted_answer(versions: Versions, match: re.Match[str], body: bytes) -> bytes:
    try:
        content = (_predict if match["verb"] == "predict" else _infer)(versions, match, body)
    except StatusError as error:
        metrics.count_request(match["name"], error.code.name)
        raise
    metrics.count_request(match["name"], StatusCode.OK.name)
    return content


def _predict(versions: Versions, match: re.Match[str], body: bytes) -> bytes:
    request, by_row = tensors.parse(body)
    with versions.use(match["name"], _number(match), match["label"]) as (_, model):
        signature = model.signature(request.get("signature_name", ""))
        if by_row:
            inputs = tensors.from_rows(request["instances"], signature.inputs)
        else:
            inputs = tensors.from_columns(request["inputs"], signature.inputs)
        outputs = signature.run(inputs)
    return json.dumps((tensors.to_rows if by_row else tensors.to_columns)(outputs), ensure_ascii=False).encode()


def _infer(versions: Versions, match: re.Match[str], body: bytes) -> bytes:
    signature_name, source = inference.parse(body)
    with versions.use(match["name"], _number(match), match["label"]) as (_, model):
        result = inference.infer(model, inference.METHODS[match["verb"]], signature_name, source)
    return json.dumps(inference.as_json(result), ensure_ascii=False).encode()


def _describe(versions: Versions, match: re.Match[str]) -> bytes:
    name, number = match["name"], _number(match)
    if match["metadata"]:
        response = metadata_response(versions, name, number, match["label"])
    else:
        response = status_response(versions, name, number)  # TF Serving ignores a label here
    content = json_format.MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for packed in content.get("metadata", {}).values():
        packed.pop("@type", None)
    return json.dumps(content, indent=1).encode()


def _number(match: re.Match[str]) -> int | None:
    if match["version"] is None:
        return None
    if int(match["version"]) > LARGEST_VERSION:
        raise invalid(f"Failed to convert version: {match['version']} to numeric.")
    return int(match["version"])
