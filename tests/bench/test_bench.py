"""The benchmarks run, and their results have the form that others read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "run.py"


def test_results_have_their_form_and_the_exit_code_tells_of_missed_bars(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, str(BENCH), "--only", "value_iteration", "routing", "--quick", "--out", str(out)]
    environment = os.environ | {"COLUMNS": "300"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert out.exists(), done.stderr
    rows = json.loads(out.read_text())
    assert [sorted(row) for row in rows] == [["bar", "better", "detail", "name", "ok", "value"]] * 3
    assert all(row["name"] in done.stdout and row["value"] > 0 for row in rows)
    assert done.returncode == (0 if all(row["ok"] for row in rows) else 1)
    row = rows[0]
    assert row["better"] == "higher"
    assert row["ok"] is (row["value"] >= row["bar"])
    assert "1557 vehicles" in row["detail"]
