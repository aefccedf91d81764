"""The container of a trace: a safetensors file, its JSON part, and a checksum over its header.

The header's checksum covers all metadata (so the JSON part as it was written, and in it the
checksums of the tensors) and the name, dtype and shape of every tensor. It does not depend on the
order of the tensors in the file: the library's own writer produces the same trace from the same
content.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from sinkscope.untrusted import USUAL, check_json, cut, open_regular

if TYPE_CHECKING:
    import torch

    Values = torch.Tensor | np.ndarray

FORMAT = "sinkscope-trace"
CHECKSUM = "sinkscope-checksum"
VERSION = 6
DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
}
_NAMES = {"float16": "F16", "float32": "F32", "uint8": "U8"}
Table = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape of each tensor


class TraceFileError(ValueError):
    """The error of a file, as a whole sentence that names it."""


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns every error while a file is read into one sentence."""
    try:
        yield
    except TraceFileError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        lines = str(error).splitlines()
        what = lines[0] if lines else ""
        if isinstance(error, KeyError):
            what = f"it lacks {error}"
        elif isinstance(error, OSError):  # its text would name the folder
            what = error.strerror or ""
        raise TraceFileError(
            f"{path.name} is damaged or no trace: {cut(what) or type(error).__name__}"
        ) from error


class TraceFile:
    """An open file; reads only the requested parts.

    Attributes:
        about: the JSON part.
        table: dtype and shape of each tensor.

    Args:
        path: the file. Its header is read and checked here.

    Raises:
        TraceFileError: it is missing, damaged, not a trace, or of a newer format.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise TraceFileError(f"There is no trace file {path.name}.")
        with damage_named(path):
            self._file = cast("FileIO", open_regular(path, buffering=0))
            try:
                metadata, self.table, self._at = _read_header(self._file)
                self.about = _read_about(path, metadata, self.table)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor."""
        import torch  # imported late: reading arrays does not need it

        return torch.from_numpy(self.array(name))

    def array(self, name: str) -> np.ndarray:
        """The same for NumPy."""
        return self._read(name, self._at[name], self.table[name][1])

    def part(self, name: str, index: int) -> torch.Tensor:
        """A tensor's values at one index of its first axis."""
        import torch

        dtype, (_, *shape) = self.table[name]
        size = math.prod(shape) * DTYPES[dtype].itemsize
        return torch.from_numpy(self._read(name, self._at[name] + index * size, tuple(shape)))

    def _read(self, name: str, at: int, shape: tuple[int, ...]) -> np.ndarray:
        values: np.ndarray = np.empty(shape, DTYPES[self.table[name][0]])
        left = values.reshape(-1).view(np.uint8).data
        self._file.seek(at)
        while left and (count := self._file.readinto(left)):
            left = left[count:]
        if left:
            raise ValueError(f"{len(left)} bytes of its {name} are missing")
        return values


def write(file: BinaryIO, tensors: Mapping[str, torch.Tensor], about: str) -> None:
    """The safetensors format, tensor by tensor; the library's own `save` would first make a copy of
    everything in memory.

    Args:
        file: to write to.
        tensors: what it holds.
        about: its JSON part.
    """
    table = table_of(tensors)
    metadata = {"format": "pt", FORMAT: about}
    metadata[CHECKSUM] = header_checksum(metadata, table)
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        dtype, shape = table[name]
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(bytes_of(tensor).data)


