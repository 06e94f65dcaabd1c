"""DeepRFTv2: the kernel estimator, reversible coupling and its memory, options, sizes, types, and how it is kept."""

import copy

import numpy as np
import pytest
import torch

from genres.restoration.deep_rft import (
    DeepRFTv2,
    KernelEstimator,
    ReversibleColumn,
    ScanNAFBlock,
    deblurring_loss,
    downsample,
    draw_kernels,
    inverse_real_transform,
    point_spread,
    two_scale_loss,
)

ONES = ((1, 1, 1), (1, 1, 1))
NAF = (("naf",) * 3,) * 2


def tiny(width=8, **options) -> DeepRFTv2:
    """A small network whose branches all do something."""
    torch.manual_seed(0)
    config = {f"{part}_blocks": ONES for part in ("encoder", "decoder", "half_encoder", "half_decoder")}
    config |= {f"{part}_kinds": NAF for part in ("encoder", "decoder", "half_encoder", "half_decoder")}
    model = DeepRFTv2(**{"width": width, **config, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("scale1", "scale2", "global_scale")):
                parameter.normal_(std=0.3, generator=generator)
            elif ".factors." in name:
                parameter.uniform_(0.3, 1.0, generator=generator)
    return model.eval()


def image(*shape, seed=3):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# Kernel estimator


def test_the_estimated_transfer_function_convolves():
    x, kernel = torch.randn(1, 4, 12, 16), torch.zeros(1, 4, 12, 16)
    identity = torch.ones(1, 4, 12, 9, dtype=torch.complex64)
    torch.testing.assert_close(KernelEstimator.filter(x, identity), x)
    kernel[..., 2, 3], kernel[..., 0, 15] = 0.75, 0.25
    moved = 0.75 * x.roll((2, 3), (2, 3)) + 0.25 * x.roll(15, 3)
    torch.testing.assert_close(KernelEstimator.filter(x, torch.fft.rfft2(kernel)), moved)


@pytest.mark.parametrize("width", [10, 11])
def test_the_inverse_transform_ignores_what_no_image_can_have(width):
    spectrum = torch.randn(2, 3, 8, width // 2 + 1, dtype=torch.complex128)
    rows = torch.fft.ifft(spectrum, dim=-2).numpy()
    expected = torch.from_numpy(np.fft.irfft(rows, n=width, axis=-1))
    torch.testing.assert_close(inverse_real_transform(spectrum, width), expected)


def test_kernels_come_with_their_origin_in_the_middle():
    transfer = torch.ones(1, 2, 80, 49, dtype=torch.complex64)  # of a single point
    kernel = point_spread(transfer, 96)
    assert kernel.shape == (1, 2, 65, 65)
    torch.testing.assert_close(kernel[0, 0, 32, 32], torch.ones(()))
    assert point_spread(transfer, 96, 9)[0, 0, 4, 4] > 0.99
    picture = draw_kernels(kernel)
    assert picture.shape == (1, 65, 65) and picture.max() == picture[0, 32, 32] == 1 and picture.min() >= 0
    assert picture.sum() < 1.01  # a point stays one

    kernel[0, 0, 32, 30], kernel[0, 1, 30, 32] = -0.2, 0.1
    picture = draw_kernels(kernel)  # does not outshine what is beside it
    assert picture[0, 32, 32] == picture[0, 32, 30] == 1
    torch.testing.assert_close(picture[0, 30, 32], torch.tensor(0.5))


@torch.inference_mode()
def test_the_network_gives_its_kernels():
    model = tiny(kernel_tile=32, kernel_overlap=8)
    outputs, kernels = model(image(2, 3, 32, 24), return_kernel=True)
    assert len(outputs) == 4 and kernels.shape == (2, 8, 32, 24)
    _, kernels = model(image(1, 3, 48, 72), return_kernel=True)
    assert kernels.shape == (6, 8, 32, 32)  # one of each tile
    _, kernels = model.configure(kernel_tile=None)(image(1, 3, 80, 72), return_kernel=True)
    assert kernels.shape == (1, 8, 65, 65) and kernels.isfinite().all()
    with pytest.raises(ValueError, match="no kernel estimator"):
        tiny(kernel_estimator=False)(image(1, 3, 16, 16), return_kernel=True)


# Reversible coupling


def gradients(model, memory_saving, autocast=None):
    model = copy.deepcopy(model).train().configure(memory_saving=memory_saving)
    x = image(2, 3, 16, 24).requires_grad_()
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        outputs = model.restore_scales(x)
        loss = two_scale_loss(outputs, image(2, 3, 16, 24, seed=4))
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [*outputs.full, *outputs.half], found | {"image": x.grad}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_kinds": ("naf",) * 4, "half_width": 4, "kernel_width": 12},
        {"kernel_estimator": False},
        {"encoder_kinds": (("naf", "naf_scan", "scan"),) * 2, "encoder_blocks": ((1, 4, 1), (2, 0, 1))},
    ],
)
def test_memory_saving_mode_equals_plain_mode(options):
    model = tiny(**options)
    outputs, expected = gradients(model, False)
    for saving in (True, [False, True]):
        again, actual = gradients(model, saving)
        assert all(torch.equal(a, b) for a, b in zip(again, outputs, strict=True))
        assert set(actual) == set(expected)
        for name, grad in expected.items():
            assert (actual[name] - grad).abs().max() <= 1e-4 * grad.abs().max(), name


