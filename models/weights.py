"""The weight files of a checkpoint: which of a folder's files are read, what they hold by their
headers, and why a folder has none.

Nothing here reads a weight, so a folder that cannot be loaded is refused in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sinkscope.models.source import ModelError
from sinkscope.untrusted import open_regular, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # these are converted to the requested dtype
LFS = b"version https://git-lfs"
ADAPTED = re.compile(r"\.(lora_|base_layer\.|modules_to_save\.|hada_w|lokr_w|oft_|ia3_|vera_)")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor, from the header of a weight file.

    Attributes:
        shape: sizes.
        dtype: stored dtype, as named by safetensors (`BF16`, `F32`, `I32`, ...).
    """

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape))


@dataclass(frozen=True)
class WeightFiles:
    """The files that are read, and what they hold.

    Attributes:
        files: in the order of their names.
        tensors: by name.
        note: other weight files in the folder, in a sentence; else "".
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    note: str = ""

    @property
    def nbytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in self.files)


def weight_files(name: str, source: Path) -> WeightFiles:
    """The weight files of a model's folder: those that transformers reads.

    Args:
        name: of the model, for sentences.
        source: its folder.

    Raises:
        ModelError: there are none, or not all, or one is damaged.
    """
    _no_adapter(name, source)
    single, index = source / SINGLE, source / INDEX
    mapped = _index(name, index) if index.is_file() else {}
    shards = sorted(set(mapped.values()))
    absent = [shard for shard in shards if not (source / shard).is_file()]
    if absent and (SINGLE in shards or not single.is_file()):
        raise ModelError(
            f"{name} is only half downloaded: {len(absent)} of {len(shards)} weight files are "
            f"missing, {absent[0]} among them."
        )
    if not shards and not single.is_file():
        raise ModelError(f"{name} {_why_none(source)}")
    # A single file takes precedence, as in transformers; an index without its files is a leftover.
    files = [single] if single.is_file() else [source / shard for shard in shards]
    tensors = _headers(name, files)
    lost = [] if absent else sorted(set(mapped) - set(tensors))
    if lost and single.is_file():
        raise ModelError(
            f"{name} has {SINGLE} and {len(shards)} files with an index, but the single file, "
            f"which would be read, lacks {len(lost)} tensors of the index, {lost[0]} among them. "
            "Move away the one that is not the model."
        )
    if lost:
        raise ModelError(
            f"{INDEX} of {name} does not belong to these weight files: it names {len(lost)} "
            f"tensors that they do not hold, {lost[0]} among them. Download it again, or use the "
            "index that was exported with them."
        )
    return WeightFiles(tuple(files), tensors, _unread_weights(source, files))


def _no_adapter(name: str, source: Path) -> None:
    """Refuse an adapter: transformers would load or ignore it, depending on whether peft is
    installed."""
    about = source / ADAPTER
    if not about.is_file():
        return
    complete = (source / SINGLE).is_file() or (source / INDEX).is_file()
    if complete:
        raise ModelError(
            f"{name} holds the weights of a model and of an adapter ({ADAPTER}). If the "
            "adapter is merged into them, move its files away; else merge the adapter and use the "
            "merged folder."
        )
    raise ModelError(f"{name} {adapter_words(about)}")


def adapter_words(about: Path) -> str:
    """The error for a folder with an adapter, and what to do."""
    try:
        given = read_json(about, "The file")
        base = given.get("base_model_name_or_path") if isinstance(given, dict) else None
        kind = str(given.get("peft_type") or "LoRA") if isinstance(given, dict) else "LoRA"
    except ValueError:
        base, kind = None, "LoRA"
    of = f" of {base}" if isinstance(base, str) and base else ""
    return (
        f"is an adapter ({kind}){of}, not a model: give it as adapter (--adapter) together with "
        "its base model, or merge it into that model (PeftModel.from_pretrained(base, adapter)"
        ".merge_and_unload(), then save_pretrained with the processor's files) and use the merged "
        "folder."
    )


def _index(name: str, index: Path) -> dict[str, str]:
    try:
        mapped = read_json(index, "The file")["weight_map"]
        if not mapped or any(Path(file).name != file for file in mapped.values()):
            raise ValueError("no files, or files elsewhere")
        return dict(mapped)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"The file {INDEX} of {name} is damaged; download it again.") from error


def _headers(name: str, files: list[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        try:
            with (
                open_regular(file),
                safe_open(file, "pt") as weights,
            ):  # a pipe would wait
                for key in weights.keys():  # noqa: SIM118
                    part = weights.get_slice(key)
                    tensors[key] = StoredTensor(tuple(part.get_shape()), str(part.get_dtype()))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{_what_it_is(name, file)}") from error
    return tensors


def _what_it_is(name: str, file: Path) -> str:
    """Why a weight file has no header that can be read."""
    try:
        pointer, empty = is_pointer(file), file.stat().st_size == 0
    except OSError as error:
        return f"The weight file {file.name} of {name} cannot be read: {error.strerror}."
    if pointer:
        return (
            f"The weight file {file.name} of {name} is a pointer of Git LFS, not the file itself; "
            "fetch it with: git lfs pull"
        )
    what = "empty" if empty else "damaged or half downloaded"
    return f"The weight file {file.name} of {name} is {what}; download it again."


def is_pointer(file: Path) -> bool:
    """Whether a file is a pointer of Git LFS, left by a clone without LFS."""
    with open_regular(file) as stream:
        return stream.read(len(LFS)) == LFS


def inner_models(source: Path) -> list[str]:
    """Folders in a folder that hold a model; the last checkpoint of a run comes last."""

    def by_number(name: str) -> list[tuple[int, str]]:
        return [(int(part or 0), word) for word, part in re.findall(r"(\D*)(\d*)", name)]

    return sorted((path.parent.name for path in source.glob("*/config.json")), key=by_number)


# What a folder without the weights that are read may hold instead, the most telling first: a
# pattern of whole file names, and what to say about the first one.
_INSTEAD: tuple[tuple[str, str], ...] = (
    (
        r".*-\d{5}-of-\d{5}\.safetensors",
        f"has weight files in parts ({{found}}), but no {INDEX}, which says what is in them; get "
        "it from the source of the files.",
    ),
    (
        r"consolidated.*",
        "has its weights as {found}, in the layout of another library; only "
        f"transformers' own are read ({SINGLE}, or parts with {INDEX}).",
    ),
    (
        r"adapter_model\.safetensors",
        "has only an adapter's weights ({found}): merge the adapter into its base model and use "
        "the merged folder.",
    ),
    (
        r".*\.safetensors",
        f"has no {SINGLE} and no {INDEX}; {{found}} is not read, because nothing says that it is "
        f"the model. If it is, rename it to {SINGLE}.",
    ),
    (
        r".*\.gguf",
        "has no .safetensors weights, only {found}, which is for llama.cpp; use the checkpoint "
        "that it was made from.",
    ),
    (
        r"global_step\d+|zero_to_fp32\.py|mp_rank_\d+.*|.*_zero_.*\.pt",
        "has no .safetensors weights, only those of a DeepSpeed training ({found}); gather them "
        "first: python zero_to_fp32.py . . --safe_serialization",
    ),
    (
        r".*\.distcp|pytorch_model_fsdp.*|.*_fsdp_.*",
        "has no .safetensors weights, only the parts of an FSDP training ({found}); merge them "
        "first: accelerate merge-weights",
    ),
    (
        r".*\.(bin|pth|pt|ckpt|msgpack|h5)",
        "has no .safetensors weights; other formats ({found}) are not read, for safety. If you "
        "trust it, load it with transformers and save it again with save_pretrained.",
    ),
)


def _why_none(source: Path) -> str:
    """Why a folder has no weights, from its content."""
    names = sorted(path.name for path in source.iterdir())
    for pattern, words in _INSTEAD:
        if name_found := next((name for name in names if re.fullmatch(pattern, name)), None):
            return words.format(found=name_found)
    if inner := inner_models(source):
        return f"has no .safetensors weights; there is a model in its folder {inner[-1]}; use that."
    return "has no .safetensors weights; other formats are not read, for safety."


def _unread_weights(source: Path, files: list[Path]) -> str:
    """A sentence on weight files that are not read."""
    others = sorted(path.name for path in source.glob("*.safetensors") if path not in files)
    if not others:
        return ""
    some = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    read = files[0].name if len(files) == 1 else f"the {len(files)} files of {INDEX}"
    return f"The weights come from {read}; not read: {some}."
