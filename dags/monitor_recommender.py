"""
### Watch what shoppers do with the recommendations, and decide

1. `reconcile`: were recommendations shown whose outcome is known by now, and not yet written down? If not, 2 is skipped.
2. `attribute`: put what was recommended, by the model and by the baselines, beside what was then taken.
3. `find_changes`: has anything changed since the last decision? No: the run ends here.
4. `decide`: live quality, age and drift against the limits; the decision and its reasons are kept in
   `reports/monitoring`.
5. `request_training`: only when the decision is to retrain, or when no model serves yet.
6. `request_refresh`: only when the decision is that the model which serves gets newer data, without training.

Wakes `train_recommender` or `refresh_recommender` through the assets `training_request` and `refresh_request`. Bad data
does neither: it fails its gate, visibly.
"""

from airflow.sdk import DAG, TriggerRule
from cartwheel_airflow.assets import FEATURES, REFRESH_REQUEST, TRAINING_REQUEST
from cartwheel_airflow.operators import DAG_DEFAULTS, spark_job, step, woken_by

from contracts.names import MONITOR_RECOMMENDER

with DAG(MONITOR_RECOMMENDER, doc_md=__doc__, schedule=woken_by(FEATURES, minute=27), **DAG_DEFAULTS):
    reconcile = step("reconcile", "spark_jobs.pending", "attribute")
    attribute = spark_job("attribute", "attribute")
    # Also where nothing was shown.
    find_changes = step("find_changes", "monitoring", "pending", trigger_rule=TriggerRule.NONE_FAILED)
    decide = step("decide", "monitoring", "decide")
    request_training = step("request_training", "monitoring", "should-train", outlets=[TRAINING_REQUEST])
    request_refresh = step("request_refresh", "monitoring", "should-refresh", outlets=[REFRESH_REQUEST])

    reconcile >> attribute >> find_changes >> decide >> [request_training, request_refresh]
