"""A typed client of the endpoint that recommends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import stamina

from contracts.names import MODEL
from contracts.pseudonyms import pseudonym
from contracts.settings import settings


class ServingError(Exception):
    """The endpoint answered with an error: its HTTP status and its message."""

    def __init__(self, status_code: int, message: str) -> None:
        super().__init__(f"{status_code}: {message}")
        self.status_code, self.message = status_code, message


@dataclass(frozen=True)
class Recommendation:
    """One user's list: `items` [K] with `scores` [K], best first, by which version.

    `latency_ms` is that of the request, which all its users share.
    """

    items: tuple[str, ...]
    scores: tuple[float, ...]
    model_version: int
    latency_ms: float


@dataclass(frozen=True)
class VersionState:
    """What the endpoint says of one version: `AVAILABLE`, `LOADING`, ..., and `OK` or the code of its failure."""

    state: str
    error_code: str = "OK"
    message: str = ""

    @property
    def failed(self) -> bool:
        return self.state == "END" and self.error_code != "OK"


class Client:
    """Talks REST to TF Serving. Only 503 and failed connections are tried again, until the deadline.

    Args:
        url: address of the REST API; `settings().rest_url` by default.
        deadline_s: longest time of one call, all its tries together.
        pseudonym_key: the secret `pseudonym_key`, for a shop whose user ids are personal: only their pseudonyms leave
            this process then. None: ids are sent as they are.

    Every method raises `ServingError` for an error answer and `httpx.TransportError` when none came in time.
    """

    def __init__(self, url: str | None = None, *, deadline_s: float = 5.0, pseudonym_key: str | None = None) -> None:
        # Proxies of the environment are none of the endpoint's business.
        self._http = httpx.Client(base_url=url or settings().rest_url, trust_env=False)
        self._deadline_s = deadline_s
        self._pseudonym_key = pseudonym_key

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def recommend(
        self, user_ids: Sequence[str], *, version: int | None = None, label: str = "stable"
    ) -> list[Recommendation]:
        """One recommendation for each user, in their order.

        Args:
            version: the version that shall answer; by default the one the label points at. A request without
                either would go to the highest version loaded, which may be a canary.
        """
        if not user_ids:
            return []
        key = self._pseudonym_key
        told = user_ids if key is None else [pseudonym(user_id, key) for user_id in user_ids]
        body = {"instances": [{"user_id": user_id} for user_id in told]}
        if version is not None:
            return self._predict(version, body)
        # The answer does not say which version gave it, so it is asked for by number. After a rollback that number
        # may be gone, and the label names another.
        number = self.labelled(label)
        while True:
            try:
                return self._predict(number, body)
            except ServingError as error:
                if error.status_code != httpx.codes.NOT_FOUND or (moved := self.labelled(label)) == number:
                    raise
                number = moved

    def _predict(self, version: int, body: Any) -> list[Recommendation]:
        start_s = time.perf_counter()
        rows = self._json("POST", f"/v1/models/{MODEL}/versions/{version}:predict", body)["predictions"]
        latency_ms = (time.perf_counter() - start_s) * 1e3
        return [Recommendation(tuple(row["items"]), tuple(row["scores"]), version, latency_ms) for row in rows]

    def labelled(self, label: str) -> int:
        """The version a label points at."""
        # The status page ignores labels; the metadata page does not.
        metadata = self._json("GET", f"/v1/models/{MODEL}/labels/{label}/metadata")
        return int(metadata["model_spec"]["version"])

    def states(self) -> dict[int, VersionState]:
        """State of every version the endpoint has seen; empty when it knows no model yet."""
        try:
            entries = self._json("GET", f"/v1/models/{MODEL}")["model_version_status"]
        except ServingError as error:
            if error.status_code == httpx.codes.NOT_FOUND:
                return {}
            raise
        return {
            int(entry["version"]): VersionState(
                entry["state"], entry["status"]["error_code"], entry["status"]["error_message"]
            )
            for entry in entries
        }

    def available_versions(self) -> list[int]:
        """The versions that answer requests, ascending."""
        return sorted(version for version, entry in self.states().items() if entry.state == "AVAILABLE")

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        end_s = time.monotonic() + self._deadline_s
        for attempt in stamina.retry_context(
            on=_is_transient, attempts=None, timeout=self._deadline_s, wait_initial=0.05, wait_max=1.0
        ):
            with attempt, _as_serving_error():
                remaining_s = max(end_s - time.monotonic(), 0.001)
                return self._http.request(method, path, json=body, timeout=remaining_s).raise_for_status().json()


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
        isinstance(error, ServingError) and error.status_code == httpx.codes.SERVICE_UNAVAILABLE
    )
