"""The restoration pipeline: kinds of images, sizes, tiles, memory, cancelling, saving and loading."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file, save_file
from skimage.data import astronaut

import weights
from genres.media.images import Metadata, Picture
from genres.restoration.ada_ir import AdaIR
from genres.restoration.dea_net import DEANet
from genres.restoration.naf_net import NAFNet
from pipelines import Interrupted, RestorationPipeline, RestorationPipelineOutput
from pipelines.memory import bytes_per_pixel, is_out_of_memory
from pipelines.tiling import cut

ROOT = Path(__file__).parents[2]


def tiny_adair(**options) -> AdaIR:
    torch.manual_seed(0)
    return AdaIR(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, **options).eval()


def tiny_nafnet() -> NAFNet:
    return NAFNet(width=8, encoder_blocks=(1, 1), middle_blocks=1, decoder_blocks=(1, 1))


def tiny_deanet(**options) -> DEANet:
    torch.manual_seed(0)
    return DEANet(base_dim=8, num_blocks=(1, 1, 1, 1, 1), **options).eval()


def small_residual(model):
    """The same network with a residual of a trained one's size."""
    with torch.no_grad():
        model.output.weight *= 0.2
        if model.output.bias is not None:
            model.output.bias *= 0.2
    return model


class Probe(ModelMixin, ConfigMixin):
    """A network that inverts, can run out of memory, and remembers what it saw. Sides are multiples of 8."""

    size_multiple = 8

    @register_to_config
    def __init__(self, limit: int = 100_000, error: str = "MemoryError", fail_from: int = 0):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image):
        assert image.shape[-2] % 8 == 0 and image.shape[-1] % 8 == 0
        assert torch.is_inference_mode_enabled() and image.is_contiguous(memory_format=torch.channels_last)
        if max(image.shape[-2:]) > self.config.limit and len(self.seen) >= self.config.fail_from:
            raise {
                "MemoryError": MemoryError(),
                "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory: ..."),
                "cuda": torch.OutOfMemoryError("CUDA out of memory."),
                "bug": RuntimeError("shapes do not match"),
            }[self.config.error]
        self.seen.append(tuple(image.shape))
        return (1 - image) * self.scale


def quiet(model) -> RestorationPipeline:
    pipe = RestorationPipeline(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def identity() -> RestorationPipeline:
    model = tiny_adair()
    torch.nn.init.zeros_(model.output.weight)
    return quiet(model)


@pytest.fixture(scope="module")
def inverter() -> RestorationPipeline:
    return quiet(Probe())


@pytest.fixture(scope="module")
def adair() -> RestorationPipeline:
    return quiet(small_residual(tiny_adair()))


def photo(height: int = 256, width: int = 256) -> np.ndarray:
    return np.ascontiguousarray(astronaut()[:height, 100 : 100 + width])


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    generator = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return generator.random(shape).astype(dtype)
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


# Sizes and kinds of images


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 70), (7, 13), (8, 8), (33, 64), (70, 70), (69, 1)])
def test_any_size_passes_unchanged_through_an_identity(identity, size):
    image = noise(*size, 3)
    for tile in (None, 0, 32):
        np.testing.assert_array_equal(identity(image, tile=tile).images[0], image)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (17, 16)])
@pytest.mark.parametrize("stem", [1, 2])
def test_any_size_fits_dea_net(size, stem):
    assert quiet(tiny_deanet(stem=stem))(noise(*size, 3)).images[0].shape == (*size, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,)])
