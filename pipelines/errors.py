"""Errors that pipelines raise on purpose. Nothing heavy is imported here."""


class Interrupted(RuntimeError):
    """The user asked the running call to stop; no result was made."""
