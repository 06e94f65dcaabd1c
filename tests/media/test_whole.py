"""A result is the old one or the whole new one."""

import pytest

from genres.media.whole import replacing, write_whole


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    write_whole(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_whole(path, b"new", sync=False)
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [(), ("old.txt",)])
def test_a_folder_takes_the_place_of_another(tmp_path, before):
    folder = tmp_path / "out"
    for name in before:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("old")
    with pytest.raises(RuntimeError), replacing(folder) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert [path.name for path in folder.glob("*")] == list(before)
    with replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "new.txt").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["new.txt"] and list(tmp_path.iterdir()) == [folder]
