"""The payload of one segment: the layout of its decoder, and the codes of its weights and embeddings.

In this order (integers without a size are LEB128, numbers little-endian):

    version (1 byte), decoder (1 byte), form (1 byte)
    frames, height, width of the video
    embedding channels, first width, expansion (2), stages
    width, kernel, stride of each stage
    output (1 byte), and its number (float32) where it is one
    time levels; their base (float32) if not 0, else rows and columns of an embedding
    form 0: the step of each tensor (1 byte, eighths of an octave)
    form 1: the axis of each tensor's ranges (1 byte, 255 for none), minima and scales (float16, float32 for none)
    the codes of all tensors in one entropy-coded stream

Decoders are numbered as in DECODERS. From number 2 on (`hinerv.py`) the layout is, after the frames' size:

    embedding channels, first width, ratio of the feed-forwards, stride of the head, stages
    width, kernel, stride, nodes and channels of the grid, channels of the latents of each stage
    the steps and the codes, as above; there is form 0 only

Form 0 holds multiples of a step (`rate.py`), form 1 the codes of HNeRV's own quantiser (`quantization.py`). Embeddings
and latents are coded as differences from frame to frame, grids from node to node, each channel with a model of its own;
all biases share one. Nothing is allocated before its size was compared with the limits below, the frames' size and the
payload's length.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from genres.compression.container import CorruptStreamError
from genres.compression.entropy import decode_tensors, encode_tensors
from genres.compression.hinerv import HiNeRV, Sizes, map_sizes
from genres.compression.hinerv import stored_values as hinerv_values
from genres.compression.hnerv import HNeRV, decoder_parameters
from genres.compression.quantization import QuantizedTensor
from genres.compression.rate import differences, step_size

DECODERS = ("hnerv", "nerv", "hinerv", "hnerv-grids", "hnerv-latents")
OFFICIAL = DECODERS[:2]  # the networks of HNeRV's paper; the others are in `hinerv.py`

VERSION = 1
FORM_STEPS, FORM_RANGES = 0, 1
OUTPUTS = ("tanh", "sigmoid")  # a third form is a number to add
STAGE_FIELDS = ("widths", "kernels", "strides", "grid_nodes", "grid_channels", "latent_channels")  # of a `HiNeRV`
WHOLE = 255  # in the place of an axis: one range for the tensor
MAX_FRAMES = 2**16
MAX_SIDE = 2**14
MAX_PIXELS = 2**26
MAX_STAGES = 16
MAX_WIDTH = 2**12
MAX_KERNEL = 15
MAX_STRIDE = 32
MAX_TIME_LEVELS = 2**9
MAX_RATIO = 2**4
MAX_VALUES = 2**24  # weights and embeddings of a segment; a decoder holds them four times for a moment: 256 MiB
SYMBOLS_PER_BYTE = 2**10  # more than any tensor of use comes to
FREE_SYMBOLS = 2**16
FEATURES_PER_PIXEL = 2**7  # of the largest feature map, for each pixel of a frame
FREE_FEATURES = 2**22


# --- network ---


def whole_multiple(side: int, multiple: int) -> int:
    """The least multiple that is not below a side."""
    return math.ceil(side / multiple) * multiple


class Player(nn.Module):
    """A decoder with the frames that it holds: frame numbers (B,) -> (B, 3, H, W) in [0, 1], without the padding."""

    def __init__(self, model: HNeRV | HiNeRV, num_frames: int, height: int, width: int):
        super().__init__()
        self.model = model
        self.num_frames, self.height, self.width = num_frames, height, width

    @property
    def frame_tensors(self) -> dict[str, Tensor]:
        """Stored tensors with an entry for every frame, (N, ...) each, by the model's own names."""
        if isinstance(self.model, HiNeRV):
            return self.model.frame_tensors
        return {} if self.model.embeddings is None else {"embeddings": self.model.embeddings}

    def features(self, numbers: Tensor) -> dict[str, Tensor]:
        """What is stored of frames; of frames in between, by numbers with a fraction: (B,) -> (B, ...) by name."""
        if self.model.config.get("time_levels"):
            return {"embeddings": self.model.encode(numbers.float() / self.num_frames)}
        return {name: self._at(stored, numbers) for name, stored in self.frame_tensors.items()}

    def _at(self, stored: Tensor, numbers: Tensor) -> Tensor:
        if not numbers.is_floating_point():
            return stored[numbers]
        before = numbers.floor().long().clamp(0, self.num_frames - 1)
        after = (before + 1).clamp_max(self.num_frames - 1)
        return torch.lerp(stored[before], stored[after], (numbers - before)[:, None, None, None].to(stored))

    def forward(self, numbers: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        features = self.features(numbers) if features is None else features
        if isinstance(self.model, HiNeRV):
            return self.model.decode(numbers, features)
        return cast(HNeRV, self.model).decode(features["embeddings"], (self.height, self.width))

    def stored_tensors(self) -> dict[str, Tensor]:
        """What a payload holds, in its order, by the model's own names."""
        return {name: value for name, value in self.model.named_parameters() if not name.startswith("encoder.")}


# --- layout ---


class _Bytes:
    """Reads the layout; every way past the end is a CorruptStreamError."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.position:
            raise CorruptStreamError("The segment is cut short: get the file again.")
        self.position += length
        return self.data[self.position - length : self.position]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, least: int, most: int, what: str) -> int:
        """One LEB128 integer of at most five bytes."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                break
        else:
            value = most + 1
        if not least <= value <= most:
            raise CorruptStreamError(f"The segment states an impossible {what}, {value}: get the file again.")
        return value

    def real(self) -> float:
        value = struct.unpack("<f", self.take(4))[0]
        if not math.isfinite(value):
            raise CorruptStreamError("The segment holds a number that is not finite: get the file again.")
        return value

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.position)


