"""From the registry into service and back: a real MLflow store, the local server."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.names import CHALLENGER, CHAMPION, MODEL, NOTHING_TO_DO
from serving.gateway.routes import state
from tests.verbs import Ended, run_killed_verb, run_verb

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


class Shop:
    """An installation in a temporary folder: MLflow store, model server, and the verbs."""

    def __init__(self, folder: Path, exported: Callable[[int], Path], tools: Any) -> None:
        import mlflow

        self.folder, self.exported = folder, exported
        self.server = tools.Server("local", folder, start=False)
        store = f"sqlite:///{folder}/mlflow.db"
        self.settings = {
            "CARTWHEEL_HOME": str(folder),
            "CARTWHEEL_MLFLOW_TRACKING_URI": store,
            "CARTWHEEL_REST_PORT": str(self.server.rest_port),
        }
        self.mlflow = mlflow.MlflowClient(tracking_uri=store)
        self.experiment = self.mlflow.create_experiment("cartwheel", artifact_location=f"file://{folder}/artifacts")
        self.mlflow.create_registered_model(MODEL)
        self.serving = folder / "serving"

    def register(self, number: int, *, gate: str = "passed", spoil: Callable[[Path], None] | None = None) -> int:
        """Register export `number` as the challenger, with golden requests and manifest; `spoil` changes it after."""
        artifact = self.folder / "export"
        shutil.rmtree(artifact, ignore_errors=True)
        shutil.copytree(self.exported(number), artifact)
        scores = [[score + number / 10 for score in (3, 2, 1)]]
        golden = {"request": {"instances": [{"user_id": "x"}]}, "items": [["xa", "xb", "xc"]], "scores": scores}
        (artifact / "golden_requests.json").write_text(json.dumps([golden]))
        write_manifest(artifact)
        if spoil:
            spoil(artifact)
        run = self.mlflow.create_run(self.experiment)
        self.mlflow.log_artifacts(run.info.run_id, str(artifact), "model")
        source = f"{run.info.artifact_uri}/model"
        version = self.mlflow.create_model_version(MODEL, source=source, run_id=run.info.run_id).version
        self.mlflow.set_model_version_tag(MODEL, version, "gate", gate)
        self.mlflow.set_registered_model_alias(MODEL, CHALLENGER, version)
        return int(version)

    def verb(self, *words: str, code: int = 0) -> Ended:
        """Run `python -m serving ...` and require its exit status."""
        done = run_verb("serving", *words, environment=self.settings)
        assert done.returncode == code, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def killed_at(self, step: str, *words: str) -> None:
        """Run a verb that is killed with -9 when it reaches a step, `module.function` of the package."""
        assert run_killed_verb("serving", *words, at=step, environment=self.settings) == -9

    def deploy(self, version: int) -> None:
        for verb in ("publish", "verify", "promote"):
            self.verb(verb, "--version", str(version))

    def served(self, label: str = "stable") -> float:
        """The first score of user x: three, plus a tenth of the export's number."""
        answer = self.server.predict(f"{MODEL}/labels/{label}", {"instances": ["x"]}).json()
        return round(answer["predictions"][0]["scores"][0], 4)

    def asked(self) -> tuple[int | None, float]:
        """The version that the gateway would ask, and its first score for user x: it must answer at any time."""
        routes = json.loads((self.folder / "gateway" / "routes.json").read_text())
        version = state(routes)["stable"]
        answer = self.server.predict(f"{MODEL}/versions/{version}", {"instances": ["x"]}).json()
        return version, round(answer["predictions"][0]["scores"][0], 4)

    def aliases(self) -> dict[str, int]:
        aliases = self.mlflow.get_registered_model(MODEL).aliases
        return {alias: int(version) for alias, version in aliases.items()}

    def ledger(self) -> list[tuple[int, int | None, str]]:
        lines = (self.serving / "deployments.jsonl").read_text().splitlines()
        return [(line["version"], line["previous"], line["verdict"]) for line in map(json.loads, lines)]

    def on_disk(self) -> set[str]:
        return {path.name for path in (self.serving / "models" / MODEL).iterdir()}


