"""The sound of a video, carried along without decoding: packets, and the parameters that a player needs."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from genres.media.errors import Refusal, VideoError
from genres.media.files import open_media

KEY, DISCARD = 1, 2
NO_TIME = -(2**63)
MAX_TRACKS, MAX_PACKETS, MAX_PARAMETERS = 64, 2**26, 2**24
COLUMNS = 5  # pts, dts, duration, flags, size
TAGS = ("language", "title")
HOLDER = "matroska"  # holds the codec parameters; what it does not know could not be written out again either
DAMAGED = "The sound is damaged"


class AudioPacket(NamedTuple):
    """One compressed packet; times in units of the track's time base.

    `skip` is FFmpeg's record of how many samples to drop at the start and the end, empty where there is none.
    """

    pts: int | None
    dts: int | None
    duration: int
    flags: int
    data: bytes
    skip: bytes = b""


@dataclass(frozen=True)
class AudioTrack:
    """A track of sound as the source held it.

    Attributes:
        codec: FFmpeg's name of the codec ("aac", "opus", ...).
        sample_rate: in Hz.
        channels: number of channels.
        layout: FFmpeg's name of what the channels are ("stereo", "5.1", ...).
        time_base: seconds per unit of the packets' times.
        disposition: FFmpeg's flags (1: default track).
        tags: language and title, where the source has them.
        parameters: codec parameters, extradata included: a Matroska file with next to nothing in it.
        packets: in the order of the source.
    """

    codec: str
    sample_rate: int
    channels: int
    layout: str
    time_base: Fraction
    disposition: int
    tags: dict[str, str]
    parameters: bytes
    packets: tuple[AudioPacket, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the packets."""
        return sum(len(packet.data) for packet in self.packets)


@dataclass(frozen=True)
class AudioTracks:
    """All tracks of sound of a video; empty for a silent one."""

    tracks: tuple[AudioTrack, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tracks)

    def to_bytes(self) -> bytes:
        """All of it, for the file format; `from_bytes` is the reverse."""
        heads, bodies = [], []
        for track in self.tracks:
            columns = zlib.compress(_columns(track.packets).tobytes(), 9)
            parameters = zlib.compress(track.parameters, 9)
            heads.append(
                {
                    "codec": track.codec,
                    "rate": track.sample_rate,
                    "channels": track.channels,
                    "layout": track.layout,
                    "time_base": [track.time_base.numerator, track.time_base.denominator],
                    "disposition": track.disposition,
                    "tags": track.tags,
                    "packets": len(track.packets),
                    "bytes": [len(parameters), len(columns), track.num_bytes],
                    "skips": [[n, p.skip.hex()] for n, p in enumerate(track.packets) if p.skip],
                }
            )
            bodies += [parameters, columns, *(packet.data for packet in track.packets)]
        head = zlib.compress(json.dumps(heads, separators=(",", ":")).encode(), 9)
        return b"".join([struct.pack("<I", len(head)), head, *bodies])

    @classmethod
    def from_bytes(cls, data: bytes) -> AudioTracks:
        """The reverse of `to_bytes`.

        Raises:
            VideoError: the bytes are not what `to_bytes` writes.
        """
        try:
            return cls(tuple(_read_tracks(data)))
        except Refusal as error:
            raise VideoError(f"{DAMAGED} ({error}).") from error
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, struct.error, zlib.error) as error:
            raise VideoError(f"{DAMAGED} ({type(error).__name__}: {error}).") from error

    def between(self, start: Fraction, stop: Fraction) -> AudioTracks:
        """The packets that begin in [start, stop) seconds, with times counted from `start`."""
        tracks = []
        for track in self.tracks:
            shift = round(start / track.time_base)
            packets = []
            for packet in track.packets:
                time = packet.pts if packet.pts is not None else packet.dts
                if time is None or not start <= time * track.time_base < stop:
                    continue
                pts, dts = (None if t is None else t - shift for t in (packet.pts, packet.dts))
                packets.append(packet._replace(pts=pts, dts=dts))
            tracks.append(replace(track, packets=tuple(packets)))
        return AudioTracks(tuple(tracks))


