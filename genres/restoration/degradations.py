"""Degradations that the restoration networks learn to undo.

Every function takes a clean image (C, H, W) in [0, 1] and a `torch.Generator`, draws its own strength, and returns the
degraded image of equal size in [0, 1]. The sets of strengths cover what cameras and weather do to ordinary photographs;
the public benchmarks lie inside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Generator, Tensor


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _chance(probability: float, generator: Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability


def _integer(low: int, high: int, generator: Generator) -> int:
    """A whole number in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _randn(image: Tensor, generator: Generator) -> Tensor:
    return torch.randn(image.shape, generator=generator)


def gaussian_noise(image: Tensor, generator: Generator, sigma: float | None = None) -> Tensor:
    """White Gaussian noise; `sigma` in grey levels of 255, drawn from [0, 55] when not given."""
    sigma = _uniform(0, 55, generator) if sigma is None else sigma
    return (image + sigma / 255 * _randn(image, generator)).clamp(0, 1)


def camera_noise(image: Tensor, generator: Generator) -> Tensor:
    """Noise of a sensor: its variance grows with the light, `read^2 + shot * image`, and it is a little blurred."""
    read, shot = _uniform(0, 0.06, generator), _uniform(0, 0.03, generator)
    noise = _randn(image, generator) * (read**2 + shot * image).sqrt()
    if _chance(0.3, generator):  # demosaicing correlates neighbours
        width = _uniform(0.3, 0.7, generator)
        noise = gaussian_blur2d(noise[None], (3, 3), (width, width))[0] * 1.4
    return (image + noise).clamp(0, 1)


def noise(image: Tensor, generator: Generator) -> Tensor:
    """Gaussian noise, or in one of six images camera noise."""
    return (camera_noise if _chance(1 / 6, generator) else gaussian_noise)(image, generator)


