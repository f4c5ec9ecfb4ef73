"""`python -m training VERB`: train or refresh, gate, register. Each verb is idempotent for its key."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts import dataset as datasets
from contracts import verdicts
from contracts.errors import InputError, reported
from contracts.files import lock_holder, locked, read_json, sha256, write_json
from contracts.metrics import NDCG
from contracts.names import NOTHING_TO_DO
from contracts.settings import actor, settings
from contracts.trainings import (
    BLOCKED,
    LOCK,
    REQUEST,
    WORK,
    TrainingData,
    clear_abandoned,
    needed_training_data,
    training_key,
)
from training.workers import workers

if TYPE_CHECKING:
    from training.config import RankerConfig
    from training.data import Shop
    from training.trainer import Champion, Say, Trained

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
SEARCH_MINUTES = 20.0
Key = Annotated[
    str,
    typer.Option(help="Names the training: `as_of_53_v7_1f2e3d4c` is for interval 53 on version 7 of the lists."),
]


def _folder(key: str) -> Path:
    return settings().training_dir / key


def _trained(key: str) -> dict[str, Any]:
    evaluation: dict[str, Any] = read_json(_folder(key) / "evaluation.json")
    if not evaluation:
        raise InputError(
            f"there is no training {key}",
            where=str(_folder(key)),
            cure=f"run python -m training train --key {key} first",
        )
    return evaluation


def _teller() -> Say:
    """Prints a line with the seconds since now."""
    started = time.monotonic()

    def say(line: str) -> None:
        # In one write: several models are trained side by side.
        print(f"[{time.monotonic() - started:5.0f} s] {line}\n", end="", flush=True)

    return say


@app.command()
def train(key: Key, requested_by: Annotated[str, typer.Option(help="Why, for the record.")] = "a person") -> None:
    """Evaluate on rolling intervals, train the model to serve, export it and log it to MLflow."""
    from training import registry
    from training.config import from_settings

    folder, own = _folder(key), workers()
    if not own.is_chief:
        if not read_json(
            folder / "evaluation.json"
        ):  # else the chief has nothing to do but to log it, and waits for nobody
            _fit(folder, _data(key).versions, from_settings(), lambda line: None)
        return
    # A training outlives the Airflow worker that started it, if that is killed: who tries again waits for its end.
    if holder := lock_holder(folder / LOCK):
        print(f"training {key} runs already (process {holder}): waiting for it", flush=True)
    with locked(folder / LOCK):
        evaluation = read_json(folder / "evaluation.json")
    if not evaluation and own.count == 1 and settings().training_workers > 1:
        from training.launch import launch

        launch(partial(train, key, requested_by), settings().training_workers)
    with locked(folder / LOCK):
        evaluation = read_json(folder / "evaluation.json") or _train(key, requested_by)
        run_id = registry.log_run(key, evaluation, folder)
        write_json(folder / "run.json", {"run_id": run_id})
    print(f"training {key} is MLflow run {run_id}", flush=True)


def _data(key: str) -> TrainingData:
    """What the training was asked for on; without a request, what there is."""
    request = read_json(_folder(key) / REQUEST)
    return TrainingData(**request) if request else needed_training_data()


def _fit(
    folder: Path, versions: Mapping[str, int], config: RankerConfig, say: Say, champion: Champion | None = None
) -> tuple[Shop, Trained]:
    """What every worker does, on these versions of the tables; the champion is for the chief, who evaluates."""
    from training.data import load_items, parts
    from training.distribution import choose_strategy
    from training.trainer import num_intervals
    from training.trainer import train as fit_and_evaluate

    strategy, dataset = choose_strategy(), datasets.load(settings().dataset_path)
    shop = load_items(dataset, versions, num_intervals(config))
    say(f"{dataset.name}: {len(shop.item_ids)} items, to serve interval {shop.coming}")
    return shop, fit_and_evaluate(shop, parts(shop), config, say, folder / WORK, strategy=strategy, champion=champion)


def _exported(folder: Path, shop: Shop, trained: Trained, config: RankerConfig) -> dict[str, Any]:
    """Write the SavedModel; what an evaluation says of what it is made of, how good it is, and what it takes."""
    from training import registry
    from training.data import with_users
    from training.evaluation import report
    from training.export import export

    return {
        **registry.made_of(),
        **report(trained.folds, settings().gate_confidence),
        "table_versions": dict(shop.versions),
        "export": export(trained.ranker, with_users(shop), config, folder / "saved_model"),
    }


def _champion(key: str) -> tuple[Champion | None, dict[str, Any] | None]:
    """The model that serves, to be scored beside the new one, and what the gate needs to know of it; None without one."""
    from training import registry
    from training.refresh import config_of, ranker_of, read_weights
    from training.trainer import Champion

    if (version := registry.champion()) is None:
        return None, None
    try:
        evaluation, model = registry.fetch(version, _folder(key) / WORK / "champion")
        config = config_of(evaluation["parameters"])
        ranker = partial(ranker_of, read_weights(model), config)
    except InputError as error:
        return None, {"version": version, "why_not": f"version {version} cannot be scored: {error}"}
    trained_as_of = evaluation.get("trained_as_of", evaluation["as_of"])
    return Champion(version, trained_as_of, ranker, config), {"version": version, "trained_as_of": trained_as_of}


def _train(key: str, requested_by: str) -> dict[str, Any]:
    from training.config import from_settings

    started, folder, say = time.monotonic(), _folder(key), _teller()
    clear_abandoned(but=key)
    champion, about_champion = _champion(key)
    data, config = _data(key), from_settings()
    shop, trained = _fit(folder, data.versions, config, say, champion)
    described = _exported(folder, shop, trained, config)
    exported = described["export"]
    say(f"exported {exported['model_mib']:.1f} MiB, {exported['predict_p50_ms']:.1f} ms a prediction")
    num_users = int(settings().gate_max_model_mib * 2**20 / exported["user_bytes"])
    say(
        f"up to about {num_users:,} users with such histories fit into a model; beyond, ask by the signature typed_history"
    )
    evaluation = {
        "key": key,
        "dataset": datasets.load(settings().dataset_path).name,
        "as_of": shop.coming,
        "trained_as_of": shop.coming,
        "champion": about_champion,
        "requested_by": requested_by,
        "parameters": asdict(config),
        **described,
        "losses": {str(as_of): {str(n): loss for n, loss in of.items()} for as_of, of in trained.losses.items()},
        "checked_versions": data.checked_versions,
        "seconds": time.monotonic() - started,
    }
    # Written last: whoever sees it sees a whole training.
    write_json(folder / "evaluation.json", evaluation)
    shutil.rmtree(folder / WORK)
    return evaluation


@app.command()
def refresh(key: Key, requested_by: Annotated[str, typer.Option(help="Why, for the record.")] = "a person") -> None:
    """Make a new version of the champion with the weights it has and newer data, and log it to MLflow."""
    from training import registry

    folder = _folder(key)
    with locked(folder / LOCK):
        evaluation = read_json(folder / "evaluation.json") or _refresh(key, requested_by)
        run_id = registry.log_run(key, evaluation, folder)
        write_json(folder / "run.json", {"run_id": run_id})
    print(f"refresh {key} is MLflow run {run_id}", flush=True)


def _refresh(key: str, requested_by: str) -> dict[str, Any]:
    from training import registry
    from training.data import load_items, with_users
    from training.refresh import config_of
    from training.refresh import refresh as write_anew

    started, folder = time.monotonic(), _folder(key)
    request = read_json(folder / REQUEST)
    if not request:
        raise InputError(
            f"no refresh {key} is asked for",
            where=str(folder / REQUEST),
            cure="run python -m monitoring should-refresh --force, whose last line is the key",
        )
    version, data = request.pop("version"), TrainingData(**request)
    before, model = registry.fetch(version, folder / WORK)
    config = config_of(before["parameters"])
    shop = with_users(load_items(datasets.load(settings().dataset_path), data.versions, num_intervals=1))
    exported, compared = write_anew(model, shop, config, folder / "saved_model")
    evaluation = {
        **before,  # of the weights, which are the same, `trained_as_of` included
        "key": key,
        "as_of": shop.coming,
        "requested_by": requested_by,
        **registry.made_of(),
        "refresh": {"version": version, **{name: before[name] for name in ("as_of", "table_versions")}, **compared},
        "export": exported,
        "table_versions": dict(shop.versions),
        "checked_versions": data.checked_versions,
        "seconds": time.monotonic() - started,
    }
    write_json(folder / "evaluation.json", evaluation)
    shutil.rmtree(folder / WORK)
    return evaluation


@app.command()
def gate(
    key: Key,
    force: Annotated[bool, typer.Option(help="Let the model pass whatever the rules say; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why it is forced; kept with the verdict, and who it was.")] = "",
) -> None:
    """Decide whether what was trained or refreshed may be deployed; exit status 1 when it may not."""
    from training import registry
    from training.gate import Limits, described, judge

    if force != bool(reason.strip()):
        raise InputError(
            "to force the gate takes both --force and --reason", where="--force, --reason", cure="give both, or neither"
        )
    evaluation, folder, chosen = _trained(key), _folder(key), settings()
    limits = Limits(
        confidence=chosen.gate_confidence,
        tolerance=chosen.gate_tolerance,
        passes_unsure=chosen.gate_unsure == "pass",
        max_model_mib=chosen.gate_max_model_mib,
        max_latency_ms=chosen.gate_max_latency_ms,
    )
    rules, run_id = judge(evaluation, limits), read_json(folder / "run.json")["run_id"]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    judged = {
        "key": key,
        "run_id": run_id,
        "time": now,
        "passed": all(rule.passed for rule in rules),
        "forced": {"by": actor(), "at": now, "reason": reason.strip()} if force else None,
        "limits": asdict(limits),
        "rules": [asdict(rule) for rule in rules],
        "manifest_sha256": sha256(folder / "saved_model" / verdicts.MANIFEST),
    }
    print(described(rules))
    verdict = verdicts.sealed(judged, chosen.secret(verdicts.KEY))
    write_json(folder / verdicts.FILE, verdict)
    registry.log_verdict(run_id, verdict)
    if verdict["passed"]:
        print("the gate passed this model")
    elif force:
        print(f"the gate blocked this model; FORCED by {actor()}: {reason.strip()}")
    else:
        _finish(key, evaluation, BLOCKED)
        print(
            "the gate BLOCKED this model: the champion stays. To let it pass all the same, run python -m training gate "
            f"--key {key} --force --reason WHY and python -m training register --key {key}"
        )
        raise SystemExit(1)


@app.command()
def register(key: Key) -> None:
    """Register a training that passed the gate as challenger."""
    from training import registry

    evaluation, folder = _trained(key), _folder(key)
    verdict = read_json(folder / verdicts.FILE)
    if not verdicts.may_be_deployed(verdict):
        raise InputError(
            f"the gate has not passed {key}",
            where=str(folder / verdicts.FILE),
            cure=f"run python -m training gate --key {key}",
        )
    # What has finished is deployed by now, or was left: it must not come back as challenger.
    if version := read_json(folder / "result.json").get("version"):
        print(f"{key} is version {version} already")
        return
    run_id = read_json(folder / "run.json")["run_id"]
    registry.log_verdict(run_id, verdict)  # again, if the gate was killed before it was there
    version = registry.register(run_id, evaluation, verdict)
    _finish(key, evaluation, "registered", version=version)
    print(f"{key} is version {version}, the challenger")


@app.command()
def edge(
    version: Annotated[int | None, typer.Option(help="Of the registered model. None: the champion.")] = None,
) -> None:
    """Export a version for LiteRT, compare its answers, and keep it with the version's run in MLflow; exit 1 if they differ."""
    from training import registry
    from training.data import load_items, with_users
    from training.edge import MIN_PARITY, export
    from training.refresh import config_of, ranker_of, read_weights

    if (number := version or registry.champion()) is None:
        raise InputError("no model serves", where="MLflow", cure="name a version: --version N")
    folder, say = _folder(f"edge_of_{number}"), _teller()
    with locked(folder / LOCK):
        evaluation, model = registry.fetch(number, folder / WORK)
        config = config_of(evaluation["parameters"])
        dataset = datasets.load(settings().dataset_path)
        shop = with_users(load_items(dataset, evaluation["table_versions"], num_intervals=1))
        report = export(model, ranker_of(read_weights(model), config, shop.item_ids), shop, config, folder / "edge")
        say(
            f"version {number}: {report['mib']:.1f} MiB, {report['p50_ms']:.1f} ms a list (as a SavedModel "
            f"{report['saved_model_p50_ms']:.1f}); of {report['num_lists']:,} lists {report['parity']:.2%} are the same"
        )
        if report["parity"] < MIN_PARITY:
            print(f"NOT kept: at least {MIN_PARITY:.1%} of the lists must be the same")
            raise SystemExit(1)
        run_id = registry.log_edge(number, folder / "edge", report)
        shutil.rmtree(folder / WORK)
    print(f"kept with MLflow run {run_id}, as {registry.EDGE_FOLDER}/")


