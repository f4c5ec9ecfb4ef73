from __future__ import annotations

import json
from pathlib import Path

import pytest

from contracts.errors import InputError
from deploy.local.secrets import read_or_create


def test_secrets_are_made_once_for_the_owner_only(tmp_path: Path) -> None:
    """The first call makes the secrets with mode 0600, and every later call gives the same ones."""
    path = tmp_path / "secrets.json"
    first = read_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_or_create(path) == first
    assert read_or_create(tmp_path / "other.json") != first


def test_a_readable_secrets_file_is_closed_again(tmp_path: Path) -> None:
    """A file that others could read is made private on the next start."""
    path = tmp_path / "secrets.json"
    read_or_create(path)
    path.chmod(0o644)
    read_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_secrets_do_not_show_in_a_log(tmp_path: Path) -> None:
    """Neither str nor repr of the secrets contains a secret."""
    path = tmp_path / "secrets.json"
    shown = f"{read_or_create(path)!r} {read_or_create(path)}"
    values = json.loads(path.read_text()).values()
    assert len(values) == 6
    assert not [value for value in values if value in shown]


def test_damaged_secrets_are_refused(tmp_path: Path) -> None:
    """A cut-off file is an error that names the file, and is not replaced by new secrets."""
    path = tmp_path / "secrets.json"
    path.write_text('{"airflow_admin_password": "x"')
    with pytest.raises(InputError, match=str(path)):
        read_or_create(path)
    assert path.read_text() == '{"airflow_admin_password": "x"'
