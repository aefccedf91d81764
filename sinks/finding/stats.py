"""The statistics of one sample, and their file.

A file is trusted only if its key says that it belongs to this model, these settings and this
sample, and if its checksum is right. Otherwise the sample is measured again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from sinkscope.untrusted import open_regular, parse_json
from sinkscope.utils import sha256, write_bytes_atomically

FORMAT = "sinkscope-sample-1"
TOP = 16  # number of largest m stored for each vision token
ORDINARY, SINK = 1, 2  # values of `SampleStats.group`; 0 is neither


class DamagedStatsError(ValueError):
    """A file that does not contain the expected statistics; the text says what is wrong."""


@dataclass(frozen=True)
class SampleStats:
    """One sample's statistics in L layers, of D dimensions and V vision tokens, on the CPU.

    m is |x[d]| / sqrt(mean(x^2) + 1e-6), float32, at the layer's input.

    Attributes:
        id, fingerprint, images: see `sinks.finding.findings.UsedSample`.
        layers: indices in the model.
        grids: (rows, columns) of each image's map; with one view, that of its vision tokens.
        sink: float32 (L, D): mean m over the tokens that stand out; 0 if none does.
        prominence, ordinary_prominence, first_prominence: float32 (L, D): means of m / b over the
            tokens that stand out (0 if none does), over the ordinary ones, and at the first
            token. b is a token's background: the rms of m over all dimensions except its K largest.
        ordinary, ordinary_square, ordinary_max: float32 (L, D): mean of m, mean of m squared and
            largest m over the ordinary vision tokens.
        first: float32 (L, D): m of the prompt's first token.
        text_max: float32 (L, D): largest m over the other tokens outside the images.
        massive: int32 (L, D): on how many of the tokens that stand out the dimension is a massive
            activation after Sun et al.
        received: float32 (L, V): the scores by which tokens are chosen.
        ratio: float32 (L, V): the same in multiples of the image's median.
        group: uint8 (L, V): 2 stands out, 1 ordinary, 0 neither.
        rms: float32 (L, V).
        top_dims, top_values: int32 and float32 (L, V, K): the K = 16 dimensions of largest m, and
            their m, in falling order.
    """

    id: str
    fingerprint: str
    images: tuple[str, ...]
    layers: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    sink: Tensor
    prominence: Tensor
    ordinary_prominence: Tensor
    first_prominence: Tensor
    ordinary: Tensor
    ordinary_square: Tensor
    ordinary_max: Tensor
    first: Tensor
    text_max: Tensor
    massive: Tensor
    received: Tensor
    ratio: Tensor
    group: Tensor
    rms: Tensor
    top_dims: Tensor
    top_values: Tensor

    def phi(self, dims: Sequence[int]) -> Tensor:
        """float32 (L, V): the sink score of each vision token for these dimensions.

        Exact if it is at least the token's K-th largest m. If it is smaller, that K-th largest m is
        returned, which is an upper bound.
        """
        wanted = torch.zeros_like(self.top_dims, dtype=torch.bool)
        for dim in dims:
            wanted |= self.top_dims == dim
        best = torch.where(wanted, self.top_values, 0.0).amax(-1)
        return torch.where(wanted.any(-1), best, self.top_values[..., -1])

    def save(self, path: Path, key: str) -> None:
        """Write a file, complete or not at all; `key` says what it belongs to."""
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        sample = json.dumps(
            [self.id, self.fingerprint, self.images, self.layers, self.grids], ensure_ascii=False
        )
        about = {
            "format": FORMAT,
            "key": key,
            "checksum": _checksum(tensors),
            "sample": sample,
            "sample_checksum": sha256(sample.encode()),
        }
        data = save(tensors, about)
        write_bytes_atomically(path, data)

    @staticmethod
    def open(path: Path, key: str) -> SampleStats:
        """Read a file written by `save`.

        Raises:
            DamagedStatsError: the file is damaged, or belongs to another model, other settings or
                another sample.
        """
        try:
            with open_regular(path):  # a pipe would block for ever
                pass
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
            tensors = load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise DamagedStatsError(f"{path.name} cannot be read: {error}") from error
        if about.get("format") != FORMAT or about.get("key") != key:
            raise DamagedStatsError(
                f"{path.name} belongs to another model, other settings or another sample"
            )
        if set(tensors) != set(_TENSORS) or about.get("checksum") != _checksum(tensors):
            raise DamagedStatsError(f"{path.name} is damaged: its checksum does not fit")
        sample = about.get("sample", "")
        # Files of earlier versions have none.
        if about.get("sample_checksum", sha256(sample.encode())) != sha256(sample.encode()):
            raise DamagedStatsError(f"{path.name} is damaged: its checksum does not fit")
        try:
            name, fingerprint, images, layers, grids = parse_json(sample)
        except (ValueError, TypeError) as error:
            raise DamagedStatsError(f"{path.name} cannot be read: {error}") from error
        return SampleStats(
            id=name,
            fingerprint=fingerprint,
            images=tuple(images),
            layers=tuple(layers),
            grids=tuple((rows, columns) for rows, columns in grids),
            **tensors,
        )


_TENSORS = tuple(f.name for f in dataclasses.fields(SampleStats) if f.type == "Tensor")


def _checksum(tensors: dict[str, Tensor]) -> str:
    parts = [
        f"{name} {tuple(tensors[name].shape)} ".encode() + tensors[name].numpy().tobytes()
        for name in sorted(tensors)
    ]
    return sha256(b"".join(parts))
