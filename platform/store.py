"""The run store: a directory that holds everything a run leaves behind.

    config.yaml            the configuration (written once; another configuration is refused)
    lock, attempt          who writes here: a file lock, and the count of those who did, which fences off the ones before
    manifest.json          what is committed: the last complete generation and its files
    journal/               one file per finished simulation of the generation under way
    ledger/, macro/        Parquet, one file per generation: individuals, and the traffic of each simulation
    checkpoints/           safetensors and JSON, one per generation
    references.json, evaluation.json, report.html, figures/, events.* (TensorBoard)
    log.jsonl              what happened when: simulations, generations, lost workers; a line of JSON each

Files appear by rename, complete or not at all; the manifest commits them. All of it is data: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..scenarios.errors import InputError
from .config import Config, RunConfig, load_config, read_yaml, validated

Arrays = dict[str, NDArray[Any]]
FULL = (errno.ENOSPC, errno.EDQUOT)
PASSING = (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT)  # of storage that others share, now and then
PAUSES = (1.0, 4.0)  # seconds before a write is tried again
FREE = ("workers", "report", "evaluation")  # groups of settings that may change when a run goes on
LENGTHS = ("search.budget", "search.generations", "search.patience", "training.episodes")  # these, with --resume
NEEDED = 200 * 2**20  # bytes of free space below which a run is not begun


def _by_name(config: RunConfig) -> dict[str, Any]:
    """What must stay as it is in a run's folder, as `group.key`, or `group` where it has no keys."""
    data = {group: one for group, one in config.model_dump(mode="json").items() if group not in FREE}
    groups = {group: one for group, one in data.items() if isinstance(one, dict)}
    alone = {group: one for group, one in data.items() if group not in groups}
    return alone | {f"{group}.{key}": value for group, one in groups.items() for key, value in one.items()}


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name and renames it, so that readers see it whole or not at all.

    Raises:
        InputError: the disk is full or the storage fails, and that did not pass within seconds.
    """
    for pause in (*PAUSES, None):
        try:
            _write_once(path, write)
            return
        except (OSError, SafetensorError) as error:
            number = _error_number(error)
            if number not in (*FULL, *PASSING):
                raise
            if pause is None:
                why, what = ("the disk is full", "Make room") if number in FULL else (str(error), "Mend the storage")
                raise InputError(
                    f"{path}: {why}; nothing that was finished is lost. {what} and run the same command again"
                ) from error
            time.sleep(pause)


def _write_once(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _error_number(error: Exception) -> int | None:
    """The operating system's number of an error; safetensors wraps it in words."""
    number = getattr(error, "errno", None)
    found = re.search(r"os error (\d+)", str(error))
    return number if number is not None or found is None else int(found[1])