def test_arrays_keep_type_and_channels(identity, inverter, dtype, channels):
    image = noise(21, 34, *channels, dtype=np.dtype(dtype).newbyteorder("=")).astype(dtype)
    result = identity(image).images[0]
    assert result.dtype == image.dtype.newbyteorder("=") and result.shape == image.shape
    np.testing.assert_allclose(result, image, rtol=0, atol=2e-7 if image.dtype.kind == "f" else 0)
    inverted = inverter(image).images[0]
    peak = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    expected = peak - image.astype(np.float64)
    if channels in ((2,), (4,)):
        expected[..., -1] = image[..., -1]  # alpha is untouched
    np.testing.assert_allclose(inverted, expected, rtol=0, atol=1e-3 if image.dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_keep_type_and_batch(identity, dtype):
    batch = torch.rand(3, 3, 20, 12).to(dtype)
    restored = identity(batch, batch_size=2).images
    assert isinstance(restored, torch.Tensor) and restored.dtype == dtype and not restored.is_inference()
    torch.testing.assert_close(restored, batch, rtol=0, atol=2e-7)
    single = identity(batch[0]).images
    assert isinstance(single, list)
    torch.testing.assert_close(single[0], batch[0], rtol=0, atol=2e-7)
    assert identity(batch[:, :1]).images.shape == (3, 1, 20, 12)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "F", "I", "I;16"])
def test_pil_modes_that_are_kept(identity, mode):
    if mode in ("I", "I;16"):
        image = PIL.Image.fromarray(noise(19, 26, dtype=np.uint16)).convert(mode)
    elif mode == "F":
        image = PIL.Image.fromarray(noise(19, 26, dtype=np.float32))
    else:
        image = PIL.Image.fromarray(noise(19, 26, 4)).convert("RGBA").convert(mode)
    image.info.update(dpi=(300, 300), icc_profile=b"profile")
    restored = identity(image).images[0]
    assert restored.mode == mode and restored.size == image.size and restored.info == image.info
    np.testing.assert_allclose(np.asarray(restored), np.asarray(image), rtol=0, atol=2e-7 if mode == "F" else 0)


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [
        *[("1", "L"), ("P", "RGB"), ("PA", "RGBA"), ("CMYK", "RGB"), ("YCbCr", "RGB"), ("LAB", "RGB")],
        *[("HSV", "RGB"), ("RGBX", "RGB"), ("RGBa", "RGBA"), ("La", "LA"), ("I;16B", "I;16")],
    ],
)
def test_pil_modes_that_change(identity, mode, becomes):
    rgb = PIL.Image.fromarray(photo(20, 30))
    if mode == "LAB":
        image = PIL.Image.new("LAB", (30, 20), (128, 128, 128))
    elif mode == "I;16B":
        image = PIL.Image.new(mode, (30, 20), 40_000)
    else:
        steps = {"La": ["LA"], "RGBa": ["RGBA"], "PA": ["P"]}.get(mode, [])
        image = rgb
        for step in [*steps, mode]:
            image = image.convert(step)
    restored = identity(image).images[0]
    assert (restored.mode, restored.size) == (becomes, (30, 20))
    expected = np.asarray(image) if mode == "I;16B" else np.asarray(image.convert(becomes))
    np.testing.assert_array_equal(np.asarray(restored), expected)


