"""The tab Generate: labels in, pictures out, all of their settings inside them."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from app.ui import look
from app.ui.files import new_folder, safe_stem, uploaded
from app.ui.jobs import Job, Throttle, stream
from app.ui.models import Generator, Shelf, number_format
from app.ui.tabs import QUICK, Failure, JobTab, Progress, facts_html, failure, progress_html, status_html
from genres import __version__
from genres.media.images import ImageError, Picture, read_settings, write_image
from genres.media.sheets import contact_sheet
from pipelines.errors import Interrupted

LOG = logging.getLogger(__name__)
MOST_LABELS, MOST_OF_EACH = 8, 8
TOGETHER = 16  # pictures that are made in one batch
MOST_STEPS = 100
MOST_GUIDANCE, MOST_PAG = 8.0, 4.0
LARGEST_SEED = 2**31 - 1
PREVIEW_SIDE = 96  # pixels of one picture in the preview, at least

SHARINGS = {
    "linear": "Continue what was seen",
    "dp": "Hold it where that matters least",
    "uniform": "Hold it evenly",
    "none": "Not at all",
}
EMPTY = """
<div class="empty">
  <svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.5" aria-hidden="true">
    <rect x="3" y="3" width="8" height="8" rx="1.5"/><rect x="13" y="3" width="8" height="8" rx="1.5"/>
    <rect x="3" y="13" width="8" height="8" rx="1.5"/><path d="M17 14v6M14 17h6"/></svg>
  <p>Choose what to make and press Generate. The pictures appear here.</p>
