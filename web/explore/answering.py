"""The tokens of a run that is being computed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from sinkscope.capture.trace import GeneratedToken
from sinkscope.jobs.job import Job
from sinkscope.web.runs.payload import token_delta


@dataclass
class Answering:
    """The tokens of a run that is being computed: its thread adds them, the generator sends them
    to the page."""

    run_id: str
    prompt: str
    variants: tuple[str, ...]
    job: Job
    most: int = 0  # tokens of an answer
    tokens: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)  # time of each token of the first answer
    stage: str = ""  # why the next token takes long

    def on_stage(self, text: str) -> None:
        self.stage = text
        self.job.report(len(self.times), self.most, text)

    def on_token(self, variant: str, index: int, token: GeneratedToken) -> None:
        if variant == self.variants[0]:
            self.times.append(time.monotonic())
        self.tokens[variant].append(token_delta(token))
        self.stage = ""
        self.job.report(len(self.times), self.most, "Writing")
