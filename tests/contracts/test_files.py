from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import InputError
from contracts.files import lock_holder, locked, write_text


def test_a_file_has_its_mode_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """A file is written with exactly the mode asked for, whatever the umask, and no temporary file stays."""
    before = os.umask(0o077)
    try:
        write_text(tmp_path / "a", "one", mode=0o644)
    finally:
        os.umask(before)
    write_text(tmp_path / "a", "two", mode=0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "two"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    """A lock held by another process is refused with that process's id, and is free once that one is killed."""
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from contracts.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert lock_holder(path) == other.pid
        with pytest.raises(InputError, match=rf"busy \(process {other.pid}\)"), locked(path, what="busy"):
            pass
        other.kill()
    assert lock_holder(path) is None
    with locked(path, what="busy"):
        pass
