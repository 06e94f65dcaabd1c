"""LPIPS with the weights of AlexNet at hand, and without."""

import pytest
import torch
from torchvision.models import alexnet

from genres import metrics


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_without_weights_a_sentence_says_what_is_missing(hub):
    with pytest.raises(ValueError, match=rf"put {metrics.ALEXNET} into {hub}"):
        metrics.lpips_distance(torch.rand(3, 32, 32), torch.rand(3, 32, 32))


def test_the_weights_in_the_cache_are_used(hub):
    import lpips

    torch.manual_seed(0)
    backbone = alexnet().eval()
    torch.save(backbone.state_dict(), hub / metrics.ALEXNET)
    image, reference = torch.rand(3, 64, 48), torch.rand(3, 64, 48)

    expected = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for part in expected.net.children():
        for index, layer in part.named_children():
            layer.load_state_dict(backbone.features[int(index)].state_dict())
    with torch.inference_mode():
        distance = float(expected(image[None], reference[None], normalize=True))
    assert metrics.lpips_distance(image, reference) == pytest.approx(distance, rel=1e-5)
    assert metrics.lpips_distance(image, image) == 0


@pytest.mark.parametrize("size", [(3, 31, 64), (3, 64, 65)])
def test_sizes_that_cannot_be_compared(size):
    with pytest.raises(ValueError, match=r"at least 32|different size"):
        metrics.lpips_distance(torch.rand(size), torch.rand(3, 31, 64) if size[1] == 31 else torch.rand(3, 64, 64))