@app.command()
def reproduce(run_id: Annotated[str, typer.Argument(help="MLflow's id of the run of a training.")]) -> None:
    """Train again what a run says, with its parameters, seed and versions of the data; exit status 1 for another model."""
    from deltalake.exceptions import DeltaError

    from training import registry
    from training.refresh import config_of
    from training.reproduction import compare

    folder, say = _folder(f"reproduce_{run_id}"), _teller()
    with locked(folder / LOCK):
        original, model = registry.fetch_run(run_id, folder / "original")
        if "refresh" in original:
            raise InputError(
                f"run {run_id} has trained nothing: it has the weights of version {original['refresh']['version']}",
                where=run_id, cure="reproduce the run of that version",
            )  # fmt: skip
        config = config_of(original["parameters"])
        say(f"{original['key']}: commit {original['commit']}, tables {original['table_versions']}")
        try:
            shop, trained = _fit(folder, original["table_versions"], config, say)
            again = _exported(folder, shop, trained, config)
        except (DeltaError, FileNotFoundError) as error:
            raise InputError(
                f"what it was trained on is not there any more: {str(error).splitlines()[0][:200]}",
                where=f"tables {original['table_versions']}",
                cure="nothing helps: an erasure, or a vacuum of the tables, has removed those versions",
            ) from None
        comparison = compare(original, model, again, folder / "saved_model")
        write_json(folder / "comparison.json", asdict(comparison) | {"is_reproduced": comparison.is_reproduced})
        shutil.rmtree(folder / WORK)
    print(comparison.described())
    if not comparison.is_reproduced:
        raise SystemExit(1)


