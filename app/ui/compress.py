"""The tab Compress: a video in, a small .hnv file and what it decodes to out; or an .hnv file in, its video out."""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.ui import look
from app.ui.clips import Clip, describe, look_at, viewable
from app.ui.curve import curve_svg, frame_html
from app.ui.files import new_folder, safe_stem, uploaded
from app.ui.jobs import Job, Throttle, stream
from app.ui.models import Shelf, device
from app.ui.pace import Pace
from app.ui.tabs import QUICK, WORK, Failure, JobTab, Progress, facts_html, failure, progress_html, status_html
from app.ui.words import in_bytes, in_words
from genres.media.errors import ImageError, VideoError
from genres.media.files import EXTENSIONS
from pipelines.errors import Interrupted

if TYPE_CHECKING:
    from genres.compression.codec import CodecSettings
    from pipelines.hnerv import EncodingProgress

LOG = logging.getLogger(__name__)
SUFFIX = ".hnv"
LEAST_SIZE, MOST_SIZE, SIZE = 0.01, 0.5, 0.1  # bits per pixel
MOST_KILOBYTES, MOST_DECIBELS, MOST_EPOCHS, LARGEST_SEED = 1_000_000, 60, 100_000, 2**31 - 1
CRF = 14  # of what is watched and downloaded: H.264 adds no loss that could be seen
VIEW_SECONDS = 1.0  # between two looks at the training
CURVE_POINTS = 300

PRESETS = {"fast": "Fast", "medium": "Medium", "slow": "Slow"}
DECODERS = {
    "hnerv": "HNeRV",
    "hnerv-grids": "HNeRV with grids",
    "hnerv-latents": "HNeRV with latents",
    "hinerv": "HiNeRV's stages",
    "nerv": "NeRV, the baseline",
}
EMPTY = """
<div class="empty">
  <svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.5" aria-hidden="true">
    <rect x="3" y="5" width="18" height="14" rx="2"/><path d="M10 9v6l5-3z"/></svg>
  <p>Choose a video and press Compress: a small network learns it, and its numbers are the file. An .hnv file is
  decoded at once.</p>
</div>
"""
PLAY_BOTH = """() => {
  const videos = [...document.querySelectorAll("#compress-source video, #compress-result video")];
  videos.forEach((video, number) => { video.pause(); video.muted = number === 0; video.currentTime = 0; });
  videos.forEach((video) => video.play());
}"""