class RunStore:
    """One run's directory. Open it with `create` (to write) or `open` (to read)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: IO[str] | None = None
        self._attempt = ""  # what the file `attempt` says while this process is the one that writes

    # -- opening ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, directory: Path, config: RunConfig, extend: bool = False) -> RunStore:
        """Opens a run for writing: a new one, or the same one again, which goes on where it stopped.

        `extend` (the --resume flag) demands an existing run and lets its length settings change.

        Raises:
            InputError: the directory holds another run or other files, another process writes to it, or the disk is full.
        """
        store = cls(directory)
        path = directory / "config.yaml"
        if extend and not path.exists():
            raise InputError(f"{directory}: nothing to resume here (no config.yaml); drop --resume to start a run")
        if not path.exists() and directory.is_dir() and any(directory.iterdir()):
            raise InputError(f"{directory}: not empty and not a run of Throng; choose another --out")
        try:
            (directory / "journal").mkdir(parents=True, exist_ok=True)
            for name in ("ledger", "macro", "checkpoints"):
                (directory / name).mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{directory}: cannot write there ({error.strerror}); choose another --out") from error
        if shutil.disk_usage(directory).free < NEEDED:
            raise InputError(f"{directory}: less than {NEEDED >> 20} MiB free there; make room or choose another --out")
        store._claim()
        if path.exists():
            store._same_run(config, extend)
        store._begin_attempt()
        if not path.exists() or extend:
            store.write("config.yaml", lambda temporary: temporary.write_text(config.to_yaml()))
        return store

    @classmethod
    def open(cls, directory: Path) -> RunStore:
        """Opens a run for reading.

        Raises:
            InputError: there is no run.
        """
        if not (directory / "config.yaml").is_file():
            raise InputError(f"{directory}: no run here (no config.yaml); give the folder that `throng run` printed")
        return cls(directory)

    def _claim(self) -> None:
        lock = (self.directory / "lock").open("a+")
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # somebody may only be asking whether it is busy
                time.sleep(0.1)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{self.directory}: another process is working on this run; choose another --out"
            ) from error
        self._lock = lock

    def _begin_attempt(self) -> None:
        """From now on this process writes, and nobody who wrote before.

        A machine that is cut off holds a lock that others do not see, and goes on when it is back: no lock of a file system
        that several machines share can be relied on.
        """
        path = self.directory / "attempt"
        before = int(path.read_text().split()[0]) if path.exists() else 0
        self._attempt = f"{before + 1} {socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        write_atomic(path, lambda temporary: temporary.write_text(self._attempt))

    @property
    def attempt(self) -> int:
        """How many processes have written here, this one included; 0 in one that reads only."""
        return int(self._attempt.split()[0]) if self._attempt else 0

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Writes a file of the run, as `write_atomic`.

        Raises:
            InputError: another process has taken over the run since this one opened it.
        """
        if self._attempt and (now := (self.directory / "attempt").read_text()) != self._attempt:
            number, host, process, _ = now.split()
            raise InputError(
                f"{self.directory}: process {process} on {host} has taken over this run (attempt {number}); this one stops"
            )
        write_atomic(self.directory / name, write)

    def busy(self) -> bool:
        """Whether a process is working on this run now."""
        try:
            with (self.directory / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _same_run(self, config: RunConfig, extend: bool) -> None:
        path = self.directory / "config.yaml"
        data = read_yaml(path)
        if data.get("system") != config.model_dump().get("system"):
            raise InputError(f"{self.directory}: holds a run of another system; choose another --out")
        before, now = _by_name(validated(type(config), data, path)), _by_name(config)
        changed = [
            name
            for name in dict.fromkeys([*now, *before])
            if now.get(name) != before.get(name) and not (extend and name in LENGTHS)
        ]
        if changed:
            hint = "" if extend else " (a longer run of the same kind: add --resume)"
            raise InputError(
                f"{self.directory}: holds another run: {', '.join(changed)} differ{'s' if len(changed) == 1 else ''}; "
                f"choose another --out{hint}"
            )

    def config(self) -> Config:
        return load_config(self.directory / "config.yaml")

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- the journal: finished simulations of the generation under way ------------------------------------------------

    def journal_get(self, key: str) -> Arrays | None:
        """What was recorded under `key`, or None."""
        path = self.directory / "journal" / f"{key}.npz"
        try:
            with np.load(path, allow_pickle=False) as data:
                return dict(data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path}: damaged ({error}); delete it and run again: that simulation is repeated"
            ) from error

    def journal_put(self, key: str, arrays: Arrays) -> None:
        def write(path: Path) -> None:
            with path.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)

        self.write(f"journal/{key}.npz", write)

    def journal_copy(self, other: Path, pattern: str) -> None:
        """Takes over entries of another run's journal that this one lacks."""
        for path in sorted((other / "journal").glob(pattern)):
            mine = self.directory / "journal" / path.name
            if not mine.exists():
                self.write(f"journal/{path.name}", lambda new, path=path: shutil.copyfile(path, new))  # type: ignore[misc]

    # -- generations --------------------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        path = self.directory / "manifest.json"
        return json.loads(path.read_text()) if path.exists() else {"generation": -1, "finished": False}

    def commit(
        self,
        generation: int,
        ledger: list[dict[str, Any]],
        macros: dict[str, NDArray[np.float32]],
        tensors: Mapping[str, torch.Tensor],
        facts: dict[str, Any],
    ) -> None:
        """Makes a generation permanent: ledger rows, traffic by simulation key, checkpoint; then empties its journal."""
        name = f"{generation:04d}"
        table = pa.Table.from_pylist(ledger)
        self.write(f"ledger/{name}.parquet", lambda path: pq.write_table(table, path))
        keys = list(macros)
        if keys:
            m, minutes = macros[keys[0]].shape
            flat = np.stack([macros[key] for key in keys]).astype(np.float16).reshape(len(keys), -1)
            column = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), m * minutes)
            traffic = pa.table({"key": keys, "queue": column}).replace_schema_metadata(
                {"roads": str(m), "minutes": str(minutes)}
            )
            self.write(f"macro/{name}.parquet", lambda path: pq.write_table(traffic, path))
        self.write(f"checkpoints/{name}.safetensors", lambda path: save_file(dict(tensors), path))
        facts = {"generation": generation, "finished": False, "written": time.time(), **facts}
        self.write_json("manifest.json", facts)
        for path in (self.directory / "journal").glob(f"g{name}-*.npz"):
            path.unlink()
        for path in (self.directory / "checkpoints").glob("*.safetensors"):
            if path.stem < f"{generation - 1:04d}":
                path.unlink()

    def checkpoint(self) -> dict[str, torch.Tensor]:
        generation = self.manifest()["generation"]
        return load_file(self.directory / "checkpoints" / f"{generation:04d}.safetensors")

    def ledger(self) -> pa.Table:
        """All committed individuals, one row each."""
        last = self.manifest()["generation"]
        paths = [p for p in sorted((self.directory / "ledger").glob("*.parquet")) if int(p.stem) <= last]
        return pa.concat_tables([pq.read_table(path) for path in paths], promote_options="default")

    # -- small files --------------------------------------------------------------------------------------------------

    def write_json(self, name: str, data: Any) -> None:
        text = json.dumps(data, indent=1, allow_nan=True)
        self.write(name, lambda path: path.write_text(text))

    def read_json(self, name: str) -> Any | None:
        path = self.directory / name
        return json.loads(path.read_text()) if path.exists() else None
