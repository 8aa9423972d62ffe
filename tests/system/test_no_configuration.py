"""Commands after a `chute run --watch` that has ended: no daemon and no configuration tell where its folder was."""
import os
import sqlite3

import pytest

from chute import put_file, write_file


def quarantine_one(chute):
    write_file(chute.inbox / "sub/bad.csv", "x\n1,2\n")
    chute.once(expect=1)


def test_retry_finds_the_file_that_explain_finds(chute):
    quarantine_one(chute)
    assert "quarantined" in chute.explain(chute.inbox / "sub/bad.csv")
    chute.ask("retry", chute.inbox / "sub/bad.csv")
    assert chute.state_of("sub/bad.csv") == "queued"


def test_retry_takes_the_path_as_it_was_typed(chute):
    quarantine_one(chute)
    done = chute.command("retry", "sub/bad.csv", "--state", chute.state, cwd=chute.inbox)
    assert done.returncode == 0, done
    assert chute.state_of("sub/bad.csv") == "queued"


def test_retry_takes_the_file_that_is_named_and_no_other_of_that_name(chute):
    quarantine_one(chute)
    write_file(chute.inbox / "bad.csv", "x\n1,2\n")
    chute.once(expect=1)
    chute.ask("retry", chute.inbox / "sub/bad.csv")
    assert (chute.state_of("sub/bad.csv"), chute.state_of("bad.csv")) == ("queued", "quarantined")
    assert chute.command("retry", chute.inbox / "other.csv", "--state", chute.state).returncode == 1


def test_explain_tells_a_file_that_was_loaded_by_name_and_is_watched_as_well(chute):
    quarantine_one(chute)
    path = chute.inbox / "sub/bad.csv"
    assert chute.command("load", path, "--to", "sqlite:%s" % chute.db, "--state", chute.state).returncode == 1
    text = chute.explain(path)
    assert "flow load" in text and "flow file2sql" in text, text
    put_file(chute.inbox / "good.csv", "x\n1\n")
    chute.once(expect=None)
    assert "is loaded" in chute.explain(os.path.relpath(chute.inbox / "good.csv", chute.home))


def test_load_of_a_file_with_two_names_ends(chute):
    """Two names of one inode look like a rename; `load` has no source that could be asked."""
    write_file(chute.home / "a.csv", "x\n1\n")
    os.link(chute.home / "a.csv", chute.home / "b.csv")
    for _ in range(2):
        done = chute.command("load", "a.csv", "b.csv", "--to", "sqlite:%s" % chute.db, "--state", chute.state)
        assert done.returncode == 0, done
    assert chute.tables() == {"a", "b"}
    assert chute.rows("a") == chute.rows("b") == [(1,)]


@pytest.mark.core
def test_load_works_beside_a_daemon_and_repeats_nothing(chute):
    one = chute.home / "one.csv"
    write_file(one, "a\n1\n")
    target = "sqlite:%s" % (chute.home / "other.db")
    assert chute.command("load", one, "--to", target, "--table", "t", "--state", chute.state).returncode == 0
    chute.start()
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("a", [(0, 1)])
    done = chute.command("load", one, "--to", target, "--table", "t", "--state", chute.state)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(chute.home / "other.db") as db:  # the same file, known from before the daemon
        assert db.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
    two = chute.home / "two.csv"
    write_file(two, "a\n2\n")
    assert chute.command("load", two, "--to", target, "--table", "t", "--state", chute.state).returncode == 0
    with sqlite3.connect(chute.home / "other.db") as db:
        assert db.execute("SELECT count(*) FROM t").fetchall() == [(2,)]
    assert chute.is_live() and chute.rows("a") == [(0, 1)]


def test_retry_all_leaves_alone_what_was_loaded_by_name(chute):
    bad = chute.home / "bad.csv"
    write_file(bad, "a,b\n1,2,3\n")
    assert chute.command("load", bad, "--to", "sqlite:%s" % chute.db, "--state", chute.state).returncode == 1
    chute.start()
    assert "0 files" in chute.command("retry", "--all", "--state", chute.state).stdout + chute.command(
        "retry", "--all", "--state", chute.state).stderr
    assert [f["state"] for f in chute.files() if f["path"].endswith("bad.csv")] == ["quarantined"]
