"""What all tests share: no network, few threads, fixed seeds, and the devices of this machine."""

import os
import random
import tempfile
from pathlib import Path

# Set before any test imports the libraries that read them; processes that tests start inherit them. All workers of
# pytest-xdist share the caches. What is compiled is kept by its content, so it serves later sessions, too.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="binaryvit-tests-")
    os.environ["HF_HOME"] = _cache.name
    os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".pytest_cache" / "compiled")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))

# The time of one example depends on what else the machine does. In CI the examples are the same every time.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module run on one worker, so that it is made once."""
    for item in items:
        fixtures = [definitions[-1] for definitions in item._fixtureinfo.name2fixturedefs.values()]
        if any(fixture.scope == "module" for fixture in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


_no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, _no_gpu])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the CUDA GPU where there is one: a test that takes it runs on each."""
    return torch.device(request.param)
