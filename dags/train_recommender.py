"""
### Train a recommender and let it prove itself

1. `reconcile`: did monitoring ask for a model that has not been trained yet? No: the run ends here.
   (Trigger by hand with `force` to train in any case.)
2. `train`: TensorFlow, evaluated on rolling intervals beside the champion and the baselines, on the same lists;
   parameters, metrics, data versions, commit and SavedModel go to MLflow.
3. `gate`: must beat every baseline with confidence, lose no more than a tolerance to the champion, also in each interval
   and for each kind of user and item, on data that passed its checks, within size and latency. A blocked model ends
   here, red, with the reason in the log; the model that serves stays. (With `force_gate` it passes all the same: the
   reason, and the run that gave it, stay with the verdict.)
4. `register`: becomes a version of the registered model, with the alias `challenger`.

Wakes `deploy_recommender` through the asset `challenger`.
"""

from airflow.sdk import DAG, Param
from cartwheel_airflow.assets import CHALLENGER, TRAINING_REQUEST
from cartwheel_airflow.operators import DAG_DEFAULTS, HEAVY_POOL_SLOTS, gate, result_of, step, woken_by

from contracts.names import TRAIN_RECOMMENDER

with DAG(
    TRAIN_RECOMMENDER,
    doc_md=__doc__,
    schedule=woken_by(TRAINING_REQUEST, minute=37),
    params={
        "force": Param(False, type="boolean", description="Train although monitoring did not ask for it."),
        "force_gate": Param(
            "",
            type="string",
            maxLength=200,
            pattern=r"^[^'\"{}]*$",
            description="Why the gate is to let the model pass whatever its rules say. Empty: it decides.",
        ),
    },
    **DAG_DEFAULTS,
):
    reconcile = step("reconcile", "monitoring", "should-train", '{{ "--force" if params.force else "--no-force" }}')
    key = result_of("reconcile")
    requested_by = '{{ "a person" if params.force else "monitoring" }}'
    train = step(
        "train", "training", "train", "--key", key, "--requested-by", requested_by, pool_slots=HEAVY_POOL_SLOTS
    )
    forced = '{{ "--force" if params.force_gate else "--no-force" }}'
    check = gate("gate", "training", "gate", "--key", key, forced, "--reason", "{{ params.force_gate }}")
    register = step("register", "training", "register", "--key", key, outlets=[CHALLENGER])

    reconcile >> train >> check >> register
