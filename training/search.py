"""Search for a better configuration, by Optuna: each trial is a process of its own, which may be killed and run again.

A trial trains on rolling intervals and recommends in them, as the evaluation does, but in those that lie one interval
before the gate's folds: what is chosen here was not chosen by the lists that the gate judges it by. After each
interval Optuna says whether it is worth going on (the median rule: Golovin et al., Google Vizier, 2017).

All of a search lies in one folder: the examples, made once for all trials; Optuna's journal; the scores of each trial.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.errors import InputError
from contracts.files import locked, write_json
from contracts.metrics import NDCG, K, paired_difference
from contracts.trainings import WORK
from training.config import RankerConfig

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure

    from training.data import Ints, Lists, Part, Shop
    from training.evaluation import Scores
    from training.ranker import Ranker
    from training.trainer import Retrieval, Say

TASK = "task"
"""Which of the search's tasks has made a trial."""
STARTUP_TRIALS = 5
"""Before so many have ended, none is pruned and none is guided by others."""
CATEGORIES = {"hidden_units": ("64", "64-32", "128-64", "256-128"), "lists_a_batch": (32, 64, 128, 256)}
LOGARITHMIC = {"item_bias_l2": (1e-5, 1e-1), "learning_rate": (3e-4, 1e-2), "weight_decay": (1e-6, 1e-2)}
EPOCHS = (2, 8)


def space(config: RankerConfig) -> dict[str, optuna.distributions.BaseDistribution]:
    """What is searched: parts of the configuration that make no other examples. It has `config` itself, too."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    here = point(config)
    return {
        **{
            name: CategoricalDistribution([*dict.fromkeys([*choices, here[name]])])
            for name, choices in CATEGORIES.items()
        },
        **{
            name: FloatDistribution(min(low, here[name]), max(high, here[name]), log=True)
            for name, (low, high) in LOGARITHMIC.items()
        },
        "epochs": IntDistribution(min(EPOCHS[0], config.epochs), max(EPOCHS[1], config.epochs)),
    }


def point(config: RankerConfig) -> dict[str, Any]:
    """Where a configuration lies in the space."""
    named: dict[str, Any] = {name: getattr(config, name) for name in (*CATEGORIES, *LOGARITHMIC, "epochs")}
    return named | {"hidden_units": "-".join(map(str, config.hidden_units))}


def at(params: Mapping[str, Any], config: RankerConfig) -> RankerConfig:
    """The configuration at a point of the space; what is not searched is that of `config`."""
    return replace(config, **{**params, "hidden_units": tuple(map(int, params["hidden_units"].split("-")))})


def open_study(folder: Path, seed: int) -> optuna.Study:
    """Of the search in this folder; other processes may have it open.

    Args:
        seed: of what this process suggests: two with the same would try the same.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        study_name="ranker",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, constant_liar=True, seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
    )


def begin(folder: Path, config: RankerConfig) -> None:
    """Make the study, once; its first trial is the configuration there is, which others have to beat."""
    study = open_study(folder, config.seed)
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(point(config))


def spent_minutes(study: optuna.Study) -> float:
    """What its trials have taken."""
    return sum(trial.duration.total_seconds() for trial in study.get_trials(deepcopy=False) if trial.duration) / 60


def needs_trial(study: optuna.Study, task: int, minutes: float) -> bool:
    """Whether a task has a trial to make: it has none yet that has ended, and there are minutes left."""
    has_ended = any(
        trial.user_attrs.get(TASK) == task and trial.state.name in ("COMPLETE", "PRUNED")
        for trial in study.get_trials(deepcopy=False)
    )
    return not has_ended and spent_minutes(study) < minutes


def folds(shop: Shop, config: RankerConfig) -> list[int]:
    """Intervals to try configurations in, first ones first.

    Raises:
        InputError: there are too few intervals.
    """
    from training.trainer import possible_folds

    earlier = replace(config, fold_offsets=tuple(offset + 1 for offset in config.fold_offsets))
    possible = possible_folds(shop, earlier)
    if not possible:
        raise InputError(
            "there is no interval to try configurations in",
            where="the table of training lists",
            cure="land more intervals, or lower CARTWHEEL_FOLD_OFFSETS",
        )
    return possible


