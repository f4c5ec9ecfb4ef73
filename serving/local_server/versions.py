"""Which versions are served: the model config against the file system, loads, unloads, labels.

One loader thread brings what is loaded to what is aspired, with TF Serving's availability-preserving policy:
an old version is unloaded only once an aspired one is AVAILABLE, and only when its last request is done.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc import StatusCode

from serving.local_server.saved_model import Model
from serving.local_server.status import StatusError, invalid

START, LOADING, AVAILABLE, UNLOADING, END = "START", "LOADING", "AVAILABLE", "UNLOADING", "END"
LARGEST_VERSION = 2**63 - 1

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Version:
    """One version of one model, from its discovery to END."""

    name: str
    number: int
    path: Path
    state: str = START
    error: StatusError | None = None
    aspired: bool = True
    attempts: int = 0
    next_attempt_s: float = 0.0
    users: int = 0
    model: Model | None = None


class Versions:
    """All models of this server.

    Args:
        load: makes a model of a version's folder.
        max_num_load_retries, load_retry_interval_s: attempts after the first failed one, and the wait before each.
        poll_wait_s: seconds between looks at the file system; zero looks once for each config.
        labels_for_unavailable: a label not in use may name a version that is not AVAILABLE.
    """

    def __init__(
        self,
        load: Callable[[Path], Model],
        *,
        max_num_load_retries: int = 5,
        load_retry_interval_s: float = 60.0,
        poll_wait_s: float = 1.0,
        labels_for_unavailable: bool = False,
    ) -> None:
        self._load_model = load
        self._max_num_load_retries, self._load_retry_interval_s = max_num_load_retries, load_retry_interval_s
        self._poll_wait_s, self._labels_for_unavailable = poll_wait_s, labels_for_unavailable
        self._configs: dict[str, Any] = {}
        self._versions: dict[str, dict[int, Version]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._messages: dict[str, str] = {}
        self._loading: Version | None = None
        self._changed = threading.Condition()
        self._reloading = threading.Lock()
        self._wake = threading.Event()
        threading.Thread(target=self._run, name="loader", daemon=True).start()

    # Configuration

    def apply(self, config: Any) -> None:
        """Take a whole new `ModelServerConfig`; wait until each model it adds has a version AVAILABLE.

        A config without a list is ignored, as TF Serving does. A model without any version is not waited for.

        Raises:
            StatusError: the config is invalid, moves a label to a version that is not AVAILABLE, or none of
                a new model's versions loaded.
        """
        with self._reloading:
            if config.WhichOneof("config") != "model_config_list":
                log.info("Taking no action for empty config.")
                return
            configs = {model.name: model for model in config.model_config_list.config}
            _validate(config.model_config_list.config, configs)
            folders = _folders(configs)
            with self._changed:
                self._labels = self._checked_labels(configs)
                added = configs.keys() - self._configs.keys()
                self._configs = configs
                self._aspire(folders)
                self._wake.set()
                self._changed.wait_for(lambda: all(self._settled(name) for name in added))
                failed = {
                    f"{{name: {name} version: {version.number} due to error: {version.error}}}"
                    for name in added
                    for version in self._versions.get(name, {}).values()
                    if version.aspired and not self._available(name)
                }
            if failed:
                message = f"{len(failed)} servable(s) did not become available: {', '.join(sorted(failed))}"
                raise StatusError(StatusCode.UNKNOWN, message)

    def _checked_labels(self, configs: dict[str, Any]) -> dict[str, dict[str, int]]:
        for name, model in configs.items():
            for label, number in model.version_labels.items():
                unused = self._labels.get(name, {}).get(label, number) == number
                if number not in self._available(name) and not (self._labels_for_unavailable and unused):
                    raise StatusError(
                        StatusCode.FAILED_PRECONDITION,
                        f"Request to assign label {label!r} to version {number} of model {name}, "
                        "which is not currently available for inference",
                    )
        return {name: dict(model.version_labels) for name, model in configs.items()}

    def _available(self, name: str) -> dict[int, Version]:
        return {n: version for n, version in self._versions.get(name, {}).items() if version.state == AVAILABLE}

    def _settled(self, name: str) -> bool:
        aspired = [version for version in self._versions.get(name, {}).values() if version.aspired]
        return bool(self._available(name)) or all(version.state == END for version in aspired)

    # Serving

    @contextmanager
    def use(self, name: str, number: int | None = None, label: str | None = None) -> Iterator[tuple[int, Model]]:
        """Hold a version for one request: the numbered, the labelled, or the highest AVAILABLE one.

        Raises:
            StatusError: INVALID_ARGUMENT for an unknown label, NOT_FOUND for a model or version not AVAILABLE.
        """
        if not name:
            raise invalid("Missing model name in request.")
        with self._changed:
            if label is not None:
                if label not in self._labels.get(name, {}):
                    raise invalid(f"Unrecognized servable version label: {label}")
                number = self._labels[name][label]
            available = self._available(name)
            version = available.get(max(available, default=-1) if number is None else number)
            if version is None or version.model is None:
                which = f"Latest({name})" if number is None else f"Specific({name}, {number})"
                raise StatusError(StatusCode.NOT_FOUND, f"Servable not found for request: {which}")
            version.users += 1
        try:
            yield version.number, version.model
        finally:
            with self._changed:
                version.users -= 1
                self._finish_unload(version)

    def states(self, name: str, number: int | None = None) -> list[tuple[int, str, StatusError | None]]:
        """(number, state, error) of every version seen so far, or of one; highest first.

        Raises:
            StatusError: NOT_FOUND.
        """
        with self._changed:
            versions = self._versions.get(name, {})
            if number is not None and number not in versions:
                raise StatusError(StatusCode.NOT_FOUND, f"Could not find version {number} of model {name}")
            if not versions:
                raise StatusError(StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
            return [
                (version.number, version.state, version.error)
                for version in sorted(versions.values(), key=lambda version: -version.number)
                if number in (None, version.number)
            ]

    # Loading: only the loader thread loads, so one load at a time

    def _run(self) -> None:
        while True:
            # The disk may be slow, and requests wait for the lock: it is read before.
            configs = self._configs
            folders = _folders(configs) if self._poll_wait_s > 0 else None
            with self._changed:
                if folders is not None and configs is self._configs:
                    self._aspire(folders)
                waiting = self._waiting_for_load()
                now_s = time.monotonic()
                due = next((version for version in waiting if version.next_attempt_s <= now_s), None)
                self._loading = due
                pauses = [version.next_attempt_s - now_s for version in waiting]
            if due:
                self._load(due)
            else:
                self._wake.wait(min(pauses + [self._poll_wait_s] * (self._poll_wait_s > 0), default=None))
                self._wake.clear()

    def _waiting_for_load(self) -> list[Version]:
        waiting = [v for versions in self._versions.values() for v in versions.values() if v.state in (START, LOADING)]
        return sorted(waiting, key=lambda version: (version.next_attempt_s, -version.number))

    def _aspire(self, folders: dict[str, dict[int, Path] | OSError]) -> None:
        """Compare the folders of each model with the config: discover versions, unload those no longer aspired."""
        for name in self._versions.keys() | self._configs.keys():
            versions = self._versions.setdefault(name, {})
            aspired = folders.get(name, {})
            if isinstance(aspired, OSError):
                self._say(name, f"Could not find base path of model {name}: {aspired}")
                continue
            if name in self._configs:
                self._say(name, _shortfall(self._configs[name], aspired))
            for number, path in aspired.items():
                # What ended while aspired stays ended; naming it anew is a new try.
                if number not in versions or (versions[number].state == END and not versions[number].aspired):
                    versions[number] = Version(name, number, path)
            for version in versions.values():
                version.aspired = version.number in aspired
                if not version.aspired and version.state in (START, LOADING) and version is not self._loading:
                    version.state = END
            self._unload(name)
        self._changed.notify_all()

    def _load(self, version: Version) -> None:
        version.state = LOADING
        version.attempts += 1
        log.info("Loading servable version {name: %s version: %d}", version.name, version.number)
        model, error = None, None
        try:
            model = self._load_model(version.path)
        except StatusError as failure:
            error = failure
        with self._changed:
            self._loading = None
            version.error = error
            if error:
                log.error("Loading {name: %s version: %d} failed: %s", version.name, version.number, error)
                version.next_attempt_s = time.monotonic() + self._load_retry_interval_s
                if not version.aspired or version.attempts > self._max_num_load_retries:
                    version.state = END
            elif model and not version.aspired:
                model.close()
                version.state = END
            else:
                version.model, version.state = model, AVAILABLE
                log.info("Successfully loaded servable version {name: %s version: %d}", version.name, version.number)
            self._unload(version.name)
            self._changed.notify_all()

    def _unload(self, name: str) -> None:
        """Retire what is not aspired, unless nothing aspired could take over yet."""
        versions = self._versions[name].values()
        if any(v.aspired for v in versions) and not any(v.aspired and v.state == AVAILABLE for v in versions):
            return
        for version in list(versions):
            if version.state == AVAILABLE and not version.aspired:
                version.state = UNLOADING
                self._finish_unload(version)

    def _finish_unload(self, version: Version) -> None:
        if version.state != UNLOADING or version.users:
            return
        if version.model:
            version.model.close()
        version.model, version.state = None, END
        log.info("Unloaded servable version {name: %s version: %d}", version.name, version.number)
        if version.aspired:  # named again while its last requests ran
            self._versions[version.name][version.number] = Version(version.name, version.number, version.path)
            self._wake.set()

    def _say(self, name: str, message: str) -> None:
        """Warn once, not at every poll."""
        if message and self._messages.get(name) != message:
            log.warning(message)
        self._messages[name] = message


def _validate(models: Any, by_name: dict[str, Any]) -> None:
    if len(by_name) != len(models):
        raise invalid("Illegal to list model names more than once in a model config list")
    for model in models:
        if not model.name or not model.base_path:
            raise invalid(f"Model {model.name!r} must have a name and a base_path")
        if model.model_platform != "tensorflow":
            raise invalid(f"Model {model.name} requests unsupported platform {model.model_platform!r}")


def _listed(model: Any) -> set[int]:
    """The versions that the policy names one by one."""
    return set(model.model_version_policy.specific.versions)


def _shortfall(model: Any, aspired: dict[int, Path]) -> str:
    """What the policy asks for and the file system lacks; empty when nothing."""
    if missing := sorted(_listed(model) - aspired.keys()):
        return f"Versions {missing} of model {model.name} were not found under {model.base_path}"
    return "" if aspired else f"No versions of model {model.name} to serve under {model.base_path}"


def _folders(configs: dict[str, Any]) -> dict[str, dict[int, Path] | OSError]:
    """`_aspired` of each model, or why it cannot be told."""
    folders_by_model: dict[str, dict[int, Path] | OSError] = {}
    for name, model in configs.items():
        try:
            folders_by_model[name] = _aspired(model)
        except OSError as error:
            folders_by_model[name] = error
    return folders_by_model


def _aspired(model: Any) -> dict[int, Path]:
    """The folders of the versions that the model's policy asks for, of those there are.

    Raises:
        OSError: there is no base path.
    """
    folders = {
        int(child.name): child
        for child in Path(model.base_path).iterdir()
        if child.name.isascii() and child.name.isdigit() and int(child.name) <= LARGEST_VERSION and child.is_dir()
    }
    policy = model.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return folders
        case "specific":
            return {number: path for number, path in folders.items() if number in _listed(model)}
        case _:
            latest = sorted(folders)[-(policy.latest.num_versions or 1) :]
            return {number: folders[number] for number in latest}
