"""What the commands say when something goes wrong: one sentence, a traceback only with ``genres --debug``."""

import os


class CommandError(Exception):
    """A command cannot do what was asked; the message is one sentence that says what to do."""


def printable(text: object) -> str:
    """Text that every terminal and pipe takes: the undecodable bytes of a file name become escapes."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def sentence(error: BaseException) -> str:
    """An exception in one line; what no code of ours worded is introduced by the name of its class."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return printable(f"{place}{error.strerror}.")
    text = printable(" ".join(str(error).split()))
    if isinstance(error, CommandError | ValueError | RuntimeError | MemoryError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
