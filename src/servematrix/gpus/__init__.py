"""Which GPUs this process may use, who uses them, and the right to use one: a lease.

GPUs are counted within what the caller may see, never over the whole machine: a scheduler that
hands out cards says so in CUDA_VISIBLE_DEVICES, and the others belong to somebody else.
"""

from servematrix.gpus.choice import Requirement, candidates
from servematrix.gpus.gpu import GIB, Gpu
from servematrix.gpus.listing import visible

__all__ = ["GIB", "Gpu", "Requirement", "candidates", "visible"]
