"""
### Put the challenger in front of shoppers

1. `reconcile`: is there a challenger that is not the champion? No: the run ends here.
2. `publish`: its SavedModel, checksums verified, beside the running one in TensorFlow Serving; waits until it is loaded.
3. `verify`: the golden requests made at training must get the same answers; otherwise it is unloaded again.
4. `promote`: it becomes the champion. The one before stays loaded: `python -m serving rollback` takes effect at once.

Emits the asset `champion`.
"""

from airflow.sdk import DAG
from cartwheel_airflow.assets import CHALLENGER, CHAMPION
from cartwheel_airflow.operators import DAG_DEFAULTS, gate, result_of, step, woken_by

from contracts.names import DEPLOY_RECOMMENDER

with DAG(DEPLOY_RECOMMENDER, doc_md=__doc__, schedule=woken_by(CHALLENGER, minute=47), **DAG_DEFAULTS):
    reconcile = step("reconcile", "serving", "pending")
    version = result_of("reconcile")
    publish = step("publish", "serving", "publish", "--version", version)
    verify = gate("verify", "serving", "verify", "--version", version)
    promote = step("promote", "serving", "promote", "--version", version, outlets=[CHAMPION])

    reconcile >> publish >> verify >> promote
