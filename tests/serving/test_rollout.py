"""From the registry into service and back: a real MLflow store, the local server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from contracts.files import write_text
from contracts.names import CHALLENGER, CHAMPION, NOTHING_TO_DO
from contracts.verdicts import FILE, sealed
from tests.serving.installation import Shop, write_manifest
from tests.verbs import MODEL, run_verb

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pristine(
    tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path, exported: Callable[[int], Path], tools: Any
) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    shutil.copy(mlflow_store, folder / "mlflow.db")
    shop = Shop(folder, exported, tools)
    shop.verb("initialise")
    shop.server.argv = shop.server_command()
    shop.server.start()
    try:
        yield shop
    finally:
        shop.server.stop()


@pytest.fixture
def shop(pristine: Shop) -> Shop:
    """The shop with one champion in service, and nothing on its way."""
    if not (pristine.serving / "history.jsonl").exists():
        pristine.verb("pending", code=NOTHING_TO_DO)
        version = pristine.register(1)
        assert pristine.verb("pending").stdout == f"{version}\n"
        pristine.deploy(version)
        assert pristine.served() == 3.1
        assert [what for _, what, _ in pristine.history()] == ["staged", "validated", "loaded", "promoted"]
    if (challenger := pristine.rollout()["challenger"]) is not None:
        pristine.verb("reject", "--version", str(challenger))
    return pristine


def test_shops_share_a_model_server(shop: Shop, tmp_path: Path, exported: Callable[[int], Path], tools: Any) -> None:
    """Each deploys and rolls back its own model; the other's, and one of somebody else, answer as they did."""
    config = shop.serving / "models.config"
    shutil.copytree(exported(3), tmp_path / "stranger" / "1")
    entry = tools.model_text("stranger", tmp_path / "stranger", [1])
    write_text(config, config.read_text().replace("model_config_list {", f"model_config_list {{ {entry}", 1))
    shop.server.wait_state("stranger", 1, "AVAILABLE")

    def others(mine: Shop) -> list[Any]:
        stranger = shop.server.predict("stranger", {"instances": ["x"]}).json()
        return [stranger, *[each.served() for each in (shop, second) if each is not mine]]

    second = Shop(tmp_path / "second", exported, tools, model="second", beside=shop)
    namesake = {"CARTWHEEL_MODEL": MODEL, "CARTWHEEL_HOME": str(tmp_path / "third")}
    refused = run_verb("serving", "initialise", environment=second.settings | namesake)
    assert (refused.returncode, "another CARTWHEEL_MODEL" in refused.stderr) == (2, True)
    second.verb("initialise")
    before, aliases = shop.served(), shop.aliases()
    first = second.register(2)
    second.deploy(first)
    assert (second.served(), shop.served(), shop.aliases()) == (3.2, before, aliases)

    around = others(second)
    second.deploy(second.register(4))
    assert second.served() == 3.4
    second.verb("rollback")
    assert (second.served(), others(second), second.aliases()) == (3.2, around, {CHAMPION: first})

    around = others(shop)
    shop.deploy(shop.register(5))
    assert shop.served() == 3.5
    shop.verb("rollback")
    assert (shop.served(), others(shop)) == (before, around)


