"""Networks that need nothing of their own from the pipeline: saved to a folder, loaded by it, and used at odd sizes."""

import numpy as np
import pytest
import torch

import weights
from genres.restoration.deep_rft import DeepRFTv2
from genres.restoration.naf_net import NAFNet
from genres.restoration.tunable import TunableNAFNet
from pipelines import RestorationPipeline
from pipelines.memory import LIVE_MAPS, bytes_per_pixel
from pipelines.restoration import MODELS
from pipelines.tiling import pad_to

SMALL = {"width": 8, "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)}
ONE = ((1, 1, 1),)
NETWORKS = {
    "NAFNet": lambda: NAFNet(**SMALL),
    "TunableNAFNet": lambda: TunableNAFNet(**SMALL),
    "DeepRFTv2": lambda: DeepRFTv2(
        width=8,
        **{f"{part}_blocks": ONE for part in ("encoder", "decoder", "half_encoder", "half_decoder")},
        **{f"{part}_kinds": (("naf",) * 3,) for part in ("encoder", "decoder", "half_encoder", "half_decoder")},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_odd_sized_image_is_restored(name, tmp_path):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)  # small residuals
    model.save_pretrained(tmp_path / "model")
    pipe = RestorationPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.tasks == weights.CLASS_TASKS[name]
    image = np.random.default_rng(0).random((37, 51, 3)).astype(np.float32)
    restored = pipe(image).images[0]
    assert restored.shape == image.shape and np.isfinite(restored).all()
    height, width = (-(-side // model.size_multiple) * model.size_multiple for side in (37, 51))
    with torch.inference_mode():
        expected = model(pad_to(torch.from_numpy(image).permute(2, 0, 1), height, width)[None])
    expected = expected[-1] if isinstance(expected, tuple) else expected  # the last of several is the result
    expected = expected[0, :, :37, :51].permute(1, 2, 0).clamp(0, 1).numpy()
    np.testing.assert_allclose(restored, expected, atol=1e-4)
    tiled = pipe(image, tile=32, overlap=16).images[0]
    assert tiled.shape == image.shape and np.isfinite(tiled).all()


def test_every_network_has_an_estimate_of_its_memory_and_its_tasks():
    assert set(MODELS) == set(LIVE_MAPS) == set(weights.CLASS_TASKS)
    for make in NETWORKS.values():
        assert 500 < bytes_per_pixel(make()) < 8192


def test_a_network_for_other_images_is_refused():
    with pytest.raises(ValueError, match="its channels is 1"):
        RestorationPipeline(NAFNet(channels=1, **SMALL))
