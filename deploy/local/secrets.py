"""The passwords and keys of one installation: made on first start, kept in a file only its owner can read."""

from __future__ import annotations

import base64
import secrets
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from contracts.errors import InputError
from contracts.files import locked, read_json, write_json


@dataclass(frozen=True)
class Secrets:
    """Shown by `repr` without their values."""

    airflow_admin_password: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)
    airflow_jwt_secret: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)
    airflow_fernet_key: str = field(
        default_factory=lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(), repr=False
    )
    postgres_password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    pseudonym_key: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    """Of `contracts.pseudonyms`: who changes it makes every known user a new one."""
    verdict_key: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    """Of `contracts.verdicts`: who changes it must have every version judged again before it is deployed again."""


def read_or_create(path: Path) -> Secrets:
    """The secrets in `path` (JSON, mode 0600); those that are missing are made. Entries of others are left alone.

    Raises:
        InputError: the file is damaged.
    """
    with locked(path.with_name(f".{path.name}.lock")):
        try:
            stored = read_json(path)
            complete = Secrets(**{each.name: stored[each.name] for each in fields(Secrets) if each.name in stored})
        except (InputError, TypeError) as error:
            raise InputError(
                f"the secrets cannot be read: {type(error).__name__}",
                where=str(path),
                cure="restore the file, or remove the whole folder it lies in to start afresh",
            ) from None
        if stored | asdict(complete) != stored:
            write_json(path, stored | asdict(complete), mode=0o600)
        path.chmod(0o600)
        return complete