def test_on_its_way_and_back(shop: Shop) -> None:
    """Each step changes what is served as it says, none may be skipped, and what is rolled back does not come again."""
    previous, before = shop.aliases()[CHAMPION], shop.served()
    version = shop.register(5)
    assert "stage --version" in shop.verb("validate", "--version", str(version), code=2).stderr
    shop.bring(version, "stage")
    assert "is staged, not yet validated" in shop.verb("load", "--version", str(version), code=2).stderr
    shop.bring(version, "validate")
    report = json.loads((shop.folder / "reports" / "deploy" / f"{version}.json").read_text())
    assert (report["passed"], report["faults"]) == (True, [])
    assert report["latency_ms"] > 0
    assert report["memory_mib"] > 50
    assert version not in json.loads(shop.verb("status").stdout)["config"]["versions"]
    shop.bring(version, "load")
    assert (shop.served("stable"), shop.served("canary")) == (before, 3.5)
    shop.bring(version, "promote")
    assert shop.served() == 3.5
    assert shop.aliases() == {CHAMPION: version}
    shop.verb("pending", code=NOTHING_TO_DO)
    written = shop.history()
    shop.bring(version, "stage", "validate", "load", "promote")  # once more changes nothing
    assert shop.history() == written
    assert written[-4:] == [(version, what, previous) for what in ("staged", "validated", "loaded")] + [
        (version, "promoted", version)
    ]
    assert shop.on_disk() == {str(previous), str(version)}
    status = json.loads(shop.verb("status").stdout)
    assert status["config"] == {"versions": [previous, version], "labels": {"stable": version}}
    assert status["endpoints"][f"http://127.0.0.1:{shop.server.rest_port}"][str(version)]["state"] == "AVAILABLE"
    assert status["traffic"]["stable"] == version

    assert shop.verb("rollback", "--why", "it is bad").stdout == f"{previous}\n"
    assert (shop.served(), shop.answering()) == (before, (previous, before))
    assert shop.aliases() == {CHAMPION: previous}
    assert shop.history()[-1] == (version, "rolled back", previous)
    assert f"version {version} rolled back, by " in shop.verb("history").stdout.splitlines()[-1]
    shop.verb("rollback", code=NOTHING_TO_DO)
    assert "was rejected: it is bad" in shop.verb("stage", "--version", str(version), code=2).stderr
    shop.mlflow.set_registered_model_alias(MODEL, CHALLENGER, str(version))
    shop.verb("pending", code=NOTHING_TO_DO)
    shop.verb("rollback", "--to", str(version))
    assert shop.served() == 3.5


def test_a_share_of_the_traffic(shop: Shop) -> None:
    """A version that is loaded may be shadow or canary; one at a time; a rollback takes its traffic, and it is rejected."""
    champion, before = shop.aliases()[CHAMPION], shop.served()

    def traffic() -> tuple[Any, ...]:
        content = json.loads(shop.verb("status").stdout)["traffic"]
        return tuple(content[name] for name in ("stable", "canary", "canary_share", "shadow", "shadow_share"))

    version = shop.register(5)
    share = ("--version", str(version), "--share", "0.25")
    assert "is not on its way" in shop.verb("canary", *share, code=2).stderr
    shop.bring(version, "stage", "")
    assert "is validated, not yet loaded" in shop.verb("shadow", *share, code=2).stderr
    shop.bring(version, "load")
    shop.verb("shadow", *share)
    assert traffic() == (champion, None, 0, version, 0.25)
    shop.verb("canary", *share)
    assert traffic() == (champion, version, 0.25, None, 0)
    another = shop.register(6)
    assert f"version {version} is on its way (canary)" in shop.verb("stage", "--version", str(another), code=2).stderr
    assert shop.verb("pending").stdout == f"{version}\n"
    assert shop.verb("rollback").stdout == f"{champion}\n"
    assert traffic() == (champion, None, 0, None, 0)
    assert (shop.served(), shop.history()[-1]) == (before, (version, "rejected", champion))
    assert "was rejected: rolled back" in shop.verb("canary", *share, code=2).stderr

    assert shop.verb("pending").stdout == f"{another}\n"
    shop.bring(another)
    shop.verb("canary", "--version", str(another), "--share", "0.5")
    shop.bring(another, "promote")
    assert traffic() == (another, None, 0, None, 0)
    popular = json.loads(json.loads(shop.verb("status").stdout)["traffic"]["popular"])
    assert popular["items"] == ["\ufffda", "\ufffdb", "\ufffdc"]


@pytest.mark.parametrize("verb", ["load", "canary", "promote", "rollback"])
def test_killed_between_any_two_writes(shop: Shop, verb: str) -> None:
    """Killed before its first write, its second, and so on, and run again, a verb comes to the same end each time; and
    whatever is killed, the gateway asks a version that answers."""
    previous, before = shop.aliases()[CHAMPION], shop.served()
    version = shop.register(6)
    shop.bring(version, "stage", "")
    words = ["--version", str(version)]
    for each in ("load", "canary", "promote", "rollback"):
        if each == verb:
            break
        shop.verb(each, *words, *(["--share", "0.5"] if each == "canary" else []))
    words = [verb] if verb == "rollback" else [verb, *words, *(["--share", "0.5"] if verb == "canary" else [])]
    champion, score = (version, 3.6) if verb == "promote" else (previous, before)
    what = {"load": "loaded", "canary": "canary", "promote": "promoted", "rollback": "rolled back"}[verb]
    history = [*shop.history(), (version, what, champion)]
    shop.save()
    write = 1
    while shop.killed_before(write, *words):
        assert shop.answering() in ((previous, before), (version, 3.6))
        again = run_verb("serving", *words, environment=shop.settings)
        assert again.returncode in (0, NOTHING_TO_DO), again.stderr
        assert (shop.answering(), shop.served()) == ((champion, score), score), write
        assert shop.history() == history, write
        assert shop.aliases() == {CHAMPION: champion} | ({CHALLENGER: version} if verb in ("load", "canary") else {})
        assert {int(name) for name in shop.on_disk()} >= {previous, champion}
        shop.restore()
        write += 1
    assert write > (2 if verb == "load" else 4)
    assert shop.history() == history