def _columns(packets: tuple[AudioPacket, ...]) -> np.ndarray:
    """(5, packets) int64: what is not the data; times as differences, which are nearly constant."""
    rows = [
        [
            NO_TIME if p.pts is None else p.pts,
            NO_TIME if p.dts is None else p.dts,
            p.duration,
            p.flags,
            len(p.data),
        ]
        for p in packets
    ]
    table = np.array(rows, np.int64).reshape(-1, COLUMNS).T.astype("<i8")
    table[:2] = np.diff(table[:2], axis=1, prepend=0)  # wraps around at NO_TIME, and back when it is summed
    return np.ascontiguousarray(table)


def _read_tracks(data: bytes) -> Iterator[AudioTrack]:
    (length,) = struct.unpack_from("<I", data)
    heads = json.loads(_inflate(data[4 : 4 + length], MAX_PARAMETERS))
    if not isinstance(heads, list) or len(heads) > MAX_TRACKS:
        raise Refusal("it does not list its tracks")
    place = 4 + length
    for head in heads:
        count, sizes = int(head["packets"]), [int(size) for size in head["bytes"]]
        # Every packet holds a byte at least, so no more are made of a few bytes than there are.
        if not 0 <= count <= min(MAX_PACKETS, sizes[-1]) or min(sizes) < 0 or place + sum(sizes) > len(data):
            raise Refusal("it is cut short")
        parameters, columns, packets = (
            data[place + sum(sizes[:n]) : place + sum(sizes[: n + 1])] for n in range(len(sizes))
        )
        place += sum(sizes)
        table = np.frombuffer(_inflate(columns, count * COLUMNS * 8), "<i8").reshape(COLUMNS, count).copy()
        table[:2] = np.cumsum(table[:2], axis=1)
        skips = {int(number): bytes.fromhex(skip) for number, skip in head["skips"]}
        yield AudioTrack(
            codec=str(head["codec"]),
            sample_rate=int(head["rate"]),
            channels=int(head["channels"]),
            layout=str(head["layout"]),
            time_base=Fraction(*map(int, head["time_base"])),
            disposition=int(head["disposition"]),
            tags={str(key): str(value) for key, value in head["tags"].items()},
            parameters=_inflate(parameters, MAX_PARAMETERS),
            packets=tuple(_read_packets(table, packets, skips)),
        )
    if place != len(data):
        raise Refusal("it has bytes that belong to nothing")


def _read_packets(table: np.ndarray, data: bytes, skips: dict[int, bytes]) -> Iterator[AudioPacket]:
    sizes = table[4].tolist()
    if sizes and (min(sizes) < 0 or sum(sizes) != len(data)):
        raise Refusal("its packets do not fill it")
    place = 0
    for number, (pts, dts, duration, flags, size) in enumerate(table.T.tolist()):
        yield AudioPacket(
            None if pts == NO_TIME else pts,
            None if dts == NO_TIME else dts,
            duration,
            flags,
            data[place : place + size],
            skips.get(number, b""),
        )
        place += size


def _inflate(data: bytes, limit: int) -> bytes:
    """Decompress at most `limit` bytes."""
    machine = zlib.decompressobj()
    result = machine.decompress(data, limit + 1) if limit else machine.decompress(data, 1)
    if len(result) > limit or not machine.eof:
        raise Refusal("a part of it is longer than it may be or cut short")
    return result


# --- from and to files ---


def read_audio_packets(path: str | Path) -> AudioTracks:
    """Every track of sound of a file, packet by packet, bit-exact; nothing is decoded.

    Raises:
        VideoError: the file cannot be read, or holds sound that no container here can describe.
    """
    with open_media(path) as container:
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        if not streams:
            return AudioTracks()
        packets: dict[int, list[AudioPacket]] = {stream.index: [] for stream in streams}
        for packet in container.demux(streams):
            if packet.size:
                packets[packet.stream_index].append(_copy(packet))
        return AudioTracks(tuple(_describe(stream, tuple(packets[stream.index])) for stream in streams))


def _copy(packet: Any) -> AudioPacket:
    flags = KEY * packet.is_keyframe | DISCARD * packet.is_discard
    skip = bytes(packet.get_sidedata("skip_samples")) if packet.has_sidedata("skip_samples") else b""
    return AudioPacket(packet.pts, packet.dts, packet.duration or 0, flags, bytes(packet), skip)


