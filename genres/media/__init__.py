"""Files in and out: still images (``genres.media.images``) and video. Importing this package loads nothing heavy."""
