"""Suites of one kit each, for a configuration that needs no other, and for faults one by one."""

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


@pytest.mark.suite("only_api_contract")
class TestAPIContract(BasicAPIContractMixin):
    """The HTTP contract alone."""


@pytest.mark.suite("only_decode_correctness")
class TestDecodeCorrectness(BasicDecodeCorrectnessMixin):
    """Probes of output quality alone."""


@pytest.mark.suite("only_scheduler_stress")
class TestSchedulerStress(BasicSchedulerStressMixin):
    """Streaming, concurrency and a long prompt alone."""


@pytest.mark.suite("only_decode_consistency")
class TestDecodeConsistency(DecodeConsistencyMixin):
    """Decoding against prefill alone."""


@pytest.mark.suite("only_cuda_graph")
class TestCudaGraph(CudaGraphMixin):
    """CUDA graphs alone."""


@pytest.mark.suite("only_spec_decoding")
class TestSpecDecoding(SpecDecodingMixin):
    """Speculation alone."""


@pytest.mark.suite("only_fwd_occupancy")
class TestFwdOccupancy(FwdOccupancyMixin):
    """Occupancy alone."""


@pytest.mark.suite("only_hellaswag")
class TestHellaswag(HellaswagMixin):
    """Accuracy alone."""
