"""What the loop achieved: `var/summary.json` for programs, a page of text for people."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

import httpx
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from contracts import names
from contracts.dataset import Dataset
from contracts.files import read_json, write_json, write_text
from contracts.metrics import METRICS, NDCG
from contracts.settings import settings
from contracts.tables import ATTRIBUTIONS, ITEMS, USERS
from deploy.local import airflow_api, progress
from serving.rollout import control, document, history

PACKAGES = ("apache-airflow", "pyspark", "delta-spark", "great-expectations", "tensorflow-cpu", "mlflow")
WHO = {
    "model": "Cartwheel's ranker",
    "champion": "the model that serves",
    "popularity": "what sells best",
    "personal_frequency": "what you buy most",
    "decayed_frequency": "what you buy most of late",
}


def task_seconds(airflow: httpx.Client) -> list[dict[str, Any]]:
    """How long each task of the latest runs took that did something, in order of the loop."""
    rows = []
    for dag_id in names.DAGS:
        for run in airflow_api.list_runs(airflow, dag_id)[-5:]:
            for task in airflow_api.list_tasks(airflow, dag_id, run.run_id):
                if task.state == "success":
                    rows.append(
                        {"dag": dag_id, "run": run.run_id, "task": task.task_id, "seconds": round(task.seconds, 1)}
                    )
    return rows


def examples(interval: int) -> dict[str, dict[str, Any]]:
    """Users' recommendations beside what was then taken, by name.

    Returns:
        `best`: the user most of whose list was taken; `typical`: the one in the middle. Empty without traffic.
    """
    rows = DeltaTable(ATTRIBUTIONS.uri).to_pandas(partitions=[("interval", "=", str(interval))])
    if rows.empty:
        return {}
    hits = [len(set(items) & set(taken)) for items, taken in zip(rows["items"], rows["taken_items"], strict=True)]
    ordered = rows.assign(hits=hits).sort_values(["hits", "user_id"], ascending=[False, True])
    items = DeltaTable(ITEMS.uri).to_pandas(columns=["item_id", "name"]).set_index("item_id")["name"]
    users = DeltaTable(USERS.uri).to_pandas().set_index("user_id")["description"]

    def described(row: Any) -> dict[str, Any]:
        taken = set(row["taken_items"])
        return {
            "interval": interval,
            "user_id": row["user_id"],
            "about": users.get(row["user_id"], ""),
            "recommended": [
                {"item_id": item, "name": items.get(item, item), "taken": item in taken} for item in row["items"]
            ],
            "taken": sorted(str(items.get(item, item)) for item in taken),
        }

    return {"best": described(ordered.iloc[0]), "typical": described(ordered.iloc[len(ordered) // 2])}


def build(
    dataset: Dataset, live: Collection[int], stages: list[dict[str, Any]], tasks: list[dict[str, Any]]
) -> dict[str, Any]:
    """The summary as data."""
    chosen = settings()
    version = progress.deployed_version()
    evaluation = progress.evaluation_of(version) if version is not None else {}
    shown = examples(max(live)) if live else {}
    rest = f"{chosen.gateway_url}/v1/models/{chosen.model}:predict"
    example_user = shown["best"]["user_id"] if shown else "somebody"
    home = (
        ""
        if chosen.home == type(chosen).model_fields["home"].default
        else f"CARTWHEEL_HOME={shlex.quote(str(chosen.home_dir))} "
    )
    token = f"$({home}.venv/bin/python -m serving token issue me --days 1)"
    return {
        "dataset": dataset.name,
        "champion_version": version,
        "evaluation": {key: evaluation.get(key) for key in ("as_of", "means", "folds", "paired")},
        "live": {
            str(interval): {
                "start": str(dataset.interval.start(interval)),
                "decision": progress.decision(interval + 1).get("decision"),
                "drift": progress.decision(interval + 1).get("observation", {}).get("drift"),
                "metrics": progress.decision(interval + 1).get("observation", {}).get("live_by_version"),
            }
            for interval in live
        },
        "rollout": [
            {name: getattr(change, name) for name in ("version", "what", "state", "share", "why", "evidence")}
            for change in history.changes()
            if change.before is not None
        ]
        + _on_its_way(),
        "example": shown.get("best"),
        "typical": shown.get("typical"),
        "stages": stages,
        "tasks": tasks,
        "total_seconds": round(sum(stage["seconds"] for stage in stages), 1),
        "peak_memory_mib": max((stage["peak_memory_mib"] for stage in stages), default=None),
        "urls": {"airflow": chosen.airflow_url, "mlflow": chosen.mlflow_uri, "endpoint": rest},
        "login": {"user": "admin", "password_in": str(chosen.secrets_path)},
        "curl": f'curl -s -H "Authorization: Bearer {token}" '
        f"{rest} -d '{json.dumps({'instances': [{'user_id': example_user}]})}'",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def gain(mean: float, half_width: float | None) -> str:
    """What the model gains in ndcg_at_10, with the half width of the interval of confidence where it is bounded."""
    difference = f"{mean:+.3f}"
    return difference if half_width is None else f"{difference} ± {half_width:.3f}"


def gains_of_evaluation(evaluation: dict[str, Any]) -> dict[str, str]:
    """By baseline."""
    gains = {}
    for who, paired in evaluation["paired"].items():
        mean, lower = paired[NDCG]["mean"], paired[NDCG]["lower"]
        gains[who] = gain(mean, None if lower is None else mean - lower)
    return gains


def live_gains(live: dict[str, Any]) -> dict[str, str]:
    """By baseline; `ndcg_behind` is the lower bound of what the baseline has more than the model."""
    means, gains = live["means"], {}
    for who, behind in live["ndcg_behind"].items():
        ahead = means["model"][NDCG] - means[who][NDCG]
        gains[who] = gain(ahead, None if behind is None else -ahead - behind)
    return gains


def _metrics(title: str, means: dict[str, dict[str, float]], gains: dict[str, str]) -> Table:
    gained = ", ".join(f"over {WHO[who]} {gain}" for who, gain in gains.items())
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=f"gain in {NDCG} {gained}",
        caption_justify="left",
    )
    table.add_column("")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for who, words in WHO.items():
        if who in means:
            style = "bold green" if who == "model" else ""
            table.add_row(words, *(f"{means[who][metric]:.3f}" for metric in METRICS), style=style)
    return table


def _list_beside_taken(user: dict[str, Any], which: str) -> Table:
    about = f" ({user['about']})" if user["about"] else ""
    table = Table(
        title=f"User {user['user_id']}{about} in interval {user['interval']}, {which}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("was recommended")
    table.add_column("and took", style="dim")
    taken = user["taken"]
    for place, item in enumerate(user["recommended"]):
        mark, style = ("✓", "green") if item["taken"] else (" ", "")
        beside = taken[place] if place < len(taken) else ""
        table.add_row(f"[{style}]{mark} {item['name']}[/]" if style else f"{mark} {item['name']}", beside)
    if len(taken) > len(user["recommended"]):
        table.add_row("", f"... and {len(taken) - len(user['recommended'])} more")
    return table


def _on_its_way() -> list[dict[str, Any]]:
    """The version that waits for more shoppers, as the last change of `rollout`."""
    verdict, now = control.judgement(), document.read()
    if verdict is None:
        return []
    about = {"version": now.challenger, "what": "waits", "state": now.state, "share": now.share}
    return [about | {"why": "; ".join(verdict.reasons), "evidence": verdict.evidence}]


MARKS = {
    "passed": "[green]✓[/]",
    "promoted": "[green]✓[/]",
    "rejected": "[red]✗[/]",
    "rolled back": "[red]✗[/]",
    "waits": "…",
}


def _rollout(changes: list[dict[str, Any]]) -> Table:
    marks = [change for change in changes if change["what"] in MARKS]
    reasons = [f"version {change['version']} {change['what']}: {change['why']}" for change in marks if change["why"]]
    table = Table(
        title="How versions came to their traffic",
        title_justify="left",
        title_style="bold",
        caption="\n".join(reasons),
        caption_justify="left",
    )
    table.add_column("")
    for name in ("predictions", "failed", "hit rate", "champion's"):
        table.add_column(name, justify="right")
    for change in marks:
        evidence = change["evidence"]
        role = f" as {change['state']} at {change['share']:.0%}" if change["share"] else ""
        rates = [f"{evidence[name]:.3f}" if name in evidence else "" for name in ("hit_rate", "stable_hit_rate")]
        counts = [f"{evidence[name]:,}" if name in evidence else "" for name in ("requests", "failed")]
        table.add_row(f"{MARKS[change['what']]} version {change['version']} {change['what']}{role}", *counts, *rates)
    return table


def _times(summary: dict[str, Any]) -> Table:
    table = Table(title="Where the time went", title_justify="left", title_style="bold")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("peak MiB, everything together", justify="right")
    for stage in summary["stages"]:
        table.add_row(stage["stage"], f"{stage['seconds']:.0f}", f"{stage['peak_memory_mib']:,}")
    table.add_row("together", f"{summary['total_seconds']:.0f}", f"{summary['peak_memory_mib'] or 0:,}", style="bold")
    return table


def _verb(decision: dict[str, Any]) -> str:
    return "retrain" if decision["retrain"] else "refresh" if decision.get("refresh") else "keep"


def show(
    dataset: Dataset, live: Collection[int], stages: list[dict[str, Any]], tasks: list[dict[str, Any]], console: Console
) -> None:
    """Write `summary.json` and print the same for people."""
    summary = build(dataset, live, stages, tasks)
    path = settings().home_dir / "summary.json"
    write_json(path, summary)
    console.print()
    console.rule(f"[bold]Cartwheel: {dataset.title or dataset.name}")
    means = summary["evaluation"]["means"]
    if means:
        intervals = ", ".join(str(fold["as_of"]) for fold in summary["evaluation"]["folds"])
        title = f"Evaluation on intervals {intervals}, none of them seen in training"
        console.print(_metrics(title, means, gains_of_evaluation(summary["evaluation"])))
    for interval, record in summary["live"].items():
        for version, metrics in (record["metrics"] or {}).items():
            title = (
                f"Live in interval {interval} from {record['start'][:10]}, version {version}: {metrics['num_users']} users, "
                f"p50 {metrics['latency_p50_ms']:.1f} ms, p99 {metrics['latency_p99_ms']:.1f} ms"
            )
            if metrics["means"]:
                console.print(_metrics(title, metrics["means"], live_gains(metrics)))
            else:
                console.print(f"{title}; nobody took anything, so there is nothing to measure by")
        if record["decision"]:
            console.print(
                f"Monitoring: {_verb(record['decision'])}: {'; '.join(record['decision']['reasons'])}\n",
                highlight=False,
            )
    if summary["rollout"]:
        console.print(_rollout(summary["rollout"]))
    if summary["example"]:
        console.print(_list_beside_taken(summary["typical"], "whose list is in the middle of all"))
        console.print(_list_beside_taken(summary["example"], "whose list fitted best"))
    console.print(_times(summary))
    urls, login = summary["urls"], summary["login"]
    console.print(
        f"[bold]Airflow[/]   {urls['airflow']}  log in as {login['user']}; the password is in {login['password_in']}"
    )
    console.print(f"[bold]MLflow[/]    {urls['mlflow']}")
    console.print(f"[bold]Endpoint[/]  {urls['endpoint']}")
    console.print(f"[bold]Try it[/]    {summary['curl']}", highlight=False, markup=True)
    console.print(f"[dim]The same as JSON: {path}[/]\n", highlight=False)


PUBLISHED = ("dataset", "evaluation", "live", "example", "stages", "total_seconds", "peak_memory_mib", "versions")
"""What of a summary goes into `docs/summary.json`: everything but this machine's addresses and paths."""