def table_of(tensors: Mapping[str, torch.Tensor]) -> Table:
    """Dtype, in the format's words, and shape of each tensor."""
    names = {name: _number_type(tensor) for name, tensor in tensors.items()}
    return {
        name: (_NAMES.get(names[name], str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }


def _number_type(values: Values) -> str:
    """float16 and its like, of a tensor or an array."""
    return str(values.dtype).removeprefix("torch.")


def header_checksum(metadata: Mapping[str, str], table: Table) -> str:
    """SHA-256 over all metadata but itself, and over name, dtype and shape of all tensors."""
    digest = hashlib.sha256()
    parts = [part for key in sorted(metadata) if key != CHECKSUM for part in (key, metadata[key])]
    parts += [json.dumps([name, *table[name]]) for name in sorted(table)]
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def content_checksum(tensors: Mapping[str, Values]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(f"{name}:{tuple(values.shape)}:torch.{_number_type(values)}".encode())
        digest.update(bytes_of(values).data)
    return digest.hexdigest()


def bytes_of(values: Values) -> np.ndarray:
    """A view of the bytes of a contiguous tensor or array."""
    array = values if isinstance(values, np.ndarray) else values.contiguous().numpy()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's numbers for NumPy, which has no bfloat16."""
    narrow = str(tensor.dtype) == "torch.bfloat16"
    return (tensor.float() if narrow else tensor).detach().numpy()


def parsed(text: str | bytes, written_by_us: bool = False) -> Any:
    """Strict JSON: no duplicate keys, and finite numbers.

    Args:
        text: the JSON.
        written_by_us: its checksum fits, so duplicate keys are not searched for, which would take
            half as long again as reading it.

    Raises:
        ValueError: it is not; the text is the end of a sentence.
    """
    decoded = text.decode() if isinstance(text, bytes) else text
    check_json(decoded)
    if written_by_us:
        return json.loads(decoded, parse_constant=_no_number)
    return json.loads(
        decoded, object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_number
    )


def as_json(about: Mapping[str, Any]) -> str:
    """The JSON part of a trace.

    Raises:
        ValueError: a value is not a number, or of a type that JSON lacks; the text names it.
    """
    try:
        return json.dumps(about, ensure_ascii=True, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ValueError(_culprit(about) or str(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"its header has the key {twice!r} twice")
    return mapping


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        _no_number(word)
    return value


def _no_number(word: str) -> Any:
    raise ValueError(f"its header has {word}, which is not a number")


def _culprit(value: Any, name: str = "") -> str:
    """The part of a value that JSON cannot hold, in words; empty if it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} is {value}, which is not a number"
    if isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        inside = (_culprit(part, f"{name}.{key}" if name else str(key)) for key, part in pairs)
        return next((culprit for culprit in inside if culprit), "")
    if value is None or isinstance(value, str | int | float):
        return ""
    return f"{name} is a {type(value).__name__}, which JSON does not have"


def _read_header(file: FileIO) -> tuple[dict[str, str], Table, dict[str, int]]:
    """Metadata, tensors, and where in the file each of these begins. The tensors must fill the
    file without a gap, as the format demands.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the text is the end of a sentence.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError(f"its header should take {length} bytes, and the file has {size}")
    if length > USUAL.bytes:
        raise ValueError(f"its header takes {length} bytes; allowed: {USUAL.bytes}")
    header = parsed(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or set(map(type, metadata.values())) - {str}:
        raise ValueError("its metadata are not texts")
    spans = {name: tuple(part["data_offsets"]) for name, part in header.items()}
    table = {name: (str(part["dtype"]), tuple(part["shape"])) for name, part in header.items()}
    for name, (begin, end) in spans.items():
        dtype, shape = table[name]
        if set(map(type, (begin, end, *shape))) - {int} or min((begin, *shape)) < 0:
            raise ValueError(f"size and place of its {name} are not whole numbers from 0")
        if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"its {name} takes {end - begin} bytes, which is not its size")
    need = 8 + length + max((end for _, end in spans.values()), default=0)
    if need > size:
        raise ValueError(f"it is cut off: {need - size} of {need} bytes are missing")
    if need < size:
        raise ValueError(f"{size - need} bytes follow its end")
    edges = [0, *itertools.chain.from_iterable(sorted(spans.values())), need - 8 - length]
    if edges[::2] != edges[1::2]:
        raise ValueError("its tensors do not follow each other")
    return metadata, table, {name: 8 + length + begin for name, (begin, _) in spans.items()}


def _read_about(path: Path, metadata: Mapping[str, str], table: Table) -> dict[str, Any]:
    """The JSON part, once the header is known to be undamaged; errors as `_read_header`."""
    if FORMAT not in metadata:
        raise TraceFileError(f"{path.name} is a safetensors file, but no SinkScope trace.")
    whole = metadata.get(CHECKSUM) == header_checksum(metadata, table)
    about = parsed(metadata[FORMAT], written_by_us=whole)
    if not isinstance(about, dict):
        raise ValueError("its JSON part is not an object")
    version = about["version"]
    if type(version) is not int or version < 1:
        raise ValueError(f"its format version is {version!r}")
    if version > VERSION:
        raise TraceFileError(
            f"{path.name} has format version {version}; this SinkScope reads up to {VERSION}. "
            "Update it."
        )
    if not whole and (version >= 4 or CHECKSUM in metadata):
        raise TraceFileError(f"{path.name} is damaged: the checksum of its header does not match.")
    return about
