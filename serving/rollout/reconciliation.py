"""Make everything follow the document, from whatever state a kill has left it in.

A version is loaded everywhere before it is asked, and not asked any more before it is unloaded.
"""

from __future__ import annotations

from contracts.names import CHALLENGER, CHAMPION
from serving import artifact, desired, registry
from serving.desired import Desired
from serving.gateway import process as gateway
from serving.gateway import traffic
from serving.rollout import endpoint, history
from serving.rollout.document import Rollout

UNLOAD_S = 10.0
"""Longest wait for the model servers to let go of a version; to delete it is no hurry."""


def begin_to_load(rollout: Rollout) -> None:
    """Have the model servers load what the document names, beside all that is asked now; waits for nobody.

    Raises:
        InputError: a version is missing and MLflow has no copy that passed its gate.
    """
    target, before = rollout.desired, desired.read()
    for version in set(target.versions) - artifact.versions_on_disk():
        artifact.place(version, *registry.deployable(version))
    # A label in use moves only to a version that is AVAILABLE: load first, label then.
    loaded = {*target.versions, *traffic.read().versions}
    desired.write(Desired(tuple(loaded), {name: number for name, number in before.labels.items() if number in loaded}))


def reconcile(rollout: Rollout, *, deadline_s: float = endpoint.DEADLINE_S) -> None:
    """Model servers, gateway, history and MLflow, in this order; what is so already is left alone.

    Raises:
        InputError: as of `begin_to_load`; or Envoy refuses its routes.
        UnfitVersionError: a version cannot be loaded.
        DeploymentError: a model server does not follow in time.
    """
    begin_to_load(rollout)
    target, routed = rollout.desired, traffic.read()
    for version in sorted(rollout.traffic.versions - routed.versions):
        endpoint.wait_available(version, deadline_s)
    if rollout.traffic != routed:
        gateway.put(rollout.traffic)
    history.catch_up(rollout)
    if rollout.champion is not None:
        registry.move_alias(CHAMPION, rollout.champion)
    # Or the next run would bring it again.
    registry.drop_alias(
        CHALLENGER, {version for version in (rollout.champion, *rollout.rejected) if version is not None}
    )
    desired.write(target)
    for label, version in target.labels.items():
        endpoint.wait_labelled(label, version, deadline_s)
    _remove_retired(rollout)


def _remove_retired(rollout: Rollout) -> None:
    """Delete the folders of versions that have no role any more, once the model servers have let go of them."""
    retired = artifact.versions_on_disk() - {rollout.champion, rollout.previous, rollout.challenger}
    try:
        if retired:
            endpoint.wait_unloaded(retired, UNLOAD_S)
    except endpoint.DeploymentError as error:
        return endpoint.say(f"{error}: the next change deletes them")
    for version in sorted(retired):
        artifact.remove(version)
