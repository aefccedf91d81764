"""The process that decodes images: `python -m sinkscope.models.image_worker`, which
`jobs.helper.Helper` starts. It has Pillow and NumPy, no torch and no page.

A task is `{"path", "to", "name", "limits"}`: a file, the output file of the pixels (RGB, row by
row, 8 bit), the image's name in errors, and the fields of `config.ImageLimits`. It gives [width,
height].
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from sinkscope.jobs.job import Progress
from sinkscope.jobs.serving import Do, serve

MODULE = "sinkscope.models.image_worker"
MEMORY = "SINKSCOPE_IMAGE_MEGABYTES"
# One memory pool that returns large blocks at once, because address space is limited.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


def bound_memory(megabytes: int) -> bool:
    """Limit the address space of this process; False where the system knows no such limit."""
    try:
        import resource  # not on Windows
    except ImportError:
        return False
    size = megabytes * 1_000_000
    try:
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file
    except (OSError, ValueError):  # macOS refuses it; or a lower limit is in force
        return False
    return True


def load() -> Do:
    """Limit the memory, and import what decodes."""
    bound_memory(int(os.environ[MEMORY]))
    from sinkscope.config import ImageLimits
    from sinkscope.models.images import open_image

    def do(task: dict[str, Any], on_progress: Progress, stop: threading.Event) -> list[int]:
        with Path(task["path"]).open("rb") as file:
            image = open_image(file, ImageLimits(**task["limits"]), task["name"])
        Path(task["to"]).write_bytes(image.tobytes())
        return list(image.size)

    return do


if __name__ == "__main__":
    serve(load)
