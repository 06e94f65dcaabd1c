"""Entropy coding: lossless, close to the entropy, the same on every machine, and not to be upset by damage."""

import hashlib
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genres.compression import entropy
from genres.compression.container import CorruptStreamError
from genres.compression.entropy import (
    cost_bits,
    decode_tensor,
    decode_tensors,
    empirical_entropy_bits,
    encode_tensor,
    encode_tensors,
)

# What the tables must be on every machine, and a stream of version 1 that must decode for ever.
TABLES_SHA256 = "7710c5a38784f4d3fab5ea7e55ec3fc9facb707323b3a9c2a33d88521b10fffc"
GOLDEN = bytes.fromhex(
    "ea55615fae2bb993cf303200e93ab8112c7b916e0367b8b024a90ad9bfad24d4e0feea4e64796085807848e32728490122c73148daf98d64"
    "e294ba1103e9369f4770215b11d3f09201bd74cf50039d7ea8df6dc306dd8c145e8e656186b04d63cb7f2b65e3f040e2b28ca1059888f216"
    "d7bec6b6506ffa7473904ca933519253dc73744a0da345caee4ada0092224ccdfdfd032e87a62152d551a49440fb2dbee35a6f776e25a7ca"
    "dded2cd7d2d62043d90160cd413c287e"
)
GOLDEN_SHAPES = [(20, 15), (3,), (2, 2), (0,), ()]


def golden_tensors() -> list[Tensor]:
    """Integers without a random generator: squares modulo a prime, thinned out to a peak at 0."""
    squares = torch.arange(300).square() % 101 - 50
    return [
        (squares * squares.abs() // 200).reshape(20, 15),
        torch.tensor([1, -2, 30000]),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor(-7),
    ]


def gaussian(count: int, deviation: float, seed: int = 0) -> Tensor:
    normal = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return (normal * deviation).round().int()


def laplace(count: int, deviation: float, seed: int = 0) -> Tensor:
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(seed)) - 0.5
    return (-uniform.sign() * (1 - 2 * uniform.abs()).clamp_min(1e-7).log() * deviation / math.sqrt(2)).round().int()


def same(first: Tensor, second: Tensor) -> bool:
    return second.dtype == torch.int32 and torch.equal(first.to(torch.int32), second)


# --- round trips ----------------------------------------------------------------------------------------------------

values = st.one_of(st.integers(-3, 3), st.integers(-200, 200), st.integers(-32767, 32767))
shapes = st.lists(st.integers(0, 5), max_size=3)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(shapes)
    count = math.prod(shape)
    kind = draw(st.sampled_from([values, st.integers(-1, 1), st.just(draw(values))]))
    return torch.tensor(draw(st.lists(kind, min_size=count, max_size=count)), dtype=torch.int64).reshape(shape)


