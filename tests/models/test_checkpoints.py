"""Every kind of folder in `tests.checkpoints.cases` loads as in transformers, or is refused with
one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints.cases import CASES, Case
from tests.checkpoints.outcomes import Outcome, attempt, differences
from tests.checkpoints.published import write_like
from tests.checkpoints.table import PIXELS, committed, table

pytestmark = pytest.mark.tiny

Try = Callable[[Case], Outcome]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Two images of noise, both resized."""
    noise = np.random.default_rng(0).integers(0, 255, (300, 210, 3), dtype=np.uint8)
    return [Image.fromarray(noise[:90, :140]), Image.fromarray(noise)]


@pytest.fixture(scope="module")
def tried(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Try:
    """Tries a case, once."""
    room = tmp_path_factory.mktemp("checkpoints")
    published = write_like(room / "published", tiny_folder, PIXELS)
    outcomes: dict[str, Outcome] = {}

    def once(case: Case) -> Outcome:
        if case.name not in outcomes:
            own = room / str(len(outcomes))
            own.mkdir()
            outcomes[case.name] = attempt(case, published, tiny_folder, own)
        return outcomes[case.name]

    return once


@pytest.mark.parametrize("case", CASES, ids=lambda case: re.sub(r"\W+", "_", case.name))
def test_a_folder_loads_as_in_transformers_or_is_refused(
    case: Case, tried: Try, images: list[Image.Image]
) -> None:
    outcome = tried(case)
    assert outcome.loads == case.loads, outcome.words
    if outcome.handle is not None:
        given = (outcome.folder, images, case.template, case.parts_only)
        assert differences(outcome.handle, *given) == []
    else:
        assert outcome.words.startswith(("X", "The ", "model.safetensors.index.json of X"))
        assert 20 < len(outcome.words) < 700
        assert "Traceback" not in outcome.words


def test_names_of_cases_are_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_table_of_the_documents_is_what_the_cases_give(tried: Try) -> None:
    assert table((case, tried(case)) for case in CASES) == committed(), (
        "docs/models.md is out of date: python -m tests.checkpoints.table --write"
    )