def _number(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _pack_layout(form: int, player: Player) -> bytes:
    config = player.model.config
    if isinstance(player.model, HiNeRV):
        return _pack_hinerv_layout(form, player)
    decoder = DECODERS.index("nerv" if config["time_levels"] else "hnerv")
    numbers = [player.num_frames, player.height, player.width, config["embedding_dim"], config["width"]]
    numbers += [*config["expansion"], len(config["widths"])]
    for stage in zip(config["widths"], config["kernels"], config["strides"], strict=True):
        numbers += stage
    data = bytes([VERSION, decoder, form]) + b"".join(map(_number, numbers))
    output = config["output"]
    data += bytes([OUTPUTS.index(output)]) if output in OUTPUTS else bytes([2]) + struct.pack("<f", output)
    data += _number(config["time_levels"])
    if config["time_levels"]:
        return data + struct.pack("<f", config["time_base"])
    return data + b"".join(map(_number, config["embedding_size"]))


def _decoder_name(config: Mapping[str, Any]) -> str:
    """The name of a `HiNeRV` among DECODERS."""
    if config["form"] == "bilinear":
        return "hinerv"
    return "hnerv-latents" if any(config["latent_channels"]) else "hnerv-grids"


def _pack_hinerv_layout(form: int, player: Player) -> bytes:
    config = player.model.config
    numbers = [player.num_frames, player.height, player.width, config["embedding_dim"], config["width"]]
    numbers += [config["mlp_ratio"], config["head_stride"], len(config["widths"])]
    for stage in zip(*(config[name] for name in STAGE_FIELDS), strict=True):
        numbers += stage
    return bytes([VERSION, DECODERS.index(_decoder_name(config)), form]) + b"".join(map(_number, numbers))


def _read_layout(source: _Bytes) -> tuple[int, bool, dict[str, Any], tuple[int, int, int]]:
    """Form, whether it is a `HiNeRV`, arguments of it or of `HNeRV`, and the frames' number and size; within limits."""
    version, decoder, form = source.byte(), source.byte(), source.byte()
    if version != VERSION:
        raise CorruptStreamError(f"The segment states version {version}; this release reads version {VERSION}.")
    if decoder >= len(DECODERS) or form not in (FORM_STEPS, FORM_RANGES):
        raise CorruptStreamError(f"The segment names a decoder or form, {decoder} and {form}, that there is not.")
    num_frames = source.number(1, MAX_FRAMES, "number of frames")
    height, width = source.number(1, MAX_SIDE, "height"), source.number(1, MAX_SIDE, "width")
    if DECODERS[decoder] in OFFICIAL:
        arguments = _read_hnerv(source, DECODERS[decoder], num_frames)
        _check_network(arguments, num_frames, height, width, len(source.data))
    else:
        arguments = _read_hinerv(source, DECODERS[decoder], num_frames, (height, width))
        if form != FORM_STEPS:
            raise CorruptStreamError("The segment's description of its decoder contradicts itself: get the file again.")
        _check_hinerv(arguments, len(source.data))
    return form, DECODERS[decoder] not in OFFICIAL, arguments, (num_frames, height, width)


def _read_hnerv(source: _Bytes, decoder: str, num_frames: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "embedding_dim": source.number(1, MAX_WIDTH, "number of embedding channels"),
        "width": source.number(1, MAX_WIDTH, "first width"),
        "expansion": [source.number(1, MAX_SIDE, "expansion") for _ in range(2)],
    }
    stages = [
        (
            source.number(1, MAX_WIDTH, "width"),
            source.number(1, MAX_KERNEL, "kernel"),
            source.number(1, MAX_STRIDE, "stride"),
        )
        for _ in range(source.number(1, MAX_STAGES, "number of stages"))
    ]
    for position, name in enumerate(("widths", "kernels", "strides")):
        arguments[name] = [stage[position] for stage in stages]
    output = source.byte()
    arguments["output"] = OUTPUTS[output] if output < len(OUTPUTS) else source.real()
    levels = source.number(0, MAX_TIME_LEVELS, "number of time levels")
    if bool(levels) != (decoder == "nerv") or output > len(OUTPUTS):
        raise CorruptStreamError("The segment's description of its decoder contradicts itself: get the file again.")
    if levels:
        arguments |= {"time_levels": levels, "time_base": source.real()}
    else:
        size = [source.number(1, MAX_SIDE, "embedding size") for _ in range(2)]
        arguments |= {"stored_frames": num_frames, "embedding_size": size}
    return arguments | {"encoder_strides": [], "encoder_widths": []}


def _read_hinerv(source: _Bytes, decoder: str, num_frames: int, size: tuple[int, int]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "frame_size": list(size),
        "stored_frames": num_frames,
        "embedding_dim": source.number(1, MAX_WIDTH, "number of embedding channels"),
        "width": source.number(1, MAX_WIDTH, "first width"),
        "form": "bilinear" if decoder == "hinerv" else "pixel_shuffle",
        "mlp_ratio": source.number(1, MAX_RATIO, "ratio of a feed-forward"),
        "head_stride": source.number(1, MAX_STRIDE, "stride of the head"),
    }
    stages = [
        (
            source.number(1, MAX_WIDTH, "width"),
            source.number(1, MAX_KERNEL, "kernel"),
            source.number(1, MAX_STRIDE, "stride"),
            source.number(1, MAX_FRAMES, "number of nodes"),
            source.number(0, MAX_WIDTH, "number of grid channels"),
            source.number(0, MAX_WIDTH, "number of latent channels"),
        )
        for _ in range(source.number(1, MAX_STAGES, "number of stages"))
    ]
    for position, name in enumerate(STAGE_FIELDS):
        arguments[name] = [stage[position] for stage in stages]
    if _decoder_name(arguments) != decoder:
        raise CorruptStreamError("The segment's description of its decoder contradicts itself: get the file again.")
    return arguments


def _check_hinerv(arguments: Mapping[str, Any], length: int) -> None:
    """As `_check_network`, of a `HiNeRV`."""
    height, width = arguments["frame_size"]
    strides, head_stride = arguments["strides"], arguments["head_stride"]
    (rows, columns), *maps = map_sizes((height, width), strides, head_stride)
    features = max(arguments["embedding_dim"], arguments["width"]) * rows * columns
    stages = zip(*(arguments[name] for name in STAGE_FIELDS), maps, strict=True)
    for channels, _, stride, _, grid, latent, size in stages:
        # The map before it is cut to the frame, the hidden one of the feed-forward, and grid and latents side by side.
        enlarged = channels * rows * stride * columns * stride
        rows, columns = size
        wide = max(channels * arguments["mlp_ratio"], grid + latent)
        features = max(features, enlarged, wide * rows * columns)
    features = max(features, 3 * head_stride**2 * rows * columns)
    if any(kernel % 2 == 0 for kernel in arguments["kernels"]):
        raise CorruptStreamError("The segment's decoder does not fit its frames: get the file again.")
    if height * width > MAX_PIXELS or features > max(FREE_FEATURES, FEATURES_PER_PIXEL * height * width):
        raise CorruptStreamError("The segment's decoder is larger than its frames can need: get the file again.")
    _check_values(hinerv_values(Sizes(**_counted(arguments))), length)


def _counted(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Sizes`, of those of `HiNeRV`."""
    return {"num_frames" if name == "stored_frames" else name: value for name, value in arguments.items()}


def _check_network(arguments: Mapping[str, Any], num_frames: int, height: int, width: int, length: int) -> None:
    """Refuses a network that does not fit its frames, or is out of proportion to them or to the payload's length."""
    rows, columns = arguments.get("embedding_size", (1, 1))
    features = arguments["width"] * math.prod(arguments["expansion"]) * rows * columns
    rows, columns = rows * arguments["expansion"][0], columns * arguments["expansion"][1]
    for channels, stride in zip(arguments["widths"], arguments["strides"], strict=True):
        rows, columns = rows * stride, columns * stride
        features = max(features, channels * rows * columns)
    multiple = math.prod(arguments["strides"])
    fits = (rows, columns) == (whole_multiple(height, multiple), whole_multiple(width, multiple))
    if arguments.get("time_levels"):
        fits = fits and arguments["embedding_dim"] == 2 * arguments["time_levels"]
    elif arguments["expansion"] != [1, 1]:  # padding reaches to the next multiple of all enlargement
        sides = [multiple * arguments["expansion"][0], multiple * arguments["expansion"][1]]
        fits = (rows, columns) == (whole_multiple(height, sides[0]), whole_multiple(width, sides[1]))
    if not fits or any(kernel % 2 == 0 for kernel in arguments["kernels"]):
        raise CorruptStreamError("The segment's decoder does not fit its frames: get the file again.")
    if height * width > MAX_PIXELS or features > max(FREE_FEATURES, FEATURES_PER_PIXEL * height * width):
        raise CorruptStreamError("The segment's decoder is larger than its frames can need: get the file again.")
    values = decoder_parameters(
        arguments["embedding_dim"],
        arguments["width"],
        math.prod(arguments["expansion"]),
        arguments["widths"],
        arguments["kernels"],
        arguments["strides"],
    )
    if not arguments.get("time_levels"):
        values += num_frames * arguments["embedding_dim"] * math.prod(arguments["embedding_size"])
    _check_values(values, length)


def _check_values(values: int, length: int) -> None:
    if values > min(MAX_VALUES, FREE_SYMBOLS + SYMBOLS_PER_BYTE * length):
        raise CorruptStreamError(f"The segment states {values:,} values, too many for its length: get the file again.")


# --- tensors ---


def is_map(name: str) -> bool:
    """Whether a tensor of this name is (frames or nodes, channels, rows, columns): embeddings, latents or a grid."""
    return name.partition(".")[0] in ("embeddings", "latents", "grids")


def _streams(codes: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors that share one model each: channels of maps as differences, weights, and all biases together."""
    tensors = []
    small = []
    for name, code in codes.items():
        if is_map(name):
            tensors += list(differences(code).transpose(0, 1))  # C of (N, h, w)
        elif code.ndim > 1:
            tensors.append(code)
        else:
            small.append(code)
    return [*tensors, torch.cat(small)]


def _decode_streams(data: bytes, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Codes, int32, by name."""
    groups: list[Sequence[int]] = []
    small = 0
    for name, shape in shapes.items():
        if is_map(name):
            groups += [[shape[0], *shape[2:]]] * shape[1]
        elif len(shape) > 1:
            groups.append(shape)
        else:
            small += shape[0]
    streams = iter(decode_tensors(data, [*groups, [small]]))
    codes: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if is_map(name):
            changes = torch.stack([next(streams) for _ in range(shape[1])], 1)
            codes[name] = changes.cumsum(0).to(torch.int32)
        elif len(shape) > 1:
            codes[name] = next(streams)
    biases = next(streams)
    for name, shape in shapes.items():
        if len(shape) == 1:
            codes[name], biases = biases.split([shape[0], len(biases) - shape[0]])
    return codes


def pack_steps(player: Player, codes: Mapping[str, Tensor], exponents: Mapping[str, int]) -> bytes:
    """A payload of integers and the exponents of their steps, by name and in the player's order."""
    steps = bytes(exponents[name] + 128 for name in codes)
    return _pack_layout(FORM_STEPS, player) + steps + encode_tensors(_streams(codes))


def pack_ranges(player: Player, tensors: Mapping[str, QuantizedTensor]) -> bytes:
    """A payload of the paper's quantised tensors, which it keeps exactly.

    Args:
        player: the decoder that the tensors belong to.
        tensors: by name, in the player's order.

    Raises:
        ValueError: ranges are not those that `quantize` makes.
    """
    sides = b""
    for name, tensor in tensors.items():
        sizes, lines = tuple(tensor.codes.shape), tuple(tensor.minimum.shape)
        flat = [axis for axis, (size, line) in enumerate(zip(sizes, lines, strict=False)) if line != size]
        whole = lines == ()
        dtype = torch.float32 if whole else torch.float16
        along = whole or (len(lines) == len(sizes) and len(flat) == 1 and lines[flat[0]] == 1)
        if not along or tensor.scale.shape != lines:
            raise ValueError(f"The ranges of {name} are neither one for the tensor nor one for each line of an axis.")
        sides += bytes([WHOLE if whole else flat[0]])
        for side in (tensor.minimum, tensor.scale):
            if side.dtype != dtype or not side.isfinite().all():
                raise ValueError(f"The ranges of {name} must be finite numbers in {dtype}.")
            sides += side.contiguous().cpu().numpy().tobytes()
    codes = {name: tensor.codes.to(torch.int32) for name, tensor in tensors.items()}
    return _pack_layout(FORM_RANGES, player) + sides + encode_tensors(_streams(codes))


def unpack(payload: bytes) -> Player:
    """The decoder of a payload with its weights, on the CPU.

    Raises:
        CorruptStreamError: the payload is damaged, or states sizes that do not fit each other or its length.
    """
    source = _Bytes(payload)
    form, is_hinerv, arguments, (num_frames, height, width) = _read_layout(source)
    network = HiNeRV if is_hinerv else HNeRV
    with torch.device("meta"):
        shapes = {n: tuple(v.shape) for n, v in Player(network(**arguments), 1, 1, 1).stored_tensors().items()}
    values: dict[str, Tensor] = {}
    if form == FORM_STEPS:
        steps = {name: step_size(source.byte() - 128) for name in shapes}
        codes = _decode_streams(source.rest(), shapes)
        values = {name: codes[name].float() * steps[name] for name in shapes}
    else:
        ranges = {name: _read_ranges(source, name, shape) for name, shape in shapes.items()}
        codes = _decode_streams(source.rest(), shapes)
        for name, (minimum, scale) in ranges.items():
            if int(codes[name].min()) < 0 or int(codes[name].max()) > 255:
                raise CorruptStreamError(f"The codes of {name} do not fit 8 bits: get the file again.")
            values[name] = QuantizedTensor(codes[name], minimum, scale).dequantize()
    if not all(bool(value.isfinite().all()) for value in values.values()):
        raise CorruptStreamError("The segment's weights are not finite: get the file again.")
    model = network(**arguments)
    model.load_state_dict(values)
    return Player(model, num_frames, height, width)


def _read_ranges(source: _Bytes, name: str, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Minima and scales, of a shape that broadcasts."""
    axis = source.byte()
    if axis == WHOLE:
        return torch.tensor(source.real()), torch.tensor(source.real())
    if axis >= len(shape):
        raise CorruptStreamError(f"The ranges of {name} lie along an axis that it does not have: get the file again.")
    lines = [1 if index == axis else size for index, size in enumerate(shape)]
    sides = [source.take(2 * math.prod(lines)) for _ in range(2)]
    minimum, scale = (torch.frombuffer(bytearray(side), dtype=torch.float16).reshape(lines) for side in sides)
    return minimum, scale
