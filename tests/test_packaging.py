"""The repository root is the package `throng`: what that asks of folders, imports and the wheel."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
NOT_PACKAGES = {"tests", "bench", "docs", "examples", "build", "dist", "runs"}
# Which rooms a room may import; ray, torch and the like where a room must do without.
MAY_IMPORT = {
    "scenarios": set(),
    "policies": {"scenarios"},
    "workers": {"scenarios", "policies"},
    "platform": {"scenarios", "policies", "workers", "cluster"},
    "tune": {"scenarios", "policies", "workers", "platform", "cluster"},
    "cluster": set(),
}
MUST_NOT_IMPORT = {"scenarios": {"ray", "torch"}, "policies": {"ray"}}
# Of scenarios/driving/: numpy has no gradients.
DIFFERENTIABLE = {"geometry.py", "kinematics.py", "world.py", "idm.py", "signals.py", "observation.py"}
ONLY_FROM_OUTSIDE = {"cluster": {"ray"}}  # beside the standard library


def _sources() -> list[Path]:
    """Every Python file of the packages, relative to the root."""
    rooms = [path for path in ROOT.iterdir() if path.name.isidentifier() and path.name not in NOT_PACKAGES]
    files = (file.relative_to(ROOT) for room in rooms if room.is_dir() for file in room.rglob("*.py"))
    return sorted(file for file in files if "__pycache__" not in file.parts)


def _package(file: Path) -> str:
    return ".".join(("throng", *file.parent.parts))


def _imports(file: Path, source: str) -> Iterator[tuple[int, str, bool]]:
    """Line, absolute name and whether it was written relatively, of everything that `file` imports."""
    package = _package(file).split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name, False) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, str(node.module), False
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [name.name for name in node.names]
            yield from ((node.lineno, ".".join((*base, str(name))), True) for name in names)


def _violations(file: Path, source: str) -> list[str]:
    """What a file of the packages imports against the rules of the layout."""
    room = file.parts[0]
    wrong = []
    for line, name, relative in _imports(file, source):
        first, *rest = name.split(".")
        where = f"{file}:{line}"
        if relative and first != "throng":
            wrong.append(f"{where}: leaves the package")
        elif relative:
            if rest[0] != room and rest[0] not in MAY_IMPORT[room]:
                wrong.append(f"{where}: {room} must not import {rest[0]}")
        elif name == "platform":
            continue  # the standard library's
        elif first == "throng" or first in MAY_IMPORT:
            wrong.append(f"{where}: {name}: write it relatively")
        elif first == "torch" and file.parts[1] == "driving" and file.name in DIFFERENTIABLE:
            continue
        elif first in MUST_NOT_IMPORT.get(room, ()):
            wrong.append(f"{where}: {room} must do without {first}")
        elif room in ONLY_FROM_OUTSIDE and first not in ONLY_FROM_OUTSIDE[room] | sys.stdlib_module_names:
            wrong.append(f"{where}: {room} stands on nothing but Ray, not on {first}")
    return wrong


def test_imports_go_one_way_and_are_relative() -> None:
    files = _sources()
    assert len(files) > 40
    assert [wrong for file in files for wrong in _violations(file, (ROOT / file).read_text())] == []


@pytest.mark.parametrize(
    ("file", "source", "problem"),
    [
        ("scenarios/town.py", "from ..policies.policy import Navigator", "must not import policies"),
        ("scenarios/a/b.py", "from ...workers import pool", "must not import workers"),
        ("policies/a.py", "from .. import platform", "must not import platform"),
        ("workers/a.py", "def f():\n    from ..tune import sweep", "must not import tune"),
        ("cluster/a.py", "from ..scenarios import errors", "must not import scenarios"),
        ("cluster/a.py", "import numpy", "nothing but Ray"),
        ("scenarios/a.py", "import torch.nn", "do without torch"),
        ("policies/a.py", "from ray import tune", "do without ray"),
        ("platform/a.py", "from throng.scenarios import town", "relatively"),
        ("platform/a.py", "import workers.sumo", "relatively"),
        ("platform/a.py", "from ...other import thing", "leaves the package"),
    ],
)
def test_a_wrong_import_is_found(file: str, source: str, problem: str) -> None:
    """Guards the guard: the rules above would let nothing through."""
    assert [problem in one for one in _violations(Path(file), source)] == [True]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("platform/a.py", "import os, ray, torch\nfrom ..cluster.session import cpus\nfrom . import config"),
        ("cluster/a.py", "import platform\nfrom ray.job_submission import JobStatus"),
        ("workers/a.py", "from ..scenarios.town import write_town\nimport ray"),
    ],
)
def test_a_right_import_is_not(file: str, source: str) -> None:
    assert _violations(Path(file), source) == []


def test_pyproject_lists_the_packages_there_are() -> None:
    """A folder that is not listed would be missing in the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    there = {_package(file) for file in _sources()}
    assert set(settings["setuptools"]["packages"]) == there | {"throng.configs"}  # YAML only
    assert {name for name in there if name.count(".") == 1} == set(settings["mypy"]["packages"])
    for name in there:
        folder = ROOT.joinpath(*name.split(".")[1:])
        assert (folder / "py.typed").is_file(), f"{folder} has no py.typed"


