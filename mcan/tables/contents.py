"""What prepared datasets hold now, to tell whether a run saw the same."""

from __future__ import annotations

from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.data.store_digest import store_digest
from mcan.errors import DataError, RunError
from mcan.tables.outcome import Outcome
from mcan.tables.plan import PlannedRun


class Contents:
    """Prepared datasets, digests of their splits and of image stores, each read once."""

    def __init__(self) -> None:
        self._prepared: dict[str, Prepared | DataError] = {}
        self._digests: dict[tuple[str, str], str | None] = {}
        self._stores: dict[str, str | None] = {}

    def open(self, folder: str) -> Prepared:
        """The prepared dataset; raises `DataError` where there is none that can be read."""
        if folder not in self._prepared:
            try:
                self._prepared[folder] = Prepared.open(folder)
            except DataError as error:
                self._prepared[folder] = error
        found = self._prepared[folder]
        if isinstance(found, DataError):
            raise found
        return found

    def prepared(self, folder: str) -> Prepared | None:
        """The prepared dataset, None where there is none (any longer)."""
        try:
            return self.open(folder)
        except DataError:
            return None

    def digest(self, folder: str, split: str) -> str | None:
        """Of the content of a split; None where it cannot be told."""
        key = folder, split
        if key not in self._digests:
            prepared = self.prepared(folder)
            there = prepared is not None and split in prepared.splits
            self._digests[key] = (
                prepared.split(split).content_digest if prepared and there else None
            )
        return self._digests[key]

    def store(self, path: str) -> str | None:
        """The digest of an image store; None where it cannot be told."""
        if path not in self._stores:
            try:
                self._stores[path] = store_digest(open_store(path))
            except DataError:
                self._stores[path] = None
        return self._stores[path]

    def check(self, run: PlannedRun, outcome: Outcome) -> None:
        """Raise `RunError` where the data has changed since `run` was trained and evaluated.

        Data that is no longer there has not changed, nor have image stores that were not noted.
        """
        seen = {entry["split"]: entry["content"] for entry in outcome.trained_on}
        folder = run.config.data.prepared
        for split, digest in (*seen.items(), (outcome.split, outcome.digest)):
            if self.digest(folder, split) not in (None, digest):
                raise _changed(run, f"the split '{split}' of {folder}")
        for entry in outcome.trained_on:
            for path, digest in entry.get("stores", {}).items():
                if self.store(path) not in (None, digest):
                    raise _changed(run, f"the image store {path}")


def _changed(run: PlannedRun, what: str) -> RunError:
    return RunError(
        f"{run.folder} ({run.title}): {what} is not what it was when this run was made; prepare "
        "that data again, or remove the folder to run it anew"
    )
