"""Video files in and out: times, colours, sound, shapes; and what is refused."""

from contextlib import suppress
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from genres.media.colour import BT709, BT2020, SMPTE170M, SMPTE240M, ColourTags
from genres.media.video import (
    AudioTracks,
    VideoError,
    VideoInfo,
    find_scene_cuts,
    probe,
    read_audio_packets,
    read_frames,
    scan,
    suggest_suffix,
    write_video,
)
from tests.video_tools import decode_flat, flat_y4m, make_clip, moving_frames, raw_y4m, rotate_tag, sound_file

UNEVEN = [0, 40, 81, 200, 201, 333, 390, 500, 777, 778, 900, 1500]  # milliseconds


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", sound=("aac", "aac"))


def frames_of(path, *arguments, **options):
    return [frame for frame, _ in read_frames(path, *arguments, **options)]


def seconds(info):
    return [time * info.time_base for time in info.frame_times]


def psnr(first, second):
    return -10 * np.log10(np.mean((np.float64(first) - np.float64(second)) ** 2) / 255**2 + 1e-12)


# --- reading ---


def test_probe_and_scan(clip):
    info = probe(clip)
    assert (info.width, info.height, info.num_frames, info.average_rate) == (64, 48, 12, 24)
    assert [(a.codec, a.channels, a.language) for a in info.audio] == [("aac", 2, "deu"), ("aac", 2, "eng")]
    assert (info.frame_times, info.notes, info.codec, info.bit_depth) == ((), (), "h264", 8)
    scanned = scan(clip)
    assert seconds(scanned) == [Fraction(n, 24) for n in range(12)]
    assert scanned.is_constant and scanned.seconds == Fraction(1, 2) and scanned.rate == 24


def test_frames_are_those_that_were_written(clip):
    frames = frames_of(clip)
    assert len(frames) == 12 and frames[0].shape == (48, 64, 3) and frames[0].dtype == np.uint8
    assert psnr(np.stack(frames), moving_frames()) > 30


@pytest.mark.parametrize("start", [0, 1, 7, 11])
@pytest.mark.parametrize("seek", [False, True])
def test_any_range_is_the_same_as_a_part_of_the_whole(clip, start, seek):
    info = scan(clip)
    whole = list(read_frames(clip))
    part = list(read_frames(clip, start, 3, start_time=info.frame_times[start] if seek else None))
    assert [time for _, time in part] == list(info.frame_times[start : start + 3])
    for (frame, _), (expected, _) in zip(part, whole[start : start + 3], strict=True):
        assert np.array_equal(frame, expected)


def test_a_start_after_the_end(clip):
    assert frames_of(clip, 0, 0) == []
    with pytest.raises(VideoError, match="fewer than 13 frames"):
        frames_of(clip, 12)


def test_frames_as_tensors(clip):
    import torch

    tensor = frames_of(clip, 2, 1, device="cpu")[0]
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.uint8
    assert np.array_equal(tensor.numpy(), frames_of(clip, 2, 1)[0])


def test_uneven_times(tmp_path):
    path = make_clip(tmp_path / "vfr.mkv", times=UNEVEN, time_base=Fraction(1, 1000), sound=())
    info = scan(path)
    assert seconds(info) == [Fraction(t, 1000) for t in UNEVEN]
    assert not info.is_constant


