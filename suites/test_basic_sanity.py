"""The published main suite: contract, correctness, stress, occupancy and accuracy."""

from __future__ import annotations

import pytest

from servematrix.kits import (
    BasicAPIContractMixin,
    BasicDecodeCorrectnessMixin,
    BasicSchedulerStressMixin,
    CudaGraphMixin,
    DecodeConsistencyMixin,
    FwdOccupancyMixin,
    HellaswagMixin,
)


@pytest.mark.suite("basic_sanity")
class TestBasicSanity(
    # pytest runs the tests of the last base first
    HellaswagMixin,
    FwdOccupancyMixin,
    CudaGraphMixin,
    DecodeConsistencyMixin,
    BasicSchedulerStressMixin,
    BasicDecodeCorrectnessMixin,
    BasicAPIContractMixin,
):
    """Every sanity kit against one server."""
