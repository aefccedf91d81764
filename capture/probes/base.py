"""Probes: small classes that read from a run and change nothing.

A probe is a frozen dataclass that derives from `Probe`, names the sites it reads in `reads`, and
returns from `see` what to keep of each:

    @dataclass(frozen=True)
    class Norms(Probe):
        reads: tuple[SiteSelection, ...] = (SiteSelection("block_in"),)

        def see(self, site, layer, values, positions):
            return values.norm(dim=-1)

    norms = Norms()
    with attached(handle, inputs, probes=[norms]) as session:
        handle.model(**tensors)
    session[norms]          # {layer: [what `see` returned, pass by pass]}

Kept values stay on the device until they are read. A probe that reduces what it sees, or needs the
prompt's layout, overrides `begin` and returns its own `Reader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import SiteSelection


class Reader:
    """A probe at work in one session: receives the values at the sites in `reads`."""

    reads: tuple[SiteSelection, ...]

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        """Receive the values at a site.

        Args:
            site: one of `reads`.
            layer: of the model; `models.sites.NO_LAYER` for the sites of the whole model.
            values: see `models.sites`; must not be written to. They may be a view of the model's
                tensors, so copy or reduce what is kept for long.
            positions: the token positions that `values` are of.
        """
        raise NotImplementedError

    def result(self) -> Any:
        """What `session[probe]` is; by default this object."""
        return self


class Probe:
    """Something to observe. Derive a frozen dataclass from it.

    Attributes:
        reads: the sites that `see` is shown; not needed where `begin` is overridden.
    """

    reads: tuple[SiteSelection, ...]

    def begin(self, run: RunInfo) -> Reader:
        """The reader of one run: by default a collector of what `see` returns.

        Raises:
            ValueError: the probe does not fit the model or the prompt.
        """
        return Collector(self)

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> Any:
        """What to keep of a site's values (arguments as in `Reader.see`); None keeps nothing."""
        return values


class Collector(Reader):
    """Keeps what a probe returns, layer by layer and pass by pass."""

    def __init__(self, probe: Probe) -> None:
        self.reads = tuple(probe.reads)
        self._probe = probe
        self._kept: dict[int, list[Any]] = {}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        kept = self._probe.see(site, layer, values, positions)
        if kept is not None:
            self._kept.setdefault(layer, []).append(kept)

    def result(self) -> dict[int, list[Any]]:
        """Layer -> what was kept, in the order it was seen."""
        return self._kept
