"""Deletes, renames and kills in the wrong moment: nothing is left behind, nothing is lost (promises 2, 3 and 5)."""
import contextlib
import os
import signal
import sqlite3
import time

import pytest
from chute import put_file, wait_until, write_file

MIRROR = {"on_delete": "drop"}
APPEND = {"load": "append", "table": "all"}


@contextlib.contextmanager
def locked(chute):
    """Nobody else writes the database: loads and drops that have begun wait."""
    db = sqlite3.connect(chute.db, isolation_level=None, timeout=30)
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        db.execute("ROLLBACK")
        db.close()


def many_rows(first, count=60000):
    return "id\n" + "".join("%d\n" % i for i in range(first, first + count))


def test_a_file_that_comes_back_while_its_table_is_dropped_is_loaded(chute):
    chute.configure(MIRROR, dest={"lock_timeout": "20s"})
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("t", [(1,)])
    with locked(chute):
        os.unlink(chute.inbox / "t.csv")
        chute.wait_state("t.csv", "gone")
        time.sleep(0.5)  # the drop is with the database
        put_file(chute.inbox / "t.csv", "a\n1\n")
        wait_until(lambda: chute.state_of("t.csv") != "gone", "the file to be seen again")
        time.sleep(0.5)
    # rows may still be the old ones, before their drop: it is the end of the new load that counts
    wait_until(lambda: chute.state_of("t.csv") in ("loaded", "skipped"), lambda: "the end of the load: %s" % chute.files(), pause=0.1)
    assert chute.rows("t") == [(1,)]
    time.sleep(1)
    assert chute.rows("t") == [(1,)]


@pytest.mark.core
def test_a_file_deleted_while_it_loads_leaves_no_table_after_a_kill(chute):
    chute.configure(MIRROR, dest={"lock_timeout": "20s"})
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("t", [(1,)])
    chute.wait_state("t.csv", "loaded")  # else the next word may still be about the first version
    with locked(chute):
        put_file(chute.inbox / "t.csv", "a\n2\n")
        chute.wait_state("t.csv", "loading")
        os.unlink(chute.inbox / "t.csv")
        chute.wait_state("t.csv", "gone")
        chute.kill9()
    chute.start()
    chute.wait_tables()


def test_a_rename_over_a_loaded_file_keeps_the_old_table_until_the_new_one_is_there(chute):
    chute.configure(MIRROR, dest={"lock_timeout": "20s"})
    chute.start()
    put_file(chute.inbox / "a.csv", "a\n1\n")
    put_file(chute.inbox / "b.csv", "a\n2\n")
    chute.wait_rows("a", [(1,)])
    chute.wait_rows("b", [(2,)])
    os.rename(chute.inbox / "a.csv", chute.inbox / "b.csv")
    seen = set()

    def arrived():
        with chute.connect() as db:
            db.execute("BEGIN")  # both questions of one moment
            tables = {n for (n,) in db.execute("SELECT name FROM sqlite_schema WHERE type='table' AND name IN ('a', 'b')")}
            values = {v for t in tables for (v,) in db.execute("SELECT a FROM %s" % t)}
        seen.add(frozenset(values))
        return tables == {"b"} and values == {1}
    wait_until(arrived, lambda: "b to hold the renamed file; seen %s" % seen, pause=0.001)
    assert all(1 in values for values in seen), seen


def test_a_rename_over_a_loaded_file_that_fails_keeps_the_old_table(chute):
    chute.configure({"on_delete": "drop", "on_schema_change": "reject"})
    chute.start()
    put_file(chute.inbox / "a.csv", "a\n1\n")
    put_file(chute.inbox / "b.csv", "b\n2\n")
    chute.wait_tables("a", "b")
    os.rename(chute.inbox / "a.csv", chute.inbox / "b.csv")
    chute.wait_state("b.csv", "quarantined")
    time.sleep(1)
    assert chute.rows("a") == [(1,)] and chute.rows("b") == [(2,)]


def test_a_folder_renamed_while_its_file_loads_ends_that_load(chute):
    chute.configure(APPEND, dest={"lock_timeout": "20s"})
    chute.start()
    put_file(chute.inbox / "first.csv", "a\n1\n")
    chute.wait_rows("all", [(1,)])
    (chute.inbox / "x").mkdir()
    with locked(chute):
        put_file(chute.inbox / "x/t.csv", "a\n2\n")
        chute.wait_state("x/t.csv", "loading")
        os.rename(chute.inbox / "x", chute.inbox / "y")
        wait_until(lambda: chute.state_of("y/t.csv"), "the new name in the ledger")
    wait_until(lambda: chute.state_of("y/t.csv") in ("loaded", "skipped"), lambda: "the end of the load: %s" % chute.files())
    assert chute.rows("all") == [(1,), (2,)]


