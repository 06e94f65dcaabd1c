"""Entropy coding of integer tensors: a range coder with models that every machine builds bit for bit alike.

A tensor is coded with a generalised normal distribution (Laplace, Gaussian and what lies between and beyond them),
whose shape, scale and centre are chosen by their exact cost and written in front. From there the model may learn: the
symbols come in blocks that grow with what is already coded, and each block is coded with the distribution plus the
counts of the blocks before. Large tensors are thus coded with their own histogram without its being written, and small
ones with little more than the distribution.

All tables are made with integer arithmetic. A float enters once, where constriction takes a table as float64, and is
exact there: see `_model`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import constriction
import numpy as np
import torch
from torch import Tensor

from genres.compression.container import AGAIN, CorruptStreamError

MAX_MAGNITUDE = 2**15 - 1
MAX_SYMBOLS = 2**25  # of one stream: 128 MiB as int32, and 2 s of decoding
MAX_TENSORS = 2**8  # of one stream; with the next limit, tables take a bounded time in a stream made to be slow
MAX_LEARNING = 2**12  # symbols in a table that learns

PRECISION = 24  # bits of a frequency; what constriction's range coder works with
LOG_BITS = 12  # fractional bits of logarithms
WEIGHT_BITS = 22  # of the largest weight of a table: with 2^16 symbols, their sum times 2^24 stays below 2^62

SHAPES = (6, 8, 10, 12, 16, 20, 24, 32)  # exponent of the distance, in 16ths: 16 is Laplace, 32 Gaussian
LAPLACE = SHAPES.index(16)
SCALES = 144  # distances at which the weight is half of that at the centre, 8 to the octave, from 1/8
LOG_UNITS = 2
UNITS = 2**LOG_UNITS  # the centre is a whole number of quarters
CENTRE_WEIGHTS = (48, *(4,) * 7, *(2,) * 11)  # by the bits of the number that stands for the centre: 0 costs 1 bit
TAIL_BITS = 18  # symbols of less than 2^-18 of the largest weight are escaped
ESCAPE_BITS = 14  # the escape has 2^-14 of all weight to begin with
RAW_BITS = 16  # of an escaped symbol
STRENGTHS = (0, 16, 64, 256, 1024, 4096)  # symbols that the distribution counts for beside the learned; 0: no learning

FIRST_BLOCK = 64  # symbols; later blocks are a quarter of all before them
LARGEST_BLOCK = 2**20  # so that the arrays of one step stay small
COUNT_BITS = 12  # fractional bits of learned weights

Integers = np.ndarray


# --- what callers use -----------------------------------------------------------------------------------------------


def encode_tensor(symbols: Tensor) -> bytes:
    """Codes one tensor; see `encode_tensors`, which is smaller for many."""
    return encode_tensors([symbols])


def decode_tensor(data: bytes, shape: Sequence[int]) -> Tensor:
    """The tensor of `encode_tensor`: int32, on the CPU, of the given shape; errors as of `decode_tensors`."""
    return decode_tensors(data, [shape])[0]


def encode_tensors(tensors: Sequence[Tensor]) -> bytes:
    """Codes tensors into one stream, which takes the sum of their `cost_bits` and about one byte.

    Args:
        tensors: of any integer type and any shape, on any device; values from -32767 to 32767.

    Raises:
        ValueError: a tensor is not of integers or has values out of range, or they are more than the limits allow.
    """
    coder = constriction.stream.queue.RangeEncoder()
    if len(tensors) > MAX_TENSORS or sum(tensor.numel() for tensor in tensors) > MAX_SYMBOLS:
        raise ValueError(f"A stream holds {MAX_TENSORS} tensors and {MAX_SYMBOLS} symbols: spread these over several.")
    for symbols in map(_flat, tensors):
        if len(symbols):
            _encode(coder, symbols, _choose(symbols)[0])
    return _seal(coder)


def decode_tensors(data: bytes, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The tensors of `encode_tensors`: int32, on the CPU, of the given shapes.

    A range coder notices little damage by itself: a stream is refused if it cannot come from the encoder or if its
    length does not fit its symbols. Whether its bytes are the right ones is for the container's checksums to say.

    Raises:
        CorruptStreamError: the stream is damaged, or the shapes are not its own or exceed the limits.
    """
    counts = [math.prod(shape) for shape in shapes]
    if any(size < 0 for shape in shapes for size in shape) or len(counts) > MAX_TENSORS or sum(counts) > MAX_SYMBOLS:
        raise CorruptStreamError(
            f"The coded tensors have sizes that no stream holds (limits: {MAX_TENSORS} tensors, {MAX_SYMBOLS} symbols)."
        )
    decoder = _Decoder(data)
    tensors = [
        torch.from_numpy(_decode(decoder, count)).reshape(tuple(shape))
        for shape, count in zip(shapes, counts, strict=True)
    ]
    decoder.check_end()
    return tensors


