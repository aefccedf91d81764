"""How a setting works: one field is checked, read, explained, an option, and a control."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import gradio as gr
import pytest
import typer
from typer.testing import CliRunner

from sinkscope import config
from sinkscope.cli.options import Draft, Group, verb
from sinkscope.evaluation.settings import RunSettings, WorkSettings
from sinkscope.experiments.region_settings import RegionSettings
from sinkscope.setting import (
    REQUIRED,
    check,
    checked,
    explained,
    like,
    read,
    read_all,
    refuse,
    setting,
    settings_of,
    shown,
    user_settings,
    whole,
)
from sinkscope.sinks.settings import FindSettings
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.web.api.arguments import asking, default_of
from sinkscope.web.components.controls import control


def words_of(name: str, value: Any) -> tuple[str, ...]:
    """A type that is not supported."""
    made = tuple(value.split()) if isinstance(value, str) else tuple(value)
    if "no" in made:
        raise refuse(name, value, "anything but no")
    return made


@explained
@dataclass(frozen=True)
class Mine:
    """Made up."""

    places: tuple[int, ...] = setting(REQUIRED, "Where.", left_out="everywhere")
    count: int = setting(3, "How many.", low=1, high=9, unit="things")
    share: float = setting(
        0.5, "How much.", low=0, above=True, high=1, slider_range=(0.1, 1), step=0.1
    )
    way: Literal["up", "down"] = setting("up", "Which way.", name="direction")
    loud: bool = setting(False, "Say it.")
    quiet: bool = setting(True, "Do not say it.")
    title: str | None = setting(None, "What to call it.", left_out="nothing")
    levels: tuple[float, ...] | None = setting(None, "Levels.", low=0.0, user_facing=False)
    most: int | None = setting(None, "At most.", low=0, high=10**6, left_out="no limit")
    words: tuple[str, ...] = setting((), "Words.", converter=words_of, left_out="none")
    sites: tuple[Literal["q", "k"], ...] = setting(("q",), "Sites.")
    parts: tuple[str, ...] = setting((), "Parts.", left_out="all")
    both: bool | None = setting(None, "Both.", left_out="where it can be")

    def __post_init__(self) -> None:
        check(self)


BY_NAME = {one.field: one for one in settings_of(Mine)}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"places": ()}, "places is (); allowed: at least one whole number from 0 up, each once."),
        ({"places": (1, 1)}, "places is (1, 1); allowed: at least one whole"),
        ({"places": (10**7,)}, "places is (10000000,); allowed"),
        ({"places": "12"}, "places is '12'; allowed"),
        ({"places": {1: 2}}, "places is {1: 2}; allowed"),
        ({"count": 10}, "count is 10; allowed: a whole number from 1 to 9."),
        ({"count": 10**400}, "count is a whole number of about 400 digits; allowed: a whole"),
        ({"count": -(10**9000)}, "count is a negative whole number of about 9000 digits; allowed"),
        ({"places": (10**9000,)}, "places is a tuple; allowed"),
        ({"count": 2.0}, "count is 2.0; allowed: a whole number"),
        ({"count": None}, "count is None; allowed: a whole number"),
        ({"share": 0}, "share is 0; allowed: a number above 0, at most 1."),
        ({"share": float("nan")}, "share is nan; allowed"),
        ({"way": "left"}, "way is 'left'; allowed: up, down."),
        ({"loud": 1}, "loud is 1; allowed: true or false."),
        ({"title": " "}, "title is ' '; allowed: a text that is not empty."),
        ({"title": 5}, "title is 5; allowed: a text"),
        ({"levels": [1.0, -1.0]}, "levels is [1.0, -1.0]; allowed: at least one number from 0 up."),
        ({"levels": []}, "levels is []; allowed: at least one number from 0 up."),
        ({"sites": ("q", "z")}, "sites is ('q', 'z'); allowed: some of q, k."),
        ({"sites": ()}, "sites is (); allowed: some of q, k."),
        ({"sites": "q"}, "sites is 'q'; allowed: some of q, k."),
        ({"parts": ("a", "")}, "parts is ('a', ''); allowed: a list of texts."),
        ({"words": "a no"}, "words is 'a no'; allowed: anything but no."),
        ({"way": "x" * 999}, f"way is '{'x' * 199}...; allowed"),
    ],
)
def test_what_is_not_allowed_is_one_sentence(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        Mine(**{"places": (0,), **wrong})
    assert str(caught.value).startswith(says) and str(caught.value).endswith(".")


def test_values_become_those_that_the_field_says() -> None:
    made = Mine([3, 1], share=1, levels=[2, 1.5])  # type: ignore[arg-type]
    assert (made.places, made.levels) == ((3, 1), (2.0, 1.5))
    assert Mine((1,), words="a b").words == ("a", "b")  # type: ignore[arg-type]
    assert type(made.share) is float and type(made.levels[0]) is float


def test_a_whole_number_has_bounds_and_a_type_is_one_of_the_kinds() -> None:
    for cls in (
        config.ModelSettings, config.GenerationSettings, config.VARSettings, config.ImageLimits,
        config.AppSettings, FindSettings, ValidateSettings, RunSettings, WorkSettings,
        RegionSettings,
    ):  # fmt: skip
        assert settings_of(cls)  # which refuses a field that cannot be checked
    for kind in (int, dict):
        bad = dataclasses.make_dataclass("Bad", [("n", kind, setting(1, "A number."))])
        with pytest.raises(TypeError, match=r"Bad\.n is a"):
            settings_of(bad)


def test_the_docstring_says_each_field() -> None:
    doc = inspect.getdoc(Mine) or ""
    assert doc.startswith("Made up.\n\nAttributes:\n    places: Where.\n")
    assert "    count: How many. From 1 to 9 things.\n" in doc
    assert "    share: How much. Above 0, at most 1.\n" in doc
    assert "    title: What to call it. None: nothing.\n" in doc


def test_a_field_like_another_classs() -> None:
    again = dataclasses.make_dataclass("Again", [("count", int, like(Mine, "count", default=5))])
    (one,) = settings_of(again)
    assert one == dataclasses.replace(BY_NAME["count"], default=5)


@pytest.mark.parametrize(
    ("field", "said", "means"),
    [
        ("places", "2-4", (2, 3, 4)),
        ("places", "  ", None),
        ("count", 4.0, 4),
        ("count", 10**30, 10**30),
        ("most", None, None),
        ("title", "", None),
        ("share", 0.25, 0.25),
        ("levels", "0.5, 2", (0.5, 2.0)),
        ("sites", "q, k", ("q", "k")),
    ],
)
def test_what_controls_say(field: str, said: Any, means: Any) -> None:
    assert read(BY_NAME[field], said) == means


@pytest.mark.parametrize("said", [1.5, float("inf"), float("nan"), None, "3", True])
def test_what_is_no_whole_number(said: Any) -> None:
    with pytest.raises(ValueError, match=r"count is .*; allowed: a whole number\."):
        whole("count", said)


def test_what_was_said_goes_by_the_names_that_users_know() -> None:
    assert read_all(Mine, {"direction": "down", "way": "up", "levels": [1], "else": 0}) == {
        "way": "down"
    }
    assert "levels" not in [one.name for one in user_settings(Mine)]
    assert "count" not in [one.field for one in user_settings(Mine, "count")]


def test_a_refused_value_is_never_a_page_long() -> None:
    assert len(shown(list(range(10_000)))) < 220
    assert checked(BY_NAME["count"], 5) == 5


# --- options --------------------------------------------------------------------------------------


def run(*words: str) -> Any:
    app = typer.Typer()

    @app.command()
    @verb
    def do(
        draft: Draft[Mine],
        find: Annotated[FindSettings, Group(but=("layers", "seed"), defaults={"max_dims": 5})],
        more: Annotated[int, typer.Option(help="Own.")] = 1,
    ) -> None:
        made = draft.make(places=(7,), share=0.75)
        typer.echo(f"{made} {sorted(draft.given)} {find.max_dims} {find.seed} {more}")

    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})


def test_a_verb_gets_settings_made_of_its_options() -> None:
    done = run("--count", "4", "--direction", "down", "--no-quiet", "--loud", "--more", "2")
    assert done.exit_code == 0, done.output
    expected = Mine((7,), 4, 0.5, "down", True, False)
    given = ["count", "loud", "quiet", "share", "sites", "way"]
    assert done.output.strip() == f"{expected} {given} 5 0 2"
    assert "share=0.2," in run("--share", "0.2").output
    assert "places=(1, 2)," in run("--places", "1-2").output
    assert "words=('a', 'b')," in run("--words", "a b").output
    assert "sites=('q',), parts=(), both=None)" in run().output
    assert "both=False" in run("--no-both").output and "both=True" in run("--both").output
    assert (
        "sites=('k', 'q'), parts=('x y', 'z')," in run("--sites", "k,q", "--parts", "x y, z").output
    )


def test_options_are_explained_and_refused_in_words() -> None:
    said = " ".join(run("--help").output.split())
    assert "How many. From 1 to 9 things." in said and "Where. Default: everywhere." in said
    assert "--levels" not in said and "--layers" not in said and "--seed" not in said
    for words, says in (
        (("--count", "0"), "Error: count is 0; allowed: a whole number from 1 to 9."),
        (("--places", ""), "Error: places is ''; allowed: indices such as 2-5"),
        (("--top-percent", "0"), "Error: top_percent is 0.0; allowed: a number above 0"),
    ):
        done = run(*words)
        assert done.exit_code == 2 and says in done.output


def test_a_verb_made_for_a_class_known_later_and_what_must_be_given() -> None:
    needed = dataclasses.make_dataclass(
        "Needed", [("layer", int, setting(REQUIRED, "Which layer.", low=0, high=99))], frozen=True
    )

    def do(own: Any) -> None:
        typer.echo(str(own))

    do.__annotations__["own"] = needed
    app = typer.Typer()
    app.command()(verb(do))
    done = CliRunner().invoke(app, ["--layer", "3"])
    assert done.output.strip() == "Needed(layer=3)"
    missing = CliRunner().invoke(app, [])
    assert missing.exit_code == 2 and "--layer" in missing.output


# --- the page and the API -------------------------------------------------------------------------


def test_controls() -> None:
    with gr.Blocks():
        made = {field: control(one) for field, one in BY_NAME.items() if field != "places"}
        wide = control(BY_NAME["share"], 0.05)
    kinds = {field: type(one).__name__ for field, one in made.items()}
    assert kinds == {
        "count": "Number", "share": "Slider", "way": "Radio", "loud": "Checkbox",
        "quiet": "Checkbox", "title": "Textbox", "levels": "Textbox", "most": "Number",
        "words": "Textbox", "sites": "CheckboxGroup", "parts": "Textbox", "both": "Radio",
    }  # fmt: skip
    share: Any = made["share"]
    assert (share.minimum, share.maximum, share.step, share.value) == (0.1, 1, 0.1, 0.5)
    assert (share.label, share.info) == ("share", "How much.")
    assert made["way"].label == "direction" and made["quiet"].value is True  # type: ignore[attr-defined]
    assert made["title"].placeholder == "nothing"  # type: ignore[attr-defined]
    assert wide.minimum == 0.05  # type: ignore[attr-defined]


def test_arguments() -> None:
    def endpoint(run: str, **said: Any) -> Any:
        return run, said

    made = asking(endpoint, settings_of(Mine))
    defaults = {
        name: one.default
        for name, one in inspect.signature(made).parameters.items()
        if name != "run"
    }
    assert defaults == {one.name: default_of(one) for one in settings_of(Mine)}
    assert (defaults["places"], defaults["title"], defaults["most"]) == ("", "", None)
    assert (defaults["count"], defaults["direction"]) == (3, "up")
    assert made("x", count=4) == ("x", {"count": 4})
