"""
### Land the shop's events

1. `reconcile`: do the sources hold anything new, or is `through` further than before? Neither: the run ends here.
2. `land`: read what is new from the sources of the dataset file into the Delta table `bronze_events`, each batch whole or
   not at all, and note that all is there up to `through`: `build_features` goes no further. By a schedule, what landed
   of later intervals goes on to `silver_events` and `quarantine` at once, to be looked at.

A record lands once, so a run may be repeated or killed at any time. `from_interval` lands files again: what they hold
now replaces what landed of them from that interval on.
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
            "", description="Number of the last interval that is complete. Empty: the last one that is over.", **NUMBER
        ),
        "from_interval": Param(
            "", description="First interval to land again from files. Empty: only what is new.", **NUMBER
        ),
        "allow_fewer": Param(
            False, type="boolean", description="Let fewer rows replace more when landing again: rows were taken out."
        ),
    },
    **DAG_DEFAULTS,
):
    interval_range = [
        "--through", '{{ params.through or "" }}',
        "--from-interval", '{{ params.from_interval or "" }}',
    ]  # fmt: skip

    reconcile = step("reconcile", "spark_jobs.pending", "land", *interval_range)
    land = spark_job(
        "land", "land", *interval_range, "--allow-fewer", "{{ params.allow_fewer }}", outlets=[BRONZE_EVENTS]
    )

    reconcile >> land