def _describe(stream: Any, packets: tuple[AudioPacket, ...]) -> AudioTrack:
    return AudioTrack(
        codec=stream.codec_context.codec.canonical_name,
        sample_rate=stream.codec_context.sample_rate,
        channels=stream.codec_context.layout.nb_channels,
        layout=stream.codec_context.layout.name,
        time_base=stream.time_base,
        disposition=int(stream.disposition),
        tags={tag: stream.metadata[tag] for tag in TAGS if stream.metadata.get(tag)},
        parameters=_pack_parameters(stream),
        packets=packets,
    )


def _pack_parameters(stream: Any) -> bytes:
    """The codec parameters as a file with one packet of one byte."""
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=HOLDER, container_options={"fflags": "+bitexact"}) as container:
            copy = container.add_stream_from_template(stream, opaque=True)
            nothing: Any = av.Packet(b"\0")  # readers insist on a packet
            nothing.stream, nothing.pts, nothing.dts, nothing.time_base = copy, 0, 0, stream.time_base
            container.mux(nothing)
    except (ValueError, OSError, av.FFmpegError) as error:
        name = stream.codec_context.codec.canonical_name
        raise Refusal(
            f"has sound of the codec {name}, which cannot be copied: leave the sound out or convert it to AAC"
        ) from error
    return file.getvalue()


class SoundMuxer:
    """Adds tracks of sound to an output of PyAV, and feeds their packets in step with the frames.

    Raises:
        Refusal: the format of the output cannot hold a codec.
    """

    def __init__(self, output: Any, audio: AudioTracks):
        self.output = output
        entries: list[tuple[Fraction, int, AudioPacket]] = []
        self.streams: list[Any] = []
        self.audio = audio
        for number, track in enumerate(audio.tracks):
            self.streams.append(_add_stream(output, track))
            for packet in _with_last_duration(track.packets):
                time = packet.dts if packet.dts is not None else packet.pts
                entries.append(((time or 0) * track.time_base, number, packet))
        self.queue = deque(sorted(entries, key=lambda entry: entry[0]))  # stable: packets of a track stay in order

    def feed(self, until: Fraction | None) -> None:
        """Write the packets up to a time in seconds; None for all that are left."""
        while self.queue and (until is None or self.queue[0][0] <= until):
            _, number, packet = self.queue.popleft()
            self.output.mux(self._restore(number, packet))

    def _restore(self, number: int, packet: AudioPacket) -> Any:
        restored: Any = av.Packet(packet.data)
        restored.stream = self.streams[number]
        restored.time_base = self.audio.tracks[number].time_base
        restored.pts, restored.dts, restored.duration = packet.pts, packet.dts, packet.duration
        restored.is_keyframe = bool(packet.flags & KEY)
        return restored


def _with_last_duration(packets: tuple[AudioPacket, ...]) -> tuple[AudioPacket, ...]:
    """Muxers know how long a packet lasts by the next one, and MP4 hides a last one that lasts no time."""
    if len(packets) < 2 or packets[-1].duration:
        return packets
    before, last = packets[-2:]
    if before.pts is None or last.pts is None:
        return packets
    return (*packets[:-1], last._replace(duration=max(last.pts - before.pts, 1)))


def _add_stream(output: Any, track: AudioTrack) -> Any:
    try:
        with av.open(io.BytesIO(track.parameters), format=HOLDER) as source:
            stream = output.add_stream_from_template(source.streams.audio[0], opaque=True)
    except ValueError as error:
        raise Refusal(f"cannot hold sound of the codec {track.codec}: write .mkv instead") from error
    except (av.FFmpegError, IndexError) as error:
        raise Refusal(f"cannot get the sound: its {track.codec} parameters are damaged") from error
    with suppress(ValueError):  # Matroska knows how many channels there are, not which; MP4 asks
        stream.codec_context.layout = track.layout
    stream.time_base = track.time_base
    stream.disposition = track.disposition
    stream.metadata.update(track.tags)
    return stream


def can_hold(format: str, audio: AudioTracks) -> bool:
    """Whether a container format ("mp4", "matroska", ...) can hold all the sound; asked of its muxer."""
    try:
        with av.open(io.BytesIO(), "w", format=format) as output:
            heads = AudioTracks(tuple(replace(track, packets=track.packets[:1]) for track in audio.tracks))
            SoundMuxer(output, heads).feed(None)
    except (Refusal, av.FFmpegError):
        return False
    return True