def numbers(summary: dict[str, Any]) -> str:
    """The README's block of numbers, in Markdown."""

    def table(means: dict[str, dict[str, float]]) -> list[str]:
        rows = [
            f"| {words} | " + " | ".join(f"{means[who][metric]:.3f}" for metric in METRICS) + " |"
            for who, words in WHO.items()
            if who in means
        ]
        return ["| | " + " | ".join(METRICS) + " |", "|---|" + "---:|" * len(METRICS), *rows]

    evaluation = summary["evaluation"]
    folds = ", ".join(str(fold["as_of"]) for fold in evaluation["folds"])
    lists = sum(fold["num_lists"] for fold in evaluation["folds"])
    lines = [
        f"Evaluation on weeks {folds}, none of them seen in training ({lists:,} lists):",
        "",
        *table(evaluation["means"]),
    ]
    for interval, record in summary["live"].items():
        for live in record["metrics"].values():
            lines += ["", f"Live in week {interval}, {live['num_users']:,} households:", "", *table(live["means"])]
            lines += [
                "",
                f"A request took {live['latency_p50_ms']:.1f} ms at the median, {live['latency_p99_ms']:.1f} ms at p99.",
            ]
    stages = ", ".join(f"{stage['stage'].split(' (')[0]} {stage['seconds']:.0f} s" for stage in summary["stages"])
    lines[-1] += (
        f" The loop took {summary['total_seconds'] / 60:.0f} minutes on two cores after start-up, "
        f"and {summary['peak_memory_mib'] / 1024:.1f} GiB at its peak, everything together: {stages}."
    )
    return "\n".join(lines)


def publish(readme: Path, published: Path) -> None:
    """Put the numbers of this installation's summary into the documents."""
    summary = read_json(settings().home_dir / "summary.json")
    write_json(published, {name: summary[name] for name in PUBLISHED})
    before, _, rest = readme.read_text().partition("<!-- numbers -->")
    _, _, after = rest.partition("<!-- /numbers -->")
    write_text(readme, f"{before}<!-- numbers -->\n{numbers(summary)}\n<!-- /numbers -->{after}")
