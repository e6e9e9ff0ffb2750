"""Every test starts from the same seed, an empty parameter store and at most two threads."""

import pyro
import pytest
import torch

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def clean_slate() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
