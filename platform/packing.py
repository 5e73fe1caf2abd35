"""What a job takes along: Throng itself as its wheel, and the files that its command names.

`pack` fills a folder that Ray copies to the cluster. Inputs are put beside each other, configurations are rewritten to name
them there, and the job's shell command puts them below its working folder, where they keep their paths from one attempt to
the next: a run goes on only with the configuration it was begun with.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import yaml

from ..cluster.jobs import LIMIT
from ..scenarios.errors import InputError
from .config import read_yaml

ROOT = Path(__file__).resolve().parents[1]
INPUTS = "inputs"  # folder of the package with what the command names
LARGEST = 10  # paths named when a package is too large
CONFIGURATION = (".yaml", ".yml")
PATHS = (("scenario", "net"), ("scenario", "demand"), ("scenario", "additional"), ("target", "observed"))


@dataclass(frozen=True)
class Package:
    """A folder to send, and the shell command to run there."""

    folder: Path
    digest: str  # of command, inputs and working folder
    entrypoint: str


def pack(arguments: list[str], workdir: Path, folder: Path, python: str = "python", shared: bool = False) -> Package:
    """Packs `throng ARGUMENTS`, to run below `workdir` on the cluster with `python` there, into `folder`.

    `shared`: the cluster sees the files that the command names at the same paths; they stay where they are.

    Raises:
        InputError: a file that a configuration names is missing, or all together is more than a job may bring.
    """
    if not shared:
        check_size(source for argument in arguments for source in _named(argument))  # before gigabytes are copied
    inputs = folder / INPUTS
    inputs.mkdir()
    sent = [_in_place(argument) if shared else _sent(argument, inputs) for argument in arguments]
    digest = _digest(sent, inputs, workdir)
    _code(folder)
    check_size(path for path in folder.rglob("*") if path.is_file())
    place = f"runs/{INPUTS}-{digest}"
    words = [f"{place}/{word.relative_to(inputs)}" if isinstance(word, Path) else word for word in sent]
    home = shlex.quote(str(workdir))
    entrypoint = (
        f"mkdir -p {home}/{place} && cp -r {INPUTS}/. {home}/{place}/ && code=$PWD && cd {home} && "
        f'PYTHONPATH="$code" exec {shlex.quote(python)} -m throng.tune.cli {shlex.join(words)}'
    )
    return Package(folder, digest, entrypoint)


def check_size(files: Iterable[Path]) -> None:
    """Raises `InputError`, naming the largest, if files are together more than a job may bring."""
    sizes = {path: path.stat().st_size for path in files}
    if sum(sizes.values()) <= LIMIT:
        return
    largest = sorted(sizes, key=lambda path: -sizes[path])[:LARGEST]
    listed = "\n".join(f"  {sizes[path] / 2**20:8.1f} MiB  {path}" for path in largest)
    raise InputError(
        f"a job may bring {LIMIT >> 20} MiB, this one has {sum(sizes.values()) / 2**20:.0f}. The largest:\n{listed}\n"
        "Put large inputs where all machines of the cluster see them, and use --shared"
    )


def _named(argument: str) -> list[Path]:
    """The file that an argument names, and those that a configuration does."""
    path = Path(argument)
    if not path.is_file():
        return []
    if path.suffix not in CONFIGURATION:
        return [path]
    data = read_yaml(path)
    nested = _named(str(case)) if (case := _case(path, data)) else []
    return [path, *nested, *(source for group, key in PATHS for source in _sources(path, data, group, key))]


def _case(path: Path, data: dict[str, Any]) -> Path | None:
    """The configuration that a sweep names."""
    if "case" not in data or "space" not in data:
        return None
    case = path.parent / str(data["case"])
    if not case.is_file():
        raise InputError(f"{path}: case: {case} is not there")
    return case


def _sources(path: Path, data: dict[str, Any], group: str, key: str) -> list[Path]:
    """The files that a configuration names under `group.key`."""
    named = (data.get(group) or {}).get(key) or []
    sources = [path.parent / name for name in ([named] if isinstance(named, str) else named)]
    for source in sources:
        if not source.is_file():
            raise InputError(f"{path}: {group}.{key}: {source} is not there")
    return sources


def _sent(argument: str, inputs: Path, prefix: str = "") -> str | Path:
    """The argument, or the file in the package that takes the place of one it names; a configuration's name is prefixed."""
    path = Path(argument)
    if not path.is_file():
        return argument
    if path.suffix not in CONFIGURATION:
        return _copied(path, inputs)
    data = read_yaml(path)
    if case := _case(path, data):
        sent = _sent(str(case), inputs, "case-")
        assert isinstance(sent, Path)
        data["case"] = sent.name
    for group, key in PATHS:
        copies = [str(_copied(source, inputs).relative_to(inputs)) for source in _sources(path, data, group, key)]
        if copies:
            data[group][key] = copies[0] if isinstance(data[group][key], str) else copies
    copy = inputs / f"{prefix}{path.name}"
    copy.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return copy


def _in_place(argument: str) -> str:
    path = Path(argument)
    return str(path.resolve()) if path.is_file() else argument


def _copied(path: Path, inputs: Path) -> Path:
    into = inputs / f"{len(list(inputs.iterdir())):02d}"  # names may come twice
    into.mkdir()
    return Path(shutil.copy(path, into))


def _digest(sent: list[str | Path], inputs: Path, workdir: Path) -> str:
    digest = hashlib.sha256()
    for word in (str(workdir), *(str(w.relative_to(inputs)) if isinstance(w, Path) else w for w in sent)):
        digest.update(word.encode() + b"\0")
    for path in sorted(path for path in inputs.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(inputs)).encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:10]


def _code(folder: Path) -> None:
    """Unpacks Throng's wheel into the folder; of an installed Throng, its files."""
    if not (ROOT / "pyproject.toml").is_file():
        shutil.copytree(ROOT, folder / "throng", ignore=shutil.ignore_patterns("__pycache__"))
        return
    with tempfile.TemporaryDirectory(prefix="throng-wheel-") as scratch:
        source = Path(scratch) / "source"  # a build leaves folders behind
        source.mkdir()
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
        for name in ("pyproject.toml", settings["project"]["readme"]):
            shutil.copy(ROOT / name, source)
        for package in settings["tool"]["setuptools"]["packages"]:
            part = Path(*package.split(".")[1:])
            shutil.copytree(
                ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
            )
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
        built = subprocess.run(
            [*command, "--no-build-isolation", "--wheel-dir", scratch, str(source)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if built.returncode:
            raise InputError(f"{ROOT}: the wheel cannot be built: {built.stderr.strip() or built.stdout.strip()}")
        with ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extractall(folder)