def test_transparent_palette_and_colour_key(identity):
    palette = PIL.Image.fromarray(photo(16, 16)).convert("P")
    palette.info["transparency"] = 3
    restored = identity(palette).images[0]
    assert restored.mode == "RGBA" and "transparency" not in restored.info
    np.testing.assert_array_equal(np.asarray(restored), np.asarray(palette.convert("RGBA")))
    keyed = PIL.Image.fromarray(photo(16, 16))
    keyed.info["transparency"] = tuple(int(value) for value in photo(16, 16)[3, 4])
    assert identity(keyed).images[0].getchannel("A").getextrema() == (0, 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_keep_everything(identity, dtype, channels):
    metadata = Metadata(format="PNG", icc_profile=b"profile", dpi=(72.0, 72.0), text={"Title": "x"})
    picture = Picture(noise(18, 31, channels, dtype=dtype), noise(18, 31, dtype=dtype), metadata)
    restored = identity(picture).images[0]
    assert isinstance(restored, Picture) and restored.pixels.dtype == dtype
    np.testing.assert_allclose(restored.pixels, picture.pixels, rtol=0, atol=2e-7 if dtype == np.float32 else 0)
    np.testing.assert_array_equal(restored.alpha, picture.alpha)
    assert restored.metadata == metadata and restored.metadata is not metadata
    assert identity(picture, output_type="np").images[0].shape == (18, 31, channels + 1)


def test_sixteen_bits_are_used(adair):
    ramp = np.linspace(0, 65535, 128 * 128).reshape(128, 128).astype(np.uint16)
    restored = adair(PIL.Image.fromarray(ramp)).images[0]
    assert restored.mode == "I;16" and len(np.unique(np.asarray(restored))) > 5000


def test_output_types(identity):
    image = noise(12, 17, 4)
    assert identity(image, output_type="pil").images[0].mode == "RGBA"
    tensor = identity(image, output_type="pt").images[0]
    assert tensor.shape == (4, 12, 17) and tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, torch.from_numpy(image).permute(2, 0, 1) / 255)
    back = identity(tensor, output_type="np").images[0]
    np.testing.assert_allclose(back, image / 255, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(identity(tensor, output_type="pil").images[0]), image)
    grey16 = noise(12, 17, dtype=np.uint16)
    assert identity(grey16, output_type="pil").images[0].mode == "I;16"
    assert identity(noise(12, 17, 3, dtype=np.uint16), output_type="pil").images[0].mode == "RGB"
    assert identity(noise(2, 12, 17, 3), output_type="pt").images.shape == (2, 3, 12, 17)
    assert identity(torch.rand(2, 3, 8, 8, dtype=torch.bfloat16), output_type="np").images.dtype == np.float32
    assert [one.mode for one in identity(torch.rand(2, 1, 8, 8), output_type="pil").images] == ["L", "L"]


def test_a_list_of_different_images(identity):
    images = [PIL.Image.fromarray(photo(20, 20)), noise(9, 9, dtype=np.uint16), torch.rand(3, 8, 8)]
    restored = identity(images, batch_size=2).images
    assert [type(one) for one in restored] == [type(one) for one in images]
    assert identity([]).images == []
    (images,) = identity(noise(4, 4), return_dict=False)
    assert isinstance(images, list) and isinstance(identity(noise(4, 4)), RestorationPipelineOutput)


def test_the_input_is_not_changed(inverter):
    image = noise(20, 20, 4)
    kept = image.copy()
    inverter(image)
    np.testing.assert_array_equal(image, kept)
    readonly = image.view()
    readonly.flags.writeable = False
    inverter(readonly[::-1, ::-1])


# What is refused


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ("photo.png", TypeError, "not str"),
        (np.zeros((4, 4, 5), np.uint8), ValueError, "1 to 4 channels"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "no pixels"),
        (np.zeros((4, 4), np.int32), ValueError, "uint8, uint16 or float"),
        (np.zeros((4, 4), bool), ValueError, "uint8, uint16 or float"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), ValueError, "floats in"),
        (torch.zeros(4, 4), ValueError, "CHW"),
        (np.full((4, 4), 200.0), ValueError, "from 200 to 200"),
        (np.full((4, 4), np.nan), ValueError, "not finite"),
        (torch.full((3, 4, 4), float("inf")), ValueError, "not finite"),
        (PIL.Image.new("I", (4, 4), 100_000), ValueError, "65535"),
    ],
)
def test_images_that_are_refused(identity, image, error, words):
    with pytest.raises(error, match=words) as caught:
        identity(image)
    assert str(caught.value).count(". ") == 0 and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "options",
    [
        *[{"strength": 1.1}, {"strength": -0.1}, {"strength": float("nan")}, {"tile": -1}, {"overlap": -1}],
        *[{"batch_size": 0}, {"output_type": "jpg"}, {"task": "colourize"}],
    ],
)
def test_arguments_out_of_range(identity, options):
    with pytest.raises(ValueError, match=r"must be|choose one of"):
        identity(noise(4, 4), **options)


