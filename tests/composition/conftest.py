import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def frozen_imports():
    """Every `train()` collects garbage; what the imports made need not be walked each time (half a second)."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