def home_of(process: psutil.Process) -> str | None:
    """The installation that a process was started for."""
    try:
        return process.environ().get("CARTWHEEL_HOME")
    except psutil.Error:
        return None


def test_what_a_kill_of_the_validation_leaves(shop: Shop) -> None:
    """No model server; and it is done again."""
    version = shop.register(7)
    shop.bring(version, "stage")
    shop.killed_at("rollout.endpoint.replay", "validate", "--version", str(version))
    ours = [process for process in psutil.process_iter() if home_of(process) == str(shop.folder)]
    _, alive = psutil.wait_procs(ours, timeout=5)
    assert alive == []
    assert shop.rollout()["state"] == "staged"
    shop.bring(version, "validate")
    assert shop.rollout()["state"] == "validated"


def test_a_promotion_that_broke_off_is_undone(shop: Shop) -> None:
    """Rolling back leads to the version that answered before, not to the one before that."""
    previous, before = shop.aliases()[CHAMPION], shop.served()
    version = shop.register(7)
    shop.bring(version)
    shop.killed_at("gateway.process.put", "promote", "--version", str(version))
    assert shop.verb("rollback").stdout == f"{previous}\n"
    assert (shop.answering(), shop.served()) == ((previous, before), before)
    assert shop.aliases() == {CHAMPION: previous}
    shop.verb("pending", code=NOTHING_TO_DO)
    shop.verb("rollback", code=NOTHING_TO_DO)


def test_a_validation_that_found_nobody_to_ask(shop: Shop) -> None:
    """A model server that does not start says nothing of the version, which is on its way still."""
    version = shop.register(7)
    shop.bring(version, "stage")
    settings, shop.settings = shop.settings, shop.settings | {"CARTWHEEL_MODEL_SERVER": "/bin/sleep"}
    shop.verb("validate", "--version", str(version), "--deadline-s", "1", code=1)
    shop.settings = settings
    assert shop.verb("pending").stdout == f"{version}\n"


@pytest.mark.parametrize("as_text", [True, False])
def test_a_champion_that_was_deleted_in_mlflow(shop: Shop, as_text: bool) -> None:
    """It serves on, is named, and neither rolling back nor deploying another stumbles over it; going back to it says why not."""
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
    assert "somebody has deleted it" in shop.verb("rollback", "--to", str(version), code=2).stderr
    assert shop.aliases()[CHAMPION] == before
    another = shop.register(4)
    shop.deploy(another)
    assert (shop.served(), shop.aliases()) == (3.4, {CHAMPION: another})


def test_a_challenger_that_was_deleted_in_mlflow(shop: Shop) -> None:
    """There is nothing to deploy, or one line says what is missing."""
    version = shop.register(5)
    shop.mlflow.delete_model_version(MODEL, str(version))
    result = run_verb("serving", "pending", environment=shop.settings)
    assert result.returncode == NOTHING_TO_DO or (result.returncode, f"no version {version}" in result.stderr) == (
        2,
        True,
    )


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
    error = shop.verb("stage", "--version", str(version), code=2).stderr
    assert what in error
    assert (shop.served(), shop.on_disk()) == (before, folders)


BLOCKED = {"passed": False, "rules": [{"name": "model_mib", "passed": False}]}


def test_the_gate_is_required(shop: Shop) -> None:
    """A version that did not pass is neither pending nor staged, whatever its tags say; one that was forced is both."""
    version = shop.register(7, verdict=BLOCKED)
    shop.mlflow.set_model_version_tag(MODEL, str(version), "gate", "passed")
    assert "did not pass the gate: model_mib" in shop.verb("pending", code=2).stderr
    shop.verb("stage", "--version", str(version), code=2)
    version = shop.register(7, verdict={**BLOCKED, "forced": {"by": "ann", "reason": "a sale", "at": "now"}})
    assert shop.verb("pending").stdout == f"{version}\n"
    shop.verb("stage", "--version", str(version))


