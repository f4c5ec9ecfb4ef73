"""A shop with an MLflow store, a model server and, if need be, a gateway: what a rollout is tried on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from contracts.names import CHALLENGER
from contracts.verdicts import FILE, MANIFEST, sealed
from serving.desired import Desired, parse, render
from serving.gateway.routes import state
from tests.verbs import MODEL, Ended, run_killed_verb, run_verb

VERDICT_KEY = "5e" * 32
WRITES = (
    "artifact.place", "rollout.document.write", "desired.write", "gateway.traffic.write", "rollout.history.append_line",
    "registry.move_alias", "registry.drop_alias", "artifact.remove",
)  # fmt: skip


class Shop:
    """An installation in a temporary folder: MLflow store, model server, and the verbs."""

    def __init__(
        self,
        folder: Path,
        exported: Callable[[int], Path],
        tools: Any,
        *,
        model: str = MODEL,
        beside: Shop | None = None,
    ) -> None:
        """Args: beside: another one, with whose model server and MLflow it makes do."""
        import mlflow

        self.folder, self.exported, self.model = folder, exported, model
        self.server = beside.server if beside else tools.Server("local", folder, start=False)
        store = f"sqlite:///{(beside or self).folder}/mlflow.db"
        self.settings = {
            "CARTWHEEL_HOME": str(folder),
            "CARTWHEEL_MODEL": model,
            "CARTWHEEL_SERVING_CONFIG": str(beside.serving / "models.config") if beside else "",
            "CARTWHEEL_MLFLOW_TRACKING_URI": store,
            "CARTWHEEL_REST_PORT": str(self.server.rest_port),
            "CARTWHEEL_SECRET_VERDICT_KEY": VERDICT_KEY,
        }
        self.mlflow = mlflow.MlflowClient(tracking_uri=store)
        self.experiment = (
            beside.experiment
            if beside
            else self.mlflow.create_experiment("cartwheel", artifact_location=f"file://{folder}/artifacts")
        )
        self.mlflow.create_registered_model(self.model)
        self.serving = folder / "serving"

    def register(
        self,
        number: int,
        kind: str = "",
        *,
        verdict: Mapping[str, Any] | None = None,
        spoil: Callable[[Path], None] | None = None,
    ) -> int:
        """Register export `number` as the challenger, with golden requests, manifest and verdict.

        Args:
            verdict: what is different in it before it is sealed.
            spoil: changes the files before they are judged.
        """
        artifact = self.folder / "export"
        shutil.rmtree(artifact, ignore_errors=True)
        shutil.copytree(self.exported(number, kind), artifact)
        scores = [[score + number / 10 for score in (3, 2, 1)]]
        golden = {"request": {"instances": [{"user_id": "x"}]}, "items": [["xa", "xb", "xc"]], "scores": scores}
        (artifact / "golden_requests.json").write_text(json.dumps([golden]))
        write_manifest(artifact)
        if spoil:
            spoil(artifact)
        run = self.mlflow.create_run(self.experiment)
        self.mlflow.log_artifacts(run.info.run_id, str(artifact), "model")
        judged = {"passed": True, "rules": [], "manifest_sha256": sha256(artifact / MANIFEST)} | dict(verdict or {})
        self.mlflow.log_dict(run.info.run_id, sealed(judged, VERDICT_KEY), FILE)
        source = f"{run.info.artifact_uri}/model"
        version = self.mlflow.create_model_version(self.model, source=source, run_id=run.info.run_id).version
        self.mlflow.set_registered_model_alias(self.model, CHALLENGER, version)
        return int(version)

    def verb(self, *words: str, code: int = 0) -> Ended:
        """Run `python -m serving ...` and require its exit status."""
        result = run_verb("serving", *words, environment=self.settings)
        assert result.returncode == code, f"{words} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}"
        return result

    def server_command(self) -> list[str]:
        """As an installation starts it, but that it looks at its files more often."""
        argv = self.verb("command").stdout.split()
        return [*argv, "--model_config_file_poll_wait_seconds=0.1", "--file_system_poll_wait_seconds=0.1"]

    def killed_at(self, at: str, *words: str) -> None:
        """Run a verb that is killed with -9 when it reaches a step, `module.function` of the package."""
        assert run_killed_verb("serving", *words, at=at, environment=self.settings) == -9

    def killed_before(self, write: int, *words: str) -> bool:
        """Run a verb that is killed with -9 before its n-th write; whether it had so many."""
        return run_killed_verb("serving", *words, at=WRITES, nth=write, environment=self.settings) == -9

    def save(self) -> None:
        """Keep all that the verbs change, for `restore`."""
        shutil.rmtree(self.folder / "saved", ignore_errors=True)
        shutil.copytree(self.serving, self.folder / "saved" / "serving")
        shutil.copytree(
            self.folder / "gateway",
            self.folder / "saved" / "gateway",
            ignore=lambda _, names: {*names} - {"routes.json"},
        )
        self.saved_aliases = self.aliases()

    def restore(self) -> None:
        """As it was, also in the model server."""
        for name in {*self.aliases()} - {*self.saved_aliases}:
            self.mlflow.delete_registered_model_alias(self.model, name)
        for name, version in self.saved_aliases.items():
            self.mlflow.set_registered_model_alias(self.model, name, str(version))
        saved = self.folder / "saved"
        models = Path("serving") / "models" / self.model
        for child in (saved / models).iterdir():
            if not (self.folder / models / child.name).exists():
                shutil.copytree(child, self.folder / models / child.name)
        before, now = (parse((folder / "serving" / "models.config").read_text(), "") for folder in (saved, self.folder))
        # A label moves only to what is loaded.
        config = render(Desired((*before.versions, *now.versions), now.labels), self.folder / models)
        (self.folder / "beside").write_text(config)
        (self.folder / "beside").rename(self.serving / "models.config")
        for version in before.versions:
            self.server.wait_state(self.model, version, "AVAILABLE")
        for file in ("serving/rollout.json", "serving/history.jsonl", "gateway/routes.json", "serving/models.config"):
            shutil.copy(saved / file, self.folder / "beside")
            (self.folder / "beside").rename(self.folder / file)

    def bring(self, version: int, *verbs: str) -> None:
        """Bring a version on its way by these verbs; without, as far as loaded, its validation only noted."""
        for verb in verbs or ("stage", "", "load"):
            if verb:
                self.verb(verb, "--version", str(version))
            else:
                self.note_validation()

    def note_validation(self) -> None:
        """As if the challenger were validated: that takes seconds, and is a matter of other tests."""
        path = self.serving / "rollout.json"
        noted = json.loads(path.read_text()) | {"state": "validated"}
        noted["change"] |= {"number": noted["change"]["number"] + 1, "what": "validated"}
        path.write_text(json.dumps(noted))
        with (self.serving / "history.jsonl").open("a") as file:
            file.write(json.dumps(noted["change"]) + "\n")

    def deploy(self, version: int) -> None:
        self.bring(version)
        self.verb("promote", "--version", str(version))

    def rollout(self) -> dict[str, Any]:
        return json.loads((self.serving / "rollout.json").read_text())

    def served(self, label: str = "stable") -> float:
        """The first score of user x: three, plus a tenth of the export's number."""
        answer = self.server.predict(f"{self.model}/labels/{label}", {"instances": ["x"]}).json()
        return round(answer["predictions"][0]["scores"][0], 4)

    def answering(self) -> tuple[int | None, float]:
        """The version that the gateway would ask, and its first score for user x: it must answer at any time."""
        routes = json.loads((self.folder / "gateway" / "routes.json").read_text())
        version = state(routes)["stable"]
        answer = self.server.predict(f"{self.model}/versions/{version}", {"instances": ["x"]}).json()
        return version, round(answer["predictions"][0]["scores"][0], 4)

    def aliases(self) -> dict[str, int]:
        aliases = self.mlflow.get_registered_model(self.model).aliases
        return {alias: int(version) for alias, version in aliases.items()}

    def history(self) -> list[tuple[int, str, int | None]]:
        """Version, what became of it, and the champion after it."""
        lines = (self.serving / "history.jsonl").read_text().splitlines()
        return [(line["version"], line["what"], line["champion"]) for line in map(json.loads, lines)]

    def on_disk(self) -> set[str]:
        return {path.name for path in (self.serving / "models" / self.model).iterdir()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def write_manifest(folder: Path) -> None:
    """MANIFEST.sha256 of every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    lines = [f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files]
    (folder / MANIFEST).write_text("".join(lines))
