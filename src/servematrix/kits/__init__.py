"""Kits: mixins that each measure one aspect of a server that runs at `base_url`.

They drop into any `unittest.TestCase` or plain pytest class that sets `base_url`.
"""

from typing import Final

from servematrix.kits.api_contract import BasicAPIContractMixin
from servematrix.kits.base import Kit
from servematrix.kits.cuda_graph import CudaGraphMixin
from servematrix.kits.decode_consistency import DecodeConsistencyMixin
from servematrix.kits.decode_correctness import BasicDecodeCorrectnessMixin
from servematrix.kits.fwd_occupancy import FwdOccupancyMixin
from servematrix.kits.hellaswag import HellaswagMixin
from servematrix.kits.scheduler_stress import BasicSchedulerStressMixin
from servematrix.kits.spec_decoding import SpecDecodingMixin

MIXINS: Final[tuple[type[Kit], ...]] = (
    BasicAPIContractMixin,
    BasicDecodeCorrectnessMixin,
    BasicSchedulerStressMixin,
    SpecDecodingMixin,
    DecodeConsistencyMixin,
    CudaGraphMixin,
    FwdOccupancyMixin,
    HellaswagMixin,
)
"""Every kit, in the order in which a suite lists them."""

__all__ = [
    "MIXINS",
    "BasicAPIContractMixin",
    "BasicDecodeCorrectnessMixin",
    "BasicSchedulerStressMixin",
    "CudaGraphMixin",
    "DecodeConsistencyMixin",
    "FwdOccupancyMixin",
    "HellaswagMixin",
    "SpecDecodingMixin",
]