@pytest.mark.parametrize(
    ("forge", "what"),
    [
        (lambda verdict: verdict | {"passed": True}, "does not bear the seal"),
        (lambda verdict: sealed({**verdict, "passed": True, "seal": None}, "another"), "does not bear the seal"),
        (lambda verdict: {}, "does not bear the seal"),
    ],
)
def test_a_verdict_that_somebody_wrote_is_refused(shop: Shop, forge: Callable[[Any], Any], what: str) -> None:
    """Whoever may write to MLflow can neither change a verdict nor make one."""
    version = shop.register(7, verdict=BLOCKED)
    run_id = shop.mlflow.get_model_version(MODEL, str(version)).run_id
    path = Path(shop.mlflow.download_artifacts(run_id, FILE, str(shop.folder)))
    shop.mlflow.log_dict(run_id, forge(json.loads(path.read_text())), FILE)
    assert what in shop.verb("stage", "--version", str(version), code=2).stderr


def test_another_model_than_the_judged_one_is_refused(shop: Shop) -> None:
    """Files that were exchanged after the verdict, with a manifest that fits them, never reach the model servers."""
    before, version = shop.on_disk(), shop.register(7)
    run_id = shop.mlflow.get_model_version(MODEL, str(version)).run_id
    other = shop.folder / "other"
    shutil.copytree(shop.folder / "export", other)
    (other / "saved_model.pb").write_bytes(b"another model")
    write_manifest(other)
    shop.mlflow.log_artifacts(run_id, str(other), "model")
    assert "not the model that the gate judged" in shop.verb("stage", "--version", str(version), code=2).stderr
    assert shop.on_disk() == before


def test_a_version_without_a_verdict_is_refused(shop: Shop) -> None:
    """Registered by hand, past training, it is not deployed."""
    run = shop.mlflow.create_run(shop.experiment)
    version = shop.mlflow.create_model_version(MODEL, source=f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    assert "left no verdict" in shop.verb("stage", "--version", str(version.version), code=2).stderr


def broken(folder: Path) -> None:
    (folder / "saved_model.pb").write_bytes(b"garbage")
    write_manifest(folder)


def spoilt_warm_up(folder: Path) -> None:
    """A record of a signature that there is not."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = "none"
    (folder / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())
    write_manifest(folder)


def golden(old: str, new: str) -> Callable[[Path], None]:
    """The golden requests with something else in them."""

    def other(folder: Path) -> None:
        path = folder / "golden_requests.json"
        path.write_text(path.read_text().replace(old, new))
        write_manifest(folder)

    return other


@pytest.mark.parametrize(
    ("spoil", "limits", "what"),
    [
        (broken, {}, "failed to load"),
        (spoilt_warm_up, {}, "failed to load"),
        (golden("xb", "other"), {}, "instead of"),
        (golden('"x"', "7"), {}, "request 0"),
        (None, {"CARTWHEEL_GATE_MAX_LATENCY_MS": "0.001"}, "latency_ms is"),
        (None, {"CARTWHEEL_ROLLOUT_MAX_MEMORY_MIB": "20"}, "memory_mib is"),
    ],
)
def test_a_version_that_is_not_fit_is_rejected(
    shop: Shop, spoil: Callable[[Path], None] | None, limits: dict[str, str], what: str
) -> None:
    """It is never loaded where users are answered, and does not come again."""
    before = shop.served()
    version = shop.register(7, spoil=spoil)
    shop.bring(version, "stage")
    settings, shop.settings = shop.settings, shop.settings | limits
    assert what in shop.verb("validate", "--version", str(version), code=1).stderr
    shop.settings = settings
    report = json.loads((shop.folder / "reports" / "deploy" / f"{version}.json").read_text())
    assert (report["passed"], what in report["faults"][0]) == (False, True)
    assert shop.history()[-1][:2] == (version, "rejected")
    assert shop.verb("load", "--version", str(version), code=2)
    shop.verb("pending", code=NOTHING_TO_DO)
    assert (shop.served(), str(version) in shop.on_disk()) == (before, False)
    assert version not in shop.server.states(MODEL)
