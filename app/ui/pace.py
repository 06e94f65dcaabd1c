"""How long learning a video will take here."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from app.ui.models import device
from genres.media.video import VideoInfo

if TYPE_CHECKING:
    from genres.compression.codec import CodecSettings

CALIBRATED_PIXELS = 480 * 270  # a pass is timed on a frame of this size at most, and goes with the number of pixels
TIMED_SECONDS = 4  # after which no further pass is timed
LEAST_BITS = 2  # of a stored value, where the weight of the rate does all it can
COUNTS = 24  # true counts of the size, which the codec makes as it trains


class Pace:
    """How long training takes on this machine, timed on a few passes over one frame of noise."""

    def __init__(self, running: Any):
        self.running = running
        self._known: dict[tuple[int, int, int, str], tuple[float, float]] = {}

    def forecast(self, info: VideoInfo, chosen: CodecSettings, segment_frames: int | None) -> float | None:
        """Seconds of one training of all segments; None while a model runs, as nothing can be timed then."""
        from pipelines.hnerv_encoding import cut_segments

        counts = [segment.count for segment in cut_segments(info, segment_frames)]
        found = self._timed(info, chosen, counts[0])
        if found is None:
            return None
        step, count = found
        pixels = info.width * info.height
        return sum(n * chosen.epochs_for(n) * step * pixels + min(COUNTS, chosen.epochs_for(n)) * count for n in counts)

    def least_bytes(self, info: VideoInfo, chosen: CodecSettings, segment_frames: int | None) -> int:
        """What the smallest networks for all segments take, about."""
        from genres.compression.networks import least_values
        from pipelines.hnerv_encoding import cut_segments

        counts = [segment.count for segment in cut_segments(info, segment_frames)]
        return sum(int(LEAST_BITS * least_values(chosen, n, info.height, info.width) / 8) for n in counts)

    def _timed(self, info: VideoInfo, chosen: CodecSettings, num_frames: int) -> tuple[float, float] | None:
        """Seconds per pixel of a frame in a pass, and of a true count of the size."""
        import torch

        from genres.compression.codec import CodecSettings, SegmentEncoder
        from genres.compression.networks import least_values
        from pipelines.hnerv import DEFAULT_BITS_PER_PIXEL

        shrunk = min(1.0, math.sqrt(CALIBRATED_PIXELS / (info.width * info.height)))
        height, width = (max(round(side * shrunk), 1) for side in (info.height, info.width))
        values = (chosen.bits_per_pixel or DEFAULT_BITS_PER_PIXEL) * info.width * info.height * num_frames / 4
        values = max(values, least_values(chosen, 1, height, width))
        key = (height, width, math.ceil(2 * math.log2(values)), chosen.decoder)  # half octaves of values
        if key not in self._known:
            if not self.running.acquire(blocking=False):
                return None
            try:
                frame = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8))
                timed = CodecSettings(recipe="fast", values=int(2 ** (key[2] / 2)), epochs=5, decoder=chosen.decoder)
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
