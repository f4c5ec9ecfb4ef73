"""A version's folder: checked against its manifest, staged beside the base path, put in place by one rename."""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath

from contracts.champion import base_path
from contracts.errors import InputError
from contracts.files import sha256, sync
from contracts.settings import settings
from contracts.verdicts import GOLDEN, MANIFEST
from serving.durable import sync_tree

REQUIRED = ("saved_model.pb", GOLDEN)


def verify(folder: Path) -> str:
    """Check every file of a folder against its `MANIFEST.sha256` (lines `sha256  relative/path`).

    Returns:
        The SHA-256 of the manifest itself, which names the content.

    Raises:
        InputError: the manifest is missing or malformed, or a file is missing, differs or is not listed.
    """

    def refuse(what: str) -> InputError:
        return InputError(what, where=str(folder), cure="export and register the version again")

    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise refuse(f"there is no {MANIFEST}")
    expected: dict[str, str] = {}
    for line in manifest.read_text().splitlines():
        digest, separator, name = line.partition("  ")
        path = PurePosixPath(name)
        if not separator or len(digest) != 64 or path.is_absolute() or ".." in path.parts:
            raise refuse(f"{MANIFEST} has the malformed line {line!r}")
        expected[str(path)] = digest
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    for name in REQUIRED:
        if name not in expected:
            raise refuse(f"{MANIFEST} does not list {name}")
    if missing := sorted(expected.keys() - present):
        raise refuse(f"the files {missing} of {MANIFEST} are missing")
    if extra := sorted(present - expected.keys() - {MANIFEST}):
        raise refuse(f"the files {extra} are not listed in {MANIFEST}")
    for name, digest in sorted(expected.items()):
        if (folder / name).is_symlink() or sha256(folder / name) != digest.lower():
            raise refuse(f"the file {name} does not match its checksum in {MANIFEST}")
    return sha256(manifest)


def place(version: int, source: str, manifest_sha256: str) -> Path:
    """Download, check and put a version in place; one that is already there is checked only.

    A numeric folder under the base path is loaded the moment it appears, so it appears complete.

    Args:
        source: MLflow artifact URI of the folder with the SavedModel.
        manifest_sha256: of the manifest of the model that the gate judged.

    Raises:
        InputError: the artifact cannot be downloaded or its files do not match the manifest, or that is another one.
    """

    def verify_judged(folder: Path) -> None:
        if verify(folder) != manifest_sha256:
            raise InputError(
                f"version {version} is not the model that the gate judged",
                where=str(folder),
                cure="find out who changed it; train, judge and register again",
            )

    final = base_path() / str(version)
    if final.exists():
        verify_judged(final)
        return final
    staging = settings().serving_dir / "staging"
    shutil.rmtree(staging, ignore_errors=True)  # what a killed run left
    staging.mkdir(parents=True)
    downloaded = _download(source, staging)
    verify_judged(downloaded)
    sync_tree(downloaded)
    final.parent.mkdir(parents=True, exist_ok=True)
    downloaded.rename(final)
    sync(final.parent)
    shutil.rmtree(staging, ignore_errors=True)
    return final


def _download(source: str, folder: Path) -> Path:
    import mlflow

    mlflow.set_tracking_uri(settings().mlflow_uri)
    try:
        downloaded = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder)))
    except (OSError, mlflow.exceptions.MlflowException) as error:
        raise InputError(
            f"cannot download the version: {error}",
            where=source,
            cure="see that MLflow and its store are reachable",
        ) from None
    inside = folder / "version"
    # The store may answer with the folder itself, or with the source where it is on this machine.
    if downloaded.resolve() == folder.resolve():
        inside.mkdir()
        for child in list(folder.iterdir()):
            if child != inside:
                child.rename(inside / child.name)
    elif downloaded.resolve().is_relative_to(folder.resolve()):
        downloaded.rename(inside)
    else:
        shutil.copytree(downloaded, inside, symlinks=True)
    return inside


def remove(version: int) -> None:
    """Delete a version's folder; it leaves the base path by one rename first."""
    trash = settings().serving_dir / "trash"
    shutil.rmtree(trash, ignore_errors=True)
    trash.mkdir(parents=True)
    os.rename(base_path() / str(version), trash / str(version))
    shutil.rmtree(trash, ignore_errors=True)


def versions_on_disk() -> set[int]:
    if not base_path().is_dir():
        return set()
    return {int(child.name) for child in base_path().iterdir() if child.name.isdigit()}
