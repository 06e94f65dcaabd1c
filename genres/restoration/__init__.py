"""Restoration networks and the degradations that they are trained to undo."""
