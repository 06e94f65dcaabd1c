"""The tab Compress: a video in, a small .hnv file and what it decodes to out; or an .hnv file in, its video out."""

from __future__ import annotations

import base64
import io
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
import numpy as np
from PIL import Image

from app.ui import look
from app.ui.files import new_folder, safe_stem, uploaded
from app.ui.jobs import Job, Throttle, stream
from app.ui.models import Shelf
from app.ui.restore import Failure, Progress, progress_html, status_html
from genres.media.errors import ImageError, VideoError
from genres.media.files import EXTENSIONS
from genres.media.video import VideoInfo, probe, read_audio_packets, read_frames, scan, suggest_suffix, write_video
from pipelines.errors import Interrupted

if TYPE_CHECKING:
    from genres.compression.codec import CodecSettings
    from pipelines.hnerv import EncodingProgress

LOG = logging.getLogger(__name__)
SUFFIX = ".hnv"
LEAST_SIZE, MOST_SIZE, SIZE = 0.01, 0.5, 0.1  # bits per pixel
MOST_KILOBYTES, MOST_DECIBELS, MOST_EPOCHS, LARGEST_SEED = 1_000_000, 60, 100_000, 2**31 - 1
CRF = 14  # of what is watched and downloaded: H.264 adds no loss that could be seen
COUNT_SECONDS = 10  # that a look at a new video may take, and again the copy that the browser can play
VIEW_SECONDS = 1.0  # between two looks at the training
VIEW_SIDE, CURVE_POINTS = 480, 300
CALIBRATED_PIXELS = 160 * 90  # a pass is timed on a frame of this size at most, and goes with the number of pixels
TIMED_SECONDS = 4  # after which no further pass is timed
LEAST_BITS = 2  # of a stored value, where the weight of the rate does all it can
COUNTS = 24  # true counts of the size, which the codec makes as it trains

PRESETS = {"fast": "Fast", "medium": "Medium", "slow": "Slow"}
DECODERS = {"hnerv": "HNeRV", "nerv": "NeRV, the baseline"}
PLAYABLE = {".mp4": ("h264", "av1"), ".webm": ("vp8", "vp9", "av1")}  # by every browser
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


@dataclass(frozen=True)
class Clip:
    """A video that was chosen. ``info`` has the times of all frames, or of none if counting them took too long."""

    info: VideoInfo
    num_bytes: int
    sound_bytes: int

    @property
    def num_frames(self) -> int:
        return len(self.info.frame_times)

    @property
    def pixels(self) -> int:
        return self.info.width * self.info.height * self.num_frames


@dataclass(frozen=True)
class Training:
    """A look at the network while it learns: how far it is, and the PSNR so far by shares of the work."""

    progress: EncodingProgress
    curve: list[tuple[float, float]]


@dataclass(frozen=True)
class Encoded:
    """An .hnv file that was made here."""

    num_bytes: int
    sound_bytes: int
    bits_per_pixel: float
    psnr: float
    num_segments: int
    notes: list[str]


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


Report = Progress | Training | Failure | Made


