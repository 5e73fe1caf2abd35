"""Small networks that SUMO's netconvert makes from plain XML, and where the real data lie, if anywhere."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import sumo
from throng.scenarios.network import RoadNetwork, load_network

BIN = Path(sumo.SUMO_HOME) / "bin"

# A block of streets, west to east, with a dead end "x", a bus road and a bus lane:
#
#        e ===== f
#        |       |        b has a traffic light; "bf" (b to f) is for buses only;
#  a === b ===== c === d  "bc" has two lanes, the right one for buses; c-x is a dead end.
#                |
#                x
NODES = """<nodes>
    <node id="a" x="0" y="0"/><node id="b" x="200" y="0" type="traffic_light"/>
    <node id="c" x="400" y="0"/><node id="d" x="600" y="0"/>
    <node id="e" x="200" y="150"/><node id="f" x="400" y="150"/><node id="x" x="400" y="-120"/>
</nodes>"""
EDGES = (
    "<edges>"
    + "".join(
        f'<edge id="{u}{v}" from="{u}" to="{v}" numLanes="1" speed="{speed}" priority="{priority}"/>'
        for p, q, speed, priority in [
            ("a", "b", 13.89, 3),
            ("c", "d", 13.89, 3),
            ("b", "e", 8.33, 1),
            ("e", "f", 8.33, 1),
            ("f", "c", 8.33, 1),
            ("c", "x", 5.0, -1),
        ]
        for u, v in ((p, q), (q, p))
    )
    + """<edge id="bc" from="b" to="c" numLanes="2" speed="13.89" priority="3">
        <lane index="0" allow="bus"/>
    </edge>
    <edge id="cb" from="c" to="b" numLanes="1" speed="13.89" priority="3"/>
    <edge id="bf" from="b" to="f" numLanes="1" speed="8.33" allow="bus"/>
</edges>"""
)


@pytest.fixture(scope="session")
def netconvert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(nodes XML, edges XML, *options) -> path of the network."""

    def make(nodes: str, edges: str, *options: str) -> Path:
        folder = tmp_path_factory.mktemp("net")
        (folder / "n.nod.xml").write_text(nodes)
        (folder / "e.edg.xml").write_text(edges)
        files = ["-n", "n.nod.xml", "-e", "e.edg.xml", "-o", "net.net.xml"]
        subprocess.run([str(BIN / "netconvert"), *files, *options], cwd=folder, check=True, capture_output=True)
        return folder / "net.net.xml"

    return make


@pytest.fixture(scope="session")
def block_path(netconvert: Callable[..., Path]) -> Path:
    return netconvert(NODES, EDGES)


@pytest.fixture(scope="session")
def block(block_path: Path) -> RoadNetwork:
    return load_network(block_path)


@pytest.fixture(scope="session")
def run_sumo() -> Callable[..., subprocess.CompletedProcess[str]]:
    """(folder, *options) -> the finished run of the plain sumo program."""

    def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "sumo"), "--no-step-log", *options]
        return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)

    return run


def _shared(part: str) -> Path:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data" / part
    if not folder.is_dir():
        pytest.skip(f"real data are not here (../shared/data/{part} beside the checkout)")
    return folder


@pytest.fixture(scope="session")
def sumo_data() -> Path:
    """The shared real scenarios; skips where they are absent."""
    return _shared("sumo")


@pytest.fixture(scope="session")
def recorded() -> Path:
    """The shared recorded driving scenes; skips where they are absent."""
    return _shared("scenes")
