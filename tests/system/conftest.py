"""Fixtures of the system tests: real processes, real files, a real database."""
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from chute import BINARY, Chute, tool  # noqa: E402
from postgres import Postgres, make_template  # noqa: E402


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


@pytest.fixture(scope="session")
def pg_template(tmp_path_factory):
    """A cluster to copy, made once for all of the workers that run tests."""
    base = tmp_path_factory.getbasetemp()
    return make_template((base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "postgres")


@pytest.fixture
def make_postgres(pg_template):
    """make_postgres(SETTING=VALUE, …): a cluster that is not started yet, for settings, TLS, pg_hba."""
    made = []

    def make(**settings):
        made.append(Postgres(pg_template, settings))
        return made[-1]
    yield make
    for one in made:
        one.clean_up()


@pytest.fixture
def postgres(make_postgres):
    """A running cluster of the test's own, that may be stopped, killed and filled."""
    return make_postgres().start()


@pytest.fixture(scope="session")
def shared_postgres(pg_template):
    """One running cluster for all tests of this worker; take pg_database."""
    with Postgres(pg_template) as made:
        yield made


@pytest.fixture
def pg_database(shared_postgres):
    """A fresh database, on a cluster that other tests use too: leave that one alone."""
    return shared_postgres.make_database()
