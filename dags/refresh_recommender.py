"""
### Give the model that serves newer data, without training

1. `reconcile`: did monitoring ask for it, and is it not done yet? No: the run ends here.
   (Trigger by hand with `force` to refresh in any case: after a user was erased, for example.)
2. `refresh`: the champion's weights with the histories, item statistics, best sellers and promotions of today become a
   new SavedModel with golden requests of its own, and a run in MLflow that says whose weights it has.
3. `gate`: same weights, newer data that passed its checks, answers that are sane, within size and latency.
   A blocked model ends here, red, with the reason in the log; the model that serves stays.
4. `register`: becomes a version of the registered model, with the alias `challenger`.

Wakes `deploy_recommender` through the asset `challenger`: it is rolled out like any other.
"""

from airflow.sdk import DAG, Param
from cartwheel_airflow.assets import CHALLENGER, REFRESH_REQUEST
from cartwheel_airflow.operators import DAG_DEFAULTS, gate, result_of, step, woken_by

from contracts.names import REFRESH_RECOMMENDER

with DAG(
    REFRESH_RECOMMENDER,
    doc_md=__doc__,
    schedule=woken_by(REFRESH_REQUEST, minute=42),
    params={"force": Param(False, type="boolean", description="Refresh although monitoring did not ask for it.")},
    **DAG_DEFAULTS,
):
    reconcile = step("reconcile", "monitoring", "should-refresh", '{{ "--force" if params.force else "--no-force" }}')
    key = result_of("reconcile")
    requested_by = '{{ "a person" if params.force else "monitoring" }}'
    refresh = step("refresh", "training", "refresh", "--key", key, "--requested-by", requested_by)
    check = gate("gate", "training", "gate", "--key", key)
    register = step("register", "training", "register", "--key", key, outlets=[CHALLENGER])

    reconcile >> refresh >> check >> register