@settings(max_examples=30, deadline=None)
@given(st.lists(tensors(), max_size=3))
def test_round_trip(sources: list[Tensor]) -> None:
    data = encode_tensors(sources)
    decoded = decode_tensors(data, [source.shape for source in sources])
    assert all(map(same, sources, decoded))
    cost = sum(map(cost_bits, sources)) / 8
    assert cost - 1 <= len(data) <= cost + 2


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20_000), st.floats(0.1, 3000), st.integers(-3000, 3000), st.integers(0, 100), st.integers(0, 100))
def test_round_trip_of_larger_tensors(count: int, deviation: float, centre: int, zeros: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal(count) * deviation + centre * (rng.random() < 0.5)
    numbers = np.where(100 * rng.random(count) < zeros, 0, numbers).round().clip(-32767, 32767)
    source = torch.from_numpy(numbers.astype(np.int32))
    assert same(source, decode_tensor(encode_tensor(source), (count,)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_any_integer_type(dtype: torch.dtype) -> None:
    source = (torch.arange(120).reshape(4, 5, 6) % 2).to(dtype)
    assert same(source, decode_tensor(encode_tensor(source), (4, 5, 6)))
    assert same(source.permute(2, 0, 1), decode_tensor(encode_tensor(source.permute(2, 0, 1)), (6, 4, 5)))


def test_nothing_takes_nothing() -> None:
    assert encode_tensors([]) == b"" and encode_tensor(torch.zeros(0, 3, dtype=torch.int32)) == b""
    assert decode_tensors(b"", []) == [] and decode_tensor(b"", (0, 3)).shape == (0, 3)
    assert (
        cost_bits(torch.zeros(0, dtype=torch.int32)) == 0 == empirical_entropy_bits(torch.zeros(0, dtype=torch.int32))
    )


def test_constant_tensors_take_next_to_nothing() -> None:
    assert len(encode_tensor(torch.full((100_000,), -77))) <= 6
    assert empirical_entropy_bits(torch.full((100_000,), -77)) == 0


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        (torch.zeros(3), "Only integers can be coded, and this tensor is of torch.float32"),
        (torch.tensor([0, 32768]), "within -32767 and 32767"),
        (torch.tensor([-32768, 0]), "within -32767 and 32767"),
        (torch.zeros(1, dtype=torch.int8).expand(2**25 + 1), "spread these over several"),
    ],
)
def test_refusals(symbols: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_tensor(symbols)


# --- size and speed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [gaussian, laplace])
@pytest.mark.parametrize("deviation", [0.8, 2, 8, 30])  # 1.7 to 7 bits per value
@pytest.mark.parametrize("count", [2000, 20_000, 500_000])
def test_size_is_within_2_percent_of_the_entropy(draw: Any, deviation: float, count: int) -> None:
    symbols = draw(count, deviation)
    assert 8 * len(encode_tensor(symbols)) <= 1.02 * empirical_entropy_bits(symbols)


@pytest.mark.parametrize("draw", [gaussian, laplace])
@pytest.mark.parametrize("deviation", [0.8, 2, 8, 30])
def test_size_of_small_tensors(draw: Any, deviation: float) -> None:
    """500 values have an entropy below that of their source by about log2(e) / 2 bits for each value that occurs.

    No coder can know that it is given just these, so that much is allowed on top, and 4 bytes of model and rounding.
    """
    symbols = draw(500, deviation)
    chance = len(symbols.unique()) / 2 * math.log2(math.e)
    assert 8 * len(encode_tensor(symbols)) <= 1.02 * empirical_entropy_bits(symbols) + 1.2 * chance + 32


def test_size_of_a_network() -> None:
    """Tensors of a decoder in one stream: large weights, small ones, biases, embeddings."""
    sizes = [1024, 68, 90_000, 1400, 300_000, 768, 60_000, 640, 30_000, 132, 9000, 112, 756, 3, 17_000]
    sources = [(laplace, gaussian)[i % 2](size, 1.5 * 1.4 ** (i % 7), seed=i) for i, size in enumerate(sizes)]
    data = encode_tensors(sources)
    assert 8 * len(data) <= 1.005 * sum(map(empirical_entropy_bits, sources))
    assert len(data) == pytest.approx(sum(map(cost_bits, sources)) / 8, rel=1e-4)
    assert len(data) < sum(len(encode_tensor(source)) for source in sources)


@pytest.mark.parametrize(
    ("symbols", "allowed"),
    [
        (gaussian(50_000, 8).sort().values, 1.01),  # early blocks are no sample, but for the order of coding
        (torch.cat([gaussian(30_000, 30), gaussian(30_000, 1)]), 1.01),  # two widths
        (gaussian(50_000, 8) * (gaussian(50_000, 1, seed=1) == 1), 1.02),  # pruned
        (torch.cat([gaussian(6000, 4) + 300, gaussian(6000, 4) - 300]), 1.03),  # two peaks
        (gaussian(10_000, 8) * 16, 1.03),  # gaps
        (torch.arange(20_000) * 7919 % 256, 1.01),  # flat
        (torch.where(torch.arange(20_000) % 1000 == 3, 20_000, gaussian(20_000, 4)), 1.01),  # outliers
    ],
)
def test_size_where_no_distribution_fits(symbols: Tensor, allowed: float) -> None:
    assert 8 * len(encode_tensor(symbols)) <= allowed * empirical_entropy_bits(symbols)


def test_speed() -> None:
    symbols = gaussian(1_500_000, 20)
    start = time.process_time()
    data = encode_tensor(symbols)
    middle = time.process_time()
    decode_tensor(data, symbols.shape)
    assert middle - start < 2 and time.process_time() - middle < 2


def test_entropy_is_that_of_the_histogram() -> None:
    assert empirical_entropy_bits(torch.tensor([0, 0, 1, 2])) == pytest.approx(6)


# --- the same on every machine --------------------------------------------------------------------------------------


def test_tables_are_the_same_everywhere() -> None:
    digest = hashlib.sha256()
    for shape in range(len(entropy.SHAPES)):
        for scale in range(0, entropy.SCALES, 7):
            for centre in (0, 1, -30):
                low, frequencies = entropy._table(entropy.Model(shape, scale, centre))
                assert frequencies.dtype == np.int64 and frequencies.min() >= 1 and frequencies.sum() == 2**24
                learned = entropy._learned(frequencies, np.arange(len(frequencies)) % 3, 64)
                assert learned.min() >= 1 and learned.sum() == 2**24
                digest.update(repr(low).encode() + frequencies.tobytes() + learned.tobytes())
    assert digest.hexdigest() == TABLES_SHA256


def test_powers_and_logarithms() -> None:
    exponents = np.arange(-5 * 4096, 0, 97)
    assert np.allclose(entropy._exp2(exponents, 24) / 2**24, 2.0 ** (exponents / 4096), atol=1e-7)
    numbers = np.array([1, 2, 3, 1000, 2**18 - 1])
    assert np.abs(entropy._log2()[numbers] / 4096 - np.log2(numbers)).max() < 1 / 4096


class PlainDecoder:
    """The range decoder of docs/file-formats.md in plain integers, which knows nothing of constriction."""

    def __init__(self, data: bytes) -> None:
        self.data = data + bytes(8)
        self.point = int.from_bytes(self.data[:8], "big")
        self.position = 8
        self.lower, self.width = 0, 2**64 - 1

    def symbol(self, frequencies: Sequence[int] | np.ndarray) -> int:
        scale = self.width >> 24
        quantile = (self.point - self.lower) % 2**64 // scale
        ends = np.cumsum(frequencies)
        symbol = int(np.searchsorted(ends, quantile, side="right"))
        left, frequency = int(ends[symbol]) - int(frequencies[symbol]), int(frequencies[symbol])
        self.lower = (self.lower + scale * left) % 2**64
        self.width = scale * frequency
        if self.width < 2**32:
            word = int.from_bytes((self.data[self.position : self.position + 4] + bytes(4))[:4], "big")
            self.position += 4
            self.lower = (self.lower << 32) % 2**64
            self.point = (self.point << 32) % 2**64 + word
            self.width <<= 32
        return symbol

    def number(self, bits: int) -> int:
        return self.symbol([2 ** (24 - bits)] * 2**bits)

    def tensor(self, count: int) -> list[int]:
        uniform = [entropy._frequencies(np.ones(size, np.int64)) for size in (8, 144, 6)]
        shape, scale, strength = (self.symbol(frequencies) for frequencies in uniform)
        length = self.symbol(entropy._frequencies(np.array(entropy.CENTRE_WEIGHTS)))
        code = 2 ** (length - 1) + self.number(length - 1) if length > 1 else length
        low, prior = entropy._table(entropy.Model(shape, scale, (code + 1) // 2 if code % 2 else -code // 2))
        counts = np.zeros_like(prior)
        symbols = [0] * count
        for start, end in entropy._blocks(count, learns=strength > 0):
            learns = strength and start
            frequencies = entropy._learned(prior, counts, entropy.STRENGTHS[strength]) if learns else prior
            places = [self.symbol(frequencies) for _ in range(start, end)]
            for position, place in zip(entropy._order(count, start, end), places, strict=True):
                symbols[position] = low + place if place < len(prior) - 1 else None
                counts[place] += 1
            for position in entropy._order(count, start, end):
                if symbols[position] is None:
                    symbols[position] = self.number(16) - 2**15
        return symbols


def test_golden_stream_is_decoded_for_ever() -> None:
    assert all(map(same, golden_tensors(), decode_tensors(GOLDEN, GOLDEN_SHAPES)))


def test_constriction_uses_exactly_our_frequencies() -> None:
    """A decoder without constriction and without floats reads what constriction wrote, escapes and all."""
    decoder = PlainDecoder(GOLDEN)
    for tensor in golden_tensors():
        if tensor.numel():
            assert decoder.tensor(tensor.numel()) == tensor.flatten().tolist()
    outliers = torch.where(torch.arange(700) % 100 == 3, 20_000, gaussian(700, 4))
    assert PlainDecoder(encode_tensor(outliers)).tensor(700) == outliers.tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 987, 4096, 30_001])
@pytest.mark.parametrize("learns", [False, True])
def test_every_symbol_is_coded_once(count: int, learns: bool) -> None:
    blocks = list(entropy._blocks(count, learns))
    assert blocks[0][0] == 0 and blocks[-1][1] == count
    order = np.concatenate([entropy._order(count, *block) for block in blocks])
    assert np.array_equal(np.sort(order), np.arange(count))


# --- damage ---------------------------------------------------------------------------------------------------------


def test_mutated_streams_give_an_error_or_a_tensor() -> None:
    """Whether the bytes are the right ones is the container's to say; a stream must only stay within its bounds."""
    source = laplace(3000, 5)
    data = encode_tensor(source)
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(300):
        mutated = bytearray(data)
        mutated[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
        try:
            assert decode_tensor(bytes(mutated), (3000,)).shape == (3000,)
        except CorruptStreamError:
            refused += 1
    assert refused > 30


def test_random_streams_are_refused() -> None:
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(200):
        try:
            decode_tensor(rng.bytes(rng.integers(1, 300)), (int(rng.integers(1, 2000)),))
        except CorruptStreamError:
            refused += 1
    assert refused > 190


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        (b"\0", (0,), "followed by other bytes"),
        (encode_tensor(gaussian(500, 5))[:-20], (500,), "cut short"),
        (encode_tensor(gaussian(500, 5)) + bytes(20), (500,), "followed by other bytes"),
        (encode_tensor(gaussian(500, 5)), (400,), "damaged"),
        (encode_tensor(gaussian(500, 5)), (2**25,), "damaged"),
        (b"", (2**62, 2**62), "sizes that no stream holds"),
        (b"", (2**25 + 1,), "sizes that no stream holds"),
        (b"", (-1, -1), "sizes that no stream holds"),
        (b"\xff" * 20, (5,), "damaged"),
    ],
)
def test_damage_that_is_noticed(data: bytes, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(CorruptStreamError, match=message):
        decode_tensor(data, shape)


def test_streams_made_to_be_slow_are_refused() -> None:
    with pytest.raises(CorruptStreamError, match="limits: 256 tensors"):
        decode_tensors(b"", [(1,)] * 257)
    with pytest.raises(ValueError, match="spread these over several"):
        encode_tensors([torch.tensor(1)] * 257)
    coder = entropy.constriction.stream.queue.RangeEncoder()
    choices = (0, entropy.SCALES - 1, 3, 0)  # the widest table there is, and learning
    for choice, (model, _) in zip(choices, entropy._parameters(), strict=True):
        coder.encode(choice, model)
    with pytest.raises(CorruptStreamError, match="damaged"):
        decode_tensor(entropy._seal(coder), (100_000,))
