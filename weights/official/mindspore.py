"""Checkpoint files of MindSpore (`.ckpt`): protocol buffers, read here without MindSpore and without running anything.

    Checkpoint   1: Value, repeated
    Value        1: name (text)   2: TensorProto
    TensorProto  1: dimensions (integers)   2: type (text)   3: content (bytes, little-endian)

A large tensor comes as several values of one name, whose contents are joined. A file may end in `crc_num` and ten
bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

TYPES = {
    "Float16": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float32": torch.float32,
    "Float64": torch.float64,
    "Int8": torch.int8,
    "Int16": torch.int16,
    "Int32": torch.int32,
    "Int64": torch.int64,
    "UInt8": torch.uint8,
    "Bool": torch.bool,
}
VARINT, BYTES = 0, 2  # the two kinds of field that the format uses
CHECKSUM = b"crc_num"


def is_checkpoint(path: Path) -> bool:
    """Whether the file starts as one of MindSpore's does: a value (field 1, bytes) that starts with its name."""
    with path.open("rb") as file:
        start = file.read(12)
    length_end = next((i for i, byte in enumerate(start[1:], 1) if byte < 128), len(start))
    return start[:1] == b"\x0a" and start[length_end + 1 : length_end + 2] == b"\x0a"


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name.

    Raises:
        ValueError: the file is damaged or holds something other than tensors of known types.
    """
    data = memoryview(path.read_bytes())
    if bytes(data[-17:-10]) == CHECKSUM:
        data = data[:-17]
    contents: dict[str, bytearray] = {}
    forms: dict[str, tuple[str, list[int]]] = {}
    for _, value in _fields(data):
        fields = dict(_fields(_bytes(value)))
        if not {1, 2} <= fields.keys():
            raise ValueError("A value lacks its name or its tensor.")
        name = str(_bytes(fields[1]), "utf-8")
        kind, shape, content = _tensor(_bytes(fields[2]))
        forms.setdefault(name, (kind, shape))
        contents.setdefault(name, bytearray()).extend(content)
    return {name: _decode(name, *forms[name], content) for name, content in contents.items()}


def _tensor(data: memoryview) -> tuple[str, list[int], memoryview]:
    kind, shape, content = "", [], memoryview(b"")
    for field, value in _fields(data):
        if field == 1:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif field == 2:
            kind = str(_bytes(value), "utf-8")
        elif field == 3:
            content = _bytes(value)
    return kind, shape, content


def _decode(name: str, kind: str, shape: list[int], content: bytearray) -> Tensor:
    if kind not in TYPES:
        raise ValueError(f"{name} is of the unknown type {kind!r}.")
    dtype = TYPES[kind]
    count, remainder = divmod(len(content), dtype.itemsize)
    shape = [] if shape == [0] and count == 1 else shape  # how a single number is written
    if remainder or math.prod(shape) != count:
        raise ValueError(f"{name} has {len(content)} bytes, which do not fill its shape {shape}.")
    return torch.frombuffer(content, dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("A number stands where bytes are needed.")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and content of every field of a message."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, position = _varint(data, position)
        if key & 7 == VARINT:
            yield key >> 3, number
        elif key & 7 == BYTES and position + number <= len(data):
            yield key >> 3, data[position : position + number]
            position += number
        else:
            raise ValueError("A field is of an unknown kind or longer than the file.")


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        number, position = _varint(data, position)
        yield number


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """An integer in groups of seven bits, lowest first, and the position after it."""
    number = 0
    for shift in range(0, 64, 7):
        if position >= len(data):
            break
        byte = data[position]
        number, position = number | (byte & 127) << shift, position + 1
        if byte < 128:
            return number, position
    raise ValueError("A number does not end.")