@pytest.mark.core
@pytest.mark.parametrize("way", ["renamed", "aside", "away"])
def test_a_file_renamed_while_it_loads_is_appended_once(chute, way):
    """What it loads is known only when that load has ended: until then its new name is no new file, also where it was gone meanwhile."""
    chute.configure(APPEND, dest={"lock_timeout": "60s"})
    chute.start()
    put_file(chute.inbox / "first.csv", "a\n1\n")
    chute.wait_rows("all", [(1,)])
    with locked(chute):
        put_file(chute.inbox / "a.csv", "a\n2\n")
        chute.wait_state("a.csv", "loading")
        if way == "aside":
            os.rename(chute.inbox / "a.csv", chute.inbox / "a.tmp")
        elif way == "away":
            os.rename(chute.inbox / "a.csv", chute.home / "a.tmp")
        if way != "renamed":
            chute.wait_state("a.csv", "gone")
        os.rename({"renamed": chute.inbox / "a.csv", "aside": chute.inbox / "a.tmp", "away": chute.home / "a.tmp"}[way], chute.inbox / "c.csv")
        put_file(chute.inbox / "z.csv", "a\n9\n")
        chute.wait_state("z.csv", "loading")
    wait_until(lambda: {chute.state_of("c.csv"), chute.state_of("z.csv")} <= {"loaded", "skipped"}, lambda: "the end: %s" % chute.files(), pause=0.1)
    assert chute.rows("all") == [(1,), (2,), (9,)]
    assert chute.stop() == 0
    chute.once()
    assert chute.rows("all") == [(1,), (2,), (9,)]
    assert sorted(f["path"] for f in chute.files("loaded", "skipped")) == sorted(os.listdir(chute.inbox))


def test_a_writer_in_a_renamed_folder_is_waited_for_and_then_forgotten(chute):
    write_file(chute.inbox / "x/other.csv", "a\n9\n")
    chute.configure({"table": "{stem}"})
    chute.start()
    chute.wait_rows("other", [(9,)])
    with open(chute.inbox / "x/t.csv", "w") as f:
        f.write("a\n1\n")
        f.flush()
        chute.wait_state("x/t.csv", "settling")
        os.rename(chute.inbox / "x", chute.inbox / "y")
        f.write("2\n")
        f.flush()
        time.sleep(1)
    chute.wait_rows("t", [(1,), (2,)])
    wait_until(lambda: chute.state_of("x/t.csv") != "settling", lambda: "nothing waits under the old name: %s" % chute.files())


def test_two_names_swapped_by_way_of_a_name_that_is_not_taken_append_nothing(chute):
    chute.configure(APPEND)
    chute.start()
    put_file(chute.inbox / "a.csv", "a\n1\n")
    put_file(chute.inbox / "b.csv", "a\n2\n")
    chute.wait_rows("all", [(1,), (2,)])
    os.rename(chute.inbox / "a.csv", chute.inbox / "t.tmp")
    os.rename(chute.inbox / "b.csv", chute.inbox / "a.csv")
    os.rename(chute.inbox / "t.tmp", chute.inbox / "b.csv")
    put_file(chute.inbox / "c.csv", "a\n3\n")
    wait_until(lambda: (3,) in chute.rows("all"), "a file that came later")
    time.sleep(1.5)
    assert chute.rows("all") == [(1,), (2,), (3,)]


def test_a_file_that_vanishes_before_it_is_opened_is_gone_and_not_bad(chute):
    chute.configure()
    chute.start()
    put_file(chute.inbox / "warm.csv", "a\n1\n")
    chute.wait_rows("warm", [(1,)])
    assert chute.stop() == 0
    # What a kill right after the note leaves.
    ledger = chute.state / "ledger.db"
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        db.execute("UPDATE file SET state = 2")
        db.execute("DELETE FROM tally WHERE state = 2")
        db.execute("UPDATE tally SET state = 2 WHERE state = 5")
        db.commit()
    os.unlink(chute.inbox / "warm.csv")
    chute.start()
    chute.wait_state("warm.csv", "gone")
    assert "quarantined" not in chute.log_text()


