"""``genres restore CLIP.mp4``: videos beside photographs."""

from genres.media.sound import read_audio_packets
from genres.media.video import scan
from tests.app.cli_tools import contents, save_image
from tests.video_tools import make_clip, moving_frames


def test_a_video_beside_a_photograph(genres, tiny_model, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", moving_frames(4, 48, 64))
    photo = save_image(tmp_path / "photo.png", size=(40, 30))
    result = genres("restore", clip, photo, "-o", tmp_path / "out", "--model", tiny_model, "--json")
    assert result.code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip.mp4", "photo.png"}
    assert [file.get("frames") for file in result.report["files"]] == [4, None]
    assert scan(tmp_path / "out/clip.mp4").num_frames == 4
    assert read_audio_packets(tmp_path / "out/clip.mp4").tracks
    again = genres("restore", clip, photo, "-o", tmp_path / "out", "--model", tiny_model, "--json")
    assert set(again.statuses.values()) == {"skipped"}


def test_folders_give_photographs_and_patterns_videos(genres, fake, tmp_path, monkeypatch):
    save_image(tmp_path / "in/photo.png")
    make_clip(tmp_path / "in/clip.avi", moving_frames(2, 48, 64), encoder="mpeg4", sound=())
    found = genres("restore", tmp_path / "in", "-o", tmp_path / "out")
    assert found.code == 0 and set(contents(tmp_path / "out")) == {"photo.png"}
    assert "Videos are restored where they are named" in found.err
    done = []
    monkeypatch.setattr("app.cli.restore._restore_video", lambda pipe, item, step, options: done.append(item.output))
    assert genres("restore", tmp_path / "in/*.avi", "-o", tmp_path / "out").code == 0
    assert [path.name for path in done] == ["clip.mkv"]


def test_a_damaged_video_does_not_stop_the_rest(genres, tiny_model, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"not a video" * 20)
    photo = save_image(tmp_path / "photo.png", size=(40, 30))
    result = genres("restore", tmp_path / "bad.mp4", photo, "-o", tmp_path / "out", "--model", tiny_model, "--json")
    assert result.code == 1
    assert result.statuses == {"bad.mp4": "failed", "photo.png": "ok"}
    assert "bad.mp4" in result.report["files"][0]["error"]
