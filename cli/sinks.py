"""`sinks ...`: find the dimensions that mark a model's sinks, validate a profile, show one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkscope.cli import common
from sinkscope.cli.options import Draft, Group, verb
from sinkscope.config import ModelSettings
from sinkscope.sinks.settings import EngineSettings, FindSettings, SampleChoice
from sinkscope.sinks.validating.settings import ValidateSettings
from sinkscope.utils import run_folder

if TYPE_CHECKING:
    from sinkscope.models.profiles import SinkProfile
    from sinkscope.sinks.finding.findings import Findings

NONE_FOUND = 3  # exit code of `find`: the data shows no sinks of the model
NOT_CONFIRMED = 3  # exit code of `validate`

app = typer.Typer(
    help="Find, validate and show the dimensions that mark a model's attention sinks.",
    no_args_is_help=True,
)

# The size of an image is a setting of finding and validating here.
ELSEWHERE = ("min_pixels", "max_pixels", "profile")
Model = Annotated[ModelSettings, Group(ELSEWHERE)]
ModelOfProfile = Annotated[
    Draft[ModelSettings], Group(ELSEWHERE, left_out={"model": "the profile's model"})
]
Plots = Annotated[
    Path | None, typer.Option(help="Folder for the figures, PNG and PDF; created if it is missing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of the tables.")]


@app.command()
@verb
def find(
    choice: SampleChoice,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The profile, a .toml file; findings next to it.")
    ],
    model: Model,
    settings: FindSettings,
    spread: EngineSettings,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the measurements, from which an interrupted run resumes.",
            show_default="cache/sinks",
        ),
    ] = None,
    plots: Plots = None,
    as_json: AsJson = False,
    name: Annotated[
        str | None, typer.Option(help="Model name in the profile. Default: as loaded.")
    ] = None,
) -> None:
    """Find the sink dimensions of a model: one forward pass per sample, then decide.

    It prints the candidates, chosen ones first, and the threshold tau with what it flags. Exit code
    3 means that no sinks were found; then no profile is written.
    """
    _check_files(output, plots)
    from sinkscope.cli.sinks_data import read_data
    from sinkscope.cli.sinks_report import print_findings, print_sample_notes
    from sinkscope.sinks.engine import check_engine, make_engine
    from sinkscope.sinks.finding.find import find as run
    from sinkscope.sinks.profile_file import findings_beside, write_profile

    check_engine(spread.engine, spread.workers)
    work = work or run_folder("cache") / "sinks"
    given = read_data(choice, settings.seed)
    print_sample_notes(given)
    handle = common.load(model)
    engine = make_engine(spread.engine, handle, model, spread.workers)
    kept = f"What was measured is kept in {work}; the same command continues from there."
    with common.job("Finding sinks", len(given.samples), kept) as job:
        findings = run(handle, given, settings, work=work, engine=engine, **job.hooks)
    if as_json:
        typer.echo(_as_json(findings.as_dict()))
    else:
        print_findings(findings)
    _draw(plots, findings=findings)
    if not findings.dims:
        typer.echo("No profile was written.", err=True)
        raise typer.Exit(NONE_FOUND)
    beside = findings_beside(output)
    findings.save(beside)
    write_profile(output, findings.profile(name))
    typer.echo(f"Wrote {output} and {beside}", err=True)


@app.command()
@verb
def validate(
    profile: Annotated[Path, typer.Option(help="A profile, as `sinks find` writes it.")],
    choice: SampleChoice,
    model: ModelOfProfile,
    settings: Annotated[ValidateSettings, Group(defaults={"seed": 1})],
    findings: Annotated[
        Path | None,
        typer.Option(help="The findings. Default: those next to the profile."),
    ] = None,
    plots: Plots = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the result as a .json file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Validate a profile on samples that finding did not use: by attention, and by hiding tokens.

    Samples that finding used are left out. Exit code 0 means that the profile is confirmed, 3 that
    it is not; the verdict gives the reason, with its thresholds.
    """
    if output is not None:
        common.check_output(output, profile)
    _check_folder(plots)
    from sinkscope.models.profiles import read_profile

    read = read_profile(profile)
    used = _findings_of(profile, findings)
    wanted = model.make(model=read.model)
    from sinkscope.cli.sinks_data import read_held_out
    from sinkscope.cli.sinks_report import print_sample_notes, print_validation
    from sinkscope.sinks.validating.validate import validate as run

    unlike = None if settings.allow_finding_samples else used
    given = read_held_out(choice, settings.seed, unlike)
    print_sample_notes(given)
    handle = common.load(wanted)
    kept = "Nothing of a validation is kept; begin it again."
    with common.job("Validating", len(given.samples), kept) as job:
        validation = run(handle, read, given, settings, found_on=used, **job.hooks)
    if as_json:
        import dataclasses

        typer.echo(_as_json(dataclasses.asdict(validation)))
    else:
        print_validation(validation)
    if output is not None:
        validation.save(output)
        typer.echo(f"Wrote {output}", err=True)
    _draw(plots, validation=validation)
    if validation.verdict.word != "confirmed":
        raise typer.Exit(NOT_CONFIRMED)


