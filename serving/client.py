"""A typed client of the gateway: the endpoint that recommends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import stamina

from contracts.pseudonyms import pseudonym
from contracts.settings import settings


class ServingError(Exception):
    """The endpoint answered with an error: its HTTP status and its message."""

    def __init__(self, status_code: int, message: str) -> None:
        super().__init__(f"{status_code}: {message}")
        self.status_code, self.message = status_code, message


@dataclass(frozen=True)
class Recommendation:
    """One user's list: `items` [K] with `scores` [K], best first.

    Attributes:
        model_version: which version answered; None for a fallback.
        latency_ms: of the request, which all its users share.
        request_id: by which the exposure log knows the request; empty where there is no gateway.
        fallback: no model answered, and this is what is popular.
    """

    items: tuple[str, ...]
    scores: tuple[float, ...]
    model_version: int | None
    latency_ms: float
    request_id: str = ""
    fallback: bool = False


class RestClient:
    """Speaks REST. Only 429, 503 and failed connections are tried again, until the deadline.

    Every method raises `ServingError` for an error answer and `httpx.TransportError` when none came in time.
    """

    def __init__(self, url: str, *, deadline_s: float, verify: bool | str, headers: dict[str, str]) -> None:
        # Proxies of the environment are none of the endpoint's business.
        self._http = httpx.Client(base_url=url, trust_env=False, verify=verify, headers=headers)
        self._deadline_s = deadline_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def _ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> httpx.Response:
        end_s = time.monotonic() + self._deadline_s
        for attempt in stamina.retry_context(
            on=_is_transient, attempts=None, timeout=self._deadline_s, wait_initial=0.05, wait_max=1.0
        ):
            with attempt, _as_serving_error():
                remaining_s = max(end_s - time.monotonic(), 0.001)
                return self._http.request(
                    method, path, json=body, headers=headers, timeout=remaining_s
                ).raise_for_status()
        raise AssertionError("unreachable: the last attempt raises")

    def _predict(self, path: str, instances: list[Any], headers: dict[str, str]) -> list[Recommendation]:
        start_s = time.perf_counter()
        answer = self._ask("POST", path, {"instances": instances}, headers)
        latency_ms = (time.perf_counter() - start_s) * 1e3
        version = answer.headers.get("x-cartwheel-model-version")
        return [
            Recommendation(
                tuple(row["items"]),
                tuple(row["scores"]),
                int(version) if version else None,
                latency_ms,
                answer.headers.get("x-request-id", ""),
                "x-cartwheel-fallback" in answer.headers,
            )
            for row in answer.json()["predictions"]
        ]


class Client(RestClient):
    """Asks the gateway.

    Args:
        token: what `python -m serving token issue` printed.
        url: address of the gateway; `settings().gateway_url` by default.
        deadline_s: longest time of one call, all its tries together.
        verify: a file of certificates to trust instead of the system's; False trusts any.
        pseudonym_key: the secret `pseudonym_key`, for a shop whose user ids are personal: only their pseudonyms leave
            this process then. None: ids are sent as they are.
    """

    def __init__(
        self,
        token: str,
        url: str | None = None,
        *,
        deadline_s: float = 5.0,
        verify: bool | str = True,
        pseudonym_key: str | None = None,
    ) -> None:
        super().__init__(
            url or settings().gateway_url,
            deadline_s=deadline_s,
            verify=verify,
            headers={"authorization": f"Bearer {token}"},
        )
        self._pseudonym_key = pseudonym_key

    def recommend(
        self, user_ids: Sequence[str], *, arm: str | None = None, served_at: str | None = None
    ) -> list[Recommendation]:
        """One recommendation for each user, in their order.

        Users of one request are all answered by the stable version; to be part of a canary, ask for each alone.

        Args:
            arm: `stable` or `canary` instead of what the gateway chooses; needs a token with the scope admin.
            served_at: ISO 8601, UTC: when a replayed request was made; needs a token with the scope admin.
        """
        if not user_ids:
            return []
        key = self._pseudonym_key
        ids = user_ids if key is None else [pseudonym(user_id, key) for user_id in user_ids]
        optional = {"x-cartwheel-arm": arm, "x-cartwheel-served-at": served_at}
        headers = {name: value for name, value in optional.items() if value is not None}
        return self._predict(
            f"/v1/models/{settings().model}:predict", [{"user_id": user_id} for user_id in ids], headers
        )


@contextmanager
def _as_serving_error() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        response = error.response
        try:
            message = str(response.json()["error"])
        except (ValueError, KeyError, TypeError):
            message = response.text[:200]
        raise ServingError(response.status_code, message) from None


def _is_transient(error: Exception) -> bool:
    return isinstance(error, httpx.ConnectError | httpx.RemoteProtocolError | httpx.ReadError) or (
        isinstance(error, ServingError)
        and error.status_code in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS)
    )