@pytest.mark.core
def test_a_shared_table_takes_files_in_the_order_of_their_times(chute):
    """The older file takes much longer to open than the newer one."""
    chute.configure({"load": "upsert", "table": "all", "key": ["id"]})
    now = time.time()
    for n in range(5):
        big, small = chute.inbox / ("%d-big.csv" % n), chute.inbox / ("%d-small.csv" % n)
        write_file(big, "id,v\n%d,old\n" % n + "".join("%d,x\n" % (1000000 * (n + 1) + i) for i in range(20000 if n % 2 else 9000)))
        write_file(small, "id,v\n%d,new\n" % n)
        os.utime(big, (now - 100 + 2 * n,) * 2)
        os.utime(small, (now - 99 + 2 * n,) * 2)
    chute.once()
    assert chute.query("SELECT id, v FROM \"all\" WHERE id < 5 ORDER BY id") == [(n, "new") for n in range(5)]


def test_a_chain_of_renames_drops_the_first_table_when_the_last_name_is_loaded(chute):
    chute.configure(MIRROR)
    (chute.inbox / "x").mkdir()
    chute.start()
    put_file(chute.inbox / "a.csv", "a\n1\n")
    put_file(chute.inbox / "x/other.csv", "a\n2\n")
    chute.wait_tables("a", "x_other")
    os.rename(chute.inbox / "a.csv", chute.inbox / "x/b.csv")
    os.rename(chute.inbox / "x/b.csv", chute.inbox / "x/c.csv")
    os.rename(chute.inbox / "x", chute.inbox / "y")
    os.rename(chute.inbox / "y/c.csv", chute.inbox / "d.csv")
    wait_until(lambda: chute.tables() == {"d", "y_other"}, lambda: "the last names: %s" % chute.tables(), timeout=25)


# ---- another database ----

def remove_db(chute):
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(str(chute.db) + end)


@pytest.mark.core
@pytest.mark.parametrize("load", ["replace", "append"])
def test_a_file_touched_while_its_database_was_made_anew_is_loaded(chute, load):
    chute.configure({"load": load, "table": "{stem}"})
    put_file(chute.inbox / "t.csv", "a\n1\n")
    put_file(chute.inbox / "u.csv", "a\n2\n")
    chute.once()
    remove_db(chute)
    os.utime(chute.inbox / "t.csv")
    chute.once()
    assert chute.rows("t") == [(1,)] and chute.rows("u") == [(2,)]


def test_a_database_removed_while_chute_runs_gets_all_files_again(chute):
    chute.configure()
    chute.start()
    for n in range(3):
        put_file(chute.inbox / ("t%d.csv" % n), "a\n%d\n" % n)
    chute.wait_tables("t0", "t1", "t2")
    remove_db(chute)
    put_file(chute.inbox / "t3.csv", "a\n3\n")
    chute.wait_tables("t0", "t1", "t2", "t3")


# ---- run --once ----

def test_once_ends_although_a_flow_that_is_no_more_has_files_waiting(chute):
    nowhere = chute.home / "nowhere"
    chute.configure(dest={"path": str(nowhere / "x.db")})
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.once("--deadline", "3s", expect=1)
    chute.configure({"name": "other", "to": "new"}, dests={"new": {"type": "sqlite", "path": str(chute.db)}})
    chute.once("--deadline", "20s", expect=0)
    assert chute.rows("t") == [(1,)]


def test_once_ends_although_a_renamed_file_is_bad(chute):
    chute.configure({"on_delete": "drop", "on_schema_change": "reject"})
    put_file(chute.inbox / "a.csv", "a\n1\n")
    put_file(chute.inbox / "b.csv", "b\n2\n")
    chute.once()
    os.rename(chute.inbox / "a.csv", chute.inbox / "b.csv")
    chute.once("--deadline", "90s", expect=1)
    assert "deadline" not in chute.log_text()


def test_a_reload_in_the_middle_of_loads_loses_and_repeats_nothing(chute):
    chute.configure(APPEND)
    chute.start()
    for n in range(20):
        put_file(chute.inbox / ("f%d.csv" % n), "a\n%d\n" % n)
        if n % 3 == 0:
            chute.process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    wait_until(lambda: len(chute.rows("all") or []) >= 20, lambda: "20 rows: %s" % chute.rows("all"))
    time.sleep(0.5)
    assert chute.rows("all") == [(n,) for n in range(20)]


@pytest.mark.core
@pytest.mark.parametrize("kept", ["a", "z"])
def test_a_log_rotated_while_chute_was_down_is_appended_once(chute, kept):
    chute.configure(APPEND)
    put_file(chute.inbox / "log.csv", "a\n1\n")
    chute.once()
    os.rename(chute.inbox / "log.csv", chute.inbox / (kept + ".csv"))
    put_file(chute.inbox / "log.csv", "a\n2\n")
    chute.once()
    assert chute.rows("all") == [(1,), (2,)]
