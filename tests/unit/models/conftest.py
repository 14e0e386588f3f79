"""Tiny networks with weights that depend on nothing but this file."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    """The same start for every test; the global generator is put back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
