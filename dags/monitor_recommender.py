"""
### Watch what shoppers do with the recommendations, and decide

1. `reconcile`: is there an interval that nothing was decided for? No: the run ends here.
2. `find_exposures`: were recommendations shown whose outcome is known by now? If not, 3 is skipped.
3. `attribute`: put what was recommended, by the model and by the baselines, beside what was then taken.
4. `decide`: live quality, drift and latency against the limits; the decision and its reasons are kept in
   `reports/monitoring`.
5. `request_training`: only when the decision is to retrain, or when no model serves yet.

Wakes `train_recommender` through the asset `training_request`. Bad data never retrains: it fails its gate, visibly.
"""

from airflow.sdk import DAG, TriggerRule
from cartwheel_airflow.assets import FEATURES, TRAINING_REQUEST
from cartwheel_airflow.operators import DAG_DEFAULTS, spark_job, step, woken_by

from contracts.names import MONITOR_RECOMMENDER

with DAG(MONITOR_RECOMMENDER, doc_md=__doc__, schedule=woken_by(FEATURES, minute=27), **DAG_DEFAULTS):
    reconcile = step("reconcile", "monitoring", "pending")
    find_exposures = step("find_exposures", "spark_jobs.pending", "attribute")
    attribute = spark_job("attribute", "attribute")
    # Runs whether or not there was something to attribute, but not when reconcile found nothing to do.
    decide = step("decide", "monitoring", "decide", trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    request_training = step("request_training", "monitoring", "should-train", outlets=[TRAINING_REQUEST])

    reconcile >> find_exposures >> attribute >> decide >> request_training
    reconcile >> decide