def test_the_standard_librarys_platform_is_not_shadowed() -> None:
    """A regular package `platform` at the root would break Ray and torch for who starts Python there."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    code = "import platform, throng.platform.cli as cli; assert platform.system(); print(cli.__file__)"
    assert Path(_python(["-c", code], ROOT).strip()) == ROOT / "platform" / "cli.py"


def test_pins_are_exact_and_cover_what_is_asked_for() -> None:
    """`make venv` would otherwise install something else next month, or not the machine's build of torch."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {}
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)  # no local version such as +cpu
        assert match, line
        pins[_normal(match[1])] = match[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
    wanted_names = {_normal(re.split(r"[\[<>=!~; ]", one)[0]) for one in wanted}
    assert wanted_names <= pins.keys()
    # The wheel is built without isolation: with the setuptools that is pinned.
    assert [f"setuptools=={pins['setuptools']}"] == project["build-system"]["requires"]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _python(arguments: list[str], where: Path, **environment: str) -> str:
    """Runs Python as someone without this checkout would; returns what it prints."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=where,
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves folders behind, and picks up what an earlier one left."""
    directory = tmp_path_factory.mktemp("wheel")
    copy = directory / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    for room in {"configs", *(file.parts[0] for file in _sources())}:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    _python(["-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(copy)], directory)
    return next(directory.glob("*.whl"))


def test_the_wheel_holds_every_module_and_the_files_beside_them(wheel: Path) -> None:
    inside = set(ZipFile(wheel).namelist())
    modules = {name for name in inside if name.endswith(".py")}
    assert modules == {f"throng/{file.as_posix()}" for file in _sources()}
    assert {"throng/platform/report.html", "throng/configs/masdiff_paper.yaml"} <= set(inside)
    assert {f"throng/{file.parent.as_posix()}/py.typed" for file in _sources()} <= inside


# Without the checkout, whose editable install puts a finder on sys.meta_path and a hook on sys.path.
_IMPORT_ALL = """
import importlib, pkgutil, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path[:] = [entry for entry in sys.path if "__editable__" not in entry]
import throng
names = []
def walk(path, prefix):
    for module in pkgutil.iter_modules(path, prefix):
        names.append(module.name)
        importlib.import_module(module.name)
        if module.ispkg:
            walk(sys.modules[module.name].__path__, module.name + ".")
for room in sys.argv[1:]:
    walk(importlib.import_module("throng." + room).__path__, "throng." + room + ".")
import platform
assert platform.system()
for name, module in sorted(sys.modules.items()):
    if name.startswith("throng.") and module.__file__:
        print(name, module.__file__)
"""


def test_the_wheel_imports_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Every module of the installed wheel, from the wheel alone."""
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    _python([*install, str(wheel)], elsewhere)
    rooms = sorted({file.parts[0] for file in _sources()})
    printed = _python(["-c", _IMPORT_ALL, *rooms], elsewhere, PYTHONPATH=str(target)).splitlines()
    imported = dict(line.split(" ", 1) for line in printed)
    files = _sources()
    modules = {".".join(("throng", *file.with_suffix("").parts)).removesuffix(".__init__") for file in files}
    assert modules <= imported.keys()
    for name, file in imported.items():
        assert Path(file).is_relative_to(target), f"{name} came from {file}"
