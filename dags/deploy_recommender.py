"""
### Put the challenger in front of shoppers, a few first

1. `reconcile`: is a version on its way, or is there a challenger that may set out? Neither: the run ends here.
2. `stage`: its SavedModel, checksums verified, beside those that serve.
3. `validate`: in a model server of its own, without traffic: warm-up, golden requests, latency, memory.
4. `load`: on every model server, each of which must answer the golden requests alike. Still without traffic.
5. `shadow`: it gets a copy of some predictions; its answers are thrown away. Errors and latency are compared.
6. `canary`: it answers some users, then more (`CARTWHEEL_ROLLOUT_SHARES`), always the same ones. Errors, latency and
   what they take are compared with the champion's. All that waits takes no slot meanwhile.
7. `promote`: it becomes the champion. The one before stays loaded: `rollback_recommender` takes effect at once.
8. `bake`: watched for a while (`CARTWHEEL_ROLLOUT_BAKE_MINUTES`), it is rolled back by itself if it fails where the
   one before does not.

Each step may be repeated, also after a kill at any instant. A version that fails one is rejected, with the numbers in
the log and in `python -m serving history`, and does not come again by itself; the champion has its traffic back. The
first model has nobody to be compared with, and passes 5 and 6 at once. Emits the asset `champion`.
"""

from airflow.sdk import DAG
from cartwheel_airflow.assets import CHALLENGER, CHAMPION
from cartwheel_airflow.operators import DAG_DEFAULTS, approval, gate, result_of, step, wait, woken_by

from contracts.names import DEPLOY_RECOMMENDER

with DAG(DEPLOY_RECOMMENDER, doc_md=__doc__, schedule=woken_by(CHALLENGER, minute=47), **DAG_DEFAULTS):
    reconcile = step("reconcile", "serving", "pending")
    version = result_of("reconcile")
    stage = step("stage", "serving", "stage", "--version", version)
    validate = gate("validate", "serving", "validate", "--version", version)
    load = step("load", "serving", "load", "--version", version)
    shadow = wait("shadow", "serving", "advance", "--version", version, "--to", "shadow")
    canary = wait("canary", "serving", "advance", "--version", version, "--to", "canary")
    promote = step("promote", "serving", "promote", "--version", version, outlets=[CHAMPION])
    bake = wait("bake", "serving", "bake", "--version", version)

    reconcile >> stage >> validate >> load >> shadow >> canary >> approval(version, promote)
    promote >> bake