def cost_bits(symbols: Tensor) -> float:
    """What `encode_tensors` will take for this tensor in bits, model and all; the stream adds about one byte."""
    flat = _flat(symbols)
    return _choose(flat)[1] if len(flat) else 0.0


def empirical_entropy_bits(symbols: Tensor) -> float:
    """Number of symbols times the entropy of their histogram: what an ideal coder takes that is given the histogram."""
    counts = np.unique(_flat(symbols), return_counts=True)[1]
    total = counts.sum()
    return float((counts * (np.log2(total) - np.log2(counts))).sum()) if total else 0.0


# --- tables of integers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """How a tensor is modelled: indices into SHAPES, SCALES and STRENGTHS, and the centre in quarters of a symbol."""

    shape: int
    scale: int
    centre: int
    strength: int = 0

    @property
    def centre_code(self) -> int:
        """The centre as 0, 1, 2, ... for 0, 1, -1, 2, -2, ..."""
        return 2 * self.centre - 1 if self.centre > 0 else -2 * self.centre


@cache
def _powers() -> Integers:
    """2^(i / 4096) for i = 0 to 4095 with 30 fractional bits, rounded down; made of square roots of integers."""
    bits = 64
    root = 2 << bits
    for _ in range(LOG_BITS):
        root = math.isqrt(root << bits)
    values = [1 << bits]
    while len(values) < 2**LOG_BITS:
        values.append(values[-1] * root >> bits)
    return np.array([value >> (bits - 30) for value in values], np.int64)


def _exp2(exponent: Integers, bits: int) -> Integers:
    """2^(exponent / 4096) with `bits` fractional bits, rounded down, where exponent / 4096 + bits is at most 30."""
    return _powers()[exponent & (2**LOG_BITS - 1)] >> (30 - bits - (exponent >> LOG_BITS))


@cache
def _log2() -> Integers:
    """log2 of the integers below 2^18 in 4096ths, rounded down, by squaring; 0 for 0, which has none."""
    numbers = np.maximum(np.arange(2**18, dtype=np.int64), 1)
    length = np.zeros_like(numbers)
    for bit in (16, 8, 4, 2, 1):
        length += np.where(numbers >> (length + bit) > 0, bit, 0)
    mantissa = numbers << (30 - length)  # 1 to 2, with 30 fractional bits
    logarithm = length
    for _ in range(LOG_BITS):
        mantissa = mantissa * mantissa >> 30
        carry = mantissa >> 31  # 1 where the square reached 2
        mantissa >>= carry
        logarithm = 2 * logarithm + carry
    return logarithm


