"""`benchmarks startup` runs the commands that it names and counts the process's own time."""

from __future__ import annotations

import sys

import pytest

from sinkscope.benchmarks import startup


def test_one_process() -> None:
    busy = "import time; began = time.process_time()\nwhile time.process_time() < began + 0.2: pass"
    processor, clock = startup._run((sys.executable, "-c", busy), 0)
    assert 0.2 <= processor < 5 and clock > 0.2
    idle, clock = startup._run((sys.executable, "-c", "import time; time.sleep(0.5)"), 0)
    assert idle < 0.4 < clock  # only of this process, not of the previous one
    with pytest.raises(OSError, match=r"ended with 3: no reason"):
        startup._run(
            (sys.executable, "-c", "import sys; print('no reason', file=sys.stderr); sys.exit(3)"),
            0,
        )


def test_what_is_held() -> None:
    one = {"processor": 1.0, "least": 0.9, "clock": 1.5, "ratio": 1.0}
    variants = {name: dict(one) for name in startup.WORDS}
    result = {"rounds": 1, "aim": startup.AIM, "most": 1.0, "held": True, "ways": variants}
    text = startup.table(result)
    assert all(words in text for words in startup.WORDS.values())
    assert "yes (1.00)" in text and "1.00 times the model's class alone" in text


@pytest.mark.slow
def test_a_whole_measurement() -> None:
    result = startup.measure(1)
    assert result["held"], startup.table(result)
