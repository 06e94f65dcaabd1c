"""Generative models of images, and the ways of drawing samples from them."""
