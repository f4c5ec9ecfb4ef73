"""The passwords and keys of one installation: made on first start, kept in a file only its owner can read."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from contracts.errors import InputError
from contracts.files import locked, write_json


@dataclass(frozen=True)
class Secrets:
    """Shown by `repr` without their values."""

    airflow_admin_password: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)
    airflow_jwt_secret: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)
    airflow_fernet_key: str = field(
        default_factory=lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(), repr=False
    )
    postgres_password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)


def read_or_create(path: Path) -> Secrets:
    """The secrets in `path` (JSON); made and written with mode 0600 when there are none yet.

    Raises:
        InputError: the file is damaged or lacks a secret.
    """
    with locked(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            made = Secrets()
            write_json(path, asdict(made), mode=0o600)
            return made
        path.chmod(0o600)
        try:
            found = Secrets(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"the secrets cannot be read: {type(error).__name__}",
                where=str(path),
                cure="restore the file, or remove the whole folder it lies in to start afresh",
            ) from None
        return found