@app.command()
def search() -> None:
    """Begin a search for a better configuration on the data that there is; the last line printed is its key."""
    from training.config import from_settings
    from training.search import begin

    data = needed_training_data()
    key = f"search_{training_key(data.as_of, data.versions)}"
    folder = _folder(key)
    with locked(folder / LOCK):
        if not (folder / REQUEST).exists():
            write_json(folder / REQUEST, asdict(data))
        begin(folder, from_settings())
    print(key)


@app.command()
def trial(
    key: Key,
    task: Annotated[int, typer.Option(min=0, help="Number of the trial: each is made once.")],
    minutes: Annotated[float, typer.Option(min=0, help="What all trials may take together.")] = SEARCH_MINUTES,
) -> None:
    """Try one configuration of a search; exit status 99 when it has been tried, or the minutes are used up."""
    from training.config import from_settings
    from training.search import needs_trial, open_study

    folder, config = _folder(key), from_settings()
    study = open_study(folder, config.seed + task)
    if not needs_trial(study, task, minutes):
        print(f"task {task} has made its trial, or the {minutes:g} minutes are used up")
        raise SystemExit(NOTHING_TO_DO)
    from training.data import load_items, parts
    from training.search import try_one
    from training.trainer import num_intervals

    shop = load_items(datasets.load(settings().dataset_path), _data(key).versions, num_intervals(config) + 1)
    with locked(folder / LOCK, shared=True):  # so that no other training clears the examples away
        try_one(study, task, folder=folder, shop=shop, parts=parts(shop), config=config, say=_teller())


