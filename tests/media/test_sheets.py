"""Contact sheets: where every picture lies, and what is around it."""

import numpy as np

from genres.media.sheets import GAP, contact_sheet


def test_pictures_lie_in_rows_on_white():
    pictures = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(pictures, columns=2)
    assert sheet.shape == (2 * 4 + GAP, 2 * 6 + GAP, 3)
    assert (sheet[:4, :6] == 10).all() and (sheet[:4, 6 + GAP :] == 20).all() and (sheet[4 + GAP :, :6] == 30).all()
    assert (sheet[4 : 4 + GAP] == 255).all() and (sheet[4 + GAP :, 6:] == 255).all()


def test_sizes_and_channels_may_differ():
    sheet = contact_sheet([np.zeros((2, 3, 1), np.uint8), np.zeros((4, 2, 3), np.uint8)], columns=2)
    assert sheet.shape == (4, 3 + GAP + 3, 3)
    assert (sheet[:2, :3] == 0).all() and (sheet[2:, :3] == 255).all() and (sheet[:, 3 + GAP : 5 + GAP] == 0).all()
