"""What all tabs share: fields, a button that starts a job, one that cancels it, and a line that says how it goes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from app.ui.jobs import Job
from app.ui.models import Shelf

QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
WORK: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}


@dataclass(frozen=True)
class Progress:
    text: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Failure:
    sentence: str


class JobTab(ABC):
    """A tab: its fields on the left, what comes of them on the right.

    Args:
        shelf: the models that it offers.
        verb: on the button that starts.
        prefix: of the elements' names in the page.
    """

    run: Callable[..., Iterator[dict[Any, Any]]]  # the job: fields and the job in, what changes on the page out

    def __init__(self, shelf: Shelf, verb: str, prefix: str = ""):
        self.shelf = shelf
        self.job = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300, elem_classes="panel"):
                self._fields()
                with gr.Row():
                    self.start = gr.Button(verb, variant="primary", scale=3, min_width=120, elem_id=verb.lower())
                    self.cancel = gr.Button(
                        "Cancel", interactive=False, scale=1, min_width=90, elem_id=f"{prefix}cancel"
                    )
                self.status = gr.HTML(status_html("Ready."), padding=False, elem_id=f"{prefix}status")
            with gr.Column(scale=7, min_width=300, elem_classes="panel"):
                self._result_fields()

    @abstractmethod
    def _fields(self) -> None:
        """Make the components of the form, in the order of the keyboard."""

    @abstractmethod
    def _result_fields(self) -> None:
        """Make the components of the result."""

    @abstractmethod
    def _agree(self, *asked: Any) -> Any:
        """The settings of a job, once all of them make sense.

        Raises:
            ValueError: something is missing or out of range.
        """

    def _wire_job(self, asked: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], **api: Any) -> None:
        # The page says so by itself: an answer of the server might come after the last word of the run.
        said = f"() => {json.dumps(status_html('Stopping …'))}"
        self.cancel.click(None, None, self.status, js=said, **QUICK)
        self.cancel.click(self.stop, self.job, self.cancel, **QUICK)
        begun = self.start.click(self.begin, asked, self._begun, trigger_mode="once", **QUICK)
        self._run_after(begun, inputs, outputs, **api)

    def _run_after(self, begun: Any, inputs: Sequence[Any], outputs: Sequence[Any], **options: Any) -> Any:
        """The run, once a job has begun; gives the event of its end."""
        return begun.success(self.run, inputs, [*outputs, self.status, self.start, self.cancel], **WORK, **options)

    @property
    def _begun(self) -> list[Any]:
        return [self.job, self.status, self.start, self.cancel]

    def begin(self, *asked: Any) -> dict[Any, Any]:
        """Answers at once: says what is missing, or that the job waits for its turn."""
        try:
            self._agree(*asked)
        except ValueError as error:
            return {self.job: Job(refused=True), self.status: status_html("", failures=[str(error)])}
        return {
            self.job: Job(),
            self.status: status_html("Waiting for its turn …"),
            self.start: gr.Button(interactive=False),
            self.cancel: gr.Button(interactive=True),
        }

    def stop(self, job: Job | None) -> gr.Button:
        if job is not None:
            job.stop()
        return gr.Button(interactive=False)

    def _settings(self, *asked: Any) -> Any:
        """As `_agree`, for programs, which come without `begin`."""
        try:
            return self._agree(*asked)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _idle(self) -> dict[Any, Any]:
        return {self.start: gr.Button(interactive=True), self.cancel: gr.Button(interactive=False)}


def status_html(text: str, failures: list[str] | None = None) -> str:
    lines = [f"<p>{escape(text)}</p>"] if text else []
    lines += [f'<p class="failed">{escape(sentence)}</p>' for sentence in failures or []]
    return "".join(lines)


def progress_html(progress: Progress, failures: list[str]) -> str:
    amount = f' value="{progress.done}" max="{progress.total}"' if progress.total else ""
    text = progress.text[:1].upper() + progress.text[1:]
    return status_html(text, failures) + f'<progress aria-label="Progress"{amount}></progress>'


def facts_html(parts: Sequence[tuple[str, str]], notes: Sequence[str] = ()) -> str:
    """What is told of a result: (kind, text), and notes."""
    every = [*parts, *(("note", note) for note in notes)]
    return "".join(f'<p class="{kind}">{escape(text)}</p>' for kind, text in every if text)


def figure_html(caption: str, source: str, kind: str = "") -> str:
    """A picture and what it is."""
    text = escape(caption)
    return f'<figure class="{kind}"><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'


def failure(what: str, error: Exception, said: str | None = None) -> Failure:
    """A sentence about an error that nobody expected, in the error's words or in those that are given."""
    reason = " ".join((str(error) if said is None else said).split()) or type(error).__name__
    return Failure(f"{what}: {reason.rstrip('.')}.")
