"""An engine that follows a script: the prompt selects what happens, and a test decides when.

"hostile"   an answer of texts that try to become HTML or code
"endless"   tokens as long as the test allows them, until Stop
"thousand"  1,000 tokens at once
"full"      the device's memory is full
"broken"    an internal error
other       the words of `synthetic.WORDS`
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from sinkscope.attention_extractor import Forecast, RunOutOfMemoryError
from sinkscope.capture.trace import GenerationTrace
from sinkscope.models.family import PromptInputs, PromptLayout, Segment
from sinkscope.models.generation_file import GenerationFile
from sinkscope.models.profiles import SinkProfile
from sinkscope.models.views import one_view
from sinkscope.web.explore.handlers import RunFunctions
from tests.web.synthetic import HOSTILE, WORDS, make_pair, make_trace, with_more

THOUSAND = tuple(f" word{n}" for n in range(1000))


class FakeHandle(SimpleNamespace):
    """A namespace that can be referenced weakly, like a real handle."""


def fake_handle(profile: bool = True) -> Any:
    """The parts of a `ModelHandle` that the page uses, without a model."""
    dims = SinkProfile("fake", "none", 64, 6, (3, 5), 6.0, "made up", "low") if profile else None
    info = SimpleNamespace(
        id="fake", device="cpu", dtype="float32", layers=6, heads=8, note="", hidden_size=4096
    )

    def prepare(images: Any, prompt: str, **_: Any) -> PromptInputs:
        grid = one_view(0, 1, 4, 6, 2, (56, 84), (56, 84))
        layout = PromptLayout(9, (Segment("image", 0, 6, 0), Segment("user", 6, 9)), (grid,))
        return PromptInputs({}, layout, tuple(images), prompt, (), ())

    text = SimpleNamespace(vocab_size=100)
    own = SimpleNamespace(do_sample=True, temperature=1e-6, repetition_penalty=1.05)
    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: text), generation_config=own
    )
    return FakeHandle(
        family=SimpleNamespace(sees_images=True),
        info=info,
        profile=dims,
        prepare=prepare,
        most_pixels=None,
        model=model,
        generation_file=GenerationFile(),
    )


class ScriptedEngine:
    """Scripted `generate` and `compare`. `hold()` makes every token wait for `let(n)`."""

    def __init__(self) -> None:
        self._tokens = threading.Semaphore(0)
        self._held = threading.Event()
        self.begun = threading.Event()
        self.ended = threading.Event()

    def engine(self) -> RunFunctions:
        return RunFunctions(self.generate, self.compare)

    def hold(self) -> None:
        self._tokens = threading.Semaphore(0)
        self.begun.clear()
        self.ended.clear()
        self._held.set()

    def let(self, count: int) -> None:
        for _ in range(count):
            self._tokens.release()

    def release(self) -> None:
        self._held.clear()
        self.let(2000)

    def generate(self, handle: Any, inputs: Any, settings: Any, **hooks: Any) -> GenerationTrace:
        on_token = hooks["on_token"]
        return self._run(inputs, lambda i, token: on_token(i, token), hooks["stop"])

    def compare(
        self,
        handle: Any,
        inputs: Any,
        settings: Any,
        var: Any,
        same_text: bool = False,
        **hooks: Any,
    ) -> Any:
        def report(i: int, token: Any) -> None:
            hooks["on_token"]("baseline", i, token)
            hooks["on_token"]("var", i, token)

        first = self._run(inputs, report, hooks["stop"])
        words = tuple(token.text for token in first.tokens)
        picture = {"image": inputs.images[0], "prompt": inputs.prompt}
        pair = make_pair(words, words, finish=first.finish_reason, **picture)
        pair = {name: with_more(trace, inputs.images[1:]) for name, trace in pair.items()}
        return SimpleNamespace(**pair, prefix=None)

    @staticmethod
    def estimate(
        handle: Any, inputs: Any, settings: Any, *, answers: int, same_text: bool, run_times: Any
    ) -> Forecast:
        """A thousand bytes and a tenth of a second per token; "heavy" does not fit."""
        if inputs.prompt == "heavy":
            raise ValueError("The run needs 9 GB where 1 GB is free. What helps: fewer new tokens.")
        count = settings.max_new_tokens
        layout = inputs.layout
        sizes = (layout.length, layout.vision_tokens, count, 1000 * count, 0, 0)
        return Forecast(*sizes, answers * count / 10, None, None)

    def _run(self, inputs: Any, report: Any, stop: threading.Event) -> GenerationTrace:
        if inputs.prompt == "full":
            raise RunOutOfMemoryError("The memory of the device is full; use a smaller image.")
        if inputs.prompt == "broken":
            raise RuntimeError("secret path /home/someone/thing.py")
        script = {"hostile": HOSTILE, "thousand": THOUSAND, "endless": WORDS * 50}
        words = script.get(inputs.prompt, WORDS)
        size = {"rows": 4, "columns": 4, "layers": 2, "heads": 2} if len(words) > 100 else {}
        picture = {"image": inputs.images[0], "prompt": inputs.prompt}
        planned = make_trace(words, **size, **picture)  # type: ignore[arg-type]
        self.begun.set()
        made = 0
        for i, token in enumerate(planned.tokens):
            while self._held.is_set() and not stop.is_set():
                if self._tokens.acquire(timeout=0.05):
                    break
            if stop.is_set():
                break
            report(i, token)
            made += 1
        self.ended.set()
        finish = "end" if made == len(words) else "stopped"
        trace = make_trace(words[:made], finish=finish, **size, **picture)  # type: ignore[arg-type]
        return with_more(trace, inputs.images[1:])