@dataclass(frozen=True)
class Settings:
    """What a visitor chose; one of the three sizes counts."""

    bits_per_pixel: float
    recipe: str
    kilobytes: float | None
    target_psnr: float | None
    epochs: int | None
    sound: bool
    segment_frames: int | None
    decoder: str
    seed: int

    def size_for(self, clip: Clip) -> float | None:
        """Bits per pixel; None where a quality is aimed at.

        Raises:
            VideoError: the sound alone is larger than the file is to be.
        """
        if self.target_psnr is not None or self.kilobytes is None:
            return None if self.target_psnr is not None else self.bits_per_pixel
        sound = clip.sound_bytes if self.sound else 0
        left = 1000 * self.kilobytes - sound
        if left <= 0:
            raise VideoError(f"The sound alone takes {in_bytes(sound)}: allow a larger file, or leave the sound out.")
        return 8 * left / clip.pixels

    def codec(self, bits_per_pixel: float | None) -> CodecSettings:
        """The codec's settings, at this size or at the quality that is aimed at."""
        from genres.compression.codec import CodecSettings

        return CodecSettings(
            self.recipe,
            bits_per_pixel=bits_per_pixel,
            target_psnr=self.target_psnr if bits_per_pixel is None else None,
            epochs=self.epochs,
            decoder=self.decoder,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Training:
    """A look at the network while it learns: how far it is, and the PSNR so far by shares of the work."""

    progress: EncodingProgress
    curve: list[tuple[float, float]]


@dataclass(frozen=True)
class Made:
    """A result: the file to keep, the video that it decodes to, and what to say of them.

    Attributes:
        hnv: None where the visitor brought it.
        video: to download; None where decoding was cancelled.
        watched: the same pictures as a file that browsers play.
    """

    name: str
    hnv: Path | None
    video: Path | None
    watched: Path | None
    quality: str
    how: str
    notes: list[str] = field(default_factory=list)

    @property
    def facts(self) -> str:
        return facts_html([("name", self.name), ("quality", self.quality), ("how", self.how)], self.notes)


Report = Progress | Training | Failure | Made


class CompressTab(JobTab):
    """The components of the tab and what they do."""

    def __init__(self, shelf: Shelf):
        self.pace = Pace(shelf.running)
        self.clip = gr.State(None)
        super().__init__(shelf, "Compress", "compress-")
        self._wire()

    # The components, in the order of the keyboard.

    def _fields(self) -> None:
        self.file = gr.File(
            label="Video, or .hnv file: drop or choose",
            file_types=[SUFFIX, *sorted(EXTENSIONS)],
            height=150,
            elem_id="compress-file",
        )
        self.size = gr.Slider(
            LEAST_SIZE,
            MOST_SIZE,
            SIZE,
            step=0.01,
            label="Size of the result",
            info="Bits per pixel. Left: smaller and softer. Right: larger, with more of the fine texture.",
            elem_id="compress-size",
        )
        self.recipe = gr.Radio(
            [(title, name) for name, title in PRESETS.items()],
            value="fast",
            label="How long may it learn?",
            info="Longer gives a better picture at the same size.",
            elem_id="compress-preset",
        )
        self.plan = gr.HTML(plan_html(), padding=False, elem_id="compress-plan")
        with look.fold("More settings", "compress-more"):
            self.kilobytes = gr.Number(
                0,
                label="Size of the file in kilobytes",
                info="Instead of bits per pixel; the sound is part of it. 0: by the slider.",
                minimum=0,
                maximum=MOST_KILOBYTES,
                elem_id="compress-kilobytes",
            )
            self.psnr = gr.Number(
                0,
                label="Quality to reach, PSNR in dB",
                info="Instead of a size, in up to four trainings: 30 is fair, 35 good, 40 very good. 0: by size.",
                minimum=0,
                maximum=MOST_DECIBELS,
                elem_id="compress-psnr",
            )
            self.epochs = gr.Number(
                0,
                label="Passes over the video",
                info="0: as many as the choice above calls for.",
                precision=0,
                minimum=0,
                maximum=MOST_EPOCHS,
                elem_id="compress-epochs",
            )
            self.sound = gr.Checkbox(True, label="Keep the sound, bit for bit", elem_id="compress-sound")
            self.longest = gr.Number(
                0,
                label="Most frames of one network",
                info="Longer videos are cut, at changes of scene where there are any. 0: automatic.",
                precision=0,
                minimum=0,
                maximum=MOST_EPOCHS,
                elem_id="compress-longest",
            )
            self.decoder = gr.Radio(
                [(title, name) for name, title in DECODERS.items()],
                value="hnerv",
                label="Network",
                elem_id="compress-decoder",
            )
            self.seed = gr.Number(
                0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, elem_id="compress-seed"
            )

    def _result_fields(self) -> None:
        self.empty = gr.HTML(EMPTY, padding=False)
        video: dict[str, Any] = {"interactive": False, "visible": False, "buttons": [], "min_width": 280}
        with gr.Row(equal_height=False, elem_id="compress-pair"):
            self.source = gr.Video(label="Your video", elem_id="compress-source", **video)
            self.training = gr.HTML(visible=False, padding=False, min_width=280, elem_id="compress-training")
            self.result = gr.Video(label="Result", elem_id="compress-result", **video)
        self.both = gr.Button("Play both from the start", visible=False, elem_id="compress-both")
        self.facts = gr.HTML(visible=False, padding=False, min_height=0, elem_id="compress-facts")
        with gr.Row():
            self.hnv_file = gr.DownloadButton(
                "Download the .hnv file", variant="primary", visible=False, min_width=160, elem_id="compress-hnv"
            )
            self.video_file = gr.DownloadButton(
                "Download the decoded video", visible=False, min_width=160, elem_id="compress-decoded"
            )

    # The events.

    def _wire(self) -> None:
        asked: list[Any] = [
            *(self.file, self.size, self.recipe, self.kilobytes, self.psnr, self.epochs, self.sound),
            *(self.longest, self.decoder, self.seed),
        ]
        view = [self.empty, self.source, self.training, self.result, self.both, self.facts]
        view += [self.hnv_file, self.video_file]
        shown = self.file.change(self.show, self.file, [*view, self.clip, self.plan, self.status], **QUICK)
        plan: dict[str, Any] = {"inputs": [self.clip, *asked[1:]], "outputs": self.plan, **QUICK}
        shown.then(self.expect, **plan)
        gr.on([setting.change for setting in asked[1:-1]], self.expect, trigger_mode="always_last", **plan)
        self.both.click(None, js=PLAY_BOTH, **QUICK)
        inputs, outputs = [*asked, self.job], [*view, self.status, self.start, self.cancel]
        self._wire_job(
            asked,
            inputs,
            view,
            api_name="compress",
            api_description="Compresses a video to an .hnv file and decodes it again, or decodes an .hnv file.",
        )
        dropped = shown.then(self.begin_dropped, asked, self._begun, **QUICK)
        dropped.success(self.run_dropped, inputs, outputs, **WORK, api_visibility="private")

    def show(self, file: str | None) -> dict[Any, Any]:
        """Shows the video that was chosen, or says at once that it cannot be read."""
        nothing = {self.clip: None, self.plan: plan_html()}
        if not file:
            return {**nothing, self.status: status_html("Ready.")}
        source = Path(file)
        try:
            source = uploaded(file)
            if is_hnv(source):
                return {**nothing, self.status: status_html("Waiting for its turn …")}
            clip = look_at(source)
            watched, note = viewable(source, clip.info)
        except (ImageError, VideoError) as error:
            return {**nothing, self.status: status_html("", failures=[plain(error, source)])}
        hidden = {self.training: gr.HTML(visible=False), self.result: gr.Video(visible=False)}
        hidden |= {self.both: gr.Button(visible=False), self.facts: gr.HTML(visible=False)}
        hidden |= {button: gr.DownloadButton(visible=False) for button in (self.hnv_file, self.video_file)}
        return {
            **hidden,
            self.empty: gr.HTML(visible=False),
            self.source: gr.Video(str(watched), visible=True),
            self.clip: clip,
            self.plan: plan_html([describe(clip)]),
            self.status: status_html(note or "Ready."),
        }

    def expect(self, clip: Clip | None, *settings: Any) -> str:
        """Size and time that are to be expected."""
        if clip is None:
            return plan_html()
        try:
            chosen = self._checked(*settings)
            return plan_html([describe(clip), *(self._forecast(clip, chosen) if clip.num_frames else [UNCOUNTED])])
        except ValueError as error:
            return plan_html([describe(clip)], [str(error)])

    def _forecast(self, clip: Clip, chosen: Settings) -> list[str]:
        bits_per_pixel = chosen.size_for(clip)
        sound = clip.sound_bytes if chosen.sound else 0
        if bits_per_pixel is None:
            size = f"The file gets as small as {chosen.target_psnr:g} dB allow."
        else:
            expected = int(bits_per_pixel * clip.pixels / 8) + sound
            share = f", {expected / clip.num_bytes:.0%} of yours"
            size = f"The file gets about {in_bytes(expected)}{share}{', sound included' if sound else ''}."
            least = self.pace.least_bytes(clip.info, chosen.codec(bits_per_pixel), chosen.segment_frames) + sound
            if least > expected:
                size = f"The file gets about {in_bytes(least)}: so short a video cannot get smaller."
        times = []
        for recipe, title in PRESETS.items():
            codec = replace(chosen, recipe=recipe).codec(bits_per_pixel or SIZE)
            seconds = self.pace.forecast(clip.info, codec, chosen.segment_frames)
            if seconds is None:
                return [size, "The time is measured as soon as this machine is free."]
            times.append((title, in_words(seconds)))
        tried = chosen.target_psnr is not None
        most = ", and up to four times that in all as sizes are tried in turn" if tried else ""
        if chosen.epochs is not None:
            return [size, f"Learning takes {times[0][1]} on this machine{most}."]
        listed = ", ".join(f"{title.lower()} {words}" for title, words in times)
        return [size, f"Learning on this machine: {listed}{most}."]

    def _checked(
        self,
        size: Any,
        recipe: Any,
        kilobytes: Any,
        psnr: Any,
        epochs: Any,
        sound: Any,
        longest: Any,
        decoder: Any,
        seed: Any,
    ) -> Settings:
        """The settings, once all of them make sense."""
        kilobytes, psnr, epochs, longest = (value or None for value in (kilobytes, psnr, epochs, longest))
        if recipe not in PRESETS or decoder not in DECODERS:
            raise ValueError("The preset or the network is not known here.")
        if not _within(size, LEAST_SIZE, MOST_SIZE):
            raise ValueError(f"The size must lie between {LEAST_SIZE:g} and {MOST_SIZE:g} bits per pixel.")
        if kilobytes is not None and psnr is not None:
            raise ValueError("Give a size in kilobytes or a quality to reach, and leave the other one at 0.")
        if kilobytes is not None and not _within(kilobytes, 1, MOST_KILOBYTES):
            raise ValueError(f"The size must lie between 1 and {MOST_KILOBYTES} kilobytes, or be 0.")
        if psnr is not None and not _within(psnr, 10, MOST_DECIBELS):
            raise ValueError(f"The quality must lie between 10 and {MOST_DECIBELS} dB, or be 0.")
        for name, value in (("passes", epochs), ("frames of one network", longest)):
            if value is not None and not (isinstance(value, int) and _within(value, 1, MOST_EPOCHS)):
                raise ValueError(f"The number of {name} must be a whole one up to {MOST_EPOCHS}, or be 0.")
        seed = 0 if seed is None else seed
        if not isinstance(seed, int) or not _within(seed, 0, LARGEST_SEED):
            raise ValueError(f"The seed must be a whole number up to {LARGEST_SEED}.")
        return Settings(float(size), recipe, kilobytes, psnr, epochs, bool(sound), longest, decoder, seed)

    def begin_dropped(self, file: str | None, *settings: Any) -> dict[Any, Any]:
        """An .hnv file is decoded as soon as it comes."""
        return self.begin(file, *settings) if file and is_hnv(Path(file)) else {self.status: gr.skip()}

    def run_dropped(self, file: str | None, *settings: Any) -> Iterator[dict[Any, Any]]:
        if file and is_hnv(Path(file)):
            yield from self.run(file, *settings)
        else:
            yield {self.status: gr.skip()}  # gradio empties the outputs of what yields nothing

    def _agree(self, *asked: Any) -> Settings:
        file, *settings = asked
        if not file:
            raise ValueError("Choose a video first.")
        return self._checked(*settings)

    def run(
        self,
        file: str,
        bits_per_pixel: float,
        preset: str,
        kilobytes: float | None,
        target_psnr: float | None,
        epochs: int | None,
        sound: bool,
        segment_frames: int | None,
        network: str,
        seed: int,
        job: Job | None,
    ) -> Iterator[dict[Any, Any]]:
        """Encodes and decodes, and shows how it goes."""
        job = job or Job()
        if not job.claim():
            yield {self.status: gr.skip()}
            return
        chosen = (bits_per_pixel, preset, kilobytes, target_psnr, epochs, sound, segment_frames, network, seed)
        settings = self._settings(file, *chosen)
        gone = threading.Event()  # nobody waits for the result: there is nothing to keep
        failures: list[str] = []
        made: Made | None = None

        def work(report: Callable[[Report], None]) -> None:
            self._work(file, settings, job, gone, report)

        reports: Any = stream(job, work)
        try:
            for report in reports:
                if isinstance(report, Progress):
                    yield {self.status: progress_html(report, failures)}
                elif isinstance(report, Training):
                    if not job.stopped:  # the page says that it stops
                        yield self._training_view(report)
                elif isinstance(report, Failure):
                    failures.append(report.sentence)
                else:
                    made = report
        except GeneratorExit:
            gone.set()
            raise
        finally:
            reports.close()
        text = "Done." if made else "" if failures else "Stopped before the first pass: nothing was saved."
        yield {
            self.training: gr.HTML(visible=False),
            **(self._view(made) if made else {}),
            self.status: status_html(text, failures),
            **self._idle(),
        }

    def _training_view(self, training: Training) -> dict[Any, Any]:
        progress = training.progress
        parts = [f"Pass {progress.epoch} of {progress.epochs}"]
        if progress.segments > 1:
            parts.append(f"{progress.segments_done} of {progress.segments} segments done")
        if progress.psnr is not None:
            parts.append(f"{progress.psnr:.1f} dB")
        if progress.remaining is not None:
            parts.append(f"{in_words(progress.remaining)} left")
        line = Progress(" · ".join(parts), round(1000 * progress.fraction), 1000)
        return {
            self.empty: gr.HTML(visible=False),
            self.result: gr.Video(visible=False),
            self.both: gr.Button(visible=False),
            self.facts: gr.HTML(visible=False),
            self.hnv_file: gr.DownloadButton(visible=False),
            self.video_file: gr.DownloadButton(visible=False),
            self.training: gr.HTML(training_html(training), visible=True),
            self.status: progress_html(line, []),
        }

    def _view(self, made: Made) -> dict[Any, Any]:
        compared = {} if made.hnv else {self.source: gr.Video(visible=False)}
        return {
            **compared,
            self.empty: gr.HTML(visible=False),
            self.result: gr.Video(str(made.watched) if made.watched else None, visible=made.watched is not None),
            self.both: gr.Button(visible=bool(made.hnv and made.watched)),
            self.facts: gr.HTML(made.facts, visible=True),
            self.hnv_file: gr.DownloadButton(value=str(made.hnv) if made.hnv else None, visible=made.hnv is not None),
            self.video_file: gr.DownloadButton(
                value=str(made.video) if made.video else None, visible=made.video is not None
            ),
        }

    # The work itself, in the thread of the job.

    def _work(
        self, file: str, settings: Settings, job: Job, gone: threading.Event, report: Callable[[Report], None]
    ) -> None:
        source, folder = Path(file), new_folder()
        try:
            source = uploaded(file)
            with self.shelf.running:
                if job.stopped:
                    raise Interrupted
                if is_hnv(source):
                    report(self._decode(source, folder, job, report))
                else:
                    report(self._compress(source, folder, settings, job, gone, report))
        except Interrupted:
            shutil.rmtree(folder, ignore_errors=True)
        except ValueError as error:  # the readers' and the codec's own sentences
            shutil.rmtree(folder, ignore_errors=True)
            report(Failure(plain(error, source, folder)))
        except Exception as error:
            LOG.exception("A video could not be worked on.")
            shutil.rmtree(folder, ignore_errors=True)
            report(failure(f"{source.name} could not be worked on", error, plain(error, source, folder)))

    def _compress(
        self,
        source: Path,
        folder: Path,
        settings: Settings,
        job: Job,
        gone: threading.Event,
        report: Callable[[Report], None],
    ) -> Made:
        report(Progress(f"reading {source.name} …"))
        watcher = Watcher(report)
        size = settings.size_for(look_at(source)) if settings.kilobytes is not None else settings.bits_per_pixel
        output = folder / f"{safe_stem(source.name)}{SUFFIX}"
        started = time.monotonic()
        pipe = new_pipeline()
        encoded = pipe.encode(
            source,
            output,
            bits_per_pixel=None if settings.target_psnr is not None else size,
            target_psnr=settings.target_psnr,
            recipe=settings.recipe,
            epochs=settings.epochs,
            decoder=settings.decoder,
            seed=settings.seed,
            audio=settings.sound,
            segment_frames=settings.segment_frames,
            callback=watcher.look,
            should_stop=gone.is_set,
            finish_early=lambda: job.stopped,
        )
        seconds = time.monotonic() - started
        quality = " · ".join(
            [
                in_bytes(encoded.num_bytes) + (f" (sound {in_bytes(encoded.sound_bytes)})" * bool(encoded.sound_bytes)),
                f"{encoded.num_bytes / source.stat().st_size:.1%} of yours",
                f"{encoded.bits_per_pixel:.3f} bits per pixel",
                f"PSNR {encoded.psnr:.2f} dB",
            ]
        )
        segments = f", {encoded.num_segments} segments" if encoded.num_segments > 1 else ""
        learned = f"encoded in {seconds:.1f} s{segments}"
        return self._show_decoded(output, folder, job, gone, report, pipe, (quality, learned, encoded.notes))

    def _decode(self, source: Path, folder: Path, job: Job, report: Callable[[Report], None]) -> Made:
        report(Progress(f"reading {source.name} …"))
        return self._show_decoded(source, folder, job, threading.Event(), report, new_pipeline(), None)

    def _show_decoded(
        self,
        hnv: Path,
        folder: Path,
        job: Job,
        gone: threading.Event,
        report: Callable[[Report], None],
        pipe: Any,
        encoded: tuple[str, str, list[str]] | None,
    ) -> Made:
        """Decodes a file to a video to watch and to download."""
        from pipelines.hnerv import output_suffix
        from pipelines.hnv import open_hnv

        with open_hnv(hnv) as file:
            file.verify()
            info, num_bytes, sound_bytes = file.info, file.num_bytes, file.sound_bytes
        shape = f"{info.num_frames} frames of {info.width} × {info.height} pixels"
        video = folder / f"{safe_stem(hnv.name)}-decoded{output_suffix(hnv, 'h264')}"
        cancelled_before = job.stopped  # while it learned: what was kept is shown
        throttle = Throttle()

        def frame_done(pipe: Any, done: int, total: int) -> None:
            if gone.is_set() or (job.stopped and not cancelled_before):
                pipe.interrupt()
            elif throttle.ready():
                report(Progress(f"decoding: frame {done} of {total}", done, total))

        started = time.monotonic()
        try:
            written = pipe.decode(hnv, video, crf=CRF, callback=frame_done)
            decoded = f"decoded in {time.monotonic() - started:.1f} s"
            notes, watched = list(written.notes), video
            if video.suffix != ".mp4":
                watched = folder / "watched.mp4"
                pipe.decode(hnv, watched, crf=CRF, audio=False, callback=frame_done)
                notes.append("Shown without its sound, which MP4 cannot hold as it is: the .mkv file has it.")
        except Interrupted:
            if encoded is None or gone.is_set():
                raise
            quality, learned, notes = encoded
            notes = [*notes, "Decoding was cancelled: drop the .hnv file here to watch it."]
            return Made(hnv.name, hnv, None, None, quality, f"{shape} · {learned}", notes)
        if encoded is None:
            size = in_bytes(num_bytes) + (f" (sound {in_bytes(sound_bytes)})" if sound_bytes else "")
            rate = 8 * (num_bytes - sound_bytes) / (info.width * info.height * (info.num_frames or 1))
            return Made(
                hnv.name, None, video, watched, f"{size} · {rate:.3f} bits per pixel", f"{shape} · {decoded}", notes
            )
        quality, learned, before = encoded
        return Made(hnv.name, hnv, video, watched, quality, f"{shape} · {learned} · {decoded}", before + notes)


class Watcher:
    """Turns the pipeline's progress into looks at the training, as many as a page can show."""

    def __init__(self, report: Callable[[Report], None]):
        self.report = report
        self.curve: list[tuple[float, float]] = []
        self._shown = -math.inf

    def look(self, pipe: Any, progress: EncodingProgress) -> None:
        if progress.psnr is not None and math.isfinite(progress.psnr):
            self.curve.append((progress.fraction, progress.psnr))
        if len(self.curve) > CURVE_POINTS:
            del self.curve[1:-1:2]
        now = time.monotonic()
        if now - self._shown >= VIEW_SECONDS:
            self._shown = now
            self.report(Training(progress, list(self.curve)))


# Files.


def is_hnv(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX


def new_pipeline() -> Any:
    from pipelines import HNeRVPipeline

    return HNeRVPipeline().to(device())


def plain(error: BaseException, *places: Path) -> str:
    """An error's sentence with names of files, and without where they lie on this machine."""
    text = " ".join(str(error).split())
    folders = {str(folder) for place in places for folder in (place, place.parent)}
    for folder in sorted(folders, key=len, reverse=True):  # inner ones first: they begin like those around them
        text = text.replace(f"{folder}/", "")
    return text


# Words.

UNCOUNTED = "It is long: its frames are counted first, and then the time is shown."


def plan_html(lines: list[str] | None = None, failures: list[str] | None = None) -> str:
    lines = lines or ([] if failures else ["Choose a video to see the expected size and time."])
    return "".join(f"<p>{escape(line)}</p>" for line in lines) + status_html("", failures)


def training_html(training: Training) -> str:
    """The curve of the PSNR, and a frame as the network makes it now."""
    frame = frame_html(training.progress.preview) if training.progress.preview is not None else ""
    return f'<div class="training">{frame}{curve_svg(training.curve)}<p>Cancel keeps what was learned so far.</p></div>'


def _within(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
