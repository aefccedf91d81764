"""Maps of changed questions, on the bundled model."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinkscope.config import ModelSettings
from sinkscope.evaluation.report.settings import ReportSettings
from sinkscope.evaluation.report.write import make_report
from sinkscope.evaluation.statistics.settings import CompareSettings
from sinkscope.evaluation.tasks.demo import read
from sinkscope.models.loading import ModelHandle, load_model
from tests.evaluation.report.made_up_run import record, write_run


@pytest.mark.slow
def test_both_answers_are_given_again_with_their_maps(tmp_path: Path) -> None:
    asked = next(iter(read(None)))
    said = {"category": asked.category, "answer": "something else"}
    records = [record(asked.id, 0, "default", 0.0, **said), record(asked.id, 0, "var", 1.0, **said)]
    run = write_run(tmp_path / "run", records)
    loaded: list[ModelSettings] = []

    def load(settings: ModelSettings) -> ModelHandle:
        loaded.append(settings)
        return load_model(settings.model)

    settings, few = ReportSettings(flips=1, maps=1), CompareSettings(resamples=20)
    page = make_report([run], settings, few, load).files["report.html"]
    assert [one.model for one in loaded] == ["demo"]
    assert page.count("data:image/jpeg;base64,") == 3  # the question's image, and two maps
    assert page.count("Attention, mean over the answer&#x27;s tokens") == 4  # alt and caption
    assert "Asked again, it answered" in page  # the record's answer was made up

    other = write_run(tmp_path / "other", records, run={"model_revision": "sha256:0"})
    with pytest.raises(ValueError, match="is not the one of the run other"):
        make_report([other], settings, few, load)
    with pytest.raises(ValueError, match="a way to load models"):
        make_report([run], settings, few)
