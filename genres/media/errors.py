"""The errors that users see when an image or video file cannot be read or written."""


class ImageError(ValueError):
    """One clear sentence: names the file, says what was found, and what to do."""


class VideoError(ValueError):
    """One clear sentence: names the file, says what was found, and what to do."""


class Refusal(ValueError):
    """The predicate of an error ("is a GIF: ..."); the public functions put the file's name before it."""