def test_tasks(identity):
    assert identity.tasks == ("denoise", "dehaze", "derain", "deblur", "lowlight")
    for task in weights.TASKS:
        identity(noise(4, 4), task=task)
    dehazer = quiet(tiny_deanet())
    assert dehazer.tasks == ("dehaze",)
    dehazer(noise(4, 4))
    dehazer(noise(4, 4), task="dehaze")
    with pytest.raises(ValueError, match="DEANet is for dehaze, not for derain"):
        dehazer(noise(4, 4), task="derain")
    assert RestorationPipeline(tiny_adair(), tasks=("denoise",)).tasks == ("denoise",)


def test_a_grey_network_is_refused():
    with pytest.raises(ValueError, match="RGB"):
        RestorationPipeline(tiny_adair(in_channels=1, out_channels=1))


# Strength, precision, finite values


def test_strength_blends(inverter):
    image = noise(24, 24, 3)
    np.testing.assert_array_equal(inverter(image, strength=0).images[0], image)
    np.testing.assert_array_equal(inverter(image, strength=1).images[0], 255 - image)
    assert set(np.unique(inverter(image, strength=0.5).images[0])) <= {127, 128}
    quarter = inverter(image, strength=0.25, tile=16, overlap=4).images[0]
    np.testing.assert_allclose(quarter, 0.75 * image + 0.25 * (255.0 - image), atol=0.51)


@pytest.mark.parametrize("build", [tiny_adair, lambda: tiny_deanet(global_residual=True)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(build, dtype):
    images = [photo(64, 96), np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8), noise(8, 300, 3)]
    pipe = quiet(small_residual(build()))
    single = pipe(images).images
    pipe.to(dtype=dtype)
    for half, full in zip(pipe(images).images, single, strict=True):
        error = np.mean((half.astype(float) - full) ** 2)
        assert error == 0 or 10 * np.log10(255**2 / error) > 45


@pytest.mark.parametrize(
    "build",
    [
        tiny_adair,
        lambda: tiny_deanet(global_residual=True),
        lambda: NAFNet(width=8, encoder_blocks=(1, 1), middle_blocks=1, decoder_blocks=(1, 1)),
    ],
)
def test_half_precision_keeps_the_tones_of_16_bits(build):
    """What the network leaves alone is not rounded to the 8 binary digits of its own numbers."""
    model = build()
    for parameter in model.output.parameters():
        torch.nn.init.zeros_(parameter)
    tones = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64, 1).repeat(3, 2)
    restored = quiet(model.to(torch.bfloat16))(tones).images[0]
    np.testing.assert_array_equal(restored, tones)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_never_a_picture(value):
    pipe = quiet(Probe())
    pipe.model.scale.data.fill_(value)
    with pytest.raises(ValueError, match="not finite"):
        pipe(noise(16, 16, 3))


# Tiles


def test_tiles_are_as_asked_and_progress_counts_them():
    pipe = quiet(Probe())
    calls = []
    image = noise(200, 120, 3)
    restored = pipe(image, tile=64, callback_on_tile_end=lambda *call: calls.append(call)).images[0]
    np.testing.assert_array_equal(restored, 255 - image)
    assert all(max(shape[-2:]) <= 64 for shape in pipe.model.seen)
    count = len(pipe.model.seen)
    assert calls == [(pipe, done, count) for done in range(1, count + 1)]
    pipe.model.seen.clear()
    pipe([image, image], tile=0)
    assert pipe.model.seen == [(1, 3, 200, 120)] * 2


def test_the_progress_bar_is_diffusers_own(capfd):
    pipe = RestorationPipeline(Probe())
    pipe.set_progress_bar_config(desc="restoring")
    pipe(noise(64, 100, 3), tile=64)
    assert "restoring: 100%" in capfd.readouterr().err


