"""Where a model's files are (bundled, a folder, the hub), and whether they are all there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from sinkscope.config import ModelSettings
from sinkscope.models.profiles import DEMO

Progress = Callable[[str, float], None]


class ModelError(ValueError):
    """A model that cannot be loaded; the text is one clear sentence for the user."""


def locate(settings: ModelSettings, report: Progress) -> tuple[Path, str | None]:
    """The folder that holds the model, and the hub commit it was resolved to (None for a user's
    folder)."""
    folder = _own_folder(settings)
    return (folder, None) if folder is not None else _download(settings, report)


def on_disk(settings: ModelSettings) -> Path | None:
    """The folder that holds the model, if all or part of it is on this machine; does not ask the
    hub.

    Raises:
        ModelError: it is not a hub id, and there is no such folder.
    """
    if (folder := _own_folder(settings)) is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(
            settings.model, revision=settings.revision, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise _no_hub_id(settings.model) from error
    return Path(snapshot)


def may_ask_hub(settings: ModelSettings) -> bool:
    """Whether a model that is not on this machine would be fetched."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return not (settings.local_files_only or HF_HUB_OFFLINE)


def _no_hub_id(name: str) -> ModelError:
    return ModelError(
        f"{name!r} is not a valid hub id; one looks like Qwen/Qwen2.5-VL-3B-Instruct."
    )


def _own_folder(settings: ModelSettings) -> Path | None:
    """The bundled model or a folder of the user's; None for a hub id."""
    if settings.model == "demo":
        if not (DEMO / "config.json").is_file():
            raise ModelError(
                "The bundled model is not there (demo/model); make it with: sinkscope demo train"
            )
        return DEMO
    try:
        folder = Path(settings.model).expanduser()
    except RuntimeError:  # ~name of a user that this machine does not have
        folder = Path(settings.model)
    if folder.is_dir():
        return folder
    looks_like_path = (
        settings.model.startswith((".", "/", "~"))
        or settings.model.count("/") != 1
        or folder.exists()
    )
    if folder.is_file():
        raise ModelError(f"{settings.model!r} is a file; give the model's folder.")
    if looks_like_path:
        raise ModelError(
            f"There is no model folder {settings.model!r}; "
            "allowed: demo, a folder, or a hub id such as Qwen/Qwen2.5-VL-3B-Instruct."
        )
    return None


def _download(settings: ModelSettings, report: Progress) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = settings.model, settings.revision
    report("Fetching the model from the hub, or finding it on disk", 0.05)
    try:
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.toml"],
            local_files_only=settings.local_files_only,
        )
    except GatedRepoError as error:
        raise ModelError(
            f"The hub keeps {name} behind an agreement; accept it there and log in, then try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"The hub has no model {name!r}, or it is private and you are not logged in."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"The model {name} has no revision {revision!r}.") from error
    except HFValidationError as error:
        raise _no_hub_id(name) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        asked = "the hub cannot be reached; connect to the network, or"
        if not may_ask_hub(settings):
            asked = "the hub may not be asked (local_files_only or HF_HUB_OFFLINE is set);"
        raise ModelError(
            f"The model {name} is not on this machine and {asked} give the folder of a "
            "downloaded copy."
        ) from error
    return Path(path), Path(path).name


def fingerprint(source: Path, weights: Sequence[Path]) -> str:
    """Tells two folders apart: SHA-256 over the config and, of each weight file that is read, its
    name, its size and a megabyte at its start, at its end and at 14 points between."""
    digest = hashlib.sha256((source / "config.json").read_bytes())
    for file in sorted(weights):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            for part in range(16):
                stream.seek(max(0, size - (1 << 20)) * part // 15)
                digest.update(stream.read(1 << 20))
    return f"sha256:{digest.hexdigest()[:16]}"


def first_line(error: BaseException) -> str:
    """The first line of a library's exception."""
    text = str(error).strip().split("\n", 1)[0]
    return text if len(text) <= 300 else text[:297] + "..."
