"""What must hold of the codec of a segment: frames come back, runs resume, sizes are met, damage is noticed."""

import copy
import io
import json
import math
import random

import pytest
import torch

from genres.compression import payload as layout
from genres.compression.codec import (
    DECODERS,
    CodecSettings,
    CorruptStreamError,
    SegmentDecoder,
    SegmentEncoder,
    import_quant_vid,
    mean_psnr,
)
from genres.compression.entropy import empirical_entropy_bits
from genres.compression.fitting import RateRun
from genres.compression.hnerv import HNeRV
from genres.compression.networks import build_model, choose_strides, least_values
from genres.compression.quantization import quantize
from genres.compression.rate import (
    differences,
    laplace_bits,
    nameable_step,
    round_straight_through,
    step_exponent,
    step_size,
)
from tests.parity.cases import FOLDER
from weights import load_official

VARIANTS = ("hinerv", "hnerv-grids", "hnerv-latents")
QUANTISED_VIDEO = FOLDER / "hnerv" / "quant_vid.pth"


def clip(num_frames: int = 4, height: int = 18, width: int = 26) -> torch.Tensor:
    """A soft pattern that moves: (N, H, W, 3) uint8."""
    rows, columns = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    frames = [
        torch.stack([torch.sin(rows + t / 3), torch.cos(columns - t / 4), torch.sin(rows * columns / 3 + t / 5)], -1)
        for t in range(num_frames)
    ]
    return ((torch.stack(frames) / 2 + 0.5) * 255).round().to(torch.uint8)


def encode(frames: torch.Tensor, mask: torch.Tensor | None = None, **settings) -> bytes:
    return trained(frames, mask, **settings).finish()


def trained(frames: torch.Tensor, mask: torch.Tensor | None = None, **settings) -> SegmentEncoder:
    encoder = SegmentEncoder(frames, CodecSettings(**{"recipe": "fast", **settings}), mask=mask)
    while not encoder.done:
        encoder.step_epoch()
    return encoder


@pytest.fixture(scope="module")
def stream() -> bytes:
    return encode(clip(), values=4_000, epochs=12)


# --- rate ---


@pytest.mark.parametrize("scale", [0.06, 0.3, 1.0, 7.5])
def test_bits_are_those_of_a_distribution(scale):
    bits = laplace_bits(torch.arange(-400.0, 401), torch.tensor(scale))
    assert torch.exp2(-bits.double()).sum() == pytest.approx(1, abs=1e-5)
    assert (bits >= 0).all()


def test_bits_and_rounding_have_gradients():
    x = torch.tensor([-2.3, -0.4, 0.0, 0.49, 0.51, 3.0], requires_grad=True)
    laplace_bits(x, torch.tensor(1.5)).sum().backward()
    assert (x.grad * x.detach() >= 0).all() and x.grad[0] == pytest.approx(-1 / 1.5 / 0.6931472, rel=1e-5)
    x.grad = None
    rounded = round_straight_through(x)
    rounded.sum().backward()
    assert torch.equal(rounded.detach(), x.detach().round()) and torch.equal(x.grad, torch.ones(6))


def test_steps_that_a_file_can_name():
    for step in (1e-4, 0.01, 0.3, 1.0, 77.0):
        named = step_size(step_exponent(step))
        assert abs(named / step - 1) < 0.045
        log_step = torch.tensor(step).log().requires_grad_()
        differentiable = nameable_step(log_step)
        assert differentiable.item() == pytest.approx(named, rel=1e-5)
        differentiable.backward()
        assert float(log_step.grad) == pytest.approx(named, rel=1e-4)
    assert step_exponent(0.0) == -128 and step_exponent(1e9) == 127


def test_differences_add_up():
    codes = torch.randint(-50, 50, (7, 3, 2))
    assert torch.equal(differences(codes).cumsum(0), codes)


# --- settings and networks ---