def jpeg(image: Tensor, generator: Generator, lowest: int = 60, highest: int = 97) -> Tensor:
    """A JPEG file of a quality in [lowest, highest] with halved colour (4:2:0), as most that people bring."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).flip(-1).contiguous().numpy()  # (H, W, BGR)
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _integer(lowest, highest, generator)])
    return torch.from_numpy(cv2.imdecode(data, cv2.IMREAD_COLOR)).flip(-1).permute(2, 0, 1).float() / 255


def file_noise(image: Tensor, generator: Generator) -> Tensor:
    """Noise in a JPEG file of quality 75 to 98: its colours are smeared and it is mostly grey, as in videos."""
    return jpeg(noise(image, generator), generator, 75, 98)


def smooth_field(height: int, width: int, generator: Generator) -> Tensor:
    """A smooth random field (height, width) that spans [0, 1]: coarse noise, a ramp, or their mixture."""
    coarse = torch.rand((1, 1, _integer(2, 6, generator), _integer(2, 6, generator)), generator=generator)
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0, 0]
    angle = _uniform(0, 2 * math.pi, generator) if _chance(0.4, generator) else math.pi / 2
    ramp = math.sin(angle) * torch.linspace(1, 0, height)[:, None] + math.cos(angle) * torch.linspace(0, 1, width)
    share = _uniform(0, 1, generator)
    field = share * field + (1 - share) * ramp
    return (field - field.amin()) / (field.amax() - field.amin()).clamp_min(1e-6)


def haze(image: Tensor, generator: Generator) -> Tensor:
    """Haze by the scattering model I = J t + A (1 - t), t = exp(-beta d) with smooth random depth d.

    The airlight A is near white, in one image of four greyer, with a slight colour. One image in ten is nearly clear,
    one in four a JPEG file.
    """
    depth = smooth_field(image.shape[-2], image.shape[-1], generator)
    nearest = _uniform(0.05, 0.8, generator)
    depth = nearest + (1 - nearest) * depth
    beta = _uniform(0, 0.2, generator) if _chance(0.1, generator) else _uniform(0.3, 2.6, generator)
    transmission = torch.exp(-beta * depth)
    tint = 0.02 * torch.randn((3, 1, 1), generator=generator)
    brightness = _uniform(0.6, 0.88, generator) if _chance(0.25, generator) else _uniform(0.88, 1.0, generator)
    airlight = (brightness + tint).clamp(0, 1)
    hazy = image * transmission + airlight * (1 - transmission)
    if _chance(0.3, generator):
        hazy = hazy + _uniform(0, 0.01, generator) * _randn(image, generator)
    hazy = hazy.clamp(0, 1)
    return jpeg(hazy, generator) if _chance(0.25, generator) else hazy


def line_kernel(length: float, angle: float, size: int, width: float = 0.5) -> Tensor:
    """A straight soft line through the centre of a (size, size) kernel that sums to 1; `angle` in radians."""
    position = torch.arange(size) - (size - 1) / 2
    along = position[None, :] * math.cos(angle) + position[:, None] * math.sin(angle)
    across = position[:, None] * math.cos(angle) - position[None, :] * math.sin(angle)
    kernel = torch.exp(-((across / width) ** 2) / 2) * torch.sigmoid((length / 2 - along.abs()) * 4)
    return kernel / kernel.sum()


def rain(image: Tensor, generator: Generator) -> Tensor:
    """Rain streaks: one to three layers of drops, each drawn out along its direction of fall, added as light."""
    height, width = image.shape[-2:]
    fall = math.pi / 2 + _uniform(-0.7, 0.7, generator)
    streaks = torch.zeros(1, height, width)
    for _ in range(_integer(1, 3, generator)):
        length = _uniform(6, 32, generator)
        drops = torch.rand((1, height, width), generator=generator)
        share = _uniform(0.0004, 0.005, generator)
        drops = (drops < share) * torch.rand((1, height, width), generator=generator)
        kernel = line_kernel(length, fall + _uniform(-0.08, 0.08, generator), 35, _uniform(0.4, 1.2, generator))
        streaks = streaks + blur(drops, kernel) * (_uniform(0.15, 0.9, generator) / kernel.amax())
    streaks = streaks.clamp(0, 1)
    if _chance(0.5, generator):  # bright streaks hide what is behind them
        return (image + streaks * (_uniform(0.8, 1.0, generator) - image).clamp_min(0)).clamp(0, 1)
    return (image + streaks * _uniform(0.4, 1.0, generator)).clamp(0, 1)


def _placed(path: Tensor, scale: float | Tensor, size: int) -> Tensor:
    """A path (2, steps), columns and rows, scaled and put with its mean in the middle of a kernel of this size."""
    half = (size - 1) / 2
    return ((path - path.mean(1, keepdim=True)) * scale).clamp(-half + 1, half - 1) + half


def motion_kernel(generator: Generator, size: int = 25, longest: float = 18.0) -> Tensor:
    """Blur kernel of a random camera trajectory: a point with inertia, drawn with sub-pixel accuracy.

    Returns: (size, size), non-negative, sum 1, its centre of mass in the middle.
    """
    length = _uniform(3, longest, generator)
    steps = 64
    wander = 0.0 if _chance(0.3, generator) else _uniform(0, 0.35, generator)  # 0 is a straight line
    heading = _uniform(0, 2 * math.pi, generator) + torch.cumsum(wander * torch.randn(steps, generator=generator), 0)
    pace = 1 + _uniform(0, 0.8, generator) * torch.sin(torch.linspace(0, 6, steps) + _uniform(0, 6, generator))
    path = torch.stack([torch.cumsum(pace * heading.cos(), 0), torch.cumsum(pace * heading.sin(), 0)])
    path = _placed(path, length / pace.sum(), size)
    grid = torch.arange(size, dtype=torch.float32)
    columns = (1 - (grid[None] - path[0][:, None]).abs()).clamp_min(0)  # (steps, size), bilinear weights
    rows = (1 - (grid[None] - path[1][:, None]).abs()).clamp_min(0)
    kernel = rows.T @ columns
    return kernel / kernel.sum()


def blur(image: Tensor, kernel: Tensor) -> Tensor:
    """Blur (C, H, W) by a kernel (k, k) of odd side, with reflected borders."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()  # (H, W, C)
    blurred = cv2.filter2D(pixels, -1, kernel.numpy(), borderType=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(blurred.reshape(pixels.shape)).permute(2, 0, 1).contiguous()


def motion_blur(image: Tensor, generator: Generator) -> Tensor:
    """Blur along a random camera trajectory, with up to 2 % of noise."""
    blurred = blur(image, motion_kernel(generator))
    return (blurred + _uniform(0, 0.02, generator) * _randn(image, generator)).clamp(0, 1)


def disk_kernel(radius: float, size: int = 25) -> Tensor:
    """Blur kernel of a lens out of focus: a disk with a soft edge of one pixel, (size, size), sum 1."""
    position = torch.arange(size) - (size - 1) / 2
    kernel = (radius + 0.5 - torch.hypot(position[:, None], position[None, :])).clamp(0, 1)
    return kernel / kernel.sum()


def shake_kernel(generator: Generator, size: int = 33) -> Tensor:
    """Blur kernel of a hand that shakes: it drifts, rests, and is jerked aside.

    As in kernels that were measured, the path is mostly thin, with bright dots where the hand rested or turned.

    Returns: (size, size), non-negative, sum 1, its centre of mass in the middle.
    """
    steps, inertia = 160, _uniform(0.8, 0.98, generator)
    pushes = torch.randn((steps, 2), generator=generator)
    jerked = torch.rand(steps, generator=generator) < _uniform(0, 0.08, generator)
    pushes = torch.where(jerked[:, None], 6 * pushes, pushes)
    rests = torch.rand(steps, generator=generator) < _uniform(0, 0.06, generator)
    velocity, path = (0.0, 0.0), []
    place = (0.0, 0.0)
    for push, rest in zip(pushes.tolist(), rests.tolist(), strict=True):
        velocity = (0.0, 0.0) if rest else (inertia * velocity[0] + push[0], inertia * velocity[1] + push[1])
        place = place[0] + velocity[0], place[1] + velocity[1]
        path.append(place)
    track = torch.tensor(path).T  # (2, steps): column, row
    extent = (track.amax(1) - track.amin(1)).amax()
    track = _placed(track, _uniform(4, 25, generator) / extent, size)
    width = _uniform(0.25, 0.5, generator) if _chance(0.8, generator) else _uniform(0.5, 0.9, generator)
    columns, rows = (torch.exp(-(((torch.arange(size) - axis[:, None]) / width) ** 2) / 2) for axis in track)
    columns, rows = columns / columns.sum(1, keepdim=True), rows / rows.sum(1, keepdim=True)
    kernel = rows.T @ columns
    return kernel / kernel.sum()


def _exposed(image: Tensor, kernel: Tensor, generator: Generator) -> Tensor:
    """A blurred photograph with up to 2 % of noise.

    Half of the images are blurred in linear light, as in a camera, where highlights may be brighter than the sensor
    can tell (saturation); the others as they are, as many test sets do.
    """
    if _chance(0.5, generator):
        light = image.clamp_min(0) ** 2.2
        if _chance(0.5, generator):
            light = light * torch.where(light > 0.8, _uniform(1, 3, generator), 1.0)
        blurred = blur(light, kernel).clamp(0, 1) ** (1 / 2.2)
    else:
        blurred = blur(image, kernel)
    return (blurred + _uniform(0, 0.02, generator) * _randn(image, generator)).clamp(0, 1)


def camera_blur(image: Tensor, generator: Generator) -> Tensor:
    """Motion blur, in one image of five blur of defocus, half of it in linear light, with up to 2 % of noise."""
    kernel = disk_kernel(_uniform(1, 5, generator)) if _chance(0.2, generator) else motion_kernel(generator)
    return _exposed(image, kernel, generator)


def shake_blur(image: Tensor, generator: Generator) -> Tensor:
    """Blur by a hand that shakes, half of it in linear light, with up to 2 % of noise; every second image is grey."""
    if _chance(0.5, generator):
        image = image.mean(0, keepdim=True).expand_as(image)
    return _exposed(image, shake_kernel(generator), generator)


def low_light(image: Tensor, generator: Generator) -> Tensor:
    """Darkness: a power law with gain, then noise of up to 2 %; one image in six is a JPEG file."""
    gamma, gain = _uniform(1.3, 3.5, generator), _uniform(0.25, 1.0, generator)
    dark = gain * image.clamp_min(1e-4) ** gamma
    dark = (dark + _uniform(0.002, 0.02, generator) * _randn(image, generator)).clamp(0, 1)
    return jpeg(dark, generator) if _chance(1 / 6, generator) else dark


def clean(image: Tensor, generator: Generator) -> Tensor:
    """Nothing: a restorer must leave a good photograph alone."""
    return image


DEGRADATIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "denoise": noise,
    "file_noise": file_noise,
    "dehaze": haze,
    "derain": rain,
    "deblur": motion_blur,
    "camera_blur": camera_blur,
    "shake_blur": shake_blur,
    "lowlight": low_light,
    "clean": clean,
}
