"""
### Go back to the model before, at once

Trigger it: a version that has a share of the traffic loses it; without one, the champion gives way to the version before
it. What is left is rejected: it does not come again by itself. `python -m serving rollback` does the same.
"""

from airflow.sdk import DAG, Param
from cartwheel_airflow.assets import CHAMPION
from cartwheel_airflow.operators import DAG_DEFAULTS, step

from contracts.names import ROLLBACK_RECOMMENDER

with DAG(
    ROLLBACK_RECOMMENDER,
    doc_md=__doc__,
    schedule=None,
    params={
        "why": Param("", type="string", maxLength=200, description="For the history.", pattern=r"^[^'\"{}]*$"),
    },
    **DAG_DEFAULTS,
):
    step("rollback", "serving", "rollback", "--why", '{{ params.why or "asked for in Airflow" }}', outlets=[CHAMPION])
