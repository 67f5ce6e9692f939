"""The published suite for a server that speculates: the same kits, accept length decides too."""

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
    SpecDecodingMixin,
)


@pytest.mark.suite("basic_sanity_eagle3")
class TestBasicSanityEagle3(
    # pytest runs the tests of the last base first
    HellaswagMixin,
    FwdOccupancyMixin,
    CudaGraphMixin,
    DecodeConsistencyMixin,
    SpecDecodingMixin,
    BasicSchedulerStressMixin,
    BasicDecodeCorrectnessMixin,
    BasicAPIContractMixin,
):
    """Every sanity kit against one server with speculation on."""

    fwd_occupancy_speculation_required = True
    spec_decoding_required = True