class CompressTab:
    """The components of the tab and what they do."""

    def __init__(self, shelf: Shelf):
        self.shelf = shelf
        self.pace = Pace(shelf.running)
        self.job = gr.State(None)
        self.clip = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300, elem_classes="panel"):
                self._fields()
                self._buttons()
            with gr.Column(scale=7, min_width=300, elem_classes="panel"):
                self._result_fields()
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

    def _buttons(self) -> None:
        with gr.Row():
            self.start = gr.Button("Compress", variant="primary", scale=3, min_width=120, elem_id="compress")
            self.cancel = gr.Button("Cancel", interactive=False, scale=1, min_width=90, elem_id="compress-cancel")
        self.status = gr.HTML(status_html("Ready."), padding=False, elem_id="compress-status")

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
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        shown = self.file.change(self.show, self.file, [*view, self.clip, self.plan, self.status], **quick)
        plan: dict[str, Any] = {"inputs": [self.clip, *asked[1:]], "outputs": self.plan, **quick}
        shown.then(self.expect, **plan)
        gr.on([setting.change for setting in asked[1:-1]], self.expect, trigger_mode="always_last", **plan)
        self.cancel.click(self.stop, self.job, [self.status, self.cancel], **quick)
        self.both.click(None, js=PLAY_BOTH, **quick)
        buttons = [self.job, self.status, self.start, self.cancel]
        work: dict[str, Any] = {
            "inputs": [*asked, self.job],
            "outputs": [*view, self.status, self.start, self.cancel],
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "show_progress": "hidden",
        }
        begun = self.start.click(self.begin, asked, buttons, trigger_mode="once", **quick)
        begun.success(
            self.run,
            **work,
            api_name="compress",
            api_description="Compresses a video to an .hnv file and decodes it again, or decodes an .hnv file.",
        )
        dropped = shown.then(self.begin_dropped, asked, buttons, **quick)
        dropped.success(self.run_dropped, **work, api_visibility="private")

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
            least = self.pace.least_bytes(clip.info, chosen) + sound
            if least > expected:
                size = f"The file gets about {in_bytes(least)}: so short a video cannot get smaller."
        times = []
        for recipe, title in PRESETS.items():
            seconds = self.pace.forecast(clip.info, replace(chosen, recipe=recipe), bits_per_pixel)
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

    def begin(self, file: str | None, *settings: Any) -> dict[Any, Any]:
        """Answers at once: says what is missing, or that the job waits for its turn."""
        try:
            self._agree(file, *settings)
        except ValueError as error:
            return {self.job: Job(refused=True), self.status: status_html("", failures=[str(error)])}
        return {
            self.job: Job(),
            self.status: status_html("Waiting for its turn …"),
            self.start: gr.Button(interactive=False),
            self.cancel: gr.Button(interactive=True),
        }

    def begin_dropped(self, file: str | None, *settings: Any) -> dict[Any, Any]:
        """An .hnv file is decoded as soon as it comes."""
        return self.begin(file, *settings) if file and is_hnv(Path(file)) else {self.status: gr.skip()}

    def run_dropped(self, file: str | None, *settings: Any) -> Iterator[dict[Any, Any]]:
        if file and is_hnv(Path(file)):
            yield from self.run(file, *settings)
        else:
            yield {self.status: gr.skip()}  # gradio empties the outputs of what yields nothing

    def _agree(self, file: str | None, *settings: Any) -> Settings:
        if not file:
            raise ValueError("Choose a video first.")
        return self._checked(*settings)

    def stop(self, job: Job | None) -> dict[Any, Any]:
        if job is not None:
            job.stop()
        return {self.status: status_html("Stopping …"), self.cancel: gr.Button(interactive=False)}

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
        if job is not None and job.refused:
            return
        chosen = (bits_per_pixel, preset, kilobytes, target_psnr, epochs, sound, segment_frames, network, seed)
        try:
            settings = self._agree(file, *chosen)
        except ValueError as error:  # programs come here without `begin`
            raise gr.Error(str(error), print_exception=False) from error
        job = job or Job()
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
            self.start: gr.Button(interactive=True),
            self.cancel: gr.Button(interactive=False),
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
            self.facts: gr.HTML(facts_html(made), visible=True),
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
            reason = plain(error, source, folder) or type(error).__name__
            report(Failure(f"{source.name} could not be worked on: {reason.rstrip('.')}."))

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
        try:
            done = pipe.encode(
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
                should_stop=lambda: job.stopped,
            )
            encoded = Encoded(
                done.num_bytes, done.sound_bytes, done.bits_per_pixel, done.psnr, done.num_segments, done.notes
            )
        except Interrupted:
            if gone.is_set():
                raise
            report(Progress("keeping what was learned so far …"))
            encoded = keep_best(source, output, settings.sound, pipe.device, watcher.last)
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
        self.last: EncodingProgress | None = None
        self._shown = -math.inf

    def look(self, pipe: Any, progress: EncodingProgress) -> None:
        self.last = progress
        if progress.psnr is not None and math.isfinite(progress.psnr):
            self.curve.append((progress.fraction, progress.psnr))
        if len(self.curve) > CURVE_POINTS:
            del self.curve[1:-1:2]
        now = time.monotonic()
        if now - self._shown >= VIEW_SECONDS:
            self._shown = now
            self.report(Training(progress, list(self.curve)))


