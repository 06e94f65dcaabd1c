"""Quality of an image against its reference."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of structural similarity
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
EQUAL_FRAMES = 99.0  # dB
ALEXNET = "alexnet-owt-7be5be79.pth"


def _check_sizes(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape:
        sizes = f"{tuple(image.shape)}, {tuple(reference.shape)}"
        raise ValueError(f"Images of different size cannot be compared: {sizes}.")


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], over all elements together; infinite when equal."""
    _check_sizes(image, reference)
    error = (image.double() - reference.double()).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def frame_psnr(frame: Tensor, reference: Tensor, kept: Tensor | None = None) -> float:
    """PSNR in dB of frames (H, W, 3) in uint8; equal ones count as `EQUAL_FRAMES`, so that a mean stays finite.

    Args:
        kept: (H, W) bool, the pixels that count; by default all.
    """
    _check_sizes(frame, reference)
    pair = [(side if kept is None else side[kept]).double() / 255 for side in (frame, reference)]
    return min(psnr(*pair), EQUAL_FRAMES) if pair[0].numel() else EQUAL_FRAMES


def ssim(image: Tensor, reference: Tensor) -> float:
    """Structural similarity of images (C, H, W) in [0, 1]: Gaussian window of 11 pixels, sigma 1.5, mean of channels.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004). Sides of at least
    11 pixels.
    """
    from kornia.metrics import ssim as ssim_map

    _check_sizes(image, reference)
    if min(image.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs sides of at least 11 pixels, not {tuple(image.shape[-2:])}.")
    values = ssim_map(image[None].float(), reference[None].float(), window_size=11, padding="valid")
    return float(torch.mean(values))


def ms_ssim(image: Tensor, reference: Tensor) -> float:
    """Multi-scale structural similarity of images (C, H, W) in [0, 1], mean of channels.

    Wang et al., "Multiscale structural similarity for image quality assessment" (2003): contrast and structure at five
    scales, luminance at the last one, the window of `ssim`. Sides of at least 161 pixels.
    """
    _check_sizes(image, reference)
    smallest = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1
    if min(image.shape[-2:]) < smallest:
        raise ValueError(f"MS-SSIM needs sides of at least {smallest} pixels, not {tuple(image.shape[-2:])}.")
    pair = [image[:, None].float(), reference[:, None].float()]  # (C, 1, H, W): channels apart
    product = torch.ones(len(image), dtype=torch.float64)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            # Means of four pixels; a side that is odd gets a border of zeros, as in the usual implementations.
            pair = [F.avg_pool2d(one, 2, padding=[side % 2 for side in one.shape[-2:]]) for one in pair]
        similarity, contrast = _similarity(*pair)
        kept = similarity if scale == len(SCALE_WEIGHTS) - 1 else contrast
        product *= kept.double().clamp_min(0) ** weight
    return float(product.mean())


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two images (C, 1, H, W) -> structural similarity, and its factor of contrast and structure: (C,) each."""
    at = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    kernel = torch.exp(-(at**2) / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))

    first, second = 0.01**2, 0.03**2
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    contrast = (2 * covariance + second) / (variance_x + variance_y + second)
    luminance = (2 * mean_x * mean_y + first) / (mean_x**2 + mean_y**2 + first)
    return (luminance * contrast).mean((1, 2, 3)), contrast.mean((1, 2, 3))


def lpips_distance(image: Tensor, reference: Tensor) -> float:
    """Perceptual distance of images (C, H, W) in [0, 1], C = 1 or 3: LPIPS 0.1 on AlexNet; 0 when equal.

    Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric" (2018). The weights of
    AlexNet are read from torch's cache and never downloaded. Sides of at least 32 pixels.
    """
    _check_sizes(image, reference)
    if min(image.shape[-2:]) < 32:
        raise ValueError(f"LPIPS needs sides of at least 32 pixels, not {tuple(image.shape[-2:])}.")
    network = _lpips_network(Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET)
    with torch.inference_mode():
        return float(network(image[None].float(), reference[None].float(), normalize=True))


@cache
def _lpips_network(alexnet: Path) -> torch.nn.Module:
    if not alexnet.is_file():
        raise ValueError(
            f"LPIPS needs the weights of AlexNet, which are not here: put {ALEXNET} into {alexnet.parent}."
        )
    import lpips

    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)  # its own layers come with the package
    weights = torch.load(alexnet, map_location="cpu", weights_only=True)
    features = {name.split(".", 1)[1]: tensor for name, tensor in weights.items() if name.startswith("features.")}
    for part in network.net.children():
        part.load_state_dict({name: features[name] for name in part.state_dict()})
    return network