@app.command()
def propose(key: Key) -> None:
    """Say which configuration of a search was best, and keep it, with all that were tried, in MLflow. Nothing uses it."""
    import json

    from training import registry
    from training.config import from_settings
    from training.search import open_study, plot
    from training.search import propose as choose

    folder, config = _folder(key), from_settings()
    proposal = choose(open_study(folder, config.seed), folder, config, settings().gate_confidence)
    run_id = registry.log_search(key, asdict(proposal), plot(proposal))
    shutil.rmtree(folder / WORK, ignore_errors=True)
    gain = proposal.gain
    print(f"{len(proposal.trials)} configurations tried, MLflow run {run_id}")
    if not proposal.changes:
        print("the configuration there is was the best")
        return
    surely = "better" if proposal.is_better else "not surely better"
    print(f"trial {proposal.best} is {surely}: {NDCG} {gain['mean']:+.4f}, at least {gain['lower']:+.4f}")
    print(f"to train with it from now on: CARTWHEEL_RANKER='{json.dumps(proposal.changes)}'")


@app.command()
def backtest(
    first: Annotated[int, typer.Option("--from", help="First interval to recommend in.")],
    last: Annotated[int, typer.Option("--to", help="Last one.")],
    retrain_every: Annotated[
        list[int] | None, typer.Option(min=1, help="Intervals; may be repeated. Default: 1.")
    ] = None,
) -> None:
    """Recommend in past intervals by models that are retrained, refreshed, or left alone; write and draw how they fare."""
    import tempfile

    from training.backtest import backtest as compare
    from training.backtest import plot
    from training.config import from_settings
    from training.data import load_items, parts
    from training.registry import code_version

    config, chosen, say = from_settings(), settings(), _teller()
    if last < first:
        raise InputError(f"--to {last} is before --from {first}", where="--to", cure="name the first interval first")
    data = needed_training_data()
    dataset = datasets.load(chosen.dataset_path)
    shop = load_items(dataset, data.versions, data.as_of - first + config.training_intervals)
    with tempfile.TemporaryDirectory(prefix="cartwheel-") as folder:
        result = compare(
            shop, parts(shop), config, range(first, last + 1), retrain_every=retrain_every or [1], folder=Path(folder),
            confidence=chosen.gate_confidence, say=say,
        )  # fmt: skip
    path = chosen.reports_dir / "backtest" / f"{first}-{last}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"dataset": dataset.name, "commit": code_version(), "parameters": asdict(config), **result})
    plot(result, path.with_suffix(".svg"))
    for name, values in result["curves"][NDCG].items():
        say(f"{name:<28} {NDCG} {'  '.join(f'{value:.4f}' for value in values)}")
    if gain := result["gain_of_refresh"]:
        say(f"newer data alone: {gain['mean']:+.4f}, at least {gain['lower']:+.4f}, {gain['num_lists']} lists")
    say(f"written: {path} and {path.with_suffix('.svg').name}")


def _finish(key: str, evaluation: dict[str, Any], status: str, **more: Any) -> None:
    result = {
        name: evaluation[name] for name in ("as_of", "requested_by", "table_versions", "refresh") if name in evaluation
    }
    write_json(_folder(key) / "result.json", result | {"status": status} | more)


def main() -> None:
    """Run the command line; a person's mistake is one line and exit status 2."""
    with reported():
        app()


if __name__ == "__main__":
    main()