class Pace:
    """How long training takes on this machine, timed on a few passes over one frame of noise."""

    def __init__(self, running: Any):
        self.running = running
        self._known: dict[tuple[int, int, int, str], tuple[float, float]] = {}

    def forecast(self, info: VideoInfo, settings: Settings, bits_per_pixel: float | None) -> float | None:
        """Seconds of one training of all segments; None while a model runs, as nothing can be timed then."""
        from genres.compression.codec import CodecSettings
        from pipelines.hnerv_encoding import cut_segments

        counts = [segment.count for segment in cut_segments(info, settings.segment_frames)]
        chosen = CodecSettings(
            recipe=settings.recipe,
            bits_per_pixel=bits_per_pixel or SIZE,
            epochs=settings.epochs,
            decoder=settings.decoder,
        )
        found = self._timed(info, chosen, counts[0])
        if found is None:
            return None
        step, count = found
        pixels = info.width * info.height
        return sum(n * chosen.epochs_for(n) * step * pixels + min(COUNTS, chosen.epochs_for(n)) * count for n in counts)

    def least_bytes(self, info: VideoInfo, settings: Settings) -> int:
        """What the smallest networks for all segments take, about."""
        from genres.compression.codec import CodecSettings
        from genres.compression.fitting import least_values
        from pipelines.hnerv_encoding import cut_segments

        chosen = CodecSettings(bits_per_pixel=settings.bits_per_pixel, decoder=settings.decoder)
        counts = [segment.count for segment in cut_segments(info, settings.segment_frames)]
        return sum(int(LEAST_BITS * least_values(chosen, n, info.height, info.width) / 8) for n in counts)

    def _timed(self, info: VideoInfo, chosen: CodecSettings, num_frames: int) -> tuple[float, float] | None:
        """Seconds per pixel of a frame in a pass, and of a true count of the size."""
        import torch

        from genres.compression.codec import CodecSettings, SegmentEncoder
        from genres.compression.fitting import least_values

        shrunk = min(1.0, math.sqrt(CALIBRATED_PIXELS / (info.width * info.height)))
        height, width = (max(round(side * shrunk), 1) for side in (info.height, info.width))
        values = (chosen.bits_per_pixel or SIZE) * info.width * info.height * num_frames / 4
        values = max(values, least_values(chosen, 1, height, width))
        key = (height, width, math.ceil(math.log2(values)), chosen.decoder)
        if key not in self._known:
            if not self.running.acquire(blocking=False):
                return None
            try:
                frame = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8))
                timed = CodecSettings(recipe="fast", values=2 ** key[2], epochs=5, decoder=chosen.decoder)
                encoder = SegmentEncoder(frame, timed, device())
                passes: list[float] = []
                end = time.perf_counter() + TIMED_SECONDS
                while not encoder.done and (len(passes) < 2 or time.perf_counter() < end):
                    passes.append(encoder.step_epoch().seconds)
                began = time.perf_counter()
                if encoder.done:
                    encoder.finish()
                count = time.perf_counter() - began
            finally:
                self.running.release()
            # The first pass warms up; from the third on, rounding makes it slower, and the size is counted in each.
            rounded = min(passes[3:]) - count if encoder.done else 0.0
            step = 0.4 * passes[1] + 0.6 * max(rounded, 1.3 * passes[1])
            self._known[key] = step / (height * width), count
        return self._known[key]


# Files.


