"""Alerts that take a new champion back: those of Alertmanager with the label `cartwheel=rollback`.

Source: https://prometheus.io/docs/alerting/latest/alerts_api/
"""

from __future__ import annotations

from datetime import datetime, timedelta

import httpx

from contracts.settings import settings
from serving.rollout import endpoint

FILTER = 'cartwheel="rollback"'
TIMEOUT_S = 10.0


def since(time: str) -> str:
    """The first alert that began after a time (ISO 8601) and is not silenced, in words; empty when there is none.

    An Alertmanager that does not answer is no reason to take a version back: that it is silent is said.
    """
    url = settings().rollout_alertmanager_url
    if not url:
        return ""
    only = {"filter": FILTER, "active": "true", "silenced": "false", "inhibited": "false"}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/api/v2/alerts", params=only, timeout=TIMEOUT_S).raise_for_status()
        alerts = sorted(answer.json(), key=lambda alert: alert["startsAt"])
    except (httpx.HTTPError, ValueError) as error:
        endpoint.say(f"Alertmanager does not answer, so no alert takes this version back: {error}")
        return ""
    end = datetime.fromisoformat(time) + timedelta(seconds=1)  # the history counts in whole seconds
    for alert in alerts:
        if datetime.fromisoformat(alert["startsAt"]) >= end:
            return f"alert {alert['labels']['alertname']}: {alert['annotations'].get('summary', 'no summary')}"
    return ""
