"""What must hold of HNeRV whatever its weights: sizes, independence of frames, the quantiser, storage."""

import pytest
import torch

from genres.compression.hnerv import (
    HNeRV,
    decoder_parameters,
    official_width,
    rectangular_pixel_shuffle,
    solve_width,
    stage_kernels,
    stage_widths,
)
from genres.compression.quantization import quantize

SMALL = {
    "embedding_dim": 4,
    "width": 6,
    "widths": [5, 4],
    "kernels": [1, 3],
    "strides": [2, 2],
    "encoder_strides": [2, 2],
    "encoder_widths": [8, 4],
}


def small(**changes) -> HNeRV:
    torch.manual_seed(0)
    return HNeRV(**SMALL | changes).eval()


# --- sizes ---


@pytest.mark.parametrize(
    ("size", "width", "widths", "values"),
    [
        (0.35e6, 32, [27, 22, 18, 15, 12], 329_726),
        (0.75e6, 48, [40, 33, 28, 23, 19], 736_152),
        (1.5e6, 68, [57, 48, 40, 33, 28], 1_505_172),
        (3e6, 97, [81, 68, 57, 48, 40], 3_029_582),
    ],
)
def test_published_sizes(size, width, widths, values):
    strides, kernels = [5, 4, 4, 2, 2], stage_kernels(1, 5, 5)
    embedding_values = 16 * 2 * 4 * 132
    assert kernels == [1, 3, 5, 5, 5]
    assert official_width(size, embedding_values, strides, kernels) == width
    assert stage_widths(width, 5) == widths
    assert embedding_values + decoder_parameters(16, width, 1, widths, kernels, strides) == values


@pytest.mark.parametrize("budget", [30_000, 60_000, 150_000, 400_000])
def test_a_solved_network_is_as_large_as_the_budget_allows(budget):
    model = HNeRV.for_budget(budget, 24, (160, 320), (5, 4, 2, 2), lower_width=6)
    config = model.config
    embeddings = 24 * 16 * 2 * 4

    def total(width):
        widths = stage_widths(width, 4, lower_width=6)
        return embeddings + decoder_parameters(16, width, 1, widths, config.kernels, config.strides)

    assert model.stored_values + embeddings == total(config.width) <= budget < total(config.width + 1)


def test_a_solved_baseline_keeps_within_its_budget():
    model = HNeRV.nerv_for_budget(200_000, (2, 4), (2, 2), time_levels=10)
    assert 190_000 < model.stored_values <= 200_000
    with torch.inference_mode():
        assert model(torch.tensor([0.0, 0.5])).shape == (2, 3, 8, 16)


def test_impossible_sizes_say_what_is_possible():
    with pytest.raises(ValueError, match="smallest network of this kind has"):
        HNeRV.for_budget(1_000, 24, (160, 320), (5, 4, 2, 2))
    with pytest.raises(ValueError, match="no multiple of 80"):
        HNeRV.for_budget(100_000, 24, (180, 320), (5, 4, 2, 2))
    with pytest.raises(ValueError, match="embeddings alone"):
        official_width(1_000, 2_000, [2], [3])
    with pytest.raises(ValueError, match="the budget is 5"):
        solve_width(5, 0, [2], [3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [5]}, "a width, kernel and stride each"),
        ({"kernels": [2, 3]}, "must be odd"),
        ({"encoder_widths": [8, 5]}, "last one 4"),
        ({"time_levels": 2}, "need no encoder"),
        ({"output": "relu"}, "tanh, sigmoid, or a number"),
    ],
)
def test_arguments_that_do_not_fit_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


# --- network ---


@torch.inference_mode()
def test_frames_decode_alone_and_in_any_order():
    model, frames = small(), torch.rand(5, 3, 8, 12)
    embeddings = model.encode(frames)
    assert embeddings.shape == (5, 4, 2, 3)
    whole = model(frames)
    assert whole.shape == frames.shape and whole.min() >= 0 and whole.max() <= 1
    assert torch.allclose(model.decode(embeddings), whole, atol=1e-6)
    for index in (3, 0, 4):
        assert torch.allclose(model.decode(embeddings[index, None])[0], whole[index], atol=1e-6)


def test_rearrangement_is_a_pixel_shuffle():
    x = torch.randn(2, 18, 4, 5)
    assert torch.equal(rectangular_pixel_shuffle(x, 3, 3), torch.nn.functional.pixel_shuffle(x, 3))
    y = rectangular_pixel_shuffle(x, 2, 3)
    assert y.shape == (2, 3, 8, 15) and y[1, 2, 2 * 3 + 1, 3 * 4 + 2] == x[1, 2 * 6 + 1 * 3 + 2, 3, 4]


