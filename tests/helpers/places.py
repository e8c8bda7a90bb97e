"""Where the tests find the repository and what lies in it."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
