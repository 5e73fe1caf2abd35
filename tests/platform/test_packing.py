"""What a job takes along: the wheel, the files that its command names, and no more than Ray's job server takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from throng.cluster.jobs import LIMIT
from throng.platform import packing
from throng.platform.packing import INPUTS, Package, check_size, pack
from throng.scenarios.errors import InputError


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A configuration whose files lie elsewhere, two of them under one name."""
    for name in ("net/a.net.xml", "cars/trips.xml", "buses/trips.xml", "queues.csv"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    scenario = {"net": "../data/net/a.net.xml", "demand": ["../data/cars/trips.xml", "../data/buses/trips.xml"]}
    config = tmp_path / "cases" / "my.yaml"
    config.parent.mkdir()
    observed = str(tmp_path / "data" / "queues.csv")
    config.write_text(yaml.safe_dump({"scenario": scenario, "target": {"observed": observed}, "seed": 3}))
    return config


@pytest.fixture
def packed(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Package]:
    """Packs as `throng submit` does; with Throng itself only where a test is marked so: its wheel takes seconds."""
    if not getattr(request, "param", False):
        monkeypatch.setattr(packing, "_code", lambda folder: None)

    def make(*arguments: str, workdir: Path | None = None, shared: bool = False) -> Package:
        folder = tmp_path / f"package{len(list(tmp_path.glob('package*')))}"
        folder.mkdir()
        return pack(list(arguments), workdir or tmp_path / "my work", folder, sys.executable, shared)

    return make


def test_a_configuration_brings_its_files(case: Path, packed: Callable[..., Package]) -> None:
    """Beside the configuration, named relative to it; two files of one name stay two."""
    package = packed("run", str(case), "--set", "seed=5")
    sent = yaml.safe_load((package.folder / INPUTS / "my.yaml").read_text())
    assert sent["seed"] == 3
    found = [sent["scenario"]["net"], *sent["scenario"]["demand"], sent["target"]["observed"]]
    texts = [(package.folder / INPUTS / name).read_text() for name in found]
    assert texts == ["net/a.net.xml", "cars/trips.xml", "buses/trips.xml", "queues.csv"]
    assert package.entrypoint.endswith(f"run runs/inputs-{package.digest}/my.yaml --set seed=5")


def test_a_sweep_brings_its_case(case: Path, packed: Callable[..., Package], tmp_path: Path) -> None:
    """And that one its files; both configurations may have one name."""
    spec = tmp_path / "my.yaml"
    spec.write_text(yaml.safe_dump({"case": "cases/my.yaml", "space": {"seed": [1, 2]}}))
    package = packed("sweep", str(spec))
    sent = yaml.safe_load((package.folder / INPUTS / "my.yaml").read_text())
    inner = yaml.safe_load((package.folder / INPUTS / sent["case"]).read_text())
    assert sent["space"] == {"seed": [1, 2]}
    assert (package.folder / INPUTS / inner["scenario"]["net"]).read_text() == "net/a.net.xml"
    spec.write_text(yaml.safe_dump({"case": "cases/no.yaml", "space": {"seed": [1, 2]}}))
    with pytest.raises(InputError, match=r"my\.yaml: case: .*no\.yaml is not there"):
        packed("sweep", str(spec))


@pytest.mark.parametrize("packed", [True], indirect=True)
def test_the_command_runs_from_the_package_alone(case: Path, packed: Callable[..., Package], tmp_path: Path) -> None:
    """In a shell, as the cluster runs it: with Throng from the wheel, in a folder with a space, without this checkout."""
    package = packed("scenario", "check", str(case))
    home = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    asked = [sys.executable, "-c", "from throng.platform import cli; print(cli.__file__)"]
    where = subprocess.run(
        asked, env=home | {"PYTHONPATH": str(package.folder)}, capture_output=True, text=True, check=True
    )
    assert where.stdout.strip() == str(package.folder / "throng" / "platform" / "cli.py"), "not the installed one"
    done = subprocess.run(
        package.entrypoint, shell=True, cwd=package.folder, env=home, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said  # the network is none
    assert f"{tmp_path}/my work/runs/inputs-{package.digest}/" in said
    assert "a.net.xml" in said
    assert (package.folder / "throng" / "platform" / "report.html").is_file()
    assert not list((package.folder / "throng").glob("tests*"))


def test_the_same_command_is_the_same_job(case: Path, packed: Callable[..., Package], tmp_path: Path) -> None:
    """Another setting, another folder or another input is another job."""
    first = packed("run", str(case)).digest
    assert packed("run", str(case)).digest == first
    assert packed("run", str(case), "--set", "seed=1").digest != first
    assert packed("run", str(case), workdir=tmp_path / "elsewhere").digest != first
    (tmp_path / "data" / "queues.csv").write_text("other queues")
    assert packed("run", str(case)).digest != first


def test_shared_files_stay_where_they_are(
    case: Path, packed: Callable[..., Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(case.parent)
    package = packed("run", "my.yaml", shared=True)
    assert package.entrypoint.endswith(f"run {case}")
    assert not list((package.folder / INPUTS).iterdir())


def test_arguments_are_no_shell(packed: Callable[..., Package], tmp_path: Path) -> None:
    wrong = f"seed=x; touch {tmp_path}/broken; $(touch {tmp_path}/broken)"
    package = packed("run", "--set", wrong)
    done = subprocess.run(
        package.entrypoint, shell=True, cwd=package.folder, capture_output=True, text=True, check=False
    )
    assert wrong.partition("=")[2] in done.stderr  # not an integer
    assert not (tmp_path / "broken").exists()


def test_a_file_that_is_missing_is_named(case: Path, packed: Callable[..., Package], tmp_path: Path) -> None:
    (tmp_path / "data" / "cars" / "trips.xml").unlink()
    with pytest.raises(InputError, match=r"my\.yaml: scenario\.demand: .*cars/trips\.xml is not there"):
        packed("run", str(case))


def test_a_package_that_is_too_large_names_the_largest(tmp_path: Path) -> None:
    """Ray answers with HTTP 413 and nothing else, after the upload."""
    for name, size in (("small.xml", 10), ("large.net.xml", LIMIT // 2), ("larger.rou.xml", LIMIT // 2 + 1)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)  # sparse
    with pytest.raises(InputError, match="may bring 100 MiB, this one has 100") as caught:
        check_size(tmp_path.iterdir())
    said = str(caught.value)
    assert said.index("larger.rou.xml") < said.index("large.net.xml") < said.index("small.xml")
    (tmp_path / "small.xml").unlink()
    (tmp_path / "larger.rou.xml").unlink()
    check_size(tmp_path.iterdir())