@app.command()
@verb
def show(
    profile: Annotated[
        str | None,
        typer.Option(help="A profile file, or the name of a model. Default: all published ones."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Check whether it fits this model, which is loaded.")
    ] = None,
    plots: Plots = None,
    as_json: AsJson = False,
) -> None:
    """Show sink profiles: dimensions, threshold, source, confidence, and whether one fits a model.

    For a file, the findings next to it are shown as well, and drawn with --plots.
    """
    _check_folder(plots)
    from sinkscope.cli.sinks_data import profiles_named
    from sinkscope.cli.sinks_report import print_findings, print_profile, print_profiles
    from sinkscope.sinks.finding.findings import Findings
    from sinkscope.sinks.profile_file import findings_beside

    chosen = profiles_named(profile)
    file = Path(profile) if profile is not None and Path(profile).is_file() else None
    findings = None
    if file is not None and findings_beside(file).is_file():
        findings = Findings.open(findings_beside(file))
    fits = None if model is None else _fit(chosen, model)
    if as_json:
        typer.echo(_as_json([_plain(one) for one in chosen]))
    elif profile is None:
        print_profiles(chosen)
    else:
        for one in chosen:
            print_profile(one)
        if findings is not None:
            typer.echo("")
            print_findings(findings)
    if plots is not None and findings is None:
        raise ValueError("There is nothing to draw: there are no findings next to the profile.")
    _draw(plots, findings=findings)
    if fits is not None:
        typer.echo(fits, err=True)


def _check_files(output: Path, plots: Path | None) -> None:
    common.check_output(output)
    if output.suffix.lower() != ".toml":
        raise ValueError(f"output is {str(output)!r}; allowed: a .toml file.")
    _check_folder(plots)


def _check_folder(plots: Path | None) -> None:
    if plots is not None and plots.exists() and not plots.is_dir():
        raise ValueError(f"plots is {str(plots)!r}; allowed: a folder, not a file.")
    if plots is not None and not plots.resolve().parent.is_dir():
        raise ValueError(f"The folder {plots.parent} of plots {plots.name} does not exist.")


def _findings_of(profile: Path, given: Path | None) -> Findings | None:
    from sinkscope.sinks.finding.findings import Findings
    from sinkscope.sinks.profile_file import findings_beside

    path = given or findings_beside(profile)
    if given is None and not path.is_file():
        typer.echo(
            f"Nothing says which samples finding used ({path.name} is not there), so none can be "
            "left out.",
            err=True,
        )
        return None
    return Findings.open(path)


def _fit(chosen: tuple[SinkProfile, ...], model: str) -> str:
    """One sentence: whether the profile fits the model.

    Raises:
        ValueError: it does not; the text names both and their sizes.
    """
    from sinkscope.models.profiles import check_fits

    if len(chosen) != 1:
        raise ValueError("model is given, but no one profile to compare; give --profile.")
    info = common.load(ModelSettings(model)).info
    check_fits(chosen[0], info.id, info.family, info.hidden_size, info.layers)
    return f"The profile fits {info.id} (hidden size {info.hidden_size}, {info.layers} layers)."


def _draw(plots: Path | None, findings: Any = None, validation: Any = None) -> None:
    if plots is None:
        return
    from sinkscope.sinks.figures.plots import save_plots

    written = save_plots(plots, findings, validation)
    typer.echo(f"Drew {', '.join(path.name for path in written)} in {plots}", err=True)


def _plain(profile: SinkProfile) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(profile)


def _as_json(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, indent=1, allow_nan=False)