</div>
"""


@dataclass(frozen=True)
class Settings:
    """What a visitor chose."""

    model: str
    labels: tuple[str, ...]
    count: int
    seed: int
    steps: int
    guidance: float
    pag: float
    sharing: str
    condition_steps: int | None

    @property
    def wanted(self) -> list[tuple[str, int]]:
        """Label and seed of every picture."""
        return [(label, self.seed + i) for label in self.labels for i in range(self.count)]

    def embedded(self, label: str, seed: int, dtype: str) -> dict[str, Any]:
        """What is written into a picture, in the words of `genres generate`."""
        return {
            "genres": __version__,
            "work": "generate",
            "model": self.model,
            "label": label,
            "seed": seed,
            "steps": self.steps,
            "condition_steps": self.condition_steps,
            "sharing": "none" if self.condition_steps is None else self.sharing,
            "guidance": self.guidance,
            "pag": self.pag,
            "solver": "euler",
            "dtype": dtype,
        }


@dataclass(frozen=True)
class Made:
    """Pictures that are there: their files, and a file with all of them."""

    files: list[Path]
    titles: list[str]
    sheet: Path
    how: str


@dataclass(frozen=True)
class Preview:
    """How the pictures look so far."""

    progress: Progress
    path: Path


Report = Progress | Preview | Failure | Made


class GenerateTab(JobTab):
    """The components of the tab and what they do."""

    def __init__(self, shelf: Shelf, page: gr.Blocks):
        super().__init__(shelf, "Generate", "generate-")
        self._wire(page)

    # The components, in the order of the keyboard.

    def _fields(self) -> None:
        choices = self.shelf.choices("generate")
        first = choices[0][1]
        names = self._names(first)
        self.model = gr.Dropdown(choices, value=first, label="Model", filterable=False, elem_id="generate-model")
        every = dict.fromkeys(name for _, model in choices for name in self._names(model))
        self.labels = gr.Dropdown(
            list(every),  # the page narrows them, programs do not
            value=names[:1],
            multiselect=True,
            max_choices=MOST_LABELS,
            label="What shall it be?",
            elem_id="labels",
        )
        self.count = gr.Slider(1, MOST_OF_EACH, 4, step=1, label="How many of each", elem_id="count")
        with gr.Row():
            self.seed = gr.Number(
                0,
                label="Seed",
                info="The same seed gives the same picture again.",
                precision=0,
                minimum=0,
                maximum=LARGEST_SEED,
                scale=3,
                min_width=140,
                elem_id="seed",
            )
            self.dice = gr.Button("⚄ Dice", scale=1, min_width=100, elem_id="dice")
        with look.fold("More settings", "generate-more"):
            self.steps = gr.Slider(1, MOST_STEPS, 50, step=1, label="Steps", info="More are slower and finer.")
            found = self._generator(first)
            self.guidance = gr.Slider(
                1,
                MOST_GUIDANCE,
                found.guidance if found else 2,
                step=0.1,
                label="Guidance",
                info="How strictly the label is followed; 1 is free.",
            )
            self.pag = gr.Slider(
                0,
                MOST_PAG,
                found.pag if found else 0,
                step=0.1,
                label="Wholeness",
                info="Guidance by perturbed attention: makes shapes more whole, and is slower; 0 is none.",
                elem_id="pag",
            )
            self.sharing = gr.Radio(
                [(title, name) for name, title in SHARINGS.items()],
                value="linear",
                label="Save work between steps",
                elem_id="sharing",
            )
            self.condition_steps = gr.Slider(
                1, MOST_STEPS, 17, step=1, label="Steps that look anew", elem_id="condition-steps"
            )
            self.hint = gr.HTML(self.speed_hint(first, 50, "linear", 17), padding=False, min_height=0, elem_id="hint")
            self.source = gr.File(
                label="Take the settings from a picture that was made here",
                file_types=["image"],
                height=150,
                elem_id="source",
            )

    def _result_fields(self) -> None:
        self.empty = gr.HTML(EMPTY, padding=False)
        self.preview = gr.Image(
            label="So far",
            format="png",
            interactive=False,
            visible=False,
            buttons=[],
            height=520,
            elem_id="preview",
        )
        self.gallery = gr.Gallery(
            label="Pictures",
            format="png",
            columns=4,
            height="auto",
            object_fit="contain",
            buttons=["download", "fullscreen"],
            interactive=False,
            visible=False,
            elem_id="made",
        )
        with gr.Row(equal_height=True):
            self.facts = gr.HTML(visible=False, padding=False, min_height=0, elem_id="generate-facts")
            self.download = gr.DownloadButton("Download as one", visible=False, scale=0, min_width=190, elem_id="sheet")
        self.files = gr.File(
            label="All pictures, settings inside",
            file_count="multiple",
            interactive=False,
            visible=False,
            elem_id="pictures",
        )

    # The events.

    def _wire(self, page: gr.Blocks) -> None:
        shared: list[Any] = [self.model, self.steps, self.sharing, self.condition_steps]
        gr.on(
            [page.load, self.model.input], self.fit_model, self.model, [self.labels, self.guidance, self.pag], **QUICK
        )
        gr.on([field.change for field in shared], self.speed_hint, shared, self.hint, **QUICK)
        self.dice.click(lambda: secrets.randbelow(LARGEST_SEED), None, self.seed, **QUICK)
        asked = [
            self.model,
            self.labels,
            self.count,
            self.seed,
            self.steps,
            self.guidance,
            self.pag,
            self.sharing,
            self.condition_steps,
        ]
        self.source.upload(self.read_back, self.source, [*asked, self.status], **QUICK)
        self._wire_job(
            asked,
            [*asked, self.job],
            [self.empty, self.preview, self.gallery, self.facts, self.download, self.files],
            api_name="generate",
            api_description="Generates pictures of labels; the files carry their settings.",
        )

    def _generator(self, model: Any) -> Generator | None:
        found = self.shelf.models.get(model) if isinstance(model, str) else None
        return found if isinstance(found, Generator) else None

    def _names(self, model: Any) -> list[str]:
        found = self._generator(model)
        return list(found.labels) if found else []

    def fit_model(self, model: str) -> list[Any]:
        """Offers the labels of the model, and proposes its guidance."""
        names, found = self._names(model), self._generator(model)
        labels = gr.Dropdown(choices=names, value=names[:1])
        return [labels, found.guidance, found.pag] if found else [labels, gr.skip(), gr.skip()]

    def speed_hint(self, model: str, steps: float, sharing: str, condition_steps: float) -> str:
        """In plain words, what the sharing does to speed and quality."""
        found = self._generator(model)
        if found is None or sharing == "none" or condition_steps >= steps:
            return "<p>Every step looks anew: slowest, and the pictures are as the model means them.</p>"
        share = condition_steps / steps
        times = found.speed_up(share)
        if share >= 0.5:
            quality = "The pictures stay the same to the eye."
        elif share >= 0.25:
            quality = "The pictures stay nearly the same."
        else:
            quality = "Details change, and some pictures get worse."
        return f"<p>About {times:.1f} times as fast. {quality}</p>"

    def read_back(self, path: str | None) -> dict[Any, Any]:
        """Sets the fields from the settings that a picture carries."""
        try:
            source = uploaded(path or "")
            found = read_settings(source, name=source.name)
        except ImageError as error:
            return {self.status: status_html("", failures=[str(error)])}
        if not found or found.get("work") != "generate":
            return {self.status: status_html(f"{source.name} carries no settings of a generation.")}
        try:
            settings = self._agree(
                found.get("model"),
                [found.get("label")],
                1,
                found.get("seed"),
                found.get("steps"),
                found.get("guidance"),
                found.get("pag", 0),
                found.get("sharing"),
                found.get("condition_steps") or 1,
            )
        except ValueError as error:
            return {self.status: status_html(f"{source.name} carries settings that were not taken over: {error}")}
        fields = {
            self.model: settings.model,
            self.labels: gr.Dropdown(choices=self._names(settings.model), value=list(settings.labels)),
            self.count: 1,
            self.seed: settings.seed,
            self.steps: settings.steps,
            self.guidance: settings.guidance,
            self.pag: settings.pag,
            self.sharing: settings.sharing,
            self.status: status_html(f"The settings were taken over from {source.name}."),
        }
        return fields | ({self.condition_steps: settings.condition_steps} if settings.condition_steps else {})

    def _agree(self, *asked: Any) -> Settings:
        """The settings, once all of them make sense."""
        model, labels, count, seed, steps, guidance, pag, sharing, condition_steps = asked
        if self._generator(model) is None:
            raise ValueError("The model is not here.")
        known = self._names(model)
        if not isinstance(labels, list) or not labels:
            raise ValueError("Choose what to make first.")
        if len(labels) > MOST_LABELS or any(label not in known for label in labels):
            raise ValueError(f"The labels must be up to {MOST_LABELS} of those that the model knows.")
        count = _whole("The number of pictures", count, 1, MOST_OF_EACH)
        seed = _whole("The seed", seed, 0, LARGEST_SEED)
        steps = _whole("The number of steps", steps, 1, MOST_STEPS)
        guidance = _scale("The guidance", guidance, MOST_GUIDANCE)
        pag = _scale("The wholeness", pag, MOST_PAG)
        if not isinstance(sharing, str) or sharing not in SHARINGS:
            raise ValueError("This way of saving work is not known here.")
        condition_steps = _whole("The number of steps that look anew", condition_steps, 1, MOST_STEPS)
        shared = None if sharing == "none" or condition_steps >= steps else condition_steps
        chosen = tuple(dict.fromkeys(labels))
        return Settings(model, chosen, count, seed, steps, guidance, pag, sharing, shared)

    def run(
        self,
        model: str,
        labels: list[str],
        count: int,
        seed: int,
        steps: int,
        guidance: float,
        pag: float,
        sharing: str,
        condition_steps: int,
        job: Job | None,
    ) -> Iterator[dict[Any, Any]]:
        """Makes the pictures and shows how they come out of the noise."""
        job = job or Job()
        if not job.claim():
            yield {self.status: gr.skip()}
            return
        settings = self._settings(model, labels, count, seed, steps, guidance, pag, sharing, condition_steps)
        made: Made | None = None
        failures: list[str] = []

        def work(report: Callable[[Report], None]) -> None:
            self._generate(settings, job, report)

        for report in stream(job, work):
            if isinstance(report, Progress):
                yield {self.status: progress_html(report, failures)}
            elif isinstance(report, Preview):
                yield {**self._show_preview(report), self.status: progress_html(report.progress, failures)}
            elif isinstance(report, Failure):
                failures.append(report.sentence)
            else:
                made = report
        if made is not None:
            yield {**self._view(made), self.status: status_html("Done."), **self._idle()}
        else:
            text = "" if failures else "Stopped. Nothing was saved."
            yield {self.preview: gr.Image(visible=False), self.status: status_html(text, failures), **self._idle()}

    def _show_preview(self, preview: Preview) -> dict[Any, Any]:
        return {
            self.empty: gr.HTML(visible=False),
            self.gallery: gr.Gallery(visible=False),
            self.preview: gr.Image(str(preview.path), visible=True),
        }

    def _view(self, made: Made) -> dict[Any, Any]:
        columns = min(len(made.files), MOST_OF_EACH)
        shown = [(str(path), title) for path, title in zip(made.files, made.titles, strict=True)]
        return {
            self.empty: gr.HTML(visible=False),
            self.preview: gr.Image(visible=False),
            self.gallery: gr.Gallery(shown, columns=max(2, min(columns, 6)), visible=True),
            self.facts: gr.HTML(facts_html([("how", made.how)]), visible=True),
            self.download: gr.DownloadButton(value=str(made.sheet), visible=True),
            self.files: gr.File([str(path) for path in made.files], visible=True),
        }

    # The work itself, in the thread of the job.

    def _generate(self, settings: Settings, job: Job, report: Callable[[Report], None]) -> None:
        try:
            report(self._make(settings, job, report))
        except Interrupted:
            return
        except Exception as error:
            LOG.exception("Pictures could not be generated.")
            report(failure("The pictures could not be generated", error))

    def _make(self, settings: Settings, job: Job, report: Callable[[Report], None]) -> Made:
        import torch

        report(Progress("loading the model …"))
        pipeline = self.shelf.pipeline(settings.model)
        folder = new_folder()
        throttle = Throttle()
        wanted = settings.wanted
        arrays: list[np.ndarray] = []

        def step_done(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if job.stopped:
                pipe.interrupt()
            elif throttle.ready():
                made = len(arrays)
                place = f"Pictures {made + 1} to {made + len(tensors['latents'])} of {len(wanted)}: "
                text = f"{place if len(wanted) > TOGETHER else ''}step {index + 1} of {settings.steps}"
                progress = Progress(text, index + 1, settings.steps)
                if pipe.vae is None:
                    path = folder / f"preview-{made}-{index}.png"
                    write_image(
                        path, Picture(sheet(list(pipe.decode(tensors["latents"], "np")), settings.count, PREVIEW_SIDE))
                    )
                    report(Preview(progress, path))
                else:  # decoding would take longer than the step
                    report(progress)
            return tensors

        measured = settings.condition_steps is not None and settings.sharing != "uniform"
        report(Progress("measuring where sharing matters least, once …" if measured else "generating …"))
        with self.shelf.running:
            started = time.monotonic()
            for first in range(0, len(wanted), TOGETHER):
                if job.stopped:
                    raise Interrupted
                part = wanted[first : first + TOGETHER]
                arrays += list(
                    pipeline(
                        [label for label, _ in part],
                        num_inference_steps=settings.steps,
                        guidance_scale=settings.guidance,
                        pag_scale=settings.pag,
                        condition_steps=settings.condition_steps,
                        sharing=None if settings.condition_steps is None else settings.sharing,
                        generator=[torch.Generator().manual_seed(seed) for _, seed in part],
                        output_type="np",
                        callback_on_step_end=step_done,
                    ).images
                )
            seconds = time.monotonic() - started
        if job.stopped:
            raise Interrupted
        return self._save(settings, number_format(pipeline), arrays, folder, seconds)

    def _save(self, settings: Settings, dtype: str, arrays: list[np.ndarray], folder: Path, seconds: float) -> Made:
        files, titles = [], []
        for (label, seed), array in zip(settings.wanted, arrays, strict=True):
            path = folder / f"{safe_stem(label)}-{seed}.png"
            write_image(path, Picture(_bytes(array)), settings=settings.embedded(label, seed, dtype))
            files.append(path)
            titles.append(f"{label}, seed {seed}")
        embedded = settings.embedded(settings.labels[0], settings.seed, dtype) | {"num": settings.count}
        path = write_image(folder / "pictures.png", Picture(sheet(arrays, settings.count)), settings=embedded)
        return Made(files, titles, path, self._how(settings, seconds))

    def _how(self, settings: Settings, seconds: float) -> str:
        steps = f"{settings.steps} steps"
        if settings.condition_steps is not None:
            steps += f", {settings.condition_steps} of which look anew"
        guidance = f"guidance {settings.guidance:g}" + f", wholeness {settings.pag:g}" * (settings.pag > 0)
        count = len(settings.wanted)
        return " · ".join([f"{count} picture{'s' * (count > 1)}", steps, guidance, f"{seconds:.1f} s"])


def sheet(arrays: list[np.ndarray], columns: int, smallest: int = 1) -> np.ndarray:
    """Pictures of one size in rows, on white: (H, W, C) uint8.

    Args:
        arrays: (H, W, C) in [0, 1].
        columns: pictures in a row.
        smallest: least side of a picture in pixels; smaller ones are enlarged without smoothing.
    """
    factor = -(-smallest // min(arrays[0].shape[:2]))
    return contact_sheet([_bytes(array).repeat(factor, 0).repeat(factor, 1) for array in arrays], columns)


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.rint(array * 255).astype(np.uint8)


def _whole(what: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"{what} must be a whole number.")
    if not least <= value <= most:
        raise ValueError(f"{what} must lie between {least} and {most}.")
    return int(value)


def _scale(what: str, value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{what} must lie between 0 and {most:g}.")
    return float(value)