def test_settings_are_json():
    settings = CodecSettings("slow", bits_per_pixel=0.1, strides=(4, 2), seed=3)
    assert CodecSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one"),
        ({"values": 10, "target_psnr": 30.0}, "exactly one"),
        ({"values": 10, "recipe": "best"}, "no recipe 'best'"),
        ({"values": 10, "decoder": "mlp"}, "no decoder 'mlp'"),
        ({"values": 2**24 + 1}, "at most"),
        ({"bits_per_pixel": 0.0}, "above 0"),
        ({"bits_per_pixel": float("nan")}, "above 0"),
        ({"target_psnr": 90.0}, "out of reach"),
        ({"values": 10, "epochs": -1}, "above 0"),
        ({"values": 10, "rate_weight": -1.0}, "0 or more"),
        ({"values": 10, "strides": (0, 2)}, "Strides"),
        ({"recipe": "paper", "bits_per_pixel": 0.1}, "no control of rate"),
        ({"recipe": "paper", "values": 10_000, "decoder": "hinerv"}, "no 'hinerv': choose hnerv or nerv"),
    ],
)
def test_settings_that_make_no_sense_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        CodecSettings(**settings)
    with pytest.raises(ValueError, match="no setting 'size'"):
        CodecSettings.from_dict({"size": 3})


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (180, 320), (144, 176), (360, 640), (1080, 1920), (720, 90)])
@pytest.mark.parametrize("decoder", DECODERS)
def test_networks_keep_within_their_budget(size, decoder):
    settings = CodecSettings(values=1, decoder=decoder)
    least = least_values(settings, 24, *size)
    with pytest.raises(ValueError, match=f"has {least:,} values"):
        build_model(settings, least - 1, 24, *size)
    for values in (least, 3 * least):
        assert least <= build_model(settings, values, 24, *size).stored_values <= values


def test_strides_follow_the_frames():
    assert choose_strides(320, 640) == (5, 4, 4, 2, 2)
    assert choose_strides(180, 320) == (5, 4, 3, 3)
    assert choose_strides(160, 320, rows=2) == (5, 4, 2, 2)


@pytest.mark.parametrize(
    "frames",
    [clip()[0], clip().float(), clip()[:0], clip()[..., :2], torch.zeros(1, 2**14 + 1, 1, 3, dtype=torch.uint8)],
)
def test_frames_of_another_form_are_refused(frames):
    with pytest.raises(ValueError, match=r"Frames must be|too large"):
        SegmentEncoder(frames, CodecSettings(values=10_000))


# --- encoding and decoding ---


@pytest.mark.parametrize(
    ("frames", "settings"),
    [
        (clip(), {"values": 4_000}),
        (clip(1, 9, 7), {"values": 2_000}),
        (clip(3, 1, 1), {"values": 2_000}),
        (clip(3), {"values": 4_000, "batch_size": 2}),
        (clip(), {"values": 12_000, "decoder": "nerv", "lower_width": 3}),
        (clip(), {"values": 5_000, "decoder": "hinerv"}),
        (clip(1, 1, 1), {"values": 4_000, "decoder": "hinerv"}),
        (clip(), {"values": 6_000, "decoder": "hnerv-grids"}),
        (clip(1, 9, 7), {"values": 3_000, "decoder": "hnerv-latents"}),
        (clip(), {"values": 9_000, "recipe": "paper", "lower_width": 4}),
        (clip(), {"values": 20_000, "recipe": "paper", "decoder": "nerv", "lower_width": 3}),
    ],
)
def test_frames_come_back(frames, settings):
    encoder = SegmentEncoder(frames, CodecSettings(**{"recipe": "fast", "epochs": 4, **settings}))
    reports = [encoder.step_epoch() for _ in range(4)]
    assert encoder.done and [report.epoch for report in reports] == [1, 2, 3, 4] and reports[0].epochs == 4
    assert reports[-1].preview.shape == frames.shape[1:] and reports[-1].preview.dtype == torch.uint8
    payload = encoder.finish()
    decoder = SegmentDecoder(payload)
    assert decoder.num_frames == len(frames) and decoder.size == tuple(frames.shape[1:3])
    decoded = decoder.decode()
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
    # What the payload decodes to is the network that was trained: rounding costs little even after four epochs.
    assert abs(mean_psnr(decoder, frames) - reports[-1].psnr) < 4
    with pytest.raises(RuntimeError, match="trained already"):
        encoder.step_epoch()


def test_a_clip_is_learned():
    frames = clip(6)
    encoder = trained(frames, values=4_000, epochs=40)
    decoder = SegmentDecoder(encoder.finish())
    assert mean_psnr(decoder, frames) > 24
    reported = encoder.run.estimate_bits() / 8
    assert reported == pytest.approx(len(encoder.finish()), rel=1e-6)  # the last epoch counts truly


