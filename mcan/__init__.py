"""Visual question answering with Modular Co-Attention Networks (Yu et al., CVPR 2019)."""

import os

# Read by torch when it first allocates: large pages on CPU, where the system has them.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
