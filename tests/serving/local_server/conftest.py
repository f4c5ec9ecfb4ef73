"""A version of each kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lite_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version's folder with a SavedModel that gives x / 2 + 2, and a LiteRT file that gives x / 2 + 3."""
    import tensorflow as tf

    from serving.local_server.warmup import LITE_FILE

    folder = tmp_path_factory.mktemp("lite")

    class Half(tf.Module):  # type: ignore[misc]
        def __init__(self, beside: float) -> None:
            self.beside = beside

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def half(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": x / 2 + self.beside}

    for name, beside in (("three", 3.0), ("two", 2.0)):
        model = Half(beside)
        tf.saved_model.save(model, str(folder / name), signatures={"serving_default": model.half, "half": model.half})
    content = tf.lite.TFLiteConverter.from_saved_model(str(folder / "three"), signature_keys=["half"]).convert()
    (folder / "two" / LITE_FILE).write_bytes(content)
    return folder / "two"