@pytest.mark.parametrize("decoder", VARIANTS)
def test_variants_learn(decoder):
    frames = clip(6)
    encoder = SegmentEncoder(frames, CodecSettings("fast", values=8_000, epochs=24, decoder=decoder))
    first = encoder.step_epoch().psnr
    while not encoder.done:
        encoder.step_epoch()
    payload = encoder.finish()
    decoder = SegmentDecoder(payload)
    assert mean_psnr(decoder, frames) > first + 3
    assert encoder.run.estimate_bits() / 8 == pytest.approx(len(payload), rel=1e-6)
    assert decoder.model.stored_values == encoder.run.stored_values <= 8_000


@pytest.mark.parametrize("decoder", VARIANTS)
def test_variants_come_back_to_the_bit(decoder):
    """Every tensor of a payload is the rounded one of the run, and packing what was unpacked gives the same bytes."""
    encoder = trained(clip(), values=6_000, epochs=5, decoder=decoder)
    payload = encoder.finish()
    stored = layout.unpack(payload).stored_tensors()
    exponents = {n: step_exponent(math.exp(float(s.detach()))) for n, s in encoder.run.log_steps.items()}
    assert list(stored) == list(exponents)
    codes = {}
    for name, value in stored.items():
        step = step_size(exponents[name])
        codes[name] = (value.detach() / step).round().int()
        assert torch.equal(codes[name], (encoder.run.tensors[name].detach() / step).round().int())
        assert torch.equal(codes[name].float() * step, value)
    assert layout.pack_steps(layout.unpack(payload), codes, exponents) == payload


@pytest.mark.parametrize("decoder", VARIANTS)
def test_variants_take_a_batch_and_a_mask(decoder):
    mask = torch.ones(1, 18, 26, dtype=torch.bool)
    mask[:, :5] = False
    payload = encode(clip(), mask, values=6_000, epochs=3, decoder=decoder, batch_size=2)
    assert SegmentDecoder(payload).decode().shape == clip().shape


def test_latents_wait_for_the_price_of_a_bit():
    settings = CodecSettings("fast", values=6_000, epochs=10, decoder="hnerv-latents")
    encoder = SegmentEncoder(clip(), settings)
    run = encoder.run
    assert isinstance(run, RateRun)
    latents = [value for name, value in run.tensors.items() if name.startswith("latents.")]
    assert len(latents) == 2 and run.priced_values == run.stored_values - sum(value.numel() for value in latents)
    for _ in range(4):
        encoder.step_epoch()
    assert not any(value.any() for value in latents)
    encoder.step_epoch()
    assert run.quantising and all(value.any() for value in latents)


