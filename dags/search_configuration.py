"""
### Look for a better configuration of the model

Trigger it, on data that passed its checks; `minutes` is what all trials may take together.

1. `begin`: a search on the newest data, or the one that there is already: it is gone on with.
2. `trial`: Optuna's trials, `CARTWHEEL_SEARCH_TRIALS` at most, each a mapped task. Each trains on rolling intervals and
   recommends in them, and ends early where that is not worth going on with. The first is the configuration there is. When
   the minutes are used up the rest is skipped.
3. `propose`: what was best goes to MLflow, with all that were tried, and to this task's log, held against the
   configuration there is on the same lists.

Nothing uses a proposal by itself: set `CARTWHEEL_RANKER` to what the log says, and the next training does.
"""

from airflow.sdk import DAG, Param, TriggerRule
from cartwheel_airflow.operators import DAG_DEFAULTS, HEAVY_POOL_SLOTS, result_of, step, steps

from contracts.names import SEARCH_CONFIGURATION
from contracts.settings import settings

with DAG(
    SEARCH_CONFIGURATION,
    doc_md=__doc__,
    schedule=None,
    params={"minutes": Param(20, type="number", minimum=0, description="What all trials may take together.")},
    **DAG_DEFAULTS,
):
    key = result_of("begin")
    begin = step("begin", "training", "search")
    trial = steps(
        "trial",
        [
            ("training", "trial", "--key", key, "--task", str(task), "--minutes", "{{ params.minutes }}")
            for task in range(settings().search_trials)
        ],
        pool_slots=HEAVY_POOL_SLOTS,
    )
    propose = step("propose", "training", "propose", "--key", key, trigger_rule=TriggerRule.ALL_DONE)

    begin >> trial >> propose