def is_hnv(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def new_pipeline() -> Any:
    from pipelines import HNeRVPipeline

    return HNeRVPipeline().to(device())


class _TooLong(Exception):
    """A look at a video would keep its visitor waiting."""


def look_at(source: Path) -> Clip:
    """What a video is; its frames are counted, unless that takes too long.

    Raises:
        VideoError: it cannot be read.
    """
    end = time.monotonic() + COUNT_SECONDS

    def watch(done: int, total: int | None) -> None:
        if time.monotonic() > end:
            raise _TooLong

    try:
        info = scan(source, scene_cuts=False, callback=watch)
    except _TooLong:
        info = probe(source)
    sound = sum(track.num_bytes for track in read_audio_packets(source).tracks)
    return Clip(info, source.stat().st_size, sound)


def viewable(source: Path, info: VideoInfo) -> tuple[Path, str]:
    """The video as browsers play it, and a sentence if that is not the file itself."""
    plain_samples = info.pixel_format in ("yuv420p", "yuvj420p")
    if info.codec in PLAYABLE.get(source.suffix.lower(), ()) and plain_samples:
        return source, ""
    end = time.monotonic() + COUNT_SECONDS

    def frames() -> Iterator[np.ndarray]:
        for frame, _ in read_frames(source):
            yield frame
            if time.monotonic() > end:
                return

    sound = read_audio_packets(source)
    path = new_folder() / "copy.mp4"
    heard = sound if suggest_suffix("h264", sound) == ".mp4" else None
    written = write_video(path, frames(), info, heard, preset="veryfast")
    part = f" of its first {written.num_frames} frames" if written.num_frames != info.num_frames else ""
    silent = "" if heard or not sound else ", without its sound"
    return path, f"Browsers cannot play this kind of file: shown is a copy{part}{silent}."


def keep_best(source: Path, output: Path, sound: bool, place: Any, last: EncodingProgress | None) -> Encoded:
    """Makes a file of what an interrupted encoding has learned; segments that it had not begun are left out.

    Raises:
        Interrupted: it had learned nothing yet.
    """
    import torch

    from genres.compression.codec import SegmentDecoder, SegmentEncoder, mean_psnr
    from genres.media.video import AudioTracks
    from pipelines.hnerv import WORK_SUFFIX
    from pipelines.hnerv_work import PLAN, WorkFolder, segment_settings, write_whole
    from pipelines.hnv import HnvFile, write_hnv

    folder = WorkFolder(output.with_name(output.name + WORK_SUFFIX))
    if not (folder.path / PLAN).is_file():
        raise Interrupted
    segments = folder.segments()
    payloads, decibels = [], 0.0
    for number, segment in enumerate(segments):
        if folder.is_done(number):
            payloads.append(folder.payload(number))
            decibels += folder.result(number).psnr * segment.count
            continue
        checkpoint = folder.file(number, "checkpoint")
        if not checkpoint.is_file():
            break
        frames = folder.frames(number)
        encoder = SegmentEncoder(frames, segment_settings(folder.plan(), number), place)
        encoder.load_state_dict(torch.load(checkpoint, map_location=place, weights_only=True)["encoder"])
        payloads.append(encoder.finish())
        decibels += mean_psnr(SegmentDecoder(payloads[-1], place), frames) * segment.count
    if not payloads:
        raise Interrupted
    info = scan(source, scene_cuts=False)
    tracks = read_audio_packets(source) if sound else AudioTracks()
    counts = [segment.count for segment in segments[: len(payloads)]]
    kept, total = sum(counts), len(info.frame_times)
    how_far = f" at pass {last.epoch} of {last.epochs}" if last is not None else ""
    notes = [*info.notes, f"Cancelled{how_far}: the file holds what was learned until then."]
    if kept < total:
        begin, end = info.frame_times[0], info.frame_times[kept]
        times = tuple(moment - begin for moment in info.frame_times[:kept])
        info = replace(info, num_frames=kept, frame_times=times)
        tracks = tracks.between(begin * info.time_base, end * info.time_base)
        notes.append(f"It has the first {kept} of {total} frames; the others had not been begun.")
    content = io.BytesIO()
    write_hnv(content, info, counts, tracks, payloads)
    content.seek(0)
    file = HnvFile(content)
    file.verify()
    write_whole(output, content.getvalue())
    folder.remove()
    return Encoded(
        file.num_bytes,
        file.sound_bytes,
        8 * (file.num_bytes - file.sound_bytes) / (info.width * info.height * kept),
        decibels / kept,
        len(counts),
        notes,
    )


def plain(error: BaseException, *places: Path) -> str:
    """An error's sentence with names of files, and without where they lie on this machine."""
    text = " ".join(str(error).split())
    folders = {str(folder) for place in places for folder in (place, place.parent)}
    for folder in sorted(folders, key=len, reverse=True):  # inner ones first: they begin like those around them
        text = text.replace(f"{folder}/", "")
    return text


# Words.

UNCOUNTED = "It is long: its frames are counted first, and then the time is shown."


def in_bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count} bytes"


