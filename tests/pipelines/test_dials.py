"""Dials of tunable networks and kernels of deblurring ones, in the pipeline."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook

from genres.restoration.deep_rft import draw_kernels
from genres.restoration.naf_net import NAFNet
from genres.restoration.tunable import TunableNAFNet
from pipelines import Interrupted, RestorationPipeline
from pipelines.dials import dial_names, dial_values
from pipelines.loading import stored_config
from pipelines.restoration import FUSED_NETWORKS
from pipelines.video_restoration import restore_video
from tests.restorer_tools import tiny_deblurrer, tiny_tunable
from tests.video_tools import make_clip, moving_frames

NAMES = ("denoise", "detail")


def quiet(model) -> RestorationPipeline:
    pipe = RestorationPipeline(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return quiet(tiny_tunable())


@pytest.fixture
def fused(monkeypatch):
    """The settings that networks are fused at."""
    settings, fuse = [], TunableNAFNet.fuse
    monkeypatch.setattr(TunableNAFNet, "fuse", lambda self, values: settings.append(values) or fuse(self, values))
    return settings


def image(height=40, width=56, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def by_itself(model, x, values):
    with torch.inference_mode():
        return model(x[None], values)[0].clamp(0, 1)


# Settings as people give them


@pytest.mark.parametrize(
    ("names", "dials", "values"),
    [
        ((), None, ()),
        (NAMES, None, (1, 0)),
        (NAMES, {"detail": 0.3}, (0.7, 0.3)),
        (NAMES, {"denoise": 0.3}, (0.3, 0.7)),
        (NAMES, {"detail": 0.9, "denoise": 0.1}, (0.1, 0.9)),
        (NAMES, {"detail": 0.9}, (0.1, 0.9)),
        (NAMES, [0.25, 0.75], (0.25, 0.75)),
        (NAMES, torch.tensor([0.25, 0.75]), (0.25, 0.75)),
        (NAMES, (0.5, 0.5000005), (0.5, 0.5000005)),
        (("a", "b", "c"), {"b": 0.5}, (0.25, 0.5, 0.25)),
        (("a", "b", "c"), {"c": 1}, (0, 0, 1)),
        (("only",), None, (1,)),
    ],
)
def test_settings(names, dials, values):
    assert dial_values(names, dials) == values


@pytest.mark.parametrize(
    ("names", "dials", "extrapolate", "words"),
    [
        (NAMES, {"sharpness": 0.5}, False, "no dial 'sharpness': choose among denoise, detail"),
        (NAMES, [1.0], False, "give one value for each of denoise, detail"),
        (NAMES, [0.5, 0.25, 0.25], False, "give one value for each"),
        (NAMES, [0.5, 0.6], False, "must add up to 1, not 1.1"),
        (NAMES, {"denoise": 0.5, "detail": 0.4}, False, "must add up to 1"),
        (NAMES, {"detail": 1.2}, False, "must lie between 0 and 1, and is"),
        (NAMES, {"detail": 1.26}, True, "must lie between -0.25 and 1.25"),
        (NAMES, {"detail": float("nan")}, True, "must lie between"),
        (NAMES, {"detail": "much"}, False, "give a number"),
        (NAMES, {"detail": True}, False, "give a number"),
        (NAMES, "ab", False, "give a number"),
        ((), {"detail": 0.5}, False, "has no dials: leave them out"),
        ((), [], False, "has no dials"),
    ],
)
def test_settings_that_are_refused(names, dials, extrapolate, words):
    with pytest.raises(ValueError, match=words) as caught:
        dial_values(names, dials, extrapolate)
    assert str(caught.value).count(". ") == 0 and str(caught.value).endswith(".")


def test_names(tmp_path):
    assert quiet(tiny_tunable()).dials == NAMES
    assert quiet(tiny_tunable(None, 3)).dials == ("dial 1", "dial 2", "dial 3")
    assert quiet(NAFNet(width=8, encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,))).dials == ()
    tiny_tunable().save_pretrained(tmp_path / "model")
    quiet(tiny_tunable()).save_pretrained(tmp_path / "pipe")
    for folder in ("model", "pipe"):
        assert RestorationPipeline.from_pretrained(tmp_path / folder).dials == NAMES
        assert dial_names(stored_config(tmp_path / folder)) == NAMES
    (tmp_path / "model" / "config.json").write_text("[")
    assert stored_config(tmp_path / "model") is None and stored_config("owner/name") is None
    assert stored_config("dea-net-haze")["_class_name"] == "DEANet"


# What the network makes of them


@pytest.mark.parametrize("dials", [None, {"detail": 0.3}, {"detail": 1}, [0.5, 0.5]])
def test_outputs_are_those_of_the_tunable_network(pipe, dials):
    x = image()
    restored = pipe(x, dials=dials).images[0]
    torch.testing.assert_close(restored, by_itself(pipe.model, x, dial_values(NAMES, dials)), rtol=0, atol=2e-6)
    assert (restored - pipe(x, dials={"detail": 0.6}).images[0]).abs().mean() > 1e-3


def test_extrapolation_is_asked_for(pipe):
    x, beyond = image(), {"detail": -0.25}
    with pytest.raises(ValueError, match="between 0 and 1"):
        pipe(x, dials=beyond)
    restored = pipe(x, dials=beyond, extrapolate=True).images[0]
    torch.testing.assert_close(restored, by_itself(pipe.model, x, (1.25, -0.25)), rtol=0, atol=2e-6)


def test_a_network_without_dials_refuses_them():
    with pytest.raises(ValueError, match="no dials"):
        quiet(tiny_deblurrer())(image(), dials={"detail": 0.5})


def test_a_setting_is_fused_once(pipe, fused):
    x = image()
    first = pipe(x, dials={"detail": 0.3}).images[0]
    pipe(x, dials={"detail": 0.4})
    assert torch.equal(pipe(x, dials=[0.7, 0.3]).images[0], first)
    assert fused == [(0.7, 0.3), (0.6, 0.4)]
    for number in range(FUSED_NETWORKS - 1):  # one more than there is room for, but the last used stays
        pipe(x, dials={"detail": 0.5 + number / 50})
    pipe(x, dials={"detail": 0.3})
    assert len(fused) == FUSED_NETWORKS + 1 and len(pipe._fused) == FUSED_NETWORKS
    pipe(x, dials={"detail": 0.4})
    assert len(fused) == FUSED_NETWORKS + 2


def test_a_network_that_changed_is_fused_again(pipe, fused):
    x = image()
    pipe(x)
    with torch.no_grad():
        pipe.model.network.embed.weight[0].mul_(1.5)  # what training and loading do
    torch.testing.assert_close(pipe(x).images[0], by_itself(pipe.model, x, (1, 0)), rtol=0, atol=2e-6)
    pipe.to(dtype=torch.bfloat16)
    half = pipe(x).images[0]
    assert len(fused) == 3 and len(pipe._fused) == 1
    (network,) = pipe._fused.values()
    assert next(network.parameters()).dtype == torch.bfloat16
    assert (half - by_itself(pipe.model.float(), x, (1, 0))).abs().mean() < 0.02
    pipe.register_modules(model=tiny_tunable())
    pipe(x)
    assert len(fused) == 4 and len(pipe._fused) == 1


def test_fused_networks_are_channels_last_and_ready(pipe):
    pipe(image())
    (network,) = pipe._fused.values()
    assert network.embed.weight.is_contiguous(memory_format=torch.channels_last) and not network.training
    assert not network.embed.weight.is_inference()


def test_tiles_lists_and_batches(pipe):
    options = {"dials": {"detail": 0.3}}
    images = [image(seed=0), image(seed=1), image(24, 90)]
    single = [pipe(x, **options).images[0] for x in images]
    for batch_size in (1, 2):
        for one, other in zip(pipe(images, batch_size=batch_size, **options).images, single, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-6)
    tiled = pipe(images[0], tile=32, overlap=8, **options).images[0]
    assert tiled.shape == single[0].shape and (tiled - single[0]).abs().mean() < 0.05
    other = pipe(images[0], tile=32, overlap=8, dials={"detail": 1}).images[0]
    assert (tiled - other).abs().mean() > 1e-3
    with torch.inference_mode():
        blend = torch.lerp(images[0], pipe.model(images[0][None], (0.7, 0.3))[0], 0.5).clamp(0, 1)
    torch.testing.assert_close(pipe(images[0], strength=0.5, **options).images[0], blend, rtol=0, atol=2e-6)


def test_interrupt(pipe):
    done = []

    def stop(pipe, count, total):
        done.append(count)
        pipe.interrupt()

    with pytest.raises(Interrupted):
        pipe(image(), dials={"detail": 0.3}, tile=32, callback_on_tile_end=stop)
    assert done == [1]


def test_offloaded_and_compiled_networks_mix_by_themselves(fused):
    x, pipe = image(), quiet(tiny_tunable())
    expected = by_itself(pipe.model, x, (0.7, 0.3))
    pipe.model, _ = cpu_offload_with_hook(pipe.model, torch.device("cpu"))
    for _ in range(2):
        torch.testing.assert_close(pipe(x, dials={"detail": 0.3}).images[0], expected, rtol=0, atol=2e-6)
    pipe = quiet(tiny_tunable())
    pipe.model = torch.compile(pipe.model, backend="eager")
    torch.testing.assert_close(pipe(x, dials={"detail": 0.3}).images[0], expected, rtol=0, atol=2e-6)
    assert fused == []


def test_videos(pipe, fused, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", moving_frames(3, 48, 64))
    restore_video(pipe, clip, tmp_path / "out.mp4", dials={"detail": 0.3})
    restore_video(pipe, clip, tmp_path / "beyond.mp4", dials={"detail": 1.2}, extrapolate=True)
    assert fused == [(0.7, 0.3), (-0.2, 1.2)]
    with pytest.raises(ValueError, match="no dial 'grain'"):
        restore_video(pipe, clip, tmp_path / "no.mp4", dials={"grain": 1})
    assert not list(tmp_path.glob("no*"))


def test_finished_frames_of_another_setting_are_not_used(pipe, fused, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", moving_frames(20, 48, 64))

    def stop(done, total):
        if done == 18:
            raise Interrupted

    frames = []
    for dials in ({"detail": 0.3}, [0.7, 0.3], {"detail": 0.4}):  # the second is the first in other words
        frames.append(0)

        def count(done, total):
            frames[-1] += 1
            stop(done, total)

        with pytest.raises(Interrupted):
            restore_video(pipe, clip, tmp_path / "out.mp4", dials=dials, callback=count)
    assert frames == [18, 2, 18]


# Kernels


def network_kernel(model, x):
    with torch.inference_mode():
        return draw_kernels(model(x[None], return_kernel=True)[1])[0].numpy()


def test_a_kernel_for_each_image():
    pipe = quiet(tiny_deblurrer())
    images = [image(80, 96, seed) for seed in range(3)]
    output = pipe(images, batch_size=2, return_kernel=True)
    assert len(output.kernels) == 3 and output.kernels[0].shape == (65, 65)
    for x, kernel in zip(images, output.kernels, strict=True):
        assert kernel.dtype == np.float32 and kernel.min() >= 0 and kernel.max() == 1
        np.testing.assert_allclose(kernel, network_kernel(pipe.model, x), atol=1e-4)
    assert not np.allclose(output.kernels[0], output.kernels[1], atol=1e-4)
    assert pipe(images[0]).kernels is None
    for one, other in zip(output.images, pipe(images, batch_size=2).images, strict=True):
        torch.testing.assert_close(one, other)
    restored, kernels = pipe(images[0], return_kernel=True, return_dict=False)
    assert len(restored) == len(kernels) == 1 and len(pipe(images[0], return_dict=False)) == 1


def test_of_tiles_the_kernel_in_the_middle_counts(monkeypatch):
    pipe = quiet(tiny_deblurrer())
    x = image(144, 72)  # tiles begin at 0, 32 and 72
    middle, first = (network_kernel(pipe.model, x[:, top : top + 72]) for top in (32, 0))
    assert not np.allclose(middle, first, atol=1e-3)
    (kernel,) = pipe(x, tile=72, overlap=36, return_kernel=True).kernels
    np.testing.assert_allclose(kernel, middle, atol=1e-4)

    def restore(image, return_kernel=False, forward=pipe.model.forward):
        if max(image.shape) > 72:
            raise MemoryError
        return forward(image, return_kernel)

    monkeypatch.setattr(pipe.model, "forward", restore)
    (kernel,) = pipe(x, tile=0, overlap=36, return_kernel=True).kernels
    np.testing.assert_allclose(kernel, middle, atol=1e-4)


def test_all_tiles_of_the_network_are_drawn_together():
    model = tiny_deblurrer(tile=48, overlap=24)
    x = torch.stack([image(96, 48, seed) for seed in range(2)])
    kernels = quiet(model)(x, batch_size=2, return_kernel=True).kernels
    with torch.inference_mode():
        every = model(x, return_kernel=True)[1].view(3, 2, -1, 48, 48)  # tiles, images
    assert len(kernels) == 2
    for number, kernel in enumerate(kernels):
        together = draw_kernels(every[:, number].reshape(1, -1, 48, 48))[0].numpy()
        np.testing.assert_allclose(kernel, together, atol=1e-4)
    assert not np.allclose(every[0], every[1], atol=1e-4)


def test_a_kernel_of_what_is_left_as_it_is():
    x = image(72, 72)
    output = quiet(tiny_deblurrer())(x, strength=0, return_kernel=True)
    torch.testing.assert_close(output.images[0], x, rtol=0, atol=0)
    assert output.kernels[0].max() == 1


@pytest.mark.parametrize("make", [tiny_tunable, lambda: tiny_deblurrer(kernel_estimator=False)])
def test_networks_that_estimate_no_kernel(make):
    pipe = quiet(make())
    assert not pipe.estimates_kernel
    with pytest.raises(ValueError, match="estimates no kernel: leave out return_kernel"):
        pipe(image(), return_kernel=True)
