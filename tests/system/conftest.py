"""Fixtures of the system tests: real processes, real files, a real database."""
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from chute import BINARY, Chute, tool  # noqa: E402


def pytest_configure(config):
    if not os.access(BINARY, os.X_OK):
        raise pytest.UsageError("no chute at %s: build it, or set CHUTE_BIN" % BINARY)


@pytest.fixture
def chute(tmp_path):
    made = Chute(tmp_path)
    yield made
    made.clean_up()


@pytest.fixture
def make_chute(tmp_path):
    """More than one chute in a test: make_chute(NAME)."""
    made = []

    def make(name):
        made.append(Chute(tmp_path / name))
        return made[-1]
    yield make
    for one in made:
        one.clean_up()


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(PATH, SIZE): a tmpfs of that size on PATH; needs root, as tests/run has."""
    mounted = []

    def mount(path, size="1m"):
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run([tool("mount"), "-t", "tmpfs", "-o", "size=" + size, "tmpfs", str(path)], check=True)
        mounted.append(path)
        return path
    yield mount
    for path in reversed(mounted):
        subprocess.run(["umount", "-l", str(path)], check=False)
