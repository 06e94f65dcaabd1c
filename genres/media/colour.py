"""Colour of video: which matrix and range stand between Y'CbCr samples and RGB (numbers of ITU-T H.273).

Primaries and transfer say what the RGB values mean; they are carried along and never converted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from av import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from genres.media.errors import Refusal

UNSPECIFIED = 2  # of primaries, transfer and matrix
RGB, BT709, FCC, BT470BG, SMPTE170M, SMPTE240M, BT2020 = 0, 1, 4, 5, 6, 7, 9  # matrices
LIMITED, FULL = 1, 2  # ranges; 0 is unspecified

# H.273 matrix to libswscale's number of it.
MATRICES = {BT709: 1, FCC: 4, BT470BG: 5, SMPTE170M: 5, SMPTE240M: 7, BT2020: 9}
# Slower than libswscale's defaults, but exact to half a level and the same on every processor.
EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
HD_WIDTH, SD_HEIGHT = 1280, 576


@dataclass(frozen=True)
class ColourTags:
    """What a stream says about its colours, in the numbers of ITU-T H.273.

    Attributes:
        primaries: 1 BT.709, 9 BT.2020, ...; 2 unspecified.
        transfer: 1 BT.709, 16 PQ, 18 HLG, ...; 2 unspecified.
        matrix: 0 RGB, 1 BT.709, 5 and 6 BT.601, 9 BT.2020, ...; 2 unspecified.
        range: 1 limited, 2 full; 0 unspecified.
    """

    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    matrix: int = UNSPECIFIED
    range: int = 0

    @classmethod
    def of(cls, tagged: Any) -> "ColourTags":
        """The tags of a frame or a codec context of PyAV."""
        known = [int(getattr(tagged, name)) for name in ("color_primaries", "color_trc", "colorspace", "color_range")]
        return cls(*known)

    def effective_matrix(self, width: int, height: int) -> int:
        """The matrix to compute with; players guess an unspecified one by the size, and so does this.

        Raises:
            Refusal: the matrix is not one of the linear ones that are supported.
        """
        if self.matrix in (UNSPECIFIED, RGB):
            return BT709 if width >= HD_WIDTH or height > SD_HEIGHT else SMPTE170M
        if self.matrix not in MATRICES:
            raise Refusal(
                f"uses the colour matrix {self.matrix} of H.273, which is not supported: convert it to BT.709"
            )
        return self.matrix


class ToRGB:
    """Turns decoded frames of one stream into RGB of full range."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
        """A frame of any pixel format -> (H, W, 3) uint8; shrunk to `size` = (height, width) where given."""
        tags = ColourTags.of(frame)
        matrix = MATRICES[tags.effective_matrix(frame.width, frame.height)]
        full = frame.format.is_rgb or frame.format.name.startswith("yuvj") or tags.range == FULL
        height, width = size or (frame.height, frame.width)
        flags = EXACT if size is None else Interpolation.AREA | Interpolation.BITEXACT
        rgb = self.reformatter.reformat(
            frame,
            width,
            height,
            "rgb24",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=FULL if full else LIMITED,
            dst_color_range=FULL,
            interpolation=flags,
            threads=1,
        )
        return rgb.to_ndarray()


class FromRGB:
    """Turns RGB frames into the pixel format of an encoder, with the matrix and range of `tags`."""

    def __init__(self, pixel_format: str, tags: ColourTags):
        self.pixel_format, self.tags = pixel_format, tags
        self.reformatter = VideoReformatter()

    def __call__(self, pixels: np.ndarray) -> VideoFrame:
        """(H, W, 3) uint8 -> frame."""
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        matrix = MATRICES[self.tags.effective_matrix(frame.width, frame.height)]
        to_rgb = not self.pixel_format.startswith("yuv")
        return self.reformatter.reformat(
            frame,
            format=self.pixel_format,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=FULL,
            dst_color_range=FULL if to_rgb or self.tags.range == FULL else LIMITED,
            interpolation=EXACT,
            threads=1,
        )
