"""The probes of experiments, which reduce their data to a few tokens immediately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkscope.capture.probes.base import Probe, Reader
from sinkscope.models.run_info import RunInfo
from sinkscope.models.sites import Site, SiteSelection
from sinkscope.sinks.received import received


def on_host(by_layer: Mapping[int, Tensor]) -> Tensor:
    """float64 (L, ...) on the CPU, from equal tensors by layer: one copy if all layers are on one
    device."""
    layers = [by_layer[layer] for layer in sorted(by_layer)]
    if len({one.device for one in layers}) > 1:
        layers = [one.cpu() for one in layers]
    return torch.stack(layers).cpu().double()


@dataclass(frozen=True)
class AtTokens(Probe):
    """The values of a few tokens at some sites; `session[probe]` is a `TokenReader`.

    Attributes:
        sites: of modules.
        positions: rising.
        layers: None: all.
    """

    sites: tuple[Site, ...]
    positions: tuple[int, ...]
    layers: tuple[int, ...] | None = None

    def begin(self, run: RunInfo) -> TokenReader:
        return TokenReader(self)


class TokenReader(Reader):
    """Keeps the tokens' vectors of one pass on the device."""

    def __init__(self, probe: AtTokens) -> None:
        self.reads = tuple(
            SiteSelection(site, probe.layers, probe.positions) for site in probe.sites
        )
        self._positions = probe.positions
        self._seen: dict[str, dict[int, Tensor]] = {site: {} for site in probe.sites}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        self._seen[site][layer] = values[0].detach()

    def raw(self, site: str, layer: int) -> Tensor:
        """(n, ...) of the n positions, in the model's dtype and on its device."""
        return self._seen[site][layer]

    def layer(self, site: str, layer: int) -> Tensor:
        """float64 (n, ...) on the CPU: of the n positions, in order."""
        return self._seen[site][layer].cpu().double()

    def stacked(self, site: str) -> Tensor:
        """float64 (n, L, ...) on the CPU: of all layers that were read, in one copy if they are on
        one device."""
        return on_host(self._seen[site]).transpose(0, 1)


@dataclass(frozen=True)
class KeyAttention(Probe):
    """Attention that a few keys get from the prompt's later queries; `session[probe]` is a
    `KeyAttentionReader`.

    Attributes:
        keys: rising positions of the prompt.
        first: queries before this position are left out; a key is never its own query.
        rate: also alpha_k, for which all queries from the key on count.
    """

    keys: tuple[int, ...]
    first: int
    rate: bool = False

    def begin(self, run: RunInfo) -> KeyAttentionReader:
        return KeyAttentionReader(self, run)


class KeyAttentionReader(Reader):
    """Sums rows immediately: (layers, heads, keys) numbers are kept, never a row."""

    def __init__(self, probe: KeyAttention, run: RunInfo) -> None:
        self._probe, self._length = probe, run.length
        low = min(probe.keys) if probe.rate else max(probe.first, min(probe.keys) + 1)
        self.reads = (SiteSelection("rows", None, range(min(low, run.length), run.length)),)
        self._keys = torch.tensor(probe.keys, device=run.device)
        self._from = self._keys.clamp(min=probe.first - 1) + 1  # each key's first query
        self._sums: dict[int, Tensor] = {}
        self._alpha: dict[int, Tensor] = {}
        self._shape = (run.model.layers, run.model.heads)

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        keys, start = self._keys.to(values.device), self._from.to(values.device)
        columns = values[0].detach()[:, :, keys]  # (H, R, keys)
        query = torch.arange(positions[0], positions[-1] + 1, device=values.device)[:, None]
        self._add(self._sums, layer, columns * (query >= start))
        if self._probe.rate:
            self._add(self._alpha, layer, columns * (query >= keys))

    def _add(self, into: dict[int, Tensor], layer: int, columns: Tensor) -> None:
        summed = columns.sum(1)
        into[layer] = into[layer] + summed if layer in into else summed

    def mean(self) -> Tensor:
        """float64 (L, H, keys) on the CPU: mean over each key's queries; NaN without queries."""
        count = (self._length - self._from.cpu()).clamp(min=0).double()
        return self._stacked(self._sums) / torch.where(count > 0, count, float("nan"))

    def alpha(self) -> Tensor:
        """float64 (L, H, keys): sum of the rows q >= k of A[q, k] / (T - k)."""
        return self._stacked(self._alpha) / (self._length - self._keys.cpu()).double()

    def _stacked(self, given: dict[int, Tensor]) -> Tensor:
        if not given:  # no key has a query
            return torch.full((*self._shape, len(self._keys)), float("nan"), dtype=torch.float64)
        return on_host(given)


@dataclass(frozen=True)
class KeysByHead(Probe):
    """Rotated keys of a few tokens, and their cosines with later queries; `session[probe]` is a
    `KeyReader`.

    Attributes:
        keys: rising positions of the prompt.
        first: queries before this position are left out; a key is never its own query.
    """

    keys: tuple[int, ...]
    first: int

    def begin(self, run: RunInfo) -> KeyReader:
        return KeyReader(self, run)


class KeyReader(Reader):
    """Keeps the keys (few), and of the cosines their sum."""

    def __init__(self, probe: KeysByHead, run: RunInfo) -> None:
        self.reads = (SiteSelection("queries_keys", None, range(run.length)),)
        self._keys = torch.tensor(probe.keys, device=run.device)
        self._from = self._keys.clamp(min=probe.first - 1) + 1
        self._length = run.length
        self._vectors: dict[int, Tensor] = {}
        self._cosines: dict[int, Tensor] = {}

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> None:
        query, key, _ = values
        place, start = self._keys.to(key.device), self._from.to(key.device)
        keys_here = key[0].detach()[:, place]  # (Hkv, keys, Dh)
        self._vectors[layer] = keys_here.transpose(0, 1)
        work = torch.promote_types(keys_here.dtype, torch.float32)
        repeated = keys_here.repeat_interleave(query.shape[1] // key.shape[1], dim=0).to(work)
        unit = torch.nn.functional.normalize(repeated, dim=-1)
        asked = query[0, :, : self._length].detach().to(work)
        asked = torch.nn.functional.normalize(asked, dim=-1)
        cosines = asked @ unit.transpose(1, 2)  # (H, R, keys): a few columns, not N
        at = torch.arange(positions[0], positions[0] + asked.shape[1], device=key.device)[:, None]
        self._cosines[layer] = (cosines * (at >= start)).sum(1)

    def vectors(self) -> Tensor:
        """float64 (keys, L, Hkv, Dh) on the CPU."""
        return on_host(self._vectors).transpose(0, 1)

    def cosines(self) -> Tensor:
        """float64 (L, H, keys) on the CPU: mean over queries; NaN without queries."""
        count = (self._length - self._from.cpu()).clamp(min=0).double()
        return on_host(self._cosines) / torch.where(count > 0, count, float("nan"))


@dataclass(frozen=True)
class Received(Probe):
    """Attention that all tokens of a prompt receive, in multiples of uniform attention
    (`sinks.received`); `session[probe]` is layer -> [float32 (N,)]."""

    reads: tuple[SiteSelection, ...] = (SiteSelection("queries_keys"),)

    def see(self, site: str, layer: int, values: Any, positions: Sequence[int]) -> Any:
        query, key, scale = values
        return received(query[0].detach(), key[0].detach(), scale)