def test_memory_saving_mode_under_autocast():
    model = tiny()
    outputs, expected = gradients(model, False, torch.bfloat16)
    again, actual = gradients(model, True, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(again, outputs, strict=True))
    for name, grad in expected.items():
        assert (actual[name] - grad).norm() <= 0.1 * grad.norm() + 1e-6, name


class Level(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, other=None):
        return torch.tanh(self.layer(x if other is None else x + other))


@pytest.mark.parametrize("next_state", [False, True])
def test_a_column_can_be_inverted(next_state):
    torch.manual_seed(0)
    column = ReversibleColumn([Level(4) for _ in range(3)], [4] * 3, next_state).double()
    x, *old = torch.randn(4, 2, 4, 5, 6, dtype=torch.float64)
    new = column.run(x, tuple(old), (None,) * 3)
    found: list[torch.Tensor | None] = [None] * 3
    for index in reversed(range(3)):
        update = column.levels[index](new[index - 1] if index else x, column.other(index, tuple(found), (None,) * 3))
        found[index] = (new[index] - update) / column.factor(index)
        torch.testing.assert_close(found[index], old[index])


def test_gradients_of_a_column_in_double_precision():
    torch.manual_seed(0)
    column = ReversibleColumn([Level(2) for _ in range(3)], [2] * 3, next_state=True).double()
    column.memory_saving = True
    values = [torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda x, *old: column(x, old), values)


def test_factors_near_zero_are_held_off_and_zero_stays():
    column = ReversibleColumn([Level(4)], [4])
    column.factors[0].data = torch.tensor([1e-5, -1e-5, 0.0, 0.7])[:, None, None]
    torch.testing.assert_close(column.factor(0).flatten(), torch.tensor([1e-3, -1e-3, 0.0, 0.7]))
    column.factor(0).sum().backward()
    assert column.factors[0].grad.eq(1).all()
    column.memory_saving = True  # cannot be inverted, so it runs as plain mode does
    x = torch.randn(1, 4, 3, 3)
    (output,) = column(x, (x,))
    output.sum().backward()
    assert column.factors[0].grad.isfinite().all()


class Counter:
    """Bytes that autograd holds: now, and at most so far; what shares memory counts once."""

    def __init__(self):
        self.users, self.now, self.peak = {}, 0, 0

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        self.users[key] = self.users.get(key, 0) + 1
        if self.users[key] == 1:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
        return Held(self, tensor)