@torch.inference_mode()
@pytest.mark.parametrize("output", ["tanh", "sigmoid", 0.5])
def test_forms_of_the_output(output):
    model, embeddings = small(output=output), torch.randn(1, 4, 2, 3)
    seen = []
    model.head.register_forward_hook(lambda _, __, out: seen.append(out))
    image = model.decode(embeddings)
    expected = {"tanh": torch.tanh(seen[0]) / 2 + 0.5, "sigmoid": torch.sigmoid(seen[0])}
    assert torch.equal(image, expected.get(output, seen[0] + 0.5))


@torch.inference_mode()
def test_the_stored_video_has_no_encoder():
    model, frames = small(), torch.rand(3, 3, 8, 8)
    embeddings = model.encode(frames)
    stored = model.with_stored_embeddings(embeddings)
    assert not any(name.startswith("encoder.") for name in stored.state_dict()) and not stored.training
    assert torch.equal(stored.decode(stored.embeddings), model.decode(embeddings))
    assert stored.stored_values == model.stored_values + embeddings.numel()
    with pytest.raises(ValueError, match="has no encoder"):
        stored.encode(frames)


def test_sizes_and_times_are_checked():
    with pytest.raises(ValueError, match="multiples of 4"):
        small().encode(torch.rand(1, 3, 8, 10))
    nerv = small(time_levels=2, encoder_strides=[], encoder_widths=[])
    with pytest.raises(ValueError, match=r"times of shape \(B,\)"):
        nerv.encode(torch.rand(1, 3, 8, 8))


@torch.inference_mode()
@pytest.mark.parametrize("stored", [False, True])
def test_saved_and_loaded(stored, tmp_path):
    model, frames = small(), torch.rand(2, 3, 8, 8)
    if stored:
        model = model.with_stored_embeddings(model.encode(frames))
    model.save_pretrained(tmp_path)
    loaded = HNeRV.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    embeddings = model.embeddings if stored else model.encode(frames)
    assert torch.equal(loaded.decode(embeddings), model.decode(embeddings))


def test_stored_embeddings_and_weights_get_gradients():
    model = small(stored_frames=2, embedding_size=[2, 2], encoder_strides=[], encoder_widths=[])
    model.decode(model.embeddings).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_one_video_is_learned():
    torch.manual_seed(0)
    rows, columns = torch.linspace(0, 1, 16)[:, None], torch.linspace(0, 1, 16)[None]
    frames = torch.stack([(rows * share + columns * (1 - share)).expand(3, 16, 16) for share in (0.0, 0.5, 1.0)])
    model = small(width=12, widths=[12, 12], kernels=[1, 3]).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(frames) - frames).square().mean()
        loss.backward()
        optimizer.step()
    assert -10 * torch.log10(loss) > 25


# --- quantiser ---


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(7,), (60,), (60, 3, 2), (2, 60), ()])
def test_the_error_is_half_a_step_at_most(shape, bits):
    torch.manual_seed(bits)
    tensor = torch.randn(shape)
    coded = quantize(tensor, bits)
    assert int(coded.codes.max()) < 2**bits
    rounding = 2**-11 * (coded.minimum.abs() + coded.scale * 2**bits).float()  # of minimum and scale to float16
    slack = rounding if coded.minimum.dtype == torch.float16 else 1e-5
    assert ((coded.dequantize() - tensor).abs() <= coded.scale.float() / 2 + slack).all()


def test_ranges_along_an_axis_pay_off():
    tensor = torch.randn(100, 4) * torch.tensor([1e-3, 1.0, 10.0, 100.0])
    coded = quantize(tensor, 8)
    assert coded.minimum.shape == (1, 4) and coded.minimum.dtype == torch.float16 and coded.side_numbers == 8
    assert quantize(tensor.T, 8).minimum.shape == (4, 1)
    assert quantize(tensor[:50], 8).minimum.shape == ()  # 1/50 is no longer below the share of 2 %


def test_constant_tensors_and_lines_come_back():
    constant = torch.full((60, 3), 0.1)
    assert torch.equal(quantize(constant, 8).dequantize(), constant)
    lines = torch.cat([torch.full((60, 1), 0.5), torch.randn(60, 1) * 50], 1)
    coded = quantize(lines, 8)
    assert coded.minimum.shape == (1, 2) and torch.equal(coded.dequantize()[:, 0], lines[:, 0])


def test_ranges_beyond_float16_stay_in_float32():
    tensor = torch.randn(60, 2) * torch.tensor([1.0, 1e6])
    coded = quantize(tensor, 8)
    assert coded.minimum.dtype == torch.float32 and coded.dequantize().isfinite().all()


@pytest.mark.parametrize("tensor", [torch.zeros(0), torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf])])
def test_what_cannot_be_quantised_is_refused(tensor):
    with pytest.raises(ValueError, match="Only finite numbers"):
        quantize(tensor, 8)
    with pytest.raises(ValueError, match="1 to 8 bits"):
        quantize(torch.ones(3), 9)
