"""
### Land the shop's events

1. `reconcile`: which intervals up to `through` are not landed yet? None: the run ends here.
2. `land`: read them from the sources of the dataset file into the Delta table `bronze_events`, whole or not at all.
   What cannot be read is set aside in `quarantine`, with its reason.

Landing an interval again replaces it, so a run may be repeated or killed at any time.
Wakes `build_features` through the asset `bronze_events`.
"""

from airflow.sdk import DAG, Param
from cartwheel_airflow.assets import BRONZE_EVENTS
from cartwheel_airflow.operators import DAG_DEFAULTS, spark_job, step

from contracts.names import INGEST_EVENTS
from contracts.settings import settings

NUMBER = {"type": ["string", "null"], "pattern": r"^-?\d*$"}

with DAG(
    INGEST_EVENTS,
    doc_md=__doc__,
    schedule=settings().ingest_schedule or None,
    params={
        "through": Param(
            "", description="Number of the last interval to land. Empty: the last complete one.", **NUMBER
        ),
        "from_interval": Param(
            "", description="First interval to land again. Empty: the first one not landed.", **NUMBER
        ),
    },
    **DAG_DEFAULTS,
):
    interval_range = [
        "--through", '{{ params.through or "" }}',
        "--from-interval", '{{ params.from_interval or "" }}',
    ]  # fmt: skip

    reconcile = step("reconcile", "spark_jobs.pending", "land", *interval_range)
    land = spark_job("land", "land", *interval_range, outlets=[BRONZE_EVENTS])

    reconcile >> land