class Held:
    def __init__(self, counter, tensor):
        self.counter, self.tensor = counter, tensor

    def __del__(self):
        storage = self.tensor.untyped_storage()
        self.counter.users[storage.data_ptr()] -= 1
        if not self.counter.users[storage.data_ptr()]:
            self.counter.now -= storage.nbytes()


def training_memory(model, memory_saving):
    """Peak of what autograd holds in one step, recomputed tensors included."""
    model = copy.deepcopy(model).train().configure(memory_saving=memory_saving)
    counter = Counter()
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda held: held.tensor):
        two_scale_loss(model.restore_scales(image(1, 3, 64, 64)), image(1, 3, 64, 64)).backward()
    return counter.peak


def test_memory_saving_mode_needs_less_than_three_fifths():
    model = tiny(kernel_kinds=("naf",) * 4)
    assert training_memory(model, True) <= 0.6 * training_memory(model, False)


# Blocks and options


def test_four_fresh_scanning_blocks_are_the_identity():
    x = torch.randn(1, 8, 6, 10)
    turned = x
    for index in range(4):
        turned = ScanNAFBlock(8, index)(turned)
    torch.testing.assert_close(turned, x)


def test_a_number_of_scanning_blocks_that_turns_the_map_is_refused_unless_square():
    model = tiny(encoder_kinds=(("naf", "naf", "naf_scan"), ("naf",) * 3))
    with torch.inference_mode():
        assert model(image(1, 3, 16, 16))[-1].shape == (1, 3, 16, 16)
        with pytest.raises(ValueError, match="multiple of 4"):
            model(image(1, 3, 16, 24))
        assert (
            tiny(encoder_kinds=(("naf_scan",) * 3, NAF[0]), encoder_blocks=((3, 3, 4), (1, 1, 1)))(image(1, 3, 8, 16))[
                -1
            ]
            .isfinite()
            .all()
        )


@pytest.mark.parametrize("estimator", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (16, 40), (40, 8)])
@torch.inference_mode()
def test_sizes_and_outputs(size, estimator):
    model = tiny(kernel_estimator=estimator)
    outputs = model(image(2, 3, *size))
    assert len(outputs) == (4 if estimator else 2)
    assert all(one.shape == (2, 3, *size) and one.isfinite().all() for one in outputs)
    assert torch.equal(model.configure(all_outputs=False)(image(2, 3, *size)), outputs[-1])


@torch.inference_mode()
def test_a_stem_works_on_unshuffled_images_and_counts_its_sides_in_pixels():
    model = tiny(stem=2)
    x = image(1, 3, 32, 48)
    outputs, kernels = model(x, return_kernel=True)
    assert model.size_multiple == 16 and kernels.shape == (1, 8, 16, 24)
    assert len(outputs) == 4 and all(one.shape == x.shape for one in outputs)
    scales = model(x, all_scales=True)
    assert torch.equal(scales.full[-1], outputs[-1]) and scales.half[-1].shape == (1, 3, 16, 24)
    model.configure(kernel_tile=48, kernel_overlap=8, train_size=400)  # all larger than the image
    torch.testing.assert_close(model(x)[-1], outputs[-1])
    model.configure(train_size=32, kernel_tile=16, kernel_overlap=8)
    assert model.stages[0].encoder.levels[1].blocks[0].attention.window == 12  # 1.5 times 32 pixels, of 4 each
    assert model.stages[0].kernel.tile == 8 and model.stages[0].half_kernel.overlap == 2
    assert not torch.allclose(model(x)[-1], outputs[-1])
    with pytest.raises(ValueError, match="multiples of 16"):
        model(image(1, 3, 24, 48))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision(dtype):
    model = tiny(encoder_kinds=(("naf", "naf_scan", "naf"),) * 2, encoder_blocks=((1, 4, 1),) * 2)
    x = image(1, 3, 16, 24)
    expected = model(x)[-1]
    actual = model.to(dtype)(x.to(dtype))[-1]
    assert actual.dtype == dtype
    assert (actual.float() - expected).abs().max() < 0.1 * expected.abs().max()


