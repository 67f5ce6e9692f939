"""What can be checked of a model's shape with random weights (`load-format = "dummy"`).

Nothing here asks for sensible text: CUDA graphs, occupancy and speculation's bookkeeping. So a
shape can be tried on a GPU without its weights. What looks at log-probabilities does not apply:
with dummy weights they are all alike.
"""

from __future__ import annotations

import pytest

from servematrix.kits import (
    CudaGraphMixin,
    FwdOccupancyMixin,
    SpecDecodingMixin,
)


@pytest.mark.suite("dummy_weights")
class TestDummyWeights(
    # pytest runs the tests of the last base first
    FwdOccupancyMixin,
    CudaGraphMixin,
    SpecDecodingMixin,
):
    """The kits that need no trained weights."""
