"""kill -9 where a file ends: while its table is dropped, while it is quarantined and moved, while it waits for a retry."""
import json
import os
import shutil
import sqlite3

import pytest
from chute import LONG, put_file, tool, wait_until, write_file


@pytest.mark.parametrize("names", ["fdatasync,fsync", "renameat,rename,renameat2,unlinkat,unlink"])
def test_a_kill_at_every_step_of_a_drop_a_quarantine_and_a_skip(chute, names):
    failed, kept = chute.home / "failed", chute.home / "kept"
    chute.configure({"on_delete": "drop", "after_failure": {"move": str(failed)}, "types": "infer"})
    write_file(chute.inbox / "gone.csv", "x\n1\n")
    write_file(chute.inbox / "stays.csv", "x\n2\n")
    chute.once()
    assert chute.tables() == {"gone", "stays"}
    kept.mkdir()
    shutil.copytree(chute.state, kept / "state")
    shutil.copy(chute.db, kept / "out.db")
    os.unlink(chute.inbox / "gone.csv")
    when, killed = 0, True
    while killed and when < (200 if LONG else 30):
        when += 1
        shutil.rmtree(chute.state)
        shutil.rmtree(failed, ignore_errors=True)
        shutil.copytree(kept / "state", chute.state)
        for suffix in ("-wal", "-shm"):
            if os.path.exists(str(chute.db) + suffix):
                os.unlink(str(chute.db) + suffix)
        shutil.copy(kept / "out.db", chute.db)
        write_file(chute.inbox / "bad.csv", "x\n1,2\n")
        write_file(chute.inbox / "empty.csv", "")
        code = chute.once(prefix=[tool("strace"), "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + names,
                                  "-e", "inject=%s:signal=SIGKILL:when=%d" % (names, when)], expect=None)
        killed = code not in (0, 1)
        chute.once(expect=None)
        assert chute.tables() == {"stays"} and chute.rows("stays") == [(2,)], when
        assert sorted(p.name for p in chute.inbox.iterdir()) == ["empty.csv", "stays.csv"], when
        left = sorted(p.name for p in failed.rglob("*") if p.is_file())
        assert left == ["bad.csv", "bad.csv.error.json"], "killed at call %d: %s" % (when, left)
        assert (failed / "bad.csv").read_text() == "x\n1,2\n"
        assert chute.state_of("empty.csv") == "skipped" and chute.state_of("gone.csv") in ("gone", None), when
    assert when > 3 and not killed


@pytest.mark.parametrize("state", ["retrying", "quarantined", "skipped", "gone"])
def test_a_kill_in_a_state_that_lasts(chute, state):
    """It is found again as it was, and goes on from there."""
    chute.configure({"on_delete": "drop", "types": "infer"}, dest={"lock_timeout": "100ms"}, retry={"first": "100ms", "max": "300ms"})
    chute.start()
    put_file(chute.inbox / "first.csv", "x\n0\n")
    chute.wait_rows("first", [(0,)])
    lock = sqlite3.connect(chute.db, timeout=30, isolation_level=None)
    try:
        if state == "retrying":
            lock.execute("BEGIN IMMEDIATE")
        put_file(chute.inbox / "t.csv", {"quarantined": "x\n1,2\n", "skipped": ""}.get(state, "x\n1\n"))
        if state == "gone":
            chute.wait_rows("t", [(1,)])
            os.unlink(chute.inbox / "t.csv")
            chute.wait_tables("first")
            wait_until(lambda: chute.state_of("t.csv") in ("gone", None), "the file to be gone", pause=0.05)
        elif state == "retrying":
            wait_until(lambda: chute.state_of("t.csv") in ("retrying", "queued"), "the file to wait", pause=0.05)
        else:
            chute.wait_state("t.csv", state)
        chute.kill9()
        if state == "retrying":
            lock.execute("ROLLBACK")
    finally:
        lock.close()
    chute.start()
    if state == "retrying":
        chute.wait_rows("t", [(1,)])
    else:
        assert chute.state_of("t.csv") in (state, None if state == "gone" else state)
        assert chute.tables() == {"first"}
    put_file(chute.inbox / "t.csv", "x\n3\n")
    chute.wait_rows("t", [(3,)])


@pytest.mark.parametrize("taken", [False, True])
def test_killed_between_a_move_and_its_reason(chute, taken):
    """The file is in its folder, what is to lie beside it is half written: the next start finds where the file went."""
    invalid = chute.home / "invalid"
    chute.configure({"types": "infer", "after_failure": {"move": str(invalid)}})
    if taken:  # another file has the name
        write_file(invalid / "sub" / "bad.csv", "theirs")
    put_file(chute.inbox / "sub" / "bad.csv", "a\n1,2\n")
    place = invalid / "sub" / ("bad.csv.1" if taken else "bad.csv")
    reason = place.with_name(place.name + ".error.json")
    part = str(reason) + ".part"
    code = chute.once(expect=None, prefix=[tool("strace"), "-f", "-qq", "-o", "/dev/null", "-P", part, "-e", "trace=fsync", "-e", "inject=fsync:signal=SIGKILL"])
    assert code not in (0, 1) and place.exists() and not reason.exists()
    chute.once(expect=None)
    assert "expected 1" in json.loads(reason.read_text())["reason"]
    assert sorted(p.name for p in (invalid / "sub").iterdir()) == sorted({place.name, reason.name, "bad.csv"})
    assert [f["state"] for f in chute.files()] == ["quarantined"]
    assert not list((chute.state / "quarantine").rglob("*.json"))
