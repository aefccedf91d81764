"""A temporary folder for this app, which other users cannot read and which is removed at the end.

Gradio keeps uploads and shown files (photos, maps, exports) in a folder that all Gradio apps of a
user share, readable for everyone, until somebody empties it. Here each app has its own folder below
its cache, locked as long as the app runs. The next app removes the folder of an app that was
killed: a folder without a lock is not in use.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from gradio.utils import get_upload_folder

try:
    import fcntl
except ImportError:  # Windows: cannot tell whether a folder is in use, so none is removed
    fcntl = None  # type: ignore[assignment]  # tested before use

log = logging.getLogger(__name__)

NAME = "temporary"  # name of the folder below the cache
OURS = ("runs", "page_evaluations", "page_sinks", NAME)  # folders below the cache
VARIABLE = "GRADIO_TEMP_DIR"
SCRATCH = "scratch-"  # name prefix of short-lived folders
_LOCK = ".lock"
_NEW, _LOCKED = "new-", "app-"  # name prefixes before and after locking


def keep_private(cache: Path) -> None:
    """From here on, files that this process writes are readable only for its own user. Files that
    it has written into `cache` before are closed to others too. Call it before the first file is
    written."""
    os.umask(0o077)
    for folder in (cache / name for name in OURS):  # the cache itself may be shared
        try:
            if folder.is_symlink() or not folder.is_dir():
                continue
            mode = stat.S_IMODE(folder.stat().st_mode)
            if mode & 0o077:
                folder.chmod(mode & 0o700)
        except OSError as error:  # another user's folder, or a read-only disk
            log.warning("a folder below the cache stays readable for others: %s", error.strerror)


def own_folder(cache: Path) -> Path:
    """Make this app's folder, set it as Gradio's, and remove the folders of apps that have ended.

    Args:
        cache: cache of the app. If `GRADIO_TEMP_DIR` is set, the folder is made there instead; if
            neither can be written, in the system's place for temporary files.

    Returns:
        The folder, with mode 0700. It is removed when Python ends.
    """
    given = os.environ.get(VARIABLE)
    place = Path(given) if given else cache.resolve() / NAME
    try:
        place.mkdir(parents=True, exist_ok=True)
        remove_abandoned(place)
        created = Path(tempfile.mkdtemp(prefix=_NEW, dir=place))
    except OSError as error:
        log.warning("the temporary folder cannot be made below the cache: %s", error.strerror)
        created = Path(tempfile.mkdtemp(prefix=_NEW))
    lock = (created / _LOCK).open("wb")
    if fcntl is not None:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    atexit.register(lock.close)  # the reference also keeps the lock open until Python ends
    folder = created.rename(created.with_name(created.name.replace(_NEW, _LOCKED, 1)))
    os.environ[VARIABLE] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A short-lived folder inside the app's own one, for intermediate files of a file that is
    served. The system's temporary folder is shared with other users, and nobody would remove the
    files that a killed app leaves there."""
    upload_folder = Path(get_upload_folder())
    upload_folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=SCRATCH, dir=upload_folder)


def remove_abandoned(place: Path) -> int:
    """Remove the folders of apps that have ended. Returns how many."""
    if fcntl is None:
        return 0
    count = 0
    for folder in (*place.glob(f"{_NEW}*"), *place.glob(f"{_LOCKED}*")):
        if not folder.is_symlink() and folder.is_dir() and _abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            count += 1
    return count


def _abandoned(folder: Path) -> bool:
    if folder.name.startswith(_NEW):  # just made by another app that is starting
        return _age(folder) > 60
    try:
        lock = (folder / _LOCK).open("rb")
    except FileNotFoundError:  # already being removed
        return True
    except OSError:  # another user's folder
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False  # a running app uses it
    return True


def _age(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0
