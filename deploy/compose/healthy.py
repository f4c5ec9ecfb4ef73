"""`python healthy.py URL [COMPONENT]`: exit 0 when the address answers 200 and the component is well."""

from __future__ import annotations

import json
import sys
from urllib.request import urlopen


def healthy(url: str, component: str | None = None, *, timeout_s: float = 5.0) -> bool:
    """Whether `url` answers 200.

    Args:
        component: scheduler, triggerer or dag_processor; its heartbeat is part of the api-server's answer.
    """
    try:
        with urlopen(url, timeout=timeout_s) as answer:  # noqa: S310 - the address stands in docker-compose.yaml
            if answer.status != 200:
                return False
            return component is None or json.load(answer)[component]["status"] == "healthy"
    except (OSError, ValueError, KeyError, TypeError):
        return False


if __name__ == "__main__":
    sys.exit(not healthy(*sys.argv[1:3]))
