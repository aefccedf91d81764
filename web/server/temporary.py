"""A temporary folder of the app's own, which nobody else can read and which does not outlive it.

Gradio keeps uploads and what the page shows (photos, maps, exports) in a folder that all Gradio
apps of a user share, readable for everyone, until somebody empties it. Here each app has one below
its cache, locked for as long as the app runs. What an app that was killed has left, the next one
removes: a folder that nobody has locked is nobody's.
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
except ImportError:  # Windows: who still uses a folder cannot be told, so none is removed
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

NAME = "temporary"  # of the folder below the cache
OURS = ("runs", "page_evaluations", "page_sinks", NAME)  # below the cache
VARIABLE = "GRADIO_TEMP_DIR"
SCRATCH = "scratch-"  # how the names of folders begin that are there for a moment
_LOCK = ".lock"
_NEW, _LOCKED = "new-", "app-"  # how folders begin that are not locked yet, and that are


def keep_private(cache: Path) -> None:
    """From here on, what this process writes is for its own user alone; what it has written into
    `cache` before is closed to others too. Call it before the first file is written."""
    os.umask(0o077)
    for folder in (cache / name for name in OURS):  # the cache itself may be a shared place
        try:
            if folder.is_symlink() or not folder.is_dir():
                continue
            mode = stat.S_IMODE(folder.stat().st_mode)
            if mode & 0o077:
                folder.chmod(mode & 0o700)
        except OSError as error:  # another user's, or a disk that cannot be written
            log.warning("a folder below the cache stays readable for others: %s", error.strerror)


def own_folder(cache: Path) -> Path:
    """Make this app's folder, have Gradio use it, and remove those of apps that have ended.

    Args:
        cache: of the app. Where `GRADIO_TEMP_DIR` is set, the folder is made there instead; where
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
    atexit.register(lock.close)  # which also keeps it open until Python ends
    folder = created.rename(created.with_name(created.name.replace(_NEW, _LOCKED, 1)))
    os.environ[VARIABLE] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for a moment, in the app's own one: for whatever is made on the way to a file that
    is served. The system's place for temporary files is one that others use too, and what a killed
    app left there nobody would remove."""
    upload_folder = Path(get_upload_folder())
    upload_folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=SCRATCH, dir=upload_folder)


def remove_abandoned(place: Path) -> int:
    """Remove the folders of apps that have ended; how many."""
    if fcntl is None:
        return 0
    count = 0
    for folder in (*place.glob(f"{_NEW}*"), *place.glob(f"{_LOCKED}*")):
        if not folder.is_symlink() and folder.is_dir() and _abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            count += 1
    return count


def _abandoned(folder: Path) -> bool:
    if folder.name.startswith(_NEW):  # an app that starts beside this one has just made it
        return _age(folder) > 60
    try:
        lock = (folder / _LOCK).open("rb")
    except FileNotFoundError:  # half removed
        return True
    except OSError:  # another user's
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False  # an app runs in it
    return True


def _age(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0
