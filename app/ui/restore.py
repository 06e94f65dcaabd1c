"""The tab Restore: photographs in, restored photographs out, with a before and an after to compare."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
import numpy as np

import weights
from app.ui import look
from app.ui.dials import Dials, said
from app.ui.files import THUMBNAIL_SIDE, data_uri, new_folder, safe_stem, save_preview, uploaded
from app.ui.jobs import Job, Throttle, stream
from app.ui.models import Shelf, number_format
from app.ui.quality import measure
from app.ui.tabs import QUICK, Failure, JobTab, Progress, facts_html, failure, figure_html, progress_html, status_html
from genres import __version__
from genres.media.images import ImageError, Picture, read_image, read_settings, write_image
from genres.media.sheets import enlarge
from pipelines.errors import Interrupted

LOG = logging.getLogger(__name__)
EXAMPLES = Path(__file__).parent / "examples"
HISTORY_LENGTH = 24
VISITS = 256  # browsers whose history is remembered
LARGEST_TILE = 16384
# Ordinary photos stay whole. Cancelling waits for one tile, some seconds on a processor.
TILE, OVERLAP = 1024, 32
KERNEL_SIDE = 130  # pixels of the picture of a kernel

TASKS = {
    "auto": "Find out by itself",
    "denoise": "Noise",
    "dehaze": "Haze",
    "derain": "Rain",
    "deblur": "Blur",
    "lowlight": "Too dark",
}
EXAMPLE_NAMES = {"noise": "Noise", "haze": "Haze", "rain": "Rain", "blur": "Blur", "dark": "Dark"}
EMPTY = """
<div class="empty">
  <svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.5" aria-hidden="true">
    <rect x="3" y="4" width="18" height="16" rx="2"/><path d="M12 4v16M6.5 12h3M14.5 12h3"/></svg>
  <p>Choose a photo and press Restore. The result appears here, beside the original.</p>
