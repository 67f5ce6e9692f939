"""What a CUDA-graph size can change: correctness of decoding, batches around it, occupancy."""

from __future__ import annotations

import pytest

from servematrix.kits import (
    BasicDecodeCorrectnessMixin,
    BasicSchedulerStressMixin,
    CudaGraphMixin,
    DecodeConsistencyMixin,
    FwdOccupancyMixin,
)


@pytest.mark.suite("cuda_graph")
class TestCudaGraph(
    # pytest runs the tests of the last base first
    FwdOccupancyMixin,
    CudaGraphMixin,
    DecodeConsistencyMixin,
    BasicSchedulerStressMixin,
    BasicDecodeCorrectnessMixin,
):
    """The kits that decode, against one server per CUDA-graph size."""
