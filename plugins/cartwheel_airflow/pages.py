"""The page "Cartwheel" of Airflow's UI, and the Data Docs beside it: HTML made here, for those who are logged in.

Airflow mounts a plugin's app without any check of its own, so the whole app depends on Airflow's login: the cookie of
the UI, or a bearer token. What is mounted inside it (static files) would escape that, so there is none.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import requires_access_view
from airflow.configuration import conf
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, Response

from contracts import names
from contracts.settings import settings
from monitoring import status

URL = "/cartwheel"
_NO_CONTENT_FROM_ELSEWHERE = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; font-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store"}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters["moment"] = lambda moment: (
    f"{moment:%Y-%m-%d %H:%M} UTC" if isinstance(moment, datetime) else "never"
)


def application() -> FastAPI:
    """The app that Airflow's api-server mounts at `URL`. No route is open, those that describe it are off."""
    app = FastAPI(
        title="Cartwheel",
        dependencies=[Depends(requires_access_view(AccessView.WEBSITE))],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.add_api_route("/", page, response_class=HTMLResponse)
    app.add_api_route("/docs/{path:path}", data_docs)
    return app


def page() -> HTMLResponse:
    """The state of the shop's data and model."""
    root = conf.get("api", "base_url", fallback="").rstrip("/")
    parts, problems = {}, {}
    for name, read in _PARTS.items():
        try:
            parts[name] = read()
        except Exception as error:  # one unreadable file must not hide the rest from who looks for the reason
            parts[name], problems[name] = None, f"{type(error).__name__}: {error}"
    nonce = secrets.token_urlsafe(16)
    html = _TEMPLATES.get_template("page.html").render(
        parts=parts,
        problems=problems,
        dag=lambda dag_id: f"{root}/dags/{dag_id}",
        names=names,
        has_docs=(status.docs_folder() / "index.html").exists(),
        mlflow_url=settings().mlflow_link or settings().mlflow_uri,
        model=settings().model,
        nonce=nonce,
    )
    scripts = f"{_NO_CONTENT_FROM_ELSEWHERE}; script-src 'nonce-{nonce}'"
    return HTMLResponse(html, headers=_HEADERS | {"Content-Security-Policy": scripts})


_PARTS: dict[str, Callable[[], Any]] = {
    "sources": status.sources,
    "quarantine": status.quarantine,
    "gates": status.gates,
    "decision": status.decision,
    "rollout": status.rollout,
    "changes": status.changes,
}


def data_docs(path: str) -> Response:
    """A file of the Data Docs.

    Raises:
        HTTPException: 404, there is no such file inside their folder.
    """
    folder = status.docs_folder().resolve()
    try:
        file = (folder / path).resolve()
    except (OSError, ValueError):  # a null byte, a loop of links
        raise HTTPException(404) from None
    if not file.is_relative_to(folder) or not file.is_file():
        raise HTTPException(404)
    scripts = f"{_NO_CONTENT_FROM_ELSEWHERE}; script-src 'unsafe-inline'"
    return FileResponse(file, headers=_HEADERS | {"Content-Security-Policy": scripts})