def _table(model: Model) -> tuple[int, Integers]:
    """The lowest symbol, and the frequencies (K + 1,) of K symbols from there on and, at last, of the escape."""
    exponent = SHAPES[model.shape]
    scale = (model.scale << LOG_BITS) // 8 + (LOG_UNITS - 3 << LOG_BITS)  # log2 of a distance in units of the centre
    # The weight 2^-((distance / scale)^exponent) falls below 2^-TAIL_BITS where (distance / scale)^exponent reaches it.
    reach = np.minimum(scale + _log2()[TAIL_BITS] * 16 // exponent, 17 << LOG_BITS)
    radius = (int(_exp2(reach, 0)) >> LOG_UNITS) + 1
    middle = (model.centre + UNITS // 2) // UNITS
    low, high = max(middle - radius, -MAX_MAGNITUDE), min(middle + radius, MAX_MAGNITUDE)
    distance = np.abs(np.arange(low, high + 1, dtype=np.int64) * UNITS - model.centre)
    power = (_log2()[distance] - scale) * exponent // 16  # log2 of (distance / scale)^exponent
    drop = _exp2(np.clip(power, -LOG_BITS << LOG_BITS, 5 << LOG_BITS), LOG_BITS)  # more than 2^5 bits leave no weight
    drop[distance == 0] = 0
    weights = np.empty(len(distance) + 1, np.int64)
    weights[:-1] = _exp2(-drop, WEIGHT_BITS)
    weights[-1] = (weights[:-1].sum() >> ESCAPE_BITS) + 1
    return low, _frequencies(weights)


def _frequencies(weights: Integers) -> Integers:
    """Frequencies (..., K) of at least 1 that add up to 2^24, for weights (..., K) whose sums stay below 2^39."""
    size = weights.shape[-1]
    sums = weights.cumsum(-1)
    ends = sums * (2**PRECISION - size) // sums[..., -1:] + np.arange(1, size + 1)
    return np.diff(ends, axis=-1, prepend=0)


def _learned(prior: Integers, counts: Integers, strength: int) -> Integers:
    """Frequencies (..., K) from those of the distribution (K,) and from counts (..., K)."""
    shift = PRECISION - COUNT_BITS
    return _frequencies((prior * strength >> shift) + (counts << COUNT_BITS))


def _model(frequencies: Integers) -> constriction.stream.model.Model:
    """constriction's model with exactly these frequencies.

    constriction gives K symbols a frequency of 1 each and shares out the other 2^24 - K by the floats that it is
    handed, times (2^24 - K) / their sum. Handed frequency - 1, they add up to 2^24 - K: the factor is exactly 1, and
    every partial sum is an integer below 2^24, exact in float64 in whatever order it is formed.
    """
    return constriction.stream.model.Categorical((frequencies - 1).astype(np.float64), perfect=False)


@cache
def _uniform(bits: int) -> constriction.stream.model.Model:
    return constriction.stream.model.Uniform(2**bits)  # exact: constriction divides 2^24 by it


@cache
def _parameters() -> tuple[tuple[constriction.stream.model.Model, Integers], ...]:
    """Models and frequencies for shape, scale, strength and the class of the centre."""
    tables = [np.ones(size, np.int64) for size in (len(SHAPES), SCALES, len(STRENGTHS))]
    tables.append(np.array(CENTRE_WEIGHTS, np.int64))
    return tuple((_model(table), table) for table in map(_frequencies, tables))


# --- order and blocks -----------------------------------------------------------------------------------------------


def _order(count: int, start: int, end: int) -> Integers:
    """Positions in the tensor of the symbols that are coded as start to end - 1.

    Steps of the golden ratio, made coprime to the length, spread the first blocks over the whole tensor: what they
    teach then holds for the rest, however the tensor is laid out.
    """
    step = count * 610 // 987  # neighbours in Fibonacci's sequence
    while math.gcd(step, count) != 1:
        step += 1
    return np.arange(start, end, dtype=np.int64) * step % count


def _blocks(count: int, learns: bool) -> Iterator[tuple[int, int]]:
    """Where blocks start and end."""
    start = 0
    while start < count:
        end = min(start + (min(max(FIRST_BLOCK, start // 4), LARGEST_BLOCK) if learns else LARGEST_BLOCK), count)
        yield start, end
        start = end


# --- the encoder's choice -------------------------------------------------------------------------------------------


def _flat(symbols: Tensor) -> Integers:
    """The symbols as int32 (N,) on the CPU, checked."""
    if symbols.is_floating_point() or symbols.is_complex():
        raise ValueError(f"Only integers can be coded, and this tensor is of {symbols.dtype}: round it first.")
    flat = symbols.detach().reshape(-1).cpu()
    if len(flat) and (int(flat.min()) < -MAX_MAGNITUDE or int(flat.max()) > MAX_MAGNITUDE):
        raise ValueError(f"Symbols must lie within -{MAX_MAGNITUDE} and {MAX_MAGNITUDE}: use larger steps.")
    return flat.to(torch.int32).numpy()


def _choose(symbols: Integers) -> tuple[Model, float]:
    """The cheapest model and its cost in bits, counted exactly; the search starts from moments of the symbols."""
    low = int(symbols.min())
    counts = np.bincount(symbols - low)
    values = np.flatnonzero(counts)
    counts, values = counts[values], values + low

    @cache
    def price(model: Model) -> float:
        return _cost(model, values, counts)

    def guess(shape: int, centre: int) -> Model:
        """The scale of maximum likelihood for real numbers."""
        exponent = SHAPES[shape] / 16
        moment = float(counts @ np.abs(values - centre / UNITS) ** exponent) / len(symbols) * exponent * math.log(2)
        scale = round(8 * (math.log2(moment) / exponent + 3)) if moment > 0 else 0
        return Model(shape, min(max(scale, 0), SCALES - 1), centre)

    def descend(best: Model) -> Model:
        """The scale of the nearest minimum of the cost."""
        for step in (1, -1):
            while 0 <= best.scale + step < SCALES:
                other = replace(best, scale=best.scale + step)
                if price(other) >= price(best):
                    break
                best = other
        return best

    mean = float(counts @ values) / len(symbols)
    median = int(values[np.searchsorted(counts.cumsum(), len(symbols) / 2)])
    mode = int(values[counts.argmax()])
    centres = sorted({0, round(mean * UNITS), median * UNITS, mode * UNITS})
    best = min((guess(LAPLACE, centre) for centre in centres), key=price)
    guesses = sorted((guess(shape, best.centre) for shape in range(len(SHAPES))), key=price)
    best = min(map(descend, guesses[:3]), key=price)
    around = sorted({*centres, best.centre - 1, best.centre + 1})
    best = min((descend(guess(best.shape, centre)) for centre in around), key=price)
    return _with_strength(best, price(best), symbols)


def _cost(model: Model, values: Integers, counts: Integers) -> float:
    """Bits for a tensor with these values (K,), each so often (K,), without learning."""
    low, frequencies = _table(model)
    places = values - low
    places = np.where((places >= 0) & (places < len(frequencies) - 1), places, len(frequencies) - 1)
    escaped = int(counts[places == len(frequencies) - 1].sum())
    return _parameter_cost(model) + float(counts @ _bits(frequencies)[places]) + RAW_BITS * escaped


def _parameter_cost(model: Model) -> float:
    length = model.centre_code.bit_length()
    choices = (model.shape, model.scale, model.strength, length)
    bits = sum(float(table[choice]) for choice, table in zip(choices, _parameter_bits(), strict=True))
    return bits + max(length - 1, 0)


@cache
def _parameter_bits() -> tuple[np.ndarray, ...]:
    return tuple(_bits(frequencies) for _, frequencies in _parameters())


def _with_strength(model: Model, cost: float, symbols: Integers) -> tuple[Model, float]:
    """The model with the strength that makes it cheapest, and its cost in bits."""
    low, prior = _table(model)
    if len(prior) > MAX_LEARNING:
        return model, cost
    places = _places(symbols, low, prior)
    blocks = (_order(len(symbols), *block) for block in _blocks(len(symbols), learns=True))
    counts = np.stack([np.bincount(places[block], minlength=len(prior)) for block in blocks])  # (blocks, K + 1)
    before = counts.cumsum(0) - counts
    best = model, cost
    for strength in range(1, len(STRENGTHS)):
        other = replace(model, strength=strength)
        bits = _parameter_cost(other) + RAW_BITS * int(counts[:, -1].sum())
        bits += float((counts * _bits(_learned(prior, before, STRENGTHS[strength]))).sum())
        if bits < best[1]:
            best = other, bits
    return best


def _bits(frequencies: Integers) -> np.ndarray:
    """What each symbol costs; for decisions only, so that floats do no harm."""
    return PRECISION - np.log2(frequencies)


# --- coding ---------------------------------------------------------------------------------------------------------


def _places(symbols: Integers, low: int, frequencies: Integers) -> Integers:
    """Where the symbols stand in a table, int32; those outside at its end, which is the escape."""
    escape = len(frequencies) - 1
    places = symbols - np.int32(low)
    return np.where((places < 0) | (places > escape), np.int32(escape), places)


def _encode(coder: constriction.stream.queue.RangeEncoder, symbols: Integers, model: Model) -> None:
    code = model.centre_code
    choices = model.shape, model.scale, model.strength, code.bit_length()
    for choice, (entropy_model, _) in zip(choices, _parameters(), strict=True):
        coder.encode(choice, entropy_model)
    if code > 1:
        mantissa_bits = code.bit_length() - 1
        coder.encode(code - (1 << mantissa_bits), _uniform(mantissa_bits))

    low, prior = _table(model)
    frequencies, counts = prior, np.zeros_like(prior)
    strength = STRENGTHS[model.strength]
    for start, end in _blocks(len(symbols), learns=strength > 0):
        if strength and start:
            frequencies = _learned(prior, counts, strength)
        block = symbols[_order(len(symbols), start, end)]
        places = _places(block, low, prior)
        coder.encode(places, _model(frequencies))
        escaped = block[places == len(prior) - 1]
        if len(escaped):
            coder.encode(escaped + np.int32(2**15), _uniform(RAW_BITS))
        counts += np.bincount(places, minlength=len(prior))


def _decode(decoder: _Decoder, count: int) -> Integers:
    """The `count` symbols of the next tensor, int32."""
    symbols = np.empty(count, np.int32)
    if not count:
        return symbols
    shape, scale, strength_index, length = (decoder.one(*parameter) for parameter in _parameters())
    code = (1 << length - 1) + decoder.raw(length - 1, 1)[0] if length > 1 else length
    centre = (code + 1) // 2 if code % 2 else -code // 2
    low, prior = _table(Model(shape, scale, int(centre)))
    frequencies, counts = prior, np.zeros_like(prior)
    strength = STRENGTHS[strength_index]
    if strength and len(prior) > MAX_LEARNING:
        raise CorruptStreamError(f"The coded tensors are damaged: {AGAIN}.")
    for start, end in _blocks(count, learns=strength > 0):
        if strength and start:
            frequencies = _learned(prior, counts, strength)
        places = decoder.many(_model(frequencies), frequencies, end - start)
        block = places + np.int32(low)
        escaped = places == len(prior) - 1
        if escaped.any():
            block[escaped] = decoder.raw(RAW_BITS, int(escaped.sum())) - np.int32(2**15)
        symbols[_order(count, start, end)] = block
        counts += np.bincount(places, minlength=len(prior))
    return symbols


class _Decoder:
    """constriction's range decoder, with a count of the bits that it should have read."""

    # A step of the coder wastes at most the 2^-8 of its range that does not divide by 2^24: log2(1 - 2^-8) bits.
    WASTE = 0.00565
    SLACK = 33  # bits by which the coder runs ahead or behind, with one for rounding

    def __init__(self, data: bytes) -> None:
        words = np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)
        self._available = 8 * len(data)
        self._bits = 0.0
        self._symbols = 0

    def one(self, model: constriction.stream.model.Model, frequencies: Integers) -> int:
        return int(self.many(model, frequencies, 1)[0])

    def many(self, model: constriction.stream.model.Model, frequencies: Integers, count: int) -> Integers:
        """`count` symbols of one model, int32."""
        symbols = self._read(model, count)
        self._count(float(np.bincount(symbols, minlength=len(frequencies)) @ _bits(frequencies)), count)
        return symbols

    def raw(self, bits: int, count: int) -> Integers:
        """`count` numbers of so many bits, int32."""
        symbols = self._read(_uniform(bits), count)
        self._count(bits * count, count)
        return symbols

    def _read(self, model: constriction.stream.model.Model, count: int) -> Integers:
        try:
            return self._coder.decode(model, count)
        except AssertionError:  # what constriction raises for a number that no encoder produces
            raise CorruptStreamError(f"The coded tensors are damaged: {AGAIN}.") from None

    def _count(self, bits: float, symbols: int) -> None:
        self._bits += bits
        self._symbols += symbols
        if self._bits > self._available + self.SLACK:
            raise CorruptStreamError(f"The coded tensors are cut short or damaged: {AGAIN}.")

    def check_end(self) -> None:
        most = self._bits + self.WASTE * self._symbols + self.SLACK if self._symbols else 0
        if self._available > most:
            raise CorruptStreamError(f"The coded tensors are damaged or followed by other bytes: {AGAIN}.")


def _seal(coder: constriction.stream.queue.RangeEncoder) -> bytes:
    """The stream as bytes, big-endian words, ending as early as possible.

    A decoder reads zeros after the end, so any number inside the coder's final interval will do; constriction ends
    with whole words, this with the number that has most zero bytes, which are left out.
    """
    words = np.asarray(coder.get_compressed(), np.uint32)
    emitted, (lower, width) = coder.pos()
    if not len(words):
        return b""
    data = words[:emitted].astype(">u4").tobytes()
    for size in range(5):
        unit = 1 << (64 - 8 * size)
        number = -(-lower // unit) * unit
        if number < min(lower + width, 2**64):
            return data + number.to_bytes(8, "big")[:size]
    # The interval crosses 2^64, and constriction chose that very number: its carry is in the words, zeros remain.
    return data
