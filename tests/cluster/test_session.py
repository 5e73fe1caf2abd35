"""A private Ray that does not come up in time is started again."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from throng.cluster import session as session_module

LATE = "The current node timed out during startup. This could happen because the GCS has become overloaded."


@pytest.mark.parametrize(("failures", "message", "tries"), [(2, LATE, 3), (3, LATE, 3), (1, "no such option", 1)])
def test_a_start_that_takes_too_long_is_tried_again(
    failures: int, message: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, and nothing else is."""
    asked: list[dict[str, Any]] = []

    def init(address: str, **options: Any) -> None:
        asked.append(options)
        assert address == "local"
        if len(asked) <= failures:
            raise Exception(message)

    monkeypatch.setattr(ray, "init", init)
    if failures < tries:
        session_module._start(num_cpus=3)
    else:
        with pytest.raises(Exception, match=message.split(".")[0]):
            session_module._start(num_cpus=3)
    assert asked == [{"num_cpus": 3}] * tries