@pytest.mark.parametrize("decoder", ["hnerv", "hnerv-grids"])
def test_rounding_is_what_training_saw(decoder):
    """At the end of a run the decoder's frames are those of the last steps, rounded weights and all."""
    frames = clip()
    encoder = trained(frames, values=6_000, epochs=24, decoder=decoder)
    run = encoder.run
    assert isinstance(run, RateRun)
    numbers = torch.arange(4)
    values, features, _ = run.quantise(numbers, rounding=True)
    output = torch.func.functional_call(run.player, values, (numbers, features))
    seen = (output.detach().clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
    assert (SegmentDecoder(encoder.finish()).decode().float() - seen).abs().max() <= 1


def test_the_rate_is_met():
    frames = clip(6)
    for wanted in (6.0, 9.0):
        size = 8 * len(encode(frames, bits_per_pixel=wanted, epochs=32)) / (6 * 18 * 26)
        assert size == pytest.approx(wanted, rel=0.12)


def test_a_quality_is_searched_for():
    frames = clip(3)
    encoder = SegmentEncoder(frames, CodecSettings("fast", target_psnr=20.0, epochs=12))
    reports = []
    while not encoder.done:
        reports.append(encoder.step_epoch())
    assert len(encoder.trials) <= encoder.MOST_TRIALS and reports[-1].epoch == reports[-1].epochs
    reached = [trial for trial in encoder.trials if trial.psnr >= 20]
    payload = encoder.finish()
    assert payload in [trial.payload for trial in encoder.trials]
    if reached:
        assert len(payload) == min(len(trial.payload) for trial in reached)
    best = next(trial for trial in encoder.trials if trial.payload == payload)
    assert mean_psnr(SegmentDecoder(payload), frames) == pytest.approx(best.psnr)


@pytest.mark.parametrize("after", [0, 1, 4, 6, 9])
@pytest.mark.parametrize(
    "settings",
    [
        {"values": 3_500, "epochs": 9},
        {"bits_per_pixel": 8.0, "epochs": 9},
        {"values": 9_000, "recipe": "paper", "lower_width": 4, "epochs": 9},
        {"values": 6_000, "decoder": "hinerv", "epochs": 9},
        {"values": 6_000, "decoder": "hnerv-latents", "epochs": 9},
    ],
)
def test_interrupted_runs_give_the_same_bytes(after, settings):
    frames = clip(3)
    whole = encode(frames, **settings)
    settings = CodecSettings(**{"recipe": "fast", **settings})
    encoder = SegmentEncoder(frames, settings)
    for _ in range(after):
        encoder.step_epoch()
    file = io.BytesIO()
    torch.save(encoder.state_dict(), file)
    file.seek(0)
    torch.manual_seed(after)  # another process has another state
    resumed = SegmentEncoder(frames, settings)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    while not resumed.done:
        resumed.step_epoch()
    assert resumed.finish() == whole


def test_an_interrupted_search_gives_the_same_bytes():
    frames, settings = clip(2), CodecSettings("fast", target_psnr=24.0, epochs=5)
    whole = encode(frames, target_psnr=24.0, epochs=5)
    encoder = SegmentEncoder(frames, settings)
    for _ in range(7):
        encoder.step_epoch()
    state = copy.deepcopy(encoder.state_dict())
    assert len(state["trials"]) == 1
    resumed = SegmentEncoder(frames, settings)
    resumed.load_state_dict(state)
    while not resumed.done:
        resumed.step_epoch()
    assert resumed.finish() == whole


def test_a_state_of_another_segment_is_refused():
    state = trained(clip(2), values=3_500, epochs=1).state_dict()
    with pytest.raises(ValueError, match="other frames or settings"):
        SegmentEncoder(clip(3), CodecSettings("fast", 3_500)).load_state_dict(state)


def test_stopped_early_there_is_a_payload_all_the_same():
    frames = clip()
    encoder = SegmentEncoder(frames, CodecSettings("fast", values=4_000, epochs=100))
    encoder.step_epoch()
    assert SegmentDecoder(encoder.finish()).decode().shape == frames.shape


def test_masked_pixels_do_not_matter():
    frames = clip()
    mask = torch.ones(1, *frames.shape[1:3], dtype=torch.bool)
    mask[:, 4:9, 5:12] = False
    other = frames.clone()
    other[:, 4:9, 5:12] = 255
    for settings in ({"values": 4_000}, {"values": 9_000, "recipe": "paper", "lower_width": 4}):
        first, second = (encode(x, mask, epochs=6, **settings) for x in (frames, other))
        assert first == second
    assert encode(other, epochs=6, values=4_000) != encode(frames, epochs=6, values=4_000)
    with pytest.raises(ValueError, match="A mask must be"):
        SegmentEncoder(frames, CodecSettings(values=4_000), mask=mask[:, 1:])


# --- decoder ---


def test_frames_are_the_same_in_any_order(stream):
    decoder = SegmentDecoder(stream)
    whole = decoder.decode()
    assert torch.equal(decoder.decode(2, 2), whole[2:]) and torch.equal(decoder.decode(1, 1), whole[1:2])
    assert torch.equal(SegmentDecoder(stream).decode(3, 1), whole[3:])
    assert all(torch.equal(frame, whole[1 + index]) for index, frame in enumerate(decoder.frames(1)))
    with pytest.raises(IndexError, match="not among the 4"):
        decoder.decode(3, 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"values": 4_000},
        {"values": 12_000, "decoder": "nerv", "lower_width": 3},
        *({"values": 6_000, "decoder": decoder} for decoder in VARIANTS),
    ],
)
def test_frames_in_between(settings):
    decoder = SegmentDecoder(encode(clip(), epochs=3, **settings))
    assert torch.equal(decoder.interpolate([0.0, 2.0, 3.0]), decoder.decode()[[0, 2, 3]])
    near, far = decoder.interpolate([1.01, 1.5]).float()
    frame = decoder.decode(1, 1)[0].float()
    assert (near - frame).abs().mean() <= (far - frame).abs().mean()
    with pytest.raises(IndexError, match="between 0 and 3"):
        decoder.interpolate([3.5])


