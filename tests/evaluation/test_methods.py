"""Methods and sweeps as users write them, and their checks against a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinkscope.config import VARSettings
from sinkscope.evaluation.method_specs import parse_methods
from sinkscope.evaluation.methods import resolve
from sinkscope.models.info import ModelInfo
from sinkscope.models.profiles import SinkProfile

INFO = ModelInfo("m", "sha256:0", "qwen2_5_vl", "float32", "cpu", 6, 8, 256)
PROFILE = SinkProfile("m", "qwen2_5_vl", 256, 6, (17, 101), 6.0, "here", "high")


def names(methods: list[str], *sweeps: str) -> list[str]:
    return [one.name for one in parse_methods(methods, sweeps)]


def test_var_takes_the_models_profile() -> None:
    default, var, control = resolve(parse_methods(["default", "var", "var-random"]), PROFILE, INFO)
    assert default.var is None
    assert var.var == VARSettings((17, 101), tau=6.0)
    assert control.var == VARSettings((17, 101), tau=6.0, control="random")


def test_settings_stand_behind_a_colon_and_lists_keep_their_commas() -> None:
    (one,) = resolve(
        parse_methods(["var:dims=3,7,keep=0.3,dialect=paper,layers=2-4,tau=2"]), PROFILE, INFO
    )
    assert one.var == VARSettings((3, 7), 2.0, 0.3, dialect="paper", layers=(2, 3, 4))


def test_other_dimensions_do_not_take_the_profiles_threshold() -> None:
    (one,) = resolve(parse_methods(["var:dims=3,tau=10"]), None, INFO)
    assert one.var == VARSettings((3,), tau=10.0)
    (two,) = resolve(parse_methods(["var:dims=17,101"]), PROFILE, INFO)
    assert two.var is not None
    assert two.var.tau == 6.0


def test_a_profile_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        'model = "m"\nfamily = "qwen2_5_vl"\nhidden_size = 256\nlayers = 6\ndims = [9]\ntau = 4.0\n'
        'source = "test"\nconfidence = "low"\n'
    )
    (one,) = resolve(parse_methods([f"var:profile={path}"]), PROFILE, INFO)
    assert one.var == VARSettings((9,), tau=4.0)


def test_a_sweep_multiplies_var_and_leaves_default_alone() -> None:
    assert names(["default", "var"], "keep=0,0.3,0.6") == [
        "default",
        "var keep=0",
        "var keep=0.3",
        "var keep=0.6",
    ]
    assert names(["var", "var-random"], "keep=0,1", "dialect=official,paper")[3:5] == [
        "var keep=1 dialect=paper",
        "var-random keep=0 dialect=official",
    ]
    assert names(["var"], "layers=2-3/2-4") == ["var layers=2,3", "var layers=2,3,4"]


@pytest.mark.parametrize(
    ("methods", "sweeps", "words"),
    [
        ([], [], "No method is given"),
        (["vra"], [], "allowed: default, var, var-random"),
        (["default", "default"], [], "given twice"),
        (["var", "var"], ["keep=0,1"], "given twice"),
        (["default:keep=1"], [], "has no settings"),
        (["var:kep=1"], [], "'kep' is not a setting of VAR; allowed: dims, tau, keep"),
        (["var:keep"], [], "allowed after the colon"),
        (["var:keep=x"], [], "keep is 'x'; allowed: a number"),
        (["var:keep=1,keep=0"], [], "given twice"),
        (["var:dims=x"], [], "dims is 'x'"),
        (["default"], ["keep=0,1"], "no method is var"),
        (["var"], ["keep"], "allowed: SETTING=VALUE"),
        (["var"], ["keep=0,0"], "given twice"),
    ],
)
def test_wrong_words_are_named(methods: list[str], sweeps: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_methods(methods, sweeps)


@pytest.mark.parametrize(
    ("text", "profile", "words"),
    [
        ("var", None, "m has no sink profile"),
        ("var:keep=2", PROFILE, "var:keep=2: keep is 2.0; allowed: a number from 0 to 1"),
        ("var:dims=999,tau=1", PROFILE, "hidden size allows 0 to 255"),
        ("var:tau=99", PROFILE, "never exceeds"),
        ("var:layers=7", PROFILE, "layers 0 to 5"),
        ("var:dialect=latin", PROFILE, "dialect is 'latin'; allowed: official, paper"),
    ],
)
def test_what_does_not_fit_the_model_is_named(
    text: str, profile: SinkProfile | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        resolve(parse_methods([text]), profile, INFO)
