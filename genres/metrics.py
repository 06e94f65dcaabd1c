"""Quality of a restored image against its reference."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

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
