"""Shared by all tests."""

from __future__ import annotations

import torch

# Tests run side by side on small tensors, where more threads only wait for each other.
torch.set_num_threads(1)
