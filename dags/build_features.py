"""
### From raw events to features that passed their checks

1. `reconcile`: has anything landed that has no checked features yet? Nothing: the run ends here.
2. `gate_raw`: Great Expectations on `bronze_events` and the `ledger`.
3. `clean`: duplicates, missing and impossible values, returns and cancelled lines go to `quarantine`,
   the rest to `silver_events`, what is sold to `items`; only the intervals that changed.
4. `gate_clean`: Great Expectations on `silver_events` and `items`.
5. `compute_features`: item statistics, user histories and training lists, each as of its interval.
6. `gate_features`: Great Expectations on `training_lists`, the labels (none from another interval, none missing), then on
   what they are predicted from; its pass says that all is ready.

What each rule found is on the page Cartwheel (in the navigation), with the Data Docs.

Wakes `monitor_recommender` through the asset `features`. A failed gate stops the run; the model that serves stays.
"""

from airflow.sdk import DAG
from cartwheel_airflow.assets import BRONZE_EVENTS, FEATURES
from cartwheel_airflow.operators import DAG_DEFAULTS, gate, spark_job, step, woken_by

from contracts.names import BUILD_FEATURES

with DAG(BUILD_FEATURES, doc_md=__doc__, schedule=woken_by(BRONZE_EVENTS, minute=17), **DAG_DEFAULTS):
    reconcile = step("reconcile", "spark_jobs.pending", "build")
    gate_raw = gate("gate_raw", "expectations", "gate", "raw")
    clean = spark_job("clean", "clean")
    gate_clean = gate("gate_clean", "expectations", "gate", "clean")
    compute_features = spark_job("compute_features", "features")
    gate_features = gate("gate_features", "expectations", "gate", "lists", "features", outlets=[FEATURES])

    reconcile >> gate_raw >> clean >> gate_clean >> compute_features >> gate_features