def in_words(seconds: float) -> str:
    """A time as somebody would say it who cannot know it exactly."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * size:
            count = round(seconds / size)
            return f"about {count} {unit}{'s' if count > 1 else ''}"
    if seconds >= 55:
        return "about a minute"
    count = max(5 * round(seconds / 5), 1)
    return f"about {count} seconds" if count > 1 else "a few seconds"


def describe(clip: Clip) -> str:
    info = clip.info
    parts = [f"{info.width} × {info.height} pixels"]
    if clip.num_frames:
        parts.append(f"{clip.num_frames} frames in {float(info.seconds or 0):.1f} s")
    parts.append(in_bytes(clip.num_bytes))
    parts.append("with sound" if clip.sound_bytes else "silent")
    return " · ".join(parts)


def plan_html(lines: list[str] | None = None, failures: list[str] | None = None) -> str:
    lines = lines or ([] if failures else ["Choose a video to see the expected size and time."])
    return "".join(f"<p>{escape(line)}</p>" for line in lines) + status_html("", failures)


def training_html(training: Training) -> str:
    """The curve of the PSNR, and a frame as the network makes it now."""
    frame = frame_html(training.progress.preview) if training.progress.preview is not None else ""
    return f'<div class="training">{frame}{curve_svg(training.curve)}<p>Cancel keeps what was learned so far.</p></div>'


def frame_html(preview: Any) -> str:
    image = Image.fromarray(np.asarray(preview))
    image.thumbnail((VIEW_SIDE, VIEW_SIDE), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="A frame as the network makes it now" src="data:image/jpeg;base64,{data}">'


WIDTH, HEIGHT, LEFT, BOTTOM = 400, 170, 34, 22  # of the curve; margins for the numbers


def curve_svg(curve: list[tuple[float, float]]) -> str:
    """PSNR in dB over the share of the work that is done."""
    if not curve:
        return ""
    values = [value for _, value in curve]
    step = next(step for step in (1, 2, 5, 10, 20, 50) if max(values) - min(values) <= 4 * step or step == 50)
    low = step * math.floor(min(values) / step)
    high = max(step * math.ceil(max(values) / step), low + step)

    def x(share: float) -> float:
        return LEFT + (WIDTH - LEFT - 8) * share

    def y(value: float) -> float:
        return 8 + (HEIGHT - BOTTOM - 8) * (high - value) / (high - low)

    lines, numbers = [], []
    for tick in range(low, high + 1, step):
        lines.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - 8}"/>')
        numbers.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    numbers += [
        f'<text x="{x(share):.1f}" y="{HEIGHT - 5}" text-anchor="middle">{share:.0%}</text>' for share in (0, 0.5)
    ]
    numbers.append(f'<text x="{WIDTH - 8}" y="{HEIGHT - 5}" text-anchor="end">100% of the work</text>')
    points = " ".join(f"{x(share):.1f},{y(value):.1f}" for share, value in curve)
    share, value = curve[-1]
    said = f"PSNR over the work: {value:.1f} dB now, best {max(values):.1f} dB"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(lines)}'
        f'<polyline points="{points}"/><circle cx="{x(share):.1f}" cy="{y(value):.1f}" r="3.5"/>'
        f'{"".join(numbers)}<text x="{LEFT + 6}" y="20" class="unit">PSNR in dB: {value:.1f} now</text></svg>'
    )


def facts_html(made: Made) -> str:
    parts = [("name", made.name), ("quality", made.quality), ("how", made.how)]
    parts += [("note", note) for note in made.notes]
    return "".join(f'<p class="{kind}">{escape(text)}</p>' for kind, text in parts if text)


def _within(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