@pytest.mark.parametrize("range", [1, 2])
@pytest.mark.parametrize("matrix", [BT709, SMPTE170M, SMPTE240M, BT2020])
def test_colours_follow_the_tags(tmp_path, matrix, range):
    colour = (110, 100, 160)
    with av.open(str(tmp_path / "c.mkv"), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv444p"
        frame = av.VideoFrame(32, 16, "yuv444p")
        for plane, value in zip(frame.planes, colour, strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        for tagged in (stream.codec_context, frame):
            tagged.colorspace, tagged.color_range = matrix, range
            tagged.color_primaries, tagged.color_trc = 9, 16
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert probe(tmp_path / "c.mkv").colour == ColourTags(9, 16, matrix, range)
    pixel = frames_of(tmp_path / "c.mkv")[0][5, 7]
    assert np.abs(pixel - decode_flat(matrix, range == 2, *colour)).max() < 0.6


@pytest.mark.parametrize(("size", "matrix"), [((64, 32), SMPTE170M), ((64, 720), BT709), ((1280, 32), BT709)], ids=str)
def test_untagged_colours_are_guessed_by_the_size(tmp_path, size, matrix):
    (tmp_path / "c.y4m").write_bytes(flat_y4m(120, 90, 170, size))
    pixel = frames_of(tmp_path / "c.y4m")[0][0, 0]
    assert np.abs(pixel - decode_flat(matrix, False, 120, 90, 170)).max() < 0.6


def test_ten_bits(tmp_path):
    path = make_clip(tmp_path / "deep.mkv", encoder="ffv1", pixel_format="yuv444p10le", sound=())
    assert probe(path).notes == ("The 10-bit samples are read as 8 bits.",)
    assert np.abs(np.int16(frames_of(path)) - moving_frames()).max() <= 2


def test_rotation_is_applied(tmp_path, clip):
    turned = rotate_tag(clip, tmp_path / "turned.mp4")
    info = probe(turned)
    assert (info.width, info.height) == (48, 64)
    for upright, lying in zip(frames_of(turned), frames_of(clip), strict=True):
        assert np.array_equal(upright, np.rot90(lying, -1))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (41, 31), (47, 64)], ids=str)
@pytest.mark.parametrize("codec", ["ffv1", "h264", "y4m", "frames"])
def test_any_size_round_trips(tmp_path, size, codec):
    frames = moving_frames(3, *size)
    path = tmp_path / f"out{suggest_suffix(codec, None)}"
    written = write_video(path, frames, VideoInfo.of_frames(size[1], size[0], 3), codec=codec)
    assert written.num_frames == 3
    if codec == "frames":
        assert len(list(path.glob("frame_*.png"))) == 3
        return
    info = probe(path)
    assert (info.height, info.width) == size
    assert np.stack(frames_of(path)).shape == frames.shape
    if codec == "ffv1":
        assert np.array_equal(np.stack(frames_of(path)), frames)


# --- writing ---


def test_ffv1_keeps_every_value(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 33, 47, 3), dtype=np.uint8)
    info = VideoInfo.of_frames(47, 33, 4, Fraction(30000, 1001))
    write_video(tmp_path / "noise.mkv", frames, info, codec="ffv1")
    assert np.array_equal(np.stack(frames_of(tmp_path / "noise.mkv")), frames)


def test_frames_folder(tmp_path):
    import cv2

    frames = moving_frames(3)
    info = VideoInfo.of_frames(64, 48, 3, 25)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.png").write_bytes(b"old")
    write_video(tmp_path / "out", frames, info, codec="frames")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["frame_000000.png", "frame_000001.png", "frame_000002.png", "timestamps.txt"]
    assert np.array_equal(cv2.imread(str(tmp_path / "out" / names[1]))[..., ::-1], frames[1])
    assert (tmp_path / "out" / "timestamps.txt").read_text().split("\n")[1:3] == ["0.000000", "40.000000"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_uneven_times_are_kept(tmp_path, suffix):
    info = VideoInfo(64, 48, Fraction(1, 1000), 12, tuple(UNEVEN))
    write_video(tmp_path / f"out{suffix}", moving_frames(), info)
    assert seconds(scan(tmp_path / f"out{suffix}")) == [Fraction(t, 1000) for t in UNEVEN]


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(30000, 1001), Fraction(25), Fraction(60)], ids=str)
def test_rates_are_kept_in_mp4(tmp_path, rate):
    write_video(tmp_path / "out.mp4", moving_frames(6), VideoInfo.of_frames(64, 48, 6, rate))
    assert seconds(scan(tmp_path / "out.mp4")) == [n / rate for n in range(6)]


