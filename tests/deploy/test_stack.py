"""A stack that does not come up. One that does is started, killed and stopped in tests/faults and tests/end_to_end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rich.console import Console

from contracts.errors import InputError
from contracts.settings import Settings
from contracts.settings import settings as installed
from deploy.local import stack
from deploy.local.processes import marked


@pytest.mark.slow
def test_a_program_that_dies_at_start_is_named_with_its_log(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """When a server dies while starting, its log's end is shown, the error names the log, and nothing stays."""
    monkeypatch.setitem(stack.postgres.SERVER_OPTIONS, "shared_buffers", "nonsense")
    settings = make_settings(serving_url="http://127.0.0.1:9", cache=installed().cache_dir)
    with pytest.raises(InputError, match=r"postgres stopped while starting.*postgres\.log"):
        stack.up(settings, Console())
    assert 'invalid value for parameter "shared_buffers"' in capfd.readouterr().err
    assert marked(settings.home_dir) == []