def damaged(data: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(4)
    position = chance.randrange(len(data))
    if kind == 0:
        return data[:position]
    if kind == 1:
        return data[:position] + bytes([data[position] ^ 1 << chance.randrange(8)]) + data[position + 1 :]
    if kind == 2:
        return data[:position] + chance.randbytes(chance.randrange(1, 20)) + data[position:]
    return chance.randbytes(min(position, 40)) + data[position:]


def test_damaged_payloads_are_refused_or_decode(stream):
    ranges = encode(clip(), values=9_000, recipe="paper", lower_width=4, epochs=1)
    latents = encode(clip(), values=6_000, decoder="hnerv-latents", epochs=1)
    chance = random.Random(0)
    refused = 0
    for index in range(150):
        data = damaged((stream, ranges, latents)[index % 3], chance)
        try:
            decoder = SegmentDecoder(data)
        except CorruptStreamError as error:
            assert str(error).endswith(".")
            refused += 1
        else:
            assert decoder.size[0] * decoder.size[1] <= layout.MAX_PIXELS
    assert refused > 75


def test_every_cut_is_noticed(stream):
    for length in range(0, 60, 3):
        with pytest.raises(CorruptStreamError):
            SegmentDecoder(stream[:length])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 2**16, "size": (18, 26)}, "too many for its length"),
        ({"size": (2**14, 2**14)}, "does not fit its frames"),
        ({"widths": [4000, 4000]}, "too many for its length|larger than its frames"),
        ({"expansion": [100, 100]}, "does not fit its frames"),
        ({"expansion": [2**14, 2**14], "width": 4096}, "does not fit|larger than"),
        ({"kernels": [2, 3]}, "does not fit its frames"),
        ({"kernels": [17, 3]}, "impossible kernel"),
        ({"strides": [0, 2]}, "impossible stride"),
        ({"widths": [0, 4]}, "impossible width"),
        ({"embedding_size": [2**14, 2**14]}, "does not fit its frames"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(changes, message):
    config = {
        "embedding_dim": 16,
        "width": 6,
        "expansion": [1, 1],
        "widths": [6, 6],
        "kernels": [1, 3],
        "strides": [4, 2],
        "output": "tanh",
        "time_levels": 0,
        "embedding_size": [3, 4],
    } | {name: value for name, value in changes.items() if name not in ("num_frames", "size")}
    player = type("Any", (), {})()
    player.model = type("Any", (), {"config": config})()
    player.num_frames = changes.get("num_frames", 4)
    player.height, player.width = changes.get("size", (18, 26))
    payload = layout._pack_layout(layout.FORM_STEPS, player) + bytes(40)
    with pytest.raises(CorruptStreamError, match=message):
        SegmentDecoder(payload)


VARIANT = {
    "frame_size": [18, 26],
    "stored_frames": 4,
    "embedding_dim": 16,
    "width": 6,
    "mlp_ratio": 1,
    "head_stride": 1,
    "form": "pixel_shuffle",
    "widths": [6, 6],
    "kernels": [1, 3],
    "strides": [4, 2],
    "grid_nodes": [2, 1],
    "grid_channels": [2, 4],
    "latent_channels": [0, 0],
}


def variant_layout(changes: dict) -> bytearray:
    """The head of a payload of the decoders with maps, whatever it states."""
    config = VARIANT | {name: value for name, value in changes.items() if name not in ("num_frames", "size")}
    player = type("Any", (), {})()
    player.model = type("Any", (), {"config": config})()
    player.num_frames = changes.get("num_frames", 4)
    player.height, player.width = changes.get("size", (18, 26))
    return bytearray(layout._pack_hinerv_layout(layout.FORM_STEPS, player))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 2**16}, "too many for its length"),
        ({"size": (2**14, 2**14)}, "larger than its frames|too many for its length"),
        ({"widths": [4000, 4000]}, "too many for its length|larger than its frames"),
        ({"width": 2**12 + 1}, "impossible first width"),
        ({"kernels": [2, 3]}, "does not fit its frames"),
        ({"kernels": [17, 3]}, "impossible kernel"),
        ({"strides": [0, 2]}, "impossible stride"),
        ({"strides": [32, 32], "widths": [4000, 4000]}, "larger than its frames|too many for its length"),
        ({"widths": [0, 4]}, "impossible width"),
        ({"head_stride": 33}, "impossible stride of the head"),
        ({"mlp_ratio": 0}, "impossible ratio"),
        ({"mlp_ratio": 17}, "impossible ratio"),
        ({"grid_nodes": [0, 1]}, "impossible number of nodes"),
        ({"grid_nodes": [2**16, 2**16]}, "too many for its length"),
        ({"grid_channels": [4096, 4096]}, "too many for its length|larger than its frames"),
        ({"latent_channels": [2**12 + 1, 0]}, "impossible number of latent channels"),
        ({"latent_channels": [0, 4096]}, "too many for its length|larger than its frames"),
        # More channels than a stream has tensors, though not many values: the stream itself is refused.
        ({"size": (1, 1), "grid_channels": [300, 0]}, "sizes that no stream holds"),
    ],
)
def test_absurd_maps_are_refused_before_anything_is_allocated(changes, message):
    with pytest.raises(CorruptStreamError, match=message):
        SegmentDecoder(bytes(variant_layout(changes)) + bytes(40))