</div>
"""


@dataclass(frozen=True)
class Settings:
    """What a visitor chose; these go into the result and are read back from it."""

    task: str
    model: str
    strength: float
    tile: int | None
    overlap: int
    dials: dict[str, float] | None = None

    def embedded(self, source: Path, dtype: str) -> dict[str, Any]:
        """What is written into a result, in the words of `genres restore`."""
        chosen = asdict(self)
        if self.dials is None:
            del chosen["dials"]
        return {"genres": __version__, "work": "restore", **chosen, "dtype": dtype, "source": source.name}


@dataclass(frozen=True)
class Made:
    """A result: the file to download, what the page shows of it, and how it came about."""

    result: Path
    before: Path
    after: Path
    thumbnail: Path
    how: str
    quality: str = ""
    notes: list[str] = field(default_factory=list)
    kernel: str = ""  # in HTML

    @property
    def facts(self) -> str:
        facts = [("name", self.result.name), ("how", self.how), ("quality", self.quality)]
        return self.kernel + facts_html(facts, self.notes)


Report = Progress | Failure | Made


class RestoreTab(JobTab):
    """The components of the tab and what they do."""

    def __init__(self, shelf: Shelf, page: gr.Blocks):
        self.history = gr.State([])
        self.visit = gr.BrowserState(None, storage_key="genres-visit")  # finds the history again after a reload
        self.visits: OrderedDict[str, list[Made]] = OrderedDict()
        self.place = gr.State(None)  # where the crop of the dials is taken
        self.ended = gr.State(0)  # how many runs that the dials began have ended
        self.released = gr.State([])  # where the sliders of the dials were when a run last took notice of them
        super().__init__(shelf, "Restore")
        self._wire(page)

    # The components, in the order of the keyboard.

    def _fields(self) -> None:
        self._photo_fields()
        self._setting_fields()

    def _photo_fields(self) -> None:
        self.photos = gr.File(
            label="Photos: drop, paste or choose",
            file_count="multiple",
            file_types=["image"],
            height=150,
            elem_id="photos",
        )
        self.examples = gr.Gallery(
            value=[(EXAMPLES / f"{name}.jpg", title) for name, title in EXAMPLE_NAMES.items()],
            label="Or try one of these",
            columns=5,
            height="auto",
            allow_preview=False,
            buttons=[],
            interactive=False,
            object_fit="cover",
            elem_id="examples",
        )

    def _setting_fields(self) -> None:
        tasks = [(title, task) for task, title in TASKS.items() if self.shelf.choices(task)]
        first = tasks[0][1] if tasks else None
        self.task = gr.Radio(tasks, value=first, label="What is wrong with it?", elem_id="task")
        model = self.shelf.default(first) if first else None
        self.model = gr.Dropdown(
            [
                (model.title, name) for name, model in self.shelf.models.items()
            ],  # the page narrows them, programs do not
            value=model,
            label="Model",
            filterable=False,
            elem_id="model",
        )
        self.dials = Dials(self.shelf, model)
        self.strength = gr.Slider(
            0, 1, 1, step=0.05, label="Strength", info="Less than 1 mixes the original back in.", elem_id="strength"
        )
        with look.fold("More settings", "more"):
            self.tile = gr.Number(
                TILE,
                label="Tile size in pixels",
                info="Smaller tiles need less memory and stop sooner. Empty: automatic. 0: the whole photo at once.",
                precision=0,
                minimum=0,
                maximum=LARGEST_TILE,
                elem_id="tile",
            )
            self.overlap = gr.Number(
                OVERLAP,
                label="Overlap of the tiles in pixels",
                precision=0,
                minimum=0,
                maximum=LARGEST_TILE,
                elem_id="overlap",
            )
            self.reference = gr.File(
                label="Reference without damage, to measure against",
                file_types=["image"],
                height=140,
                elem_id="reference",
            )

    def _result_fields(self) -> None:
        self.empty = gr.HTML(EMPTY, padding=False)
        self.photo = gr.Image(
            label="Your photo",
            type="filepath",
            format="png",
            interactive=False,
            visible=False,
            buttons=[],
            height=520,
            elem_id="photo",
        )
        self.compare = gr.ImageSlider(
            label="Before and after",
            format="png",
            interactive=False,
            visible=False,
            buttons=["fullscreen"],
            max_height=560,
            elem_id="compare",
        )
        with gr.Row(equal_height=True):
            self.facts = gr.HTML(visible=False, padding=False, min_height=0, elem_id="facts")
            self.download = gr.DownloadButton(
                "Download", variant="primary", visible=False, scale=0, min_width=160, elem_id="download"
            )
        self.files = gr.File(
            label="All files of this run", file_count="multiple", interactive=False, visible=False, elem_id="files"
        )
        self.gallery = gr.Gallery(
            label="Made in this visit: choose one to see it again",
            columns=6,
            height="auto",
            fit_columns=False,
            allow_preview=False,
            buttons=[],
            interactive=False,
            visible=False,
            object_fit="cover",
            elem_id="history",
        )

    # The events.

    def _wire(self, page: gr.Blocks) -> None:
        sliders = self.dials.sliders
        fields = [self.task, self.model, self.strength, self.tile, self.overlap]
        view = [self.empty, self.photo, self.compare, self.facts, self.download]
        gr.on([page.load, self.task.input], self.fit_model, self.task, self.model, **QUICK)
        page.load(self.come_back, self.visit, [self.visit, self.history, self.gallery], **QUICK)
        self.photos.upload(self.read_back, self.photos, [*fields, *sliders, self.released, self.status], **QUICK)
        self.photos.change(self.show_photo, self.photos, [*view, self.status], **QUICK)
        self.examples.select(self.use_example, None, self.photos, **QUICK)
        self.gallery.select(self.show_again, self.history, view, **QUICK)
        asked = [self.photos, *fields, self.reference]
        inputs = [*asked, self.job, self.history, *sliders]
        outputs = [*view, self.files, self.gallery, self.history]
        self._wire_job(
            [*asked, *sliders],
            inputs,
            outputs,
            api_name="restore",
            api_description="Restores photographs; the download is the file of the last one.",
        )
        self._wire_dials([*asked, *sliders], inputs, outputs)

    def _wire_dials(self, asked: list[Any], inputs: list[Any], outputs: list[Any]) -> None:
        sliders = self.dials.sliders
        seen: list[Any] = [self.photos, self.model, self.strength, self.place, *sliders]
        self.model.change(self.dials.fit, self.model, sliders, **QUICK)
        # One event makes every crop, so that none that was begun earlier is shown after a later one. A run that ends
        # counts too: it may have kept the crop from its turn.
        gr.on(
            [field.change for field in (*seen, self.ended)],
            self.dials.preview,
            seen,
            self.dials.crop,
            trigger_mode="always_last",
            **QUICK,
        )
        heard = {**QUICK, "queue": True}  # gradio tells of a changed state through its queue alone
        self.photo.select(self.dials.pick, [self.photos, self.photo], self.place, **heard)
        # Of several runs that wait, the last one counts: none may be dropped before it comes to `Job.claim`.
        begun = gr.on(
            [slider.release for slider in sliders],
            self.release,
            [self.job, self.released, *asked],
            [*self._begun, self.released],
            trigger_mode="multiple",
            **QUICK,
        )
        ended = self._run_after(begun, inputs, outputs, trigger_mode="multiple", api_visibility="private")
        ended.then(lambda runs: runs + 1, self.ended, self.ended, **heard)

    def fit_model(self, task: str) -> gr.Dropdown:
        """Offers the models that can do the task, and proposes the best of them."""
        return gr.Dropdown(choices=self.shelf.choices(task), value=self.shelf.default(task))

    def come_back(self, visit: str | None) -> dict[Any, Any]:
        """Finds what this browser made before the page was loaded again, as long as the server runs."""
        if not isinstance(visit, str) or visit not in self.visits:
            visit = uuid4().hex
            self.visits[visit] = []
        self.visits.move_to_end(visit)
        while len(self.visits) > VISITS:
            self.visits.popitem(last=False)
        history = self.visits[visit]
        history[:] = [made for made in history if made.result.exists()]
        return {self.visit: visit, self.history: history, **(self._gallery(history) if history else {})}

    def use_example(self, event: gr.SelectData) -> list[str]:
        name = list(EXAMPLE_NAMES)[int(event.index)]
        copy = new_folder() / f"{name}.jpg"
        copy.write_bytes((EXAMPLES / copy.name).read_bytes())
        return [str(copy)]

    def show_photo(self, photos: list[str] | None) -> dict[Any, Any]:
        """Shows the first photo that was chosen, or says at once that it cannot be read."""
        if not photos:
            return {self.status: status_html("Ready.")}
        try:
            source = uploaded(photos[0])
            preview = new_folder() / "photo.png"
            save_preview(read_image(source, name=source.name), preview)
        except ImageError as error:
            return {self.status: status_html("", failures=[str(error)])}
        return {
            self.empty: gr.HTML(visible=False),
            self.photo: gr.Image(str(preview), visible=True),
            self.compare: gr.ImageSlider(visible=False),
            self.facts: gr.HTML(visible=False),
            self.download: gr.DownloadButton(visible=False),
        }

    def read_back(self, photos: list[str] | None) -> dict[Any, Any]:
        """Sets the fields from the settings that an earlier result carries."""
        for path in reversed(photos or []):
            try:
                source = uploaded(path)
                found = read_settings(source, name=source.name)
            except ImageError:
                continue  # the run will say what is wrong with it
            if found:
                return self._fields_from(found, source.name)
        return {self.status: gr.skip()}

    def release(self, job: Job | None, before: list[float], *asked: Any) -> dict[Any, Any]:
        """As `begin`, once there is a photo and a slider has moved; a run that goes on is replaced by the new one.

        Args:
            before: where the sliders were. They are released also when somebody passes them with the Tab key.
        """
        shares = list(asked[-len(self.dials.sliders) :])
        if not asked[0] or shares == (before or [0] * len(shares)):
            return {self.job: job or Job(refused=True)}
        answer = self.begin(*asked) | {self.released: shares}
        if answer[self.job].refused:
            return answer | {self.job: job or answer[self.job]}
        if job is not None:
            job.replace()
        return answer | {self.job: Job(asked=asked)}

    def _fields_from(self, found: dict[str, Any], name: str) -> dict[Any, Any]:
        try:
            settings = self._checked(*map(found.get, ("task", "model", "strength", "tile", "overlap", "dials")))
        except ValueError as error:
            return {self.status: status_html(f"{name} carries settings that were not taken over: {error}")}
        return {
            self.task: settings.task,
            self.model: gr.Dropdown(choices=self.shelf.choices(settings.task), value=settings.model),
            self.strength: settings.strength,
            self.tile: settings.tile,
            self.overlap: settings.overlap,
            **self.dials.shown(settings.model, settings.dials),
            self.released: self.dials.shares(settings.dials),
            self.status: status_html(f"The settings were taken over from {name}."),
        }

    def _checked(self, task: Any, model: Any, strength: Any, tile: Any, overlap: Any, dials: Any = None) -> Settings:
        """The settings, once all of them make sense."""
        if not isinstance(task, str) or task not in TASKS:
            raise ValueError("The kind of damage is not known here.")
        if model not in [name for _, name in self.shelf.choices(task)]:
            raise ValueError("The model is not here, or is not made for this kind of damage.")
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
            raise ValueError("The strength must lie between 0 and 1.")
        if tile is not None and not _is_length(tile):
            raise ValueError(f"The tile size must be empty or a whole number up to {LARGEST_TILE}.")
        overlap = OVERLAP if overlap is None else overlap
        if not _is_length(overlap):
            raise ValueError(f"The overlap must be a whole number up to {LARGEST_TILE}.")
        return Settings(task, model, float(strength), tile, overlap, self.dials.checked(model, dials))

    def _agree(self, *asked: Any) -> Settings:
        photos, task, model, strength, tile, overlap, reference, *shares = asked
        if not photos:
            raise ValueError("Choose a photo first.")
        if reference and len(photos) > 1:
            raise ValueError("A reference belongs to one photo: remove it, or restore one photo.")
        return self._checked(task, model, strength, tile, overlap, self.dials.chosen(model, shares))

    def run(
        self,
        photos: list[str],
        task: str,
        model: str,
        strength: float,
        tile: int | None,
        overlap: int | None,
        reference: str | None,
        job: Job | None,
        history: list[Made],
        detail: float = 0,
        *further: float,
    ) -> Iterator[dict[Any, Any]]:
        """Restores one photo after the other and shows each as soon as it is there.

        Args:
            detail, further: the dials of the model but for the first, if it has some.
        """
        asked = (photos, task, model, strength, tile, overlap, reference, detail, *further)
        job = job or Job()
        if not job.claim(*asked):
            yield {self.status: gr.skip()}
            return
        settings = self._settings(*asked)
        made: list[Made] = []
        failures: list[str] = []

        def work(report: Callable[[Report], None]) -> None:
            self._restore_all(photos, settings, reference, job, report)

        for report in stream(job, work):
            if job.replaced:
                continue
            if isinstance(report, Progress):
                yield {self.status: progress_html(report, failures)}
            elif isinstance(report, Failure):
                failures.append(report.sentence)
            else:
                made.append(report)
                history[:] = [report, *history][:HISTORY_LENGTH]  # in place: `visits` holds it too
                if len(made) + len(failures) < len(photos):  # the last is shown once, with the summary
                    yield {**self._view(report), **self._lists(made, history), self.history: history}
        if job.replaced:
            yield {self.status: gr.skip()}
            return
        shown = {**self._view(made[-1]), **self._lists(made, history), self.history: history} if made else {}
        yield {**shown, self.status: summary_html(len(made), len(photos), failures), **self._idle()}

    def _view(self, made: Made) -> dict[Any, Any]:
        return {
            self.empty: gr.HTML(visible=False),
            self.photo: gr.Image(visible=False),
            self.compare: gr.ImageSlider((str(made.before), str(made.after)), visible=True),
            self.facts: gr.HTML(made.facts, visible=True),
            self.download: gr.DownloadButton(value=str(made.result), visible=True),
        }

    def _lists(self, made: list[Made], history: list[Made]) -> dict[Any, Any]:
        return {
            self.files: gr.File([str(item.result) for item in made], visible=len(made) > 1),
            **self._gallery(history),
        }

    def _gallery(self, history: list[Made]) -> dict[Any, Any]:
        return {self.gallery: gr.Gallery([(str(m.thumbnail), m.result.name) for m in history], visible=True)}

    def show_again(self, history: list[Made], event: gr.SelectData) -> dict[Any, Any]:
        """Shows a result of this visit once more."""
        return self._view(history[int(event.index)])

    # The work itself, in the thread of the job.

    def _restore_all(
        self,
        photos: list[str],
        settings: Settings,
        reference: str | None,
        job: Job,
        report: Callable[[Report], None],
    ) -> None:
        for number, path in enumerate(photos):
            if job.stopped:
                return
            place = f"Photo {number + 1} of {len(photos)}: " if len(photos) > 1 else ""
            try:
                report(self._restore(path, settings, reference, job, place, report))
            except Interrupted:
                return
            except ImageError as error:
                report(Failure(str(error)))
            except Exception as error:  # one photo that fails must not take the others along
                LOG.exception("A photo could not be restored.")
                report(failure(f"{Path(path).name} could not be restored", error))

    def _restore(
        self,
        path: str,
        settings: Settings,
        reference: str | None,
        job: Job,
        place: str,
        report: Callable[[Report], None],
    ) -> Made:
        source = uploaded(path)
        report(Progress(f"{place}reading {source.name} …"))
        picture = read_image(source, name=source.name)
        report(Progress(f"{place}loading the model …"))
        pipeline = self.shelf.pipeline(settings.model)
        throttle = Throttle()

        def tile_done(pipeline: Any, done: int, total: int) -> None:
            if job.stopped:
                pipeline.interrupt()
            elif throttle.ready():
                report(Progress(f"{place}tile {done} of {total} is done", done, total))

        report(Progress(f"{place}restoring {source.name} …"))
        with self.shelf.running:
            started = time.monotonic()
            if job.stopped:
                raise Interrupted
            output = pipeline(
                picture,
                task=settings.task,
                strength=settings.strength,
                dials=settings.dials,
                tile=settings.tile,
                overlap=settings.overlap,
                return_kernel=pipeline.estimates_kernel,
                callback_on_tile_end=tile_done,
            )
            seconds = time.monotonic() - started
        if job.stopped:
            raise Interrupted
        report(Progress(f"{place}saving …"))
        (chosen,) = output.chosen or ["auto"]
        how = self._how(output.images[0], settings, chosen, seconds)
        embedded = settings.embedded(source, number_format(pipeline))
        made = self._save(source, picture, output.images[0], embedded, reference, how)
        if chosen != "auto":
            from pipelines.diagnosis import FOUND

            made.notes.insert(0, FOUND[chosen])
        return made if output.kernels is None else replace(made, kernel=kernel_html(output.kernels[0]))

    def _save(
        self,
        source: Path,
        picture: Picture,
        restored: Picture,
        embedded: dict[str, Any],
        reference: str | None,
        how: str,
    ) -> Made:
        folder = new_folder()
        suffix = ".tiff" if restored.pixels.dtype.kind == "f" else ".png"  # PNG has no floating point
        result = folder / f"{safe_stem(source.name)}-restored{suffix}"
        write_image(result, restored, settings=embedded)
        save_preview(picture, folder / "before.png")
        reduced = save_preview(restored, folder / "after.png")
        save_preview(restored, folder / "thumbnail.png", THUMBNAIL_SIDE)
        notes = list(picture.metadata.notes)
        if reduced:
            notes.append("The picture above is reduced; the file has every pixel.")
        if restored.alpha is not None:
            notes.append("Transparent parts are shown on white; the file keeps them transparent.")
        quality, why = measure(restored, reference) if reference else ("", [])
        return Made(
            result,
            folder / "before.png",
            folder / "after.png",
            folder / "thumbnail.png",
            how,
            quality,
            notes + why,
        )

    def _how(self, picture: Picture, settings: Settings, chosen: str, seconds: float) -> str:
        """What was done; `chosen` is the task of the network that the pipeline chose by itself, or "auto"."""
        height, width = picture.pixels.shape[:2]
        name = settings.model if chosen == "auto" else weights.default_model(chosen)
        model = self.shelf.models.get(name, self.shelf.models[settings.model])
        return " · ".join(
            [
                f"{width} × {height} pixels, {picture.pixels.dtype.itemsize * 8} bits",
                TASKS[settings.task].lower(),
                model.title.partition(":")[0],
                f"strength {settings.strength:g}",
                *([said(settings.dials)] if settings.dials else []),
                f"{seconds:.1f} s",
            ]
        )


def kernel_html(kernel: np.ndarray) -> str:
    """The picture of a blur kernel (h, w) in [0, 1], each of its pixels a square."""
    picture = Picture(enlarge(kernel, KERNEL_SIDE)[..., None])
    return figure_html("Estimated blur kernel", data_uri(picture), "kernel")


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_TILE


def summary_html(made: int, asked: int, failures: list[str]) -> str:
    stopped = made + len(failures) < asked
    if asked == 1:
        text = "Stopped. Nothing was saved." if stopped else "Done." if made else ""
    else:
        text = f"{'Stopped' if stopped else 'Done'}: {made} of {asked} photos restored."
    return status_html(text, failures)
