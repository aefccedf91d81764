"""The model itself: `SinkScope`, a subclass of lmms-eval's `lmms`, made when lmms-eval asks for it.

Against its interface of 0.7.2 and 0.7.3: a chat model, whose requests carry `doc_to_messages`.
lmms-eval is imported only inside functions, so that this module can be imported without it.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from PIL import Image

from sinkscope.evaluation.lmms_plugin.arguments import generation, read_arguments, turns
from sinkscope.evaluation.methods import resolve
from sinkscope.evaluation.question_batches import ModelQuestion, PreparedQuestion, answer_questions
from sinkscope.models.images import as_rgb, open_image
from sinkscope.models.loading import load_model


class Answering:
    """Answers by SinkScope's own code, with VAR where `var=true`; see `arguments` for the rest.

    Inherited from `lmms`: `task_dict`, `cache_hook`, rank and world size.
    """

    is_simple = False
    task_dict: Any
    cache_hook: Any

    def __init__(self, **arguments: Any) -> None:
        """Load the model.

        Raises:
            ValueError: an argument that is not allowed, or several processes.
        """
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("WORLD_SIZE is above 1; allowed: one process with one model.")
        self.settings = read_arguments(arguments)
        self.handle = load_model(self.settings.model)
        (self.method,) = resolve([self.settings.method], self.handle.profile, self.handle.info)
        self.device = self.handle.device

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """One `GenerationResult` per request (`Instance`), in order.

        Raises:
            ValueError: a task that does not fit, such as images after the text; it is named.
        """
        from lmms_eval.api.instance import GenerationResult, TokenCounts

        answers = []
        for request in requests:
            context, to_messages, wanted, doc_id, task, split = request.args
            where = f"Question {doc_id} of the task {task}"
            messages = to_messages(self.task_dict[task][split][doc_id])
            images, prompt, system = turns(messages, where)
            asked = ModelQuestion(
                tuple(_opened(image) for image in images),
                prompt,
                generation(self.settings, wanted),
                system,
                self.settings.min_pixels,
                self.settings.max_pixels,
            )
            ready = PreparedQuestion(asked, asked.inputs(self.handle))
            ((answer,),) = answer_questions(self.handle, [ready], [self.method])
            counts = TokenCounts(output_tokens=len(answer.log_probabilities))
            answers.append(GenerationResult(text=answer.text, token_counts=counts))
            self.cache_hook.add_partial("generate_until", (context, wanted), answer.text)
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not there, as in lmms-eval's own Qwen2.5-VL."""
        raise NotImplementedError("SinkScope answers; tasks by log-likelihood are not supported.")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not there, as in lmms-eval's own Qwen2.5-VL."""
        raise NotImplementedError("SinkScope answers one question; rounds are not supported.")


def __getattr__(name: str) -> Any:
    if name == "SinkScope":
        return _model()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _model() -> type:
    from lmms_eval.api.model import lmms

    return type("SinkScope", (Answering, lmms), {"__doc__": Answering.__doc__})


def _opened(image: Any) -> Image.Image:
    return as_rgb(image) if isinstance(image, Image.Image) else open_image(image)