def test_descriptions_that_contradict_themselves_are_refused():
    def refused(data: bytearray, message: str) -> None:
        with pytest.raises(CorruptStreamError, match=message):
            SegmentDecoder(bytes(data) + bytes(40))

    for name, other in (("hnerv-grids", "hnerv-latents"), ("hnerv-latents", "hnerv-grids")):
        data = variant_layout({"latent_channels": [0, int(name == "hnerv-latents")]})
        assert data[1] == DECODERS.index(name)
        data[1] = DECODERS.index(other)
        refused(data, "contradicts itself")
    data = variant_layout({})
    data[2] = layout.FORM_RANGES  # the paper's quantiser is not for these
    refused(data, "contradicts itself")
    data = variant_layout({})
    data[1] = len(DECODERS)
    refused(data, "names a decoder or form, 5 and 0, that there is not")


def test_layouts_are_read_as_they_were_written():
    for form, latents in (("bilinear", [1, 0]), ("pixel_shuffle", [0, 0]), ("pixel_shuffle", [0, 2])):
        changes = {"form": form, "latent_channels": latents, "mlp_ratio": 2 if form == "bilinear" else 1}
        source = layout._Bytes(bytes(variant_layout(changes)) + bytes(9))
        read_form, is_hinerv, arguments, size = layout._read_layout(source)
        assert (read_form, is_hinerv, size) == (layout.FORM_STEPS, True, (4, 18, 26))
        assert arguments == VARIANT | changes and len(source.rest()) == 9


# --- the authors' file ---


def test_quantised_video_of_the_authors(tmp_path):
    torch.manual_seed(0)
    shape = {"widths": [60, 5], "kernels": [1, 3], "strides": [2, 2], "encoder_strides": [], "encoder_widths": []}
    model = HNeRV(embedding_dim=4, width=60, stored_frames=3, embedding_size=[2, 3], **shape)

    def official(tensor: torch.Tensor, bits: int) -> dict:
        coded = quantize(tensor, bits)
        return {"quant": coded.codes, "min": coded.minimum, "scale": coded.scale}

    names = {"first": "decoder.0.conv.downconv", "head": "head_layer"}
    names |= {f"blocks.{i}.convolution": f"decoder.{i + 1}.conv.upconv.0" for i in range(2)}
    weights = {}
    for name, value in model.named_parameters():
        if name != "embeddings":
            module, _, kind = name.rpartition(".")
            weights[f"{names[module]}.{kind}"] = official(value, 8)
    path = tmp_path / "quant_vid.pth"
    torch.save({"embed": official(model.embeddings, 6), "model": weights}, path)
    decoder = SegmentDecoder(import_quant_vid(path))
    expected = load_official(path)
    assert decoder.size == (8, 12) and decoder.num_frames == 3
    assert all(torch.equal(value, decoder.model.state_dict()[name]) for name, value in expected.state_dict().items())
    for content in ({"embed": 3}, {"embed": official(model.embeddings, 6), "model": {}}, [1]):
        torch.save(content, path)
        with pytest.raises(ValueError, match="no quantised video"):
            import_quant_vid(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"damaged or no file of PyTorch's"):
        import_quant_vid(path)


def test_the_published_video_becomes_a_smaller_payload():
    payload = import_quant_vid(QUANTISED_VIDEO)
    decoder, expected = SegmentDecoder(payload), load_official(QUANTISED_VIDEO)
    assert decoder.num_frames == 132 and decoder.size == (640, 1280)
    assert all(torch.equal(value, decoder.model.state_dict()[name]) for name, value in expected.state_dict().items())
    content = torch.load(QUANTISED_VIDEO, map_location="cpu", weights_only=True)
    tensors = [content["embed"], *content["model"].values()]
    entropy = sum(empirical_entropy_bits(tensor["quant"].int()) for tensor in tensors)
    sides = sum(
        8 * tensor[side].numel() * tensor[side].element_size() for tensor in tensors for side in ("min", "scale")
    )
    assert 8 * len(payload) < 1.01 * (entropy + sides)
