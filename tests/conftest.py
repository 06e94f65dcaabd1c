"""Settings for the whole suite."""

import torch

torch.set_flush_denormal(True)
