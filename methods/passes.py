"""Forward passes of a run's model over its own prompt and answer, for methods that need them.

    session = passes_of(handle, run)
    explain(run, 3, "rollout", session=session)

The answer is read again (teacher forcing): prompt and answer tokens but the last are one sequence,
in which position `length of the prompt - 1 + t` predicts answer token t. Its attention row is the
row of the trace, up to rounding. A run with VAR is read with VAR.

The handle's lock is taken for each pass, and nothing stays attached between two of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from sinkscope.capture.prefix import Prefix, forward_prefix
from sinkscope.capture.probes.base import Probe
from sinkscope.capture.run import memory_errors_named, on_device
from sinkscope.capture.saved_prompt import check_model, prepare_saved_prompt, var_settings_of
from sinkscope.capture.session import Session, attached
from sinkscope.capture.trace import GenerationTrace
from sinkscope.config import GenerationSettings, VARSettings
from sinkscope.interventions.base import Intervention
from sinkscope.jobs.job import Progress, Stopped
from sinkscope.methods.base import Method, Target
from sinkscope.models.family import PromptInputs
from sinkscope.models.loading import ModelHandle
from sinkscope.models.quantised import quantisation
from sinkscope.models.stack import TextStack
from sinkscope.var_patch import VAR


@dataclass
class Passes:
    """The session of a method; made by `passes_of`.

    Attributes:
        handle: the run's model.
        run: the run.
        inputs: its prompt.
        stop: set it to end a method after its current pass (`jobs.job.Stopped`).
    """

    handle: ModelHandle
    run: GenerationTrace
    inputs: PromptInputs
    stop: threading.Event = field(default_factory=threading.Event)
    _prefixes: dict[tuple[int, ...], Prefix] = field(default_factory=dict, repr=False)

    @property
    def answer(self) -> tuple[int, ...]:
        """Ids of all answer tokens."""
        return tuple(token.id for token in self.run.tokens)

    @property
    def ids(self) -> tuple[int, ...]:
        """The sequence: prompt, and answer without its last token, which predicts nothing."""
        return (*self.inputs.token_ids, *self.answer[:-1])

    @property
    def var(self) -> VARSettings | None:
        """The run's VAR settings; None for the plain model."""
        return var_settings_of(self.run)

    def position(self, token: int) -> int:
        """Position whose pass predicted an answer token."""
        return self.inputs.layout.length - 1 + token

    def vision(self) -> torch.Tensor:
        """int64 (V,) on the device: positions of all vision tokens."""
        return self.inputs.layout.vision_positions().to(self.handle.device)

    def vision_range(self) -> range | tuple[int, ...]:
        """The same as positions of a site (`models.sites.SiteSelection`)."""
        places = self.inputs.layout.vision_positions().tolist()
        if places and places == list(range(places[0], places[-1] + 1)):
            return range(places[0], places[-1] + 1)
        return tuple(places)

    def tensors(
        self, inputs: PromptInputs | None = None, tokens: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Prompt and answer as model inputs, on the CPU.

        Args:
            inputs: another prompt with as many tokens; None: the run's.
            tokens: number of predicted answer tokens; None: all.
        """
        tensors = dict((inputs or self.inputs).tensors)
        answer_ids = torch.tensor([self.answer[:tokens][:-1]], dtype=torch.long)
        shape = tensors["input_ids"].shape
        for name, tensor in tensors.items():
            if tensor.shape == shape:  # one value per position; 0 means text
                fill = torch.full_like(answer_ids, name == "attention_mask")
                behind = answer_ids if name == "input_ids" else fill
                tensors[name] = torch.cat([tensor, behind.to(tensor.dtype)], dim=1)
        return tensors

    @contextmanager
    def attached(
        self,
        probes: Sequence[Probe] = (),
        interventions: Sequence[Intervention] = (),
        *,
        rows: int = 1,
        gradients: bool = False,
        prefix: Prefix | None = None,
        prompts: Sequence[PromptInputs] | None = None,
    ) -> Iterator[Session]:
        """A session on the run's model, with the run's VAR after `interventions`; arguments as
        `capture.session.attached`. It holds the handle's lock and turns a full memory into a clear
        error."""
        acting = list(interventions)
        if self.var is not None:
            acting.append(VAR((self.var,) * rows))
        count = len(self.answer)
        with (
            self.handle.lock,
            memory_errors_named(self.inputs, GenerationSettings(max_new_tokens=count)),
            attached(
                self.handle,
                self.inputs if prompts is None else list(prompts),
                probes,
                acting,
                batch=rows,
                new_tokens=count,
                prefix=prefix,
                gradients=gradients,
            ) as session,
        ):
            yield session

    def read(self, *probes: Probe) -> Session:
        """One pass over prompt and answer; what the probes saw is in the session."""
        with self.attached(probes) as session:
            self.handle.model(
                **on_device(self.tensors(), self.handle.device), use_cache=False, logits_to_keep=1
            )
        return session

    def keys_values(self) -> tuple[DynamicCache, torch.Tensor]:
        """Keys and values of all positions, by the plain model, and what `Family.resume` needs."""
        with self.handle.lock:
            return self.handle.family.forward_prefix(
                self.handle.model,
                on_device(self.tensors(), self.handle.device),
                len(self.ids),
            )

    def prefix(self, dims: tuple[int, ...] | None = None) -> Prefix:
        """Keys and values up to the end of the last image, made once; `dims` are sink dimensions to
        score, by default the VAR's of the run."""
        if dims is None:
            dims = () if self.var is None else self.var.dims
        if dims not in self._prefixes:
            with self.handle.lock:
                self._prefixes[dims] = forward_prefix(self.handle, self.inputs, dims)
        return self._prefixes[dims]

    def tell(
        self, progress: Progress | None, done: int, total: int, text: str, what: str = "passes"
    ) -> None:
        """Report progress, and stop here if requested.

        Raises:
            jobs.job.Stopped: it was.
        """
        if self.stop.is_set():
            raise Stopped(done, total, what)
        if progress is not None:
            progress(done, total, text)


def passes_of(
    handle: ModelHandle,
    run: GenerationTrace,
    inputs: PromptInputs | None = None,
    *,
    stop: threading.Event | None = None,
) -> Passes:
    """Passes of the model that made a run.

    Args:
        handle: that model.
        run: the run.
        inputs: its prompt, if available; otherwise it is prepared again from images and text.
        stop: set it to end a method after its current pass.

    Raises:
        ValueError: another model is loaded, or the prompt is not the run's.
    """
    check_model(handle, run)
    if inputs is None:
        inputs = prepare_saved_prompt(handle, run)
    elif inputs.layout != run.layout or inputs.token_texts != run.prompt_tokens:
        raise ValueError("inputs are of another prompt than the run's.")
    return Passes(handle, run, inputs, stop or threading.Event())


class FromPasses(Method):
    """Base class of methods that need the model: they explain tokens of the answer by an image.

    Attributes:
        reads_var: whether it supports runs with VAR.
    """

    reads_var = True

    def availability(self, run: GenerationTrace) -> str | None:
        if not run.layout.grids:
            return "the prompt has no image"
        if not run.tokens:
            return "the answer is empty"
        if run.var is not None and not self.reads_var:
            return "the run was made with VAR, and this method explains only the plain model"
        return None

    def refusal(self, run: GenerationTrace, target: Target, session: Passes | None) -> str | None:
        if target.source != "answer":
            return "it explains tokens of the answer, and the target is a part of the prompt"
        if session is not None and self.needs == "gradients":
            form = quantisation(session.handle.model.config)
            if form is not None:
                return f"the model is quantised ({form}), and gradients need plain weights"
        return None if session is None else self.lacking(session.handle.stack)

    def lacking(self, stack: TextStack) -> str | None:
        """A required part that the model's family does not offer; None if there is none."""
        return None


def no_output_projection(stack: TextStack) -> str | None:
    """Why attention's output projection is not available; None if it is."""
    try:
        stack.attention_output(0).weight  # noqa: B018
    except ValueError as error:
        return str(error).rstrip(".")
    return None
