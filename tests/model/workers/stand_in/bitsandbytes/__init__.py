"""Stands for bitsandbytes on a CPU: what prismcap and peft call of it for nf4, in plain torch.

Blocks of 64 weights with fp32 scales; the second quantization, of the scales, is left out.
"""

from . import functional, nn

__all__ = ["functional", "nn"]
__version__ = "0.49.0"