def try_one(
    study: optuna.Study,
    task: int,
    *,
    folder: Path,
    shop: Shop,
    parts: Sequence[Part],
    config: RankerConfig,
    say: Say,
) -> None:
    """Make the trial of a task. What a kill has left of it is made again, with the same configuration.

    Args:
        shop: what is known of the items; `parts` are the same with users.
        config: has what is not searched.
    """
    from optuna.trial import TrialState

    from training.evaluation import MODEL
    from training.fitting import fit
    from training.trainer import Retrieval, learning_intervals, write_examples

    for broken in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if broken.user_attrs.get(TASK) == task:
            study.tell(broken.number, state=TrialState.FAIL)
            study.enqueue_trial(broken.params)
    trial = study.ask(space(config))
    trial.set_user_attr(TASK, task)
    chosen, retrieve = at(trial.params, config), Retrieval(shop, config)
    say(f"trial {trial.number}: {json.dumps(trial.params)}")
    learned = {fold: learning_intervals(shop, fold, config) for fold in folds(shop, config)}
    with locked(folder / "examples.lock"):  # the first trial makes them
        shards = write_examples(
            parts,
            sorted({*chain.from_iterable(learned.values())}),
            config,
            retrieve,
            folder / WORK / "examples",
            say=say,
        )
    users, ndcg = [], []
    for step, (fold, intervals) in enumerate(learned.items()):
        of_intervals = [shard for interval in intervals for shard in shards[interval]]
        ranker = fit(of_intervals, chosen, len(shop.item_ids), lambda epoch, loss: None)
        of_fold = _scores(parts, fold, ranker, chosen, retrieve)
        users.append(of_fold.users)
        ndcg.append(of_fold.metrics[MODEL][NDCG])
        so_far = float(np.concatenate(ndcg).mean())
        say(f"trial {trial.number}: as of {fold} {NDCG} {ndcg[-1].mean():.4f}, so far {so_far:.4f}")
        trial.report(so_far, step)
        if step + 1 < len(learned) and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            say(f"trial {trial.number}: not worth going on with")
            return
    path = _scores_path(folder, trial.number)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, users=np.concatenate(users), ndcg=np.concatenate(ndcg))
    study.tell(trial, so_far)


def _scores_path(folder: Path, number: int) -> Path:
    return folder / "trials" / f"{number}.npz"


def _scores(parts: Sequence[Part], fold: int, ranker: Ranker, config: RankerConfig, retrieve: Retrieval) -> Scores:
    from training import evaluation
    from training.evaluation import MODEL
    from training.trainer import recommend

    def show(shop: Shop, lists: Lists) -> dict[str, Ints]:
        return {MODEL: recommend(shop, lists, ranker, config, retrieve, num_places=K)}

    return evaluation.pooled(parts, [fold], show)[fold]


@dataclass(frozen=True)
class Proposal:
    """What a search has found.

    Attributes:
        best: number of the best trial; `first` of the configuration that there was.
        is_better: whether it is better than that one with the confidence of the gate, over the same lists.
        changes: the parts of the configuration in which both differ, as CARTWHEEL_RANKER takes them.
        gain: paired difference in ndcg_at_10, with its bounds.
        trials: number, state, ndcg_at_10, seconds and configuration of each, best first.
    """

    best: int
    first: int
    is_better: bool
    changes: Mapping[str, Any]
    gain: Mapping[str, float]
    trials: Sequence[Mapping[str, Any]]


def propose(study: optuna.Study, folder: Path, config: RankerConfig, confidence: float) -> Proposal:
    """The best configuration, beside the one there is; kept as `proposal.json`.

    Raises:
        InputError: the configuration there is was not tried to its end.
    """
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    here = [trial for trial in complete if trial.params == point(config)]
    if not here:
        raise InputError(
            "the configuration there is was not tried to its end, so nothing can be held against it",
            where=str(folder),
            cure="see the logs of the trials; run the search again, with more minutes",
        )
    first, best = here[0], max(complete, key=lambda trial: trial.value or 0.0)
    ours, theirs = (np.load(_scores_path(folder, trial.number)) for trial in (best, first))
    gain = paired_difference(ours["ndcg"], theirs["ndcg"], confidence, ours["users"])
    before, after = asdict(config), asdict(at(best.params, config))
    proposal = Proposal(
        best.number,
        first.number,
        bool(gain.lower > 0),
        {name: value for name, value in after.items() if value != before[name]},
        gain._asdict(),
        sorted(map(_row, study.get_trials(deepcopy=False)), key=lambda row: -(row[NDCG] or 0.0)),
    )
    write_json(folder / "proposal.json", asdict(proposal))
    return proposal


def _row(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    last = trial.value if trial.value is not None else trial.intermediate_values.get(trial.last_step or 0)
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        NDCG: last,
        "intervals": len(trial.intermediate_values),
        "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else None,
        **trial.params,
    }


def plot(proposal: Proposal) -> Figure:
    """Draw ndcg_at_10 against each searched part of the configuration, a dot for each trial."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullFormatter

    rows = [row for row in proposal.trials if row[NDCG] is not None]
    kinds = {
        "pruned": ([row for row in rows if row["state"] == "pruned"], "lightgrey"),
        "tried to its end": ([row for row in rows if row["state"] == "complete"], "tab:blue"),
        "best": ([row for row in rows if row["trial"] == proposal.best], "tab:green"),
        "as it is": ([row for row in rows if row["trial"] == proposal.first], "tab:orange"),
    }
    figure = Figure(figsize=(11, 6), layout="constrained")
    for name, axes in zip((*LOGARITHMIC, *CATEGORIES, "epochs"), figure.subplots(2, 3, sharey=True).flat, strict=True):
        choices = (
            sorted({row[name] for row in rows}, key=lambda choice: [int(n) for n in str(choice).split("-")])
            if name in CATEGORIES
            else None
        )
        for label, (of_kind, colour) in kinds.items():
            values = [choices.index(row[name]) if choices else row[name] for row in of_kind]
            axes.scatter(values, [row[NDCG] for row in of_kind], color=colour, label=label)
        if choices:
            axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
        elif name in LOGARITHMIC:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[::3]:
        axes.set_ylabel(NDCG)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False)
    return figure
