"""Whether C++ can be compiled where the tests run."""

import os
import shutil
import sys

import pytest

has_compiler = sys.platform.startswith("linux") and any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++")))
needs_compiler = pytest.mark.skipif(not has_compiler, reason="there is no C++ compiler here, or this is not Linux")