def test_a_late_first_frame_stays_late(tmp_path):
    info = VideoInfo(64, 48, Fraction(1, 600), 4, (300, 320, 340, 360))
    audio = read_audio_packets(make_clip(tmp_path / "a.mp4"))
    write_video(tmp_path / "out.mp4", moving_frames(4), info, audio)
    assert seconds(scan(tmp_path / "out.mp4"))[0] == Fraction(1, 2)


@pytest.mark.parametrize("range", [0, 1, 2])
@pytest.mark.parametrize("matrix", [2, BT709, SMPTE170M, BT2020])
def test_colour_tags_and_colours_survive(tmp_path, matrix, range):
    tags = ColourTags(1 if matrix == BT709 else 9, 16, matrix, range)
    info = VideoInfo(64, 48, Fraction(1, 24), 3, (0, 1, 2), colour=tags)
    frames = np.full((3, 48, 64, 3), (200, 60, 90), np.uint8)
    for name, codec in (("a.mp4", "h264"), ("b.mkv", "ffv1")):
        write_video(tmp_path / name, frames, info, codec=codec, crf=1)
        assert np.abs(np.int16(frames_of(tmp_path / name)[1]) - frames[1]).max() <= 3
    read = probe(tmp_path / "a.mp4").colour
    assert (read.primaries, read.transfer, read.matrix) == (tags.primaries, 16, matrix)
    assert read.range in ({range} if range else {0, 1})