@torch.inference_mode()
def test_tiles_as_large_as_the_image_change_nothing():
    model = tiny()
    x = image(1, 3, 24, 40)
    expected = model(x)[-1]
    for options in ({"kernel_tile": 40, "kernel_overlap": 8}, {"train_size": 400}, {"scan_window": 40}):
        model.configure(kernel_tile=None, train_size=None).configure(**options)
        torch.testing.assert_close(model(x)[-1], expected)
    torch.testing.assert_close(model.configure(tile=40, overlap=8)(x), expected)


@torch.inference_mode()
def test_tiles_of_a_network_that_changes_nothing_give_the_image():
    model = tiny()
    for stage in model.stages:
        for output in (stage.output, stage.half_output, stage.kernel.output, stage.half_kernel.output):
            torch.nn.init.zeros_(output.weight), torch.nn.init.zeros_(output.bias)
    model.configure(tile=16, overlap=8, kernel_tile=8, kernel_overlap=4)
    for size in ((16, 16), (24, 40), (8, 48)):
        x = image(2, 3, *size)
        restored, kernels = model(x, return_kernel=True)
        torch.testing.assert_close(restored, x)
        assert kernels.shape[-2:] == (8, 8)


def test_training_runs_on_tiles_side_by_side():
    model = tiny(kernel_tile=16, kernel_overlap=4).train()
    outputs = model(image(2, 3, 24, 40))
    deblurring_loss(outputs, image(2, 3, 24, 40)).backward()
    assert all(output.shape == (2, 3, 24, 40) for output in outputs)


def test_options_round_trip(tmp_path):
    model = tiny(half_width=4, kernel_width=12).configure(train_size=32, kernel_tile=64, kernel_overlap=16)
    model.save_pretrained(tmp_path)
    loaded = DeepRFTv2.from_pretrained(tmp_path)
    assert loaded.config.train_size == 32 and loaded.config.kernel_overlap == 16
    assert loaded.stages[1].encoder.levels[1].blocks[0].attention.window == 24
    x = image(1, 3, 64, 48)
    with torch.inference_mode():
        assert torch.equal(loaded(x)[-1], model(x)[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_blocks": ONES[:1]}, "three levels for each of the 1 stages"),
        ({"decoder_kinds": (("naf", "naf", "conv"),) * 2}, "decoder_kinds holds 'conv'; choose among naf"),
        ({"kernel_blocks": (1, 1)}, "four levels"),
        ({"tile": 20}, "tile is 20; it must be a multiple of 8"),
        ({"kernel_tile": 64, "kernel_overlap": 64}, "kernel_overlap is 64; it must be a multiple of 2, and smaller"),
        ({"stem": 2, "kernel_tile": 20}, "kernel_tile is 20; it must be a multiple of 8"),
        ({"memory_saving": [True]}, "memory_saving has 1 values for 2 stages"),
    ],
)
def test_arguments_that_do_not_fit_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_calls_that_do_not_fit_are_explained():
    model = tiny()
    with pytest.raises(ValueError, match="17x24 to sides that are multiples of 8"):
        model(image(1, 3, 17, 24))
    with pytest.raises(ValueError, match="no option 'tiles'"):
        model.configure(tiles=3)
    with pytest.raises(ValueError, match="train_size is 12"):
        model.configure(train_size=12)
    assert model.config.train_size is None


# Loss


def test_loss_of_equal_images_is_zero_and_the_half_scale_counts():
    target = image(1, 3, 16, 16)
    assert deblurring_loss([target, target], target) == 0
    outputs = tiny().restore_scales(target)
    full, half = deblurring_loss(outputs.full, target), deblurring_loss(outputs.half, downsample(target))
    torch.testing.assert_close(two_scale_loss(outputs, target), full + half)
