"""Where each setting of a start comes from: a flag, the environment, a file, or its default.

One resolution, in this order; it can be printed with the source of each value, secrets masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkscope.setting.field import Setting, settings_of
from sinkscope.setting.reading import read

PREFIX = "SINKSCOPE_"
SECRET = ("auth", "token")
MASK = "(set, not shown)"
# For other programs (tests, continuous integration); not settings.
OTHERS = tuple(PREFIX + name for name in ("SETTINGS", "KILLS", "TOKENIZER", "REQUIRE_BROWSER"))
_SWITCH = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


@dataclass(frozen=True)
class Resolved:
    """One setting of a start.

    Attributes:
        section, name: `app`, `port`.
        value: the effective value.
        source: such as `flag --port`, `SINKSCOPE_PORT`, `settings.toml`, `default`.
    """

    section: str
    name: str
    value: Any
    source: str

    @property
    def line(self) -> str:
        """For a terminal, with secrets masked."""
        secret = self.name in SECRET and self.value not in (None, "none")
        value = MASK if secret else "-" if self.value is None else _words(self.value)
        return f"{self.section + '.' + self.name:<30} {value:<34} {self.source}"


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def variable(section: str, name: str, short: tuple[str, ...] = ("app", "model")) -> str:
    """The environment variable of a setting: `SINKSCOPE_PORT`, `SINKSCOPE_GENERATION_SEED`.

    A setting with a flag has the flag's name; others include their section.
    """
    return f"{PREFIX}{'' if section in short else section + '_'}{name}".upper()


def from_environment(
    sections: Mapping[str, type[Any]], environment: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The settings given by environment variables, by section and field. Empty ones count as left
    out.

    Raises:
        ValueError: a variable has an invalid value, or an unknown name; the text names it.
    """
    values: dict[str, dict[str, Any]] = {section: {} for section in sections}
    known = set(OTHERS)
    for section, cls in sections.items():
        for one in settings_of(cls):
            name = variable(section, one.field)
            known.add(name)
            if text := environment.get(name, ""):
                values[section][one.field] = _parsed(one, name, text)
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            close = [k for k in sorted(known) if k[:14] == name[:14]]
            hint = f", such as {', '.join(close[:3])}" if close else ""
            raise ValueError(
                f"{name} is in the environment and no setting; allowed: SINKSCOPE_ and the name of "
                f"a flag{hint}."
            )
    return values


def _parsed(one: Setting, name: str, text: str) -> Any:
    """The text of a variable as the field's type."""
    text = text.strip()
    try:
        if one.kind == "switch":
            return _SWITCH[text.lower()]
        if one.kind == "whole":
            return int(text)
        if one.kind == "number":
            return float(text)
        return read(one, text)
    except KeyError:
        raise ValueError(f"{name} is {text[:40]!r}; allowed: true or false.") from None
    except ValueError:
        allowed = "a whole number" if one.kind == "whole" else "a number or list as in the settings"
        raise ValueError(f"{name} is {text[:40]!r}; allowed: {allowed}.") from None


@dataclass(frozen=True)
class Sources:
    """The given settings and their sources, by section and field."""

    flags: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Mapping[str, Any]]
    file: Mapping[str, Mapping[str, Any]]
    path: Path | None = None

    def merged(self, section: str) -> dict[str, Any]:
        """The effective given values, by field, without defaults."""
        return {
            **self.file.get(section, {}),
            **self.environment.get(section, {}),
            **self.flags.get(section, {}),
        }

    def of(self, section: str, settings: Any) -> Iterator[Resolved]:
        """Each setting of a section with its source."""
        for one in settings_of(type(settings)):
            value = getattr(settings, one.field)
            if one.field in self.flags.get(section, {}):
                source = f"flag --{one.name.replace('_', '-')}"
            elif one.field in self.environment.get(section, {}):
                source = variable(section, one.field)
            elif one.field in self.file.get(section, {}):
                source = str(self.path)
            else:
                source = "default"
            yield Resolved(section, one.field, value, source)
