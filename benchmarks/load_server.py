"""The app in its own process, for `benchmarks load`.

The first line of output is the page's address. Each line of input is answered by one more line: the
owners of running jobs, and the threads. The process ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections import Counter

MANY = 100_000  # all clients share one address, and are more than are allowed from one


def main(store_megabytes: int, queue_size: int, switch_ms: float) -> None:
    """Serve until standard input ends.

    Args:
        store_megabytes: memory for runs; small, so that it is full after the warm-up.
        queue_size: how many jobs may wait.
        switch_ms: the interpreter's switch interval in milliseconds; 0: the app's own.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", GRADIO_TEMP_DIR=f"{folder}/files"
        )
        import torch

        from sinkscope.config import AppSettings, ModelSettings, Settings
        from sinkscope.models.loading import load_model
        from sinkscope.setting.serving import NO_TOKEN
        from sinkscope.web.launch import launch
        from sinkscope.web.page import build_app

        if switch_ms:
            sys.setswitchinterval(switch_ms / 1000)
        handle = load_model(ModelSettings("demo", device="cpu"))
        app = AppSettings(
            port=0,
            cache_dir=f"{folder}/cache",
            store_megabytes=store_megabytes,
            queue_size=queue_size,
            token=NO_TOKEN,
            streams=MANY,
            upload_files=MANY,
        )
        page = build_app(Settings(app=app), handle)
        url = launch(page, wait=False)
        about = {"url": url, "pid": os.getpid(), "threads": torch.get_num_threads()}
        print(json.dumps(about), flush=True)
        for _ in sys.stdin:
            state = {
                "owners": [str(job.owner) for job in page.handlers.runner.under_way],
                "threads_by_name": Counter(_kind(thread.name) for thread in threading.enumerate()),
                "stored": page.handlers.store.memory,
            }
            print(json.dumps(state), flush=True)
        page.blocks.close(verbose=False)


def _kind(name: str) -> str:
    """A thread's name without its number."""
    return name.rstrip("0123456789- ")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
