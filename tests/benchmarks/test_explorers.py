"""`benchmarks explorers` measures what it reports; the times themselves are not tested."""

from __future__ import annotations

import pytest

from sinkscope.benchmarks import explorers


@pytest.mark.slow
def test_a_whole_measurement() -> None:
    result = explorers.measure(1, threads=1, requests={"open": 1, "map": 1})
    states = result["states"]
    assert list(states) == [
        "idle",
        *(
            f"{what} {where}"
            for what in ("answer", "sinks", "file")
            for where in ("here", "beside")
        ),
    ]
    for kinds in states.values():
        assert list(kinds) == ["open", "map"]
        assert all(one["count"] == 1 and one["median"] > 0 for one in kinds.values())
    assert states["idle"]["map"]["ratio"] == 1
    assert (result["threads"], result["switch_ms"]) == (1, 5)
    assert "sinks beside" in explorers.table(result)


def test_what_is_counted() -> None:
    spread = explorers._spread([[2.0, 4.0], [6.0, 6.0]], [[1.0, 1.0], [3.0, 3.0]])
    assert spread == {"median": 5.0, "p95": 6.0, "ratio": 2.5, "count": 4}
