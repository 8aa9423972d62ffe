"""Commands after a `chute run --watch` that has ended: no daemon and no configuration tell where its folder was."""
import os

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
