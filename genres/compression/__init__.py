"""Compression by neural representations: a small network is fitted to one video, and its weights are the file."""
