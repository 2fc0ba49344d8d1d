"""Shared by all tests."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings

# Tests run side by side on small tensors, where more threads only wait for each other.
torch.set_num_threads(1)

# A busy machine is no mistake of the code.
settings.register_profile("shared machine", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")
