"""Genres: generation and restoration of images and videos, one paper to one file."""

__version__ = "0.1.0"