def test_tiles_are_chosen_by_memory(monkeypatch):
    pipe = quiet(tiny_adair())
    model = Probe()
    monkeypatch.setattr(pipe, "model", model)
    monkeypatch.setattr("pipelines.restoration.bytes_per_pixel", lambda model: 1000)
    monkeypatch.setattr("pipelines.restoration.free_memory", lambda device: 1000 * 128 * 128)
    pipe(noise(128, 128, 3))
    assert model.seen == [(1, 3, 128, 128)]
    model.seen.clear()
    pipe(noise(129, 128, 3))
    assert len(model.seen) > 1 and all(h * w <= 128 * 128 for _, _, h, w in model.seen)
    model.seen.clear()
    pipe([noise(128, 128, 3)] * 4, batch_size=4)
    assert len(model.seen) > 1 and all(b == 4 and max(h, w) <= 64 for b, _, h, w in model.seen)


@pytest.mark.parametrize("build", [tiny_adair, lambda: tiny_deanet(global_residual=True)])
@pytest.mark.parametrize("content", ["flat", "gradient", "photo"])
def test_seams_are_not_steps(build, content):
    """Along a seam, neither single pixels nor whole lines step more than inside a tile, or than without tiles."""
    y, x = np.mgrid[:256, :256].astype(np.float32) / 255
    images = {
        "flat": np.full((256, 256, 3), 0.5, np.float32),
        "gradient": np.stack([x, y, (x + y) / 2], 2),
        "photo": photo().astype(np.float32) / 255,
    }
    pipe = quiet(small_residual(build()))
    task = "derain" if "derain" in pipe.tasks else "auto"  # told nothing, it may take its small change of tone back
    whole = pipe(images[content], tile=0, task=task).images[0] - images[content]
    tiled = pipe(images[content], tile=96, task=task).images[0] - images[content]
    for axis in (0, 1):
        for step in seam_steps(tiled, whole, axis, overlap=32):
            assert step <= 1.05


def test_tiles_without_overlap_would_be_seen():
    """The measure of the test above is a measure: it finds the seams of tiles that are merely put side by side."""
    y, x = np.mgrid[:256, :256].astype(np.float32) / 255
    image = np.stack([x, y, (x + y) / 2], 2)
    pipe = quiet(small_residual(tiny_adair()))
    whole = pipe(image, tile=0, task="derain").images[0] - image
    beside = pipe(image, tile=96, overlap=0, task="derain").images[0] - image
    assert min(seam_steps(beside, whole, 0, overlap=0)) > 1.15


def seam_steps(tiled: np.ndarray, whole: np.ndarray, axis: int, overlap: int) -> list[float]:
    """Largest step at seams of 96-pixel tiles, of pixels and of whole lines, over the largest that is natural."""
    spans = cut(256, 96, overlap, 8)
    seams = np.zeros(255, bool)
    for before, start in zip(spans.starts, spans.starts[1:], strict=False):
        seams[start - 1 : before + spans.length] = True
    inside = ~seams
    inside[:16] = inside[-16:] = False  # the border of the image is not the inside of a tile
    tiled, whole = (np.moveaxis(change, axis, 0)[:, 16:-16] for change in (tiled, whole))
    ratios = []
    for a, b in ((tiled, whole), (tiled.mean(1), whole.mean(1))):
        step, natural = np.abs(np.diff(a, axis=0)), np.abs(np.diff(b, axis=0))
        ratios.append(float(step[seams].max() / max(step[inside].max(), natural[seams].max())))
    return ratios


# Memory


