"""Visual question answering with Modular Co-Attention Networks (Yu et al., CVPR 2019)."""

__version__ = "0.1.0"