@pytest.mark.parametrize("encoder", ["aac", "libmp3lame", "libopus", "flac", "ac3", "alac", "pcm_s16le"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_is_copied_bit_for_bit(tmp_path, encoder, suffix):
    source = make_clip(tmp_path / "source.mov" if encoder == "pcm_s16le" else tmp_path / "source.mkv", sound=[encoder])
    audio = AudioTracks.from_bytes(read_audio_packets(source).to_bytes())
    assert audio == read_audio_packets(source)
    info = scan(source)
    write_video(tmp_path / f"out{suffix}", moving_frames(), info, audio)
    copied = read_audio_packets(tmp_path / f"out{suffix}")
    (before,), (after,) = audio.tracks, copied.tracks
    assert [p.data for p in after.packets] == [p.data for p in before.packets]
    assert (after.codec, after.sample_rate, after.channels) == (before.codec, before.sample_rate, before.channels)
    shift = before.packets[0].pts * before.time_base - after.packets[0].pts * after.time_base
    assert abs(shift) < Fraction(3, 100)
    for p, q in zip(before.packets, after.packets, strict=True):
        assert abs(p.pts * before.time_base - q.pts * after.time_base - shift) <= Fraction(1, 1000)
    for t, u in zip(seconds(info), seconds(scan(tmp_path / f"out{suffix}")), strict=True):
        assert abs(t - u - shift) <= Fraction(1, 1000)  # sound and picture move together, if at all
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) > 20_000


def test_all_tracks_with_their_languages(tmp_path, clip):
    audio = read_audio_packets(clip)
    write_video(tmp_path / "out.mp4", frames_of(clip), scan(clip), audio)
    copied = read_audio_packets(tmp_path / "out.mp4")
    assert [track.tags["language"] for track in copied.tracks] == ["deu", "eng"]
    for before, after in zip(audio.tracks, copied.tracks, strict=True):
        assert [(p.data, p.pts, p.dts, p.duration, p.flags) for p in after.packets] == [
            (p.data, p.pts, p.dts, p.duration, p.flags) for p in before.packets
        ]
        assert after.time_base == before.time_base
    assert seconds(scan(tmp_path / "out.mp4")) == seconds(scan(clip))


def test_a_part_of_the_sound(clip):
    audio = read_audio_packets(clip)
    part = audio.between(Fraction(1, 4), Fraction(1, 2))
    before, after = audio.tracks[0], part.tracks[0]
    data = [p.data for p in before.packets]
    assert 10 <= len(after.packets) <= 13 and after.packets[0].data in data
    assert 0 <= after.packets[0].pts * after.time_base < Fraction(1, 40)


def test_sound_that_a_container_cannot_hold(tmp_path):
    audio = read_audio_packets(make_clip(tmp_path / "a.mkv", sound=["wavpack"]))
    assert suggest_suffix("h264", audio) == ".mkv" and suggest_suffix("h264", AudioTracks()) == ".mp4"
    info = VideoInfo.of_frames(64, 48, 12)
    with pytest.raises(VideoError, match=r"cannot hold sound of the codec wavpack: write \.mkv instead"):
        write_video(tmp_path / "out.mp4", moving_frames(), info, audio)
    assert not (tmp_path / "out.mp4").exists()
    write_video(tmp_path / "out.mkv", moving_frames(), info, audio)


def test_sound_that_cannot_be_copied(tmp_path):
    path = make_clip(tmp_path / "a.wmv", encoder="mpeg4", sound=["wmav2"], format="asf")
    assert probe(path).audio[0].codec == "wmav2"
    with pytest.raises(VideoError, match="sound of the codec wmav2, which cannot be copied"):
        read_audio_packets(path)


def test_what_cannot_be_kept_is_said(tmp_path):
    info = VideoInfo(64, 48, Fraction(1, 1000), 12, tuple(UNEVEN))
    audio = read_audio_packets(make_clip(tmp_path / "a.mp4"))
    notes = write_video(tmp_path / "out.y4m", moving_frames(), info, audio, "y4m").notes
    assert len(notes) == 2 and "sound" in notes[0] and "constant rate" in notes[1]
    assert "sound" in write_video(tmp_path / "out", moving_frames(), info, audio, "frames").notes[0]


@pytest.mark.parametrize("data", [b"", b"\x01", b"\xff\xff\xff\x7f" + bytes(20), b"junk" * 100])
def test_damaged_sound_is_refused(data):
    with pytest.raises(VideoError, match=r"The sound is damaged"):
        AudioTracks.from_bytes(data)


def test_sound_that_is_cut_or_changed(clip):
    data = read_audio_packets(clip).to_bytes()
    for length in range(0, len(data), 97):
        with pytest.raises(VideoError, match=r"The sound is damaged"):
            AudioTracks.from_bytes(data[:length])
    random = np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(data)
        changed[random.integers(0, 1500)] ^= 1 << random.integers(0, 8)
        with suppress(VideoError):  # anything else would be a failure
            AudioTracks.from_bytes(bytes(changed))


@pytest.mark.parametrize(
    ("name", "codec", "frames", "text"),
    [
        ("out.mp4", "vp9", moving_frames(2), "needs a known codec"),
        ("out.avi", "h264", moving_frames(2), r"needs the extension \.mp4"),
        ("out.mp4", "h264", moving_frames(2, 24), r"needs frames of \(48, 64, 3\) uint8"),
        ("out.mp4", "h264", moving_frames(3), "more frames than the 2 times"),
        ("out.mp4", "h264", [], "no frames"),
        ("out", "frames", [], "no frames"),
        ("no/folder/out.mp4", "h264", moving_frames(2), "No such file or directory"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, codec, frames, text):
    info = VideoInfo.of_frames(64, 48, 2)
    with pytest.raises(VideoError, match=text) as error:
        write_video(tmp_path / name, frames, info, codec=codec)
    assert str(error.value).startswith(str(tmp_path / name))
    assert not any(tmp_path.iterdir())


def test_an_interrupted_writing_keeps_the_old_file(tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"old")

    def frames():
        yield moving_frames(1)[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_video(tmp_path / "out.mp4", frames(), VideoInfo.of_frames(64, 48, 2))
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


# --- what is refused ---


def half(data):
    return data[: len(data) // 2]


BAD_FILES = {
    "empty": (lambda data: b"", "is empty"),
    "one byte": (lambda data: b"\0", "damaged, cut short or not a video"),
    "text": (lambda data: b"no video at all\n" * 50, "damaged, cut short or not a video"),
    "a playlist": (lambda data: b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n#EXT-X-ENDLIST\n", "not a video"),
    "a list of files": (lambda data: b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
    "no index": (half, "damaged, cut short or not a video"),
    "noise": (lambda data: np.random.default_rng(0).bytes(5000), "damaged, cut short or not a video"),
    "huge frames": (lambda data: raw_y4m(16000, 16000), "16000 x 16000 pixels"),
    "absurd frames": (lambda data: raw_y4m(2**31 - 1, 2**31 - 1), "damaged, cut short or not a video"),
    "no frames": (lambda data: raw_y4m(64, 48)[:-80], "damaged, cut short|no frame"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_get_one_sentence(tmp_path, clip, kind):
    change, text = BAD_FILES[kind]
    path = tmp_path / "bad.mp4"
    path.write_bytes(change(clip.read_bytes()))
    for read in (probe, scan, frames_of):
        with pytest.raises(VideoError, match=text) as error:
            read(path)
        assert str(error.value).startswith(str(path)) and str(error.value).count("\n") == 0


def test_a_video_that_is_cut_short(tmp_path):
    whole = make_clip(
        tmp_path / "whole.mp4", np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    )
    fast = tmp_path / "fast.mp4"  # the index in front
    write_video(fast, frames_of(whole), scan(whole), codec="h264")
    (tmp_path / "cut.mp4").write_bytes(fast.read_bytes()[:-3000])
    with pytest.raises(VideoError, match=r"damaged|cut short"):
        scan(tmp_path / "cut.mp4")


def test_files_without_video(tmp_path):
    with pytest.raises(VideoError, match="holds only sound"):
        probe(sound_file(tmp_path / "sound.m4a"))
    with pytest.raises(VideoError, match="does not exist"):
        probe(tmp_path / "missing.mp4")
    with pytest.raises(VideoError, match="is a folder"):
        probe(tmp_path)


def test_a_matrix_that_is_not_supported(tmp_path):
    path = make_clip(tmp_path / "a.mkv", moving_frames(2), encoder="ffv1", pixel_format="yuv444p", sound=())
    with av.open(str(tmp_path / "odd.mkv"), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.colorspace = 8  # YCgCo
        frame = av.VideoFrame(64, 48, "yuv444p")
        frame.pts, frame.colorspace = 0, 8
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert probe(path).colour.matrix == 2
    with pytest.raises(VideoError, match="colour matrix 8"):
        probe(tmp_path / "odd.mkv")


# --- scene cuts ---


def test_scene_cuts(tmp_path):
    dark, light = moving_frames(20) // 3, 255 - moving_frames(20, seed=3) // 2
    frames = np.concatenate([dark, light, moving_frames(20, seed=5)])
    assert find_scene_cuts(frames) == [20, 40]
    path = make_clip(tmp_path / "scenes.mp4", frames, sound=())
    assert find_scene_cuts(path) == [20, 40]
    assert scan(path).scene_cuts == (20, 40)


def test_motion_flashes_and_fades_are_no_cuts():
    frames = moving_frames(40)
    assert find_scene_cuts(frames) == []
    flash = frames.copy()
    flash[20:22] = 255
    assert find_scene_cuts(flash) == []
    fade = np.stack([(f * (1 - n / 40)).astype(np.uint8) for n, f in enumerate(frames)])
    assert find_scene_cuts(fade) == []
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    assert find_scene_cuts(noise) == []
    assert find_scene_cuts(frames[:1]) == []


def test_memory_does_not_grow_with_length(tmp_path):
    """Frames are streamed: at no time more than a few are alive."""
    import weakref

    path = make_clip(tmp_path / "a.mp4", moving_frames(40), sound=())
    alive = []
    for frame, _ in read_frames(path):
        alive.append(weakref.ref(frame))
        del frame
        assert sum(reference() is not None for reference in alive) <= 2


def test_times_are_strictly_increasing(tmp_path):
    path = make_clip(tmp_path / "raw.h264", sound=(), format="h264")  # holds no times
    times = scan(path).frame_times
    assert len(times) == 12 and all(before < after for before, after in pairwise(times))