@pytest.mark.parametrize("error", ["MemoryError", "cpu", "cuda"])
@pytest.mark.parametrize("tile", [0, 256])
def test_out_of_memory_divides_the_tile(error, tile):
    pipe = quiet(Probe(limit=100, error=error))
    image = noise(300, 410, 3)
    calls = []
    restored = pipe(image, tile=tile, callback_on_tile_end=lambda _, done, total: calls.append((done, total))).images[0]
    np.testing.assert_array_equal(restored, 255 - image)
    assert max(max(shape[-2:]) for shape in pipe.model.seen) <= 100
    assert calls[-1][0] == calls[-1][1] == len(pipe.model.seen)


def test_finished_tiles_are_kept_when_memory_runs_out_later():
    pipe = quiet(Probe(limit=100, fail_from=5))
    image = noise(512, 512, 3)
    np.testing.assert_array_equal(pipe(image, tile=192).images[0], 255 - image)
    large = [shape for shape in pipe.model.seen if max(shape[-2:]) > 100]
    count = len(cut(512, 192, 32, 8).starts) ** 2
    assert len(large) == 5
    assert len(pipe.model.seen) == 5 + (count - 5) * 9  # each of the others once, in 3 x 3 parts


def test_out_of_memory_with_the_smallest_tile_is_an_error():
    with pytest.raises(MemoryError, match="even for a tile of 64 pixels"):
        quiet(Probe(limit=32))(noise(256, 256, 3))


