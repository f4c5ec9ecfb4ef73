"""What MLflow shows of a model, its signature and an example of a request, and how `mlflow.pyfunc.load_model` loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

EXAMPLE = "input_example.json"


def write_mlmodel(folder: Path, users: Sequence[str]) -> None:
    """Write `MLmodel` and an example of a request beside a SavedModel that `training.export` made.

    Loaded by MLflow, the model takes a DataFrame with a column `user_id` and gives `items`, a list of bytes, and `scores`.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    model = Model(
        signature=ModelSignature(
            Schema([ColSpec(DataType.string, "user_id")]),
            Schema([ColSpec(Array(DataType.binary), "items"), ColSpec(Array(DataType.float), "scores")]),
        ),
        saved_input_example_info={"artifact_path": EXAMPLE, "type": "dataframe", "pandas_orient": "split"},
    )
    # A signature of a SavedModel goes by this old name there.
    model.add_flavor(
        "tensorflow", model_type="tf1-estimator", saved_model_dir=".", meta_graph_tags=["serve"],
        signature_def_key="serving_default",
    )  # fmt: skip
    mlflow.pyfunc.add_to_model(model, loader_module="mlflow.tensorflow")
    pd.DataFrame({"user_id": list(users)}).to_json(folder / EXAMPLE, orient="split", index=False)
    model.save(str(folder / "MLmodel"))
