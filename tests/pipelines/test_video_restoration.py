"""Videos are restored frame by frame, keep their sound and times, and go on after an interruption."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from genres.media.errors import VideoError
from genres.media.sound import read_audio_packets
from genres.media.video import read_frames, scan
from pipelines import RestorationPipeline
from pipelines.errors import Interrupted
from pipelines.video_restoration import PART_FRAMES, restore_video
from tests.video_tools import make_clip, moving_frames


class Negative(ModelMixin, ConfigMixin):
    """Inverts, and counts how often."""

    @register_to_config
    def __init__(self, peak: float = 1.0):
        super().__init__()
        self.white = torch.nn.Parameter(torch.tensor(peak))
        self.calls = 0

    def forward(self, image):
        self.calls += 1
        return self.white - image


@pytest.fixture
def pipe():
    pipe = RestorationPipeline(Negative(), tasks=["denoise"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """20 frames of 50x36 at uneven times, with sound: more than one part."""
    times = [number * 3 + number % 2 for number in range(20)]
    path = tmp_path_factory.mktemp("clip") / "clip.mkv"
    return make_clip(path, moving_frames(20, 36, 50), times=times, time_base=Fraction(1, 72), options={"crf": "1"})


def frames_of(path):
    return np.stack([frame for frame, _ in read_frames(path)]).astype(int)


def test_every_frame_time_and_sound(pipe, clip, tmp_path):
    calls = []
    output = tmp_path / "out.mkv"
    restore_video(pipe, clip, output, crf=1, callback=lambda *call: calls.append(call))
    assert calls == [(number, 20) for number in range(1, 21)] and pipe.model.calls == 20
    assert np.abs(frames_of(output) - (255 - frames_of(clip))).mean() < 3  # 4:2:0 takes a little
    before, after = scan(clip), scan(output)
    assert [t * before.time_base for t in before.frame_times] == [t * after.time_base for t in after.frame_times]
    sounds = [[p.data for p in track.packets] for path in (clip, output) for track in read_audio_packets(path).tracks]
    assert sounds[0] == sounds[1] and sounds[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mkv"]


def test_an_interrupted_video_goes_on_where_it_was(pipe, clip, tmp_path):
    whole, output = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    lossless = {"crf": 0}  # x264 does not make the same file of the same frames every time
    restore_video(pipe, clip, whole, **lossless)

    def stop(done, total):
        if done == PART_FRAMES + 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        restore_video(pipe, clip, output, callback=stop, **lossless)
    assert not output.exists()
    pipe.model.calls = 0
    restore_video(pipe, clip, output, **lossless)
    assert pipe.model.calls == 20 - PART_FRAMES
    assert np.array_equal(frames_of(output), frames_of(whole))  # the bytes differ by Matroska's random number


def test_finished_parts_of_other_settings_are_not_used(pipe, clip, tmp_path):
    def stop(done, total):
        if done == PART_FRAMES + 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        restore_video(pipe, clip, tmp_path / "out.mkv", callback=stop)
    pipe.model.calls = 0
    restore_video(pipe, clip, tmp_path / "out.mkv", strength=0.5)
    assert pipe.model.calls == 20


def test_what_is_no_video_is_one_sentence(pipe, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video at all" * 9)
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        restore_video(pipe, bad, tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.mp4"]


def test_the_task_is_checked_first(pipe, clip, tmp_path):
    with pytest.raises(ValueError, match="not for dehaze"):
        restore_video(pipe, clip, tmp_path / "out.mkv", task="dehaze")
    assert not list(tmp_path.iterdir())