def test_other_errors_are_not_taken_for_memory():
    pipe = quiet(Probe(limit=32, error="bug"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        pipe(noise(256, 256, 3))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_bytes_per_pixel_follows_width_and_stem():
    base = bytes_per_pixel(tiny_adair())
    assert base > bytes_per_pixel(tiny_adair().to(torch.bfloat16)) > bytes_per_pixel(tiny_adair(stem=2))
    assert 800 < bytes_per_pixel(DEANet(base_dim=32)) < 1500
    assert 211 < bytes_per_pixel(DEANet(base_dim=32, stem=4, gain=True)) < 400  # 211 was measured at 2048x2048
    assert bytes_per_pixel(Probe()) > base


# Several images


def test_a_batch_gives_the_same_as_single_images(adair):
    images = [photo(40, 48), noise(40, 48, 3), photo(40, 48)[::-1], noise(16, 16), noise(40, 48)]
    single = [adair(image).images[0] for image in images]
    together = adair(images, batch_size=4).images
    for one, other in zip(together, single, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
    exact = [adair(torch.from_numpy(image.copy()).permute(2, 0, 1) / 255).images[0] for image in images[:3]]
    stacked = adair(torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in images[:3]]))
    torch.testing.assert_close(adair(stacked.images, strength=0).images, stacked.images)
    for one, other in zip(stacked.images, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_batches_are_of_equal_neighbours():
    pipe = quiet(Probe())
    sizes = [(16, 16), (16, 16), (16, 16), (24, 16), (16, 16), (16, 16)]
    pipe([noise(*size, 3) for size in sizes], batch_size=2)
    assert [shape[0] for shape in pipe.model.seen] == [2, 1, 1, 2]


def test_the_same_input_gives_the_same_output(adair):
    image = photo(100, 90)
    first = adair(image, tile=64).images[0]
    assert all((adair(image, tile=64).images[0] == first).all() for _ in range(3))


@pytest.mark.slow
def test_memory_does_not_grow_over_many_images():
    pipe = quiet(tiny_adair())
    images = [noise(64, 64, 3) for _ in range(30)]
    pipe(images[:15])
    before = psutil.Process().memory_info().rss
    for _ in range(10):
        pipe(images)
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


# Cancelling


@pytest.mark.parametrize("after", [1, 3])
def test_interrupt_stops_within_a_tile(after):
    pipe = quiet(Probe())
    image = noise(256, 256, 3)

    def callback(pipe, done, total):
        if done == after:
            pipe.interrupt()

    with pytest.raises(Interrupted):
        pipe(image, tile=64, callback_on_tile_end=callback)
    assert len(pipe.model.seen) == after
    np.testing.assert_array_equal(pipe(image).images[0], 255 - image)  # the next call begins anew


def test_interrupt_is_noticed_while_the_only_tile_runs():
    pipe = quiet(Probe())
    pipe.model.register_forward_hook(lambda *_: pipe.interrupt())
    with pytest.raises(Interrupted):
        pipe(noise(16, 16, 3))


# Saving and loading


def test_pipeline_folder_round_trip(tmp_path, adair):
    RestorationPipeline(adair.model, tasks=("denoise", "derain")).save_pretrained(tmp_path)
    loaded = RestorationPipeline.from_pretrained(tmp_path)
    assert loaded.tasks == ("denoise", "derain") and not loaded.model.training
    loaded.set_progress_bar_config(disable=True)
    image = photo(50, 70)
    np.testing.assert_array_equal(loaded(image).images[0], adair(image).images[0])
    assert RestorationPipeline.from_pretrained(str(tmp_path), torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="not for dehaze"):
        RestorationPipeline.from_pretrained(tmp_path, task="dehaze")


@pytest.mark.parametrize("build", [tiny_adair, tiny_deanet])
def test_model_folder_of_half_precision_is_loaded_as_float32(tmp_path, build):
    build().half().save_pretrained(tmp_path)
    pipe = RestorationPipeline.from_pretrained(tmp_path)
    assert type(pipe.model) is build().__class__ and pipe.dtype == torch.float32
    assert pipe.model.output.weight.is_contiguous(memory_format=torch.channels_last)
    assert RestorationPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16).dtype == torch.float16


def test_official_checkpoint(tmp_path, monkeypatch):
    model = tiny_deanet()
    save_file(model.state_dict(), tmp_path / "official.safetensors")

    def load_official(path):
        model.load_state_dict(load_file(path))
        return model

    monkeypatch.setattr(weights, "load_official", load_official)
    pipe = RestorationPipeline.from_pretrained(tmp_path / "official.safetensors", torch_dtype=torch.bfloat16)
    assert pipe.model is model and pipe.dtype == torch.bfloat16
    monkeypatch.setattr(weights, "load_official", lambda path: Probe())
    with pytest.raises(ValueError, match="not a restoration network"):
        RestorationPipeline.from_pretrained(tmp_path / "official.safetensors")


def test_embedded_names(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(weights, "catalogue", lambda: {"tiny": weights.Entry("tiny", "embedded", "", "AdaIR",
                        ("auto", "denoise"), "", "")})  # fmt: skip
    monkeypatch.setattr(weights, "default_model", lambda task: "tiny")
    tiny_adair().save_pretrained(tmp_path / "tiny")
    assert RestorationPipeline.from_pretrained("tiny").tasks == ("denoise",)
    assert RestorationPipeline.from_pretrained(task="denoise").tasks == ("denoise",)
    with pytest.raises(ValueError, match="for denoise, not for derain"):
        RestorationPipeline.from_pretrained(task="derain")


def test_hub_name_is_downloaded_first(tmp_path, monkeypatch):
    tiny_adair().save_pretrained(tmp_path)
    asked = []

    def snapshot_download(repository, **options):
        asked.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    RestorationPipeline.from_pretrained("owner/name", revision="v1")
    assert asked == [("owner/name", {"allow_patterns": ["*.json", "*.safetensors"], "revision": "v1"})]


def test_names_that_mean_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    for name, words in {
        "nonsense": "nor an embedded model",
        str(tmp_path / "missing"): "is no file or folder",
        "missing/model.pth": "is no file or folder",
        "dea-net-official-its": "is not embedded: get ",
        tmp_path / "empty": "neither config.json nor model_index.json",
        tmp_path / "other": "is of UNet2DModel",
        tmp_path / "broken": "nothing known",
        tmp_path / "pipe": "is of DDPMPipeline",
    }.items():
        with pytest.raises(ValueError, match=words):
            RestorationPipeline.from_pretrained(name)
    with pytest.raises(ValueError, match="no task 'colourize'"):
        RestorationPipeline.from_pretrained(task="colourize")


def test_hub_that_does_not_answer():
    with pytest.raises(ValueError, match="owner/no-such-name is not here"):
        RestorationPipeline.from_pretrained("owner/no-such-name", local_files_only=True)


def test_importing_the_package_is_cheap():
    code = "import sys, pipelines; assert pipelines.Interrupted and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_compiled_models_are_called_and_known():
    pipe = quiet(tiny_deanet())
    pipe.model = torch.compile(pipe.model, backend="eager")
    assert pipe.tasks == ("dehaze",) and pipe(noise(20, 20, 3)).images[0].shape == (20, 20, 3)
    assert bytes_per_pixel(pipe.model) == bytes_per_pixel(tiny_deanet())


def test_offloaded_weights_remain_usable_outside_inference_mode(monkeypatch):
    pipe = quiet(tiny_deanet())
    image = noise(20, 20, 3)
    expected = pipe(image).images[0]
    # What `enable_model_cpu_offload` does, which itself asks for an accelerator.
    pipe.model, _ = cpu_offload_with_hook(pipe.model, torch.device("cpu"))
    for _ in range(2):
        np.testing.assert_array_equal(pipe(image).images[0], expected)
    assert not any(parameter.is_inference() for parameter in pipe.model.parameters())
    asked = []
    monkeypatch.setattr(pipe, "enable_model_cpu_offload", lambda *options: asked.append(options))
    pipe.enable_sequential_cpu_offload(device="cuda")
    assert asked == [(None, "cuda")]


# 100 megapixels

HUNDRED_MEGAPIXELS = """
    import resource, sys, threading, time
    import numpy as np, psutil, torch
    torch.set_num_threads(1)
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from pipelines import RestorationPipeline

    class Invert(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self, dim: int = 48, stem: int = 2):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
        def forward(self, image):
            return 1 - image

    Invert.__name__ = "AdaIR"  # tiles are chosen as for the embedded network
    pipe = RestorationPipeline(Invert())
    pipe.set_progress_bar_config(disable=True)
    pipe(np.zeros((64, 64, 3), np.uint8))
    before = psutil.Process().memory_info().rss
    peak, stop = [0], threading.Event()
    def watch():
        while not stop.wait(0.02):
            peak[0] = max(peak[0], psutil.Process().memory_info().rss)
    threading.Thread(target=watch, daemon=True).start()
    row = np.arange(10_000, dtype=np.uint32)
    image = np.empty((10_000, 10_000, 3), np.uint8)
    for y in range(10_000):
        image[y] = ((row * 7 + y * 13) % 251)[:, None]
    if sys.argv[1] == "pil":
        import PIL.Image
        PIL.Image.MAX_IMAGE_PIXELS = None
        image = PIL.Image.fromarray(image)
    start, tiles = time.time(), []
    result = np.asarray(pipe(image, callback_on_tile_end=lambda _, done, total: tiles.append(total)).images[0])
    seconds = time.time() - start
    stop.set()
    peak[0] = max(peak[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    image = np.asarray(image)
    for y in range(0, 10_000, 7):
        assert (result[y] == 255 - image[y]).all(), y
    assert len(tiles) > 50
    print(f"{(peak[0] - before) / 2**30:.2f} GiB, {seconds:.0f} s, {len(tiles)} tiles")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["np", "pil"])
def test_hundred_megapixels_stay_within_four_gibibytes(kind):
    """Input and output included; what the network itself needs is bounded by the size of the tiles (2 GiB)."""
    code = textwrap.dedent(HUNDRED_MEGAPIXELS)
    run = subprocess.run([sys.executable, "-c", code, kind], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    assert float(run.stdout.split()[0]) + 2 < 4
