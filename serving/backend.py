"""A typed client of one model server, behind the gateway: which versions it has, and what each answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import httpx

from contracts.settings import settings
from serving.client import Recommendation, RestClient, ServingError


@dataclass(frozen=True)
class VersionState:
    """What the endpoint says of one version: `AVAILABLE`, `LOADING`, ..., and `OK` or the code of its failure."""

    state: str
    error_code: str = "OK"
    message: str = ""

    @property
    def failed(self) -> bool:
        return self.state == "END" and self.error_code != "OK"


class Backend(RestClient):
    """Asks one TensorFlow Serving, at the address of its REST API."""

    def __init__(self, url: str, *, deadline_s: float = 5.0) -> None:
        super().__init__(url, deadline_s=deadline_s, verify=settings().serving_ca_file or True, headers={})

    def recommend(self, user_ids: Sequence[str], *, version: int) -> list[Recommendation]:
        """What a version recommends to each user, in their order."""
        path = f"/v1/models/{settings().model}/versions/{version}:predict"
        rows = self._predict(path, [{"user_id": user_id} for user_id in user_ids], {})
        return [replace(row, model_version=version) for row in rows]

    def labelled(self, label: str) -> int:
        """The version a label points at."""
        # The status page ignores labels; the metadata page does not.
        metadata = self._ask("GET", f"/v1/models/{settings().model}/labels/{label}/metadata").json()
        return int(metadata["model_spec"]["version"])

    def states(self) -> dict[int, VersionState]:
        """State of every version the endpoint has seen; empty when it knows no model yet."""
        try:
            entries = self._ask("GET", f"/v1/models/{settings().model}").json()["model_version_status"]
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