def write_manifest(folder: Path) -> None:
    """MANIFEST.sha256 of every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "MANIFEST.sha256")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / "MANIFEST.sha256").write_text("".join(lines))


@pytest.fixture(scope="module")
def pristine(
    tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path, exported: Callable[[int], Path], tools: Any
) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    shutil.copy(mlflow_store, folder / "mlflow.db")
    shop = Shop(folder, exported, tools)
    shop.verb("initialise")
    shop.server.argv = shop.verb("command").stdout.split()
    shop.server.start()
    try:
        yield shop
    finally:
        shop.server.stop()


@pytest.fixture
def shop(pristine: Shop) -> Shop:
    """The shop with one champion in service."""
    if not (pristine.serving / "deployments.jsonl").exists():
        pristine.verb("pending", code=NOTHING_TO_DO)
        version = pristine.register(1)
        assert pristine.verb("pending").stdout == f"{version}\n"
        pristine.deploy(version)
        assert pristine.served() == 3.1
        assert pristine.ledger() == [(1, None, "promoted")]
    return pristine


def test_publish_promote_roll_back(shop: Shop) -> None:
    """Each step changes what is served as it says, and nothing is left pending; older folders are deleted."""
    previous = shop.aliases()[CHAMPION]
    before = shop.served()
    version = shop.register(5)
    shop.verb("publish", "--version", str(version))
    assert (shop.served("stable"), shop.served("canary")) == (before, 3.5)
    shop.verb("promote", "--version", str(version), code=2)  # not verified
    shop.verb("verify", "--version", str(version))
    report = json.loads((shop.folder / "reports" / "deploy" / f"{version}.json").read_text())
    assert report["verdict"] == "passed"
    assert report["latency_ms"] > 0
    shop.verb("promote", "--version", str(version))
    assert shop.served() == 3.5
    assert shop.aliases() == {CHAMPION: version}
    shop.verb("pending", code=NOTHING_TO_DO)
    shop.verb("promote", "--version", str(version))  # once more changes nothing
    assert shop.ledger()[-1] == (version, previous, "promoted")
    assert shop.on_disk() == {str(previous), str(version)}
    status = json.loads(shop.verb("status").stdout)
    assert status["config"] == {"versions": [previous, version], "labels": {"stable": version}}
    assert status["endpoints"][f"http://127.0.0.1:{shop.server.rest_port}"][str(version)]["state"] == "AVAILABLE"
    assert status["traffic"]["stable"] == version

    assert shop.verb("rollback").stdout == f"{previous}\n"
    assert shop.served() == before
    assert shop.aliases() == {CHAMPION: previous}
    assert shop.ledger()[-1] == (previous, version, "rolled back")
    shop.verb("rollback", code=NOTHING_TO_DO)
    shop.verb("rollback", "--to", str(version))
    assert shop.served() == 3.5


def test_a_share_of_the_traffic(shop: Shop) -> None:
    """Only a version that is verified and loaded gets one, beside the champion; unloaded or promoted, it has none."""
    champion = shop.aliases()[CHAMPION]

    def traffic() -> dict[str, Any]:
        return json.loads(shop.verb("status").stdout)["traffic"]

    version = shop.register(5)
    share = ("--version", str(version), "--share", "0.25")
    assert "is not verified" in shop.verb("canary", *share, code=2).stderr
    shop.verb("publish", "--version", str(version))
    assert "is not verified" in shop.verb("shadow", *share, code=2).stderr
    shop.verb("verify", "--version", str(version))
    shop.verb("canary", *share)
    shop.verb("shadow", *share)
    given = {"stable": champion, "canary": version, "canary_share": 0.25, "shadow": version, "shadow_share": 0.25}
    assert traffic() == given | {"popular": traffic()["popular"]}
    assert "the champion" in shop.verb("canary", "--version", str(champion), "--share", "0.1", code=2).stderr
    for role in ("canary", "shadow"):
        other = ("--version", str(champion), "--share", "0")
        assert f"the {role} is version {version}" in shop.verb(role, *other, code=2).stderr
    shop.verb("shadow", "--version", str(version), "--share", "0")
    assert traffic() == given | {"shadow": None, "shadow_share": 0.0, "popular": traffic()["popular"]}

    another = shop.register(6)
    shop.verb("publish", "--version", str(another))  # which unloads the canary
    assert (traffic()["canary"], traffic()["canary_share"]) == (None, 0.0)
    assert "is not loaded" in shop.verb("canary", *share, code=2).stderr
    shop.verb("verify", "--version", str(another))
    shop.verb("canary", "--version", str(another), "--share", "0.5")
    shop.verb("promote", "--version", str(another))
    assert traffic() == {
        "stable": another, "canary": None, "canary_share": 0.0, "shadow": None, "shadow_share": 0.0,
        "popular": json.dumps({"items": ["\ufffda", "\ufffdb", "\ufffdc"], "scores": json.loads(traffic()["popular"])["scores"]}),
    }  # fmt: skip


def test_killed_anywhere_and_run_again(shop: Shop) -> None:
    """A run killed between any two steps is completed by running it again, and served requests never notice."""
    previous = shop.aliases()[CHAMPION]
    before = shop.served()
    version = shop.register(6)
    words = ("publish", "--version", str(version))
    for step in ("artifact.sync_tree", "artifact.sync", "publish._wait_available", "publish._wait_label"):
        shop.killed_at(step, *words)
        assert shop.served() == before
    shop.verb(*words)
    shop.verb("verify", "--version", str(version))
    words = ("promote", "--version", str(version))
    for step in ("publish._ask", "publish._wait_label", "registry.move_alias", "ledger.record"):
        shop.killed_at(step, *words)
        assert shop.asked() in ((previous, before), (version, 3.6))
    assert shop.verb("pending").stdout == f"{version}\n"
    shop.killed_at("registry.drop_alias", *words)
    shop.verb("pending", code=NOTHING_TO_DO)
    shop.killed_at("artifact.remove", *words)
    shop.verb(*words)
    assert shop.served() == 3.6
    assert shop.aliases() == {CHAMPION: version}
    assert [line for line in shop.ledger() if line[0] == version] == [(version, previous, "promoted")]
    assert shop.on_disk() == {str(previous), str(version)}


@pytest.mark.parametrize(
    ("step", "again"),
    [
        ("publish._load", None),
        ("publish._wait_label", "publish._ask"),
        ("registry.move_alias", "publish._wait_label"),
        ("ledger.record", "registry.drop_alias"),
    ],
)
def test_a_promotion_that_broke_off_is_undone(shop: Shop, step: str, again: str | None) -> None:
    """Rolling back leads to the version that was deployed last, not to the one before it; also if that is killed, too."""
    previous, before = shop.aliases()[CHAMPION], shop.served()
    version = shop.register(7)
    shop.verb("publish", "--version", str(version))
    shop.verb("verify", "--version", str(version))
    shop.killed_at(step, "promote", "--version", str(version))
    assert shop.asked() == (version, 3.7)
    if again:
        shop.killed_at(again, "rollback")
        run_verb("serving", "rollback", environment=shop.settings)
    else:
        assert shop.verb("rollback").stdout == f"{previous}\n"
    assert (shop.asked(), shop.served()) == ((previous, before), before)
    assert shop.aliases() == {CHAMPION: previous}
    shop.verb("pending", code=NOTHING_TO_DO)
    shop.verb("rollback", code=NOTHING_TO_DO)


def test_what_answers_stays_loaded_when_another_is_published(shop: Shop) -> None:
    """A promotion broke off after the gateway had turned to it, and the next challenger comes before it is gone on with."""
    version = shop.register(7)
    shop.verb("publish", "--version", str(version))
    shop.verb("verify", "--version", str(version))
    shop.killed_at("publish._load", "promote", "--version", str(version))
    another = shop.register(4)
    shop.verb("publish", "--version", str(another))
    assert shop.asked() == (version, 3.7)
    shop.verb("verify", "--version", str(another))
    shop.verb("promote", "--version", str(another))
    assert (shop.asked(), shop.served()) == ((another, 3.4), 3.4)
    assert str(version) not in shop.on_disk()


def test_a_candidate_whose_verification_broke_off(shop: Shop) -> None:
    """A candidate that could not be verified, since the endpoint failed, does not stay loaded; it is pending still."""
    version = shop.register(7)
    shop.verb("publish", "--version", str(version))
    settings, shop.settings = shop.settings, shop.settings | {"CARTWHEEL_REST_PORT": "1"}  # nobody listens there
    shop.verb("verify", "--version", str(version), code=1)
    shop.settings = settings
    assert version not in json.loads(shop.verb("status").stdout)["config"]["versions"]
    assert shop.verb("pending").stdout == f"{version}\n"


@pytest.mark.parametrize("as_text", [True, False])
def test_a_champion_that_was_deleted_in_mlflow(shop: Shop, as_text: bool) -> None:
    """It serves on, is named, and neither rolling back nor deploying another stumbles over it."""
    before = shop.aliases()[CHAMPION]
    version = shop.register(5)
    shop.deploy(version)
    # Over REST the number is a text, and then MLflow leaves the alias behind (mlflow/mlflow#24825).
    shop.mlflow.delete_model_version(MODEL, str(version) if as_text else version)
    status = shop.verb("status")
    assert json.loads(status.stdout)["deleted_in_mlflow"] == [version]
    assert f"version {version} was deleted in MLflow" in status.stderr
    shop.verb("pending", code=NOTHING_TO_DO)
    assert shop.served() == 3.5
    assert shop.verb("rollback").stdout == f"{before}\n"
    assert shop.aliases()[CHAMPION] == before
    shop.verb("rollback", "--to", str(version))  # its copy is still here, as long as it is loaded or next to it
    assert (shop.served(), CHAMPION in shop.aliases()) == (3.5, False)
    another = shop.register(4)
    shop.deploy(another)
    assert (shop.served(), shop.aliases()) == (3.4, {CHAMPION: another})


def test_a_challenger_that_was_deleted_in_mlflow(shop: Shop) -> None:
    """There is nothing to deploy, or one line says what is missing."""
    version = shop.register(5)
    shop.mlflow.delete_model_version(MODEL, str(version))
    done = run_verb("serving", "pending", environment=shop.settings)
    assert done.returncode == NOTHING_TO_DO or (done.returncode, f"no version {version}" in done.stderr) == (2, True)


def _tampered(folder: Path) -> None:
    with (folder / "saved_model.pb").open("ab") as file:
        file.write(b"x")


def _unlisted(folder: Path) -> None:
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"x")


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (_tampered, "saved_model.pb does not match"),
        (_unlisted, "not listed"),
        (lambda folder: (folder / "MANIFEST.sha256").unlink(), "no MANIFEST.sha256"),
        (lambda folder: (folder / "fingerprint.pb").unlink(), "missing"),
    ],
)
def test_artifact_that_differs_is_refused(shop: Shop, spoil: Callable[[Path], None], what: str) -> None:
    """A file that is changed, added or missing, or no manifest at all, keeps a version away from the base path."""
    before, folders = shop.served(), shop.on_disk()
    version = shop.register(7, spoil=spoil)
    error = shop.verb("publish", "--version", str(version), code=2).stderr
    assert what in error
    assert (shop.served(), shop.on_disk()) == (before, folders)


def test_gate_is_required(shop: Shop) -> None:
    """A version that did not pass the gate is neither pending nor published."""
    version = shop.register(7, gate="failed")
    assert "did not pass the gate" in shop.verb("pending", code=2).stderr
    shop.verb("publish", "--version", str(version), code=2)


def test_version_that_does_not_load(shop: Shop) -> None:
    """A version with a broken graph is refused, and the champion's config is back in force."""

    def broken(folder: Path) -> None:
        (folder / "saved_model.pb").write_bytes(b"garbage")
        write_manifest(folder)

    before = shop.served()
    version = shop.register(7, spoil=broken)
    assert "failed to load" in shop.verb("publish", "--version", str(version), code=1).stderr
    assert shop.served() == before
    assert version not in json.loads(shop.verb("status").stdout)["config"]["versions"]


def test_version_that_answers_otherwise(shop: Shop) -> None:
    """A version whose answers differ from its golden requests is refused and unloaded."""

    def other(folder: Path) -> None:
        path = folder / "golden_requests.json"
        path.write_text(path.read_text().replace("xb", "other"))
        write_manifest(folder)

    before = shop.served()
    version = shop.register(7, spoil=other)
    shop.verb("publish", "--version", str(version))
    assert "instead of" in shop.verb("verify", "--version", str(version), code=1).stderr
    assert json.loads((shop.folder / "reports" / "deploy" / f"{version}.json").read_text())["verdict"] == "failed"
    shop.verb("promote", "--version", str(version), code=2)
    assert shop.served() == before
    assert version not in json.loads(shop.verb("status").stdout)["config"]["versions"]
