"""What is new, what is a repeat: versions, renames, and what was appended once (promises 3 and 5)."""
import contextlib
import os
import shutil
import sqlite3

import pytest
from chute import put_file, wait_until, write_file


def append_flow(**more):
    return {"table": "all", "load": "append", "types": "infer", **more}


@pytest.mark.core
def test_content_a_b_a_loads_three_times_for_replace(chute):
    chute.start()
    for count, value in enumerate(("1", "2", "1"), 1):
        put_file(chute.inbox / "t.csv", "a\n%s\n" % value)
        chute.wait_receipts("t.csv", "loaded", count)
        chute.wait_rows("t", [(0, int(value))])


def test_the_same_bytes_again_are_skipped_as_a_duplicate(chute):
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("t", [(0, 1)])
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_state("t.csv", "skipped")
    assert len(chute.receipts_of("t.csv", "loaded")) == 1
    assert "already" in chute.explain(chute.inbox / "t.csv") or "duplicate" in chute.explain(chute.inbox / "t.csv")


def test_on_duplicate_reload_loads_the_same_bytes_again(chute):
    chute.configure({"on_duplicate": "reload"})
    chute.start()
    for n in (1, 2):
        put_file(chute.inbox / "t.csv", "a\n1\n")
        chute.wait_receipts("t.csv", "loaded", n)
    chute.wait_rows("t", [(1,)])


def test_an_untouched_file_is_not_read_again_after_a_restart(chute):
    write_file(chute.inbox / "t.csv", "a\n1\n")
    chute.start()
    chute.wait_rows("t", [(0, 1)])
    assert chute.stop() == 0
    chute.start()
    write_file(chute.inbox / "after.csv", "a\n1\n")
    chute.wait_tables("t", "after")
    assert len(chute.receipts_of("t.csv")) == 1


def test_append_takes_each_content_of_a_path_once(chute):
    chute.configure(append_flow(on_changed="again"))
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("all", [(1,)])
    put_file(chute.inbox / "t.csv", "a\n2\n")
    chute.wait_rows("all", [(1,), (2,)])
    put_file(chute.inbox / "t.csv", "a\n1\n")  # compared with every receipt of the path
    chute.wait_state("t.csv", "skipped")
    assert chute.rows("all") == [(1,), (2,)]


def test_append_of_the_same_content_at_two_paths_is_two_versions(chute):
    chute.configure(append_flow())
    chute.start()
    put_file(chute.inbox / "x.csv", "a\n1\n")
    put_file(chute.inbox / "y.csv", "a\n1\n")
    chute.wait_rows("all", [(1,), (1,)])


@pytest.mark.core
def test_on_changed_reject_quarantines_a_changed_appended_file(chute):
    chute.configure(append_flow())
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("all", [(1,)])
    put_file(chute.inbox / "t.csv", "a\n1\n2\n")
    chute.wait_state("t.csv", "quarantined")
    assert "on_changed" in chute.explain(chute.inbox / "t.csv")
    assert chute.rows("all") == [(1,)]


def test_on_changed_tail_appends_only_what_follows_the_loaded_prefix(chute):
    chute.configure(append_flow(on_changed="tail"))
    chute.start()
    write_file(chute.inbox / "t.csv", "a\n1\n2\n")
    chute.wait_rows("all", [(1,), (2,)])
    with open(chute.inbox / "t.csv", "a") as f:
        f.write("3\n4\n")
    chute.wait_rows("all", [(1,), (2,), (3,), (4,)])
    with open(chute.inbox / "t.csv", "a") as f:
        f.write("5\n")
    chute.wait_rows("all", [(1,), (2,), (3,), (4,), (5,)])


def test_on_changed_tail_refuses_a_prefix_that_is_another(chute):
    chute.configure(append_flow(on_changed="tail"))
    chute.start()
    write_file(chute.inbox / "t.csv", "a\n1\n2\n")
    chute.wait_rows("all", [(1,), (2,)])
    put_file(chute.inbox / "t.csv", "a\n9\n2\n3\n")
    chute.wait_state("t.csv", "quarantined")
    assert chute.rows("all") == [(1,), (2,)]


@pytest.mark.core
def test_a_rename_carries_the_receipt_and_appends_nothing_twice(chute):
    chute.configure(append_flow())
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("all", [(1,)])
    os.rename(chute.inbox / "t.csv", chute.inbox / "u.csv")
    put_file(chute.inbox / "v.csv", "a\n2\n")
    chute.wait_rows("all", [(1,), (2,)])
    os.makedirs(chute.inbox / "d")
    os.rename(chute.inbox / "u.csv", chute.inbox / "d/u.csv")
    put_file(chute.inbox / "w.csv", "a\n3\n")
    chute.wait_rows("all", [(1,), (2,), (3,)])
    assert chute.stop() == 0
    chute.start()
    put_file(chute.inbox / "x.csv", "a\n4\n")
    chute.wait_rows("all", [(1,), (2,), (3,), (4,)])


def test_a_rename_while_down_appends_nothing_twice(chute):
    chute.configure(append_flow())
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.start()
    chute.wait_rows("all", [(1,)])
    assert chute.stop() == 0
    os.rename(chute.inbox / "t.csv", chute.inbox / "u.csv")
    put_file(chute.inbox / "v.csv", "a\n2\n")
    chute.start()
    chute.wait_rows("all", [(1,), (2,)])
    chute.wait_state("v.csv", "loaded")
    assert chute.rows("all") == [(1,), (2,)]


def test_a_renamed_folder_appends_nothing_twice(chute):
    chute.configure(append_flow())
    for i in range(5):
        write_file(chute.inbox / ("d/f%d.csv" % i), "a\n%d\n" % i)
    chute.start()
    chute.wait_rows("all", [(i,) for i in range(5)])
    os.rename(chute.inbox / "d", chute.inbox / "e")
    put_file(chute.inbox / "e/new.csv", "a\n9\n")
    chute.wait_rows("all", [(i,) for i in range(5)] + [(9,)])


def test_while_the_new_name_fails_the_old_table_stays(chute):
    """mv a b for a mirror: b is loaded first, then a dropped."""
    chute.configure({"on_delete": "drop", "types": "infer"})
    write_file(chute.inbox / "a.csv", "x\n1\n")
    write_file(chute.inbox / "B.csv", "x\n2\n")
    chute.start()
    chute.wait_tables("a", "B")
    os.rename(chute.inbox / "a.csv", chute.inbox / "b.csv")  # SQLite compares names without case: B has an owner
    chute.wait_state("b.csv", "quarantined")
    assert chute.rows("a") == [(1,)]
    assert chute.rows("B") == [(2,)]
    os.unlink(chute.inbox / "B.csv")
    chute.ask("retry", chute.inbox / "b.csv")
    wait_until(lambda: [t.lower() for t in chute.tables()] == ["b"], lambda: "only b; there are %s" % chute.tables())
    assert chute.rows("b") == [(1,)]


def test_a_lost_ledger_repeats_nothing(chute):
    """_chute_loads in the destination decides when the ledger is lost."""
    chute.configure(append_flow(), instance="here")
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.start()
    chute.wait_rows("all", [(1,)])
    assert chute.stop() == 0
    shutil.rmtree(chute.state)
    put_file(chute.inbox / "u.csv", "a\n2\n")
    chute.start()
    chute.wait_rows("all", [(1,), (2,)])
    wait_until(lambda: chute.state_of("t.csv") in ("skipped", "loaded"), "t to be known", pause=0.1)
    assert chute.rows("all") == [(1,), (2,)]


@pytest.mark.core
def test_a_destination_made_anew_gets_the_files_again(chute):
    chute.start()
    write_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("t", [(0, 1)])
    assert chute.stop() == 0
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(str(chute.db) + suffix):
            os.unlink(str(chute.db) + suffix)
    chute.start()
    chute.wait_rows("t", [(0, 1)])


def test_two_chutes_feed_one_database(make_chute):
    """instance is part of a receipt's key: the same path and content from two of them is two versions."""
    one, two = make_chute("one"), make_chute("two")
    two.db = one.db
    for c in (one, two):
        c.configure(append_flow())
        put_file(c.inbox / "t.csv", "a\n1\n")
    one.start()
    one.wait_rows("all", [(1,)])
    two.start()
    one.wait_rows("all", [(1,), (1,)])


def test_of_many_versions_the_newest_wins(chute):
    chute.start()
    for i in range(60):
        put_file(chute.inbox / "t.csv", "a\n%d\n" % i)
    chute.wait_rows("t", [(0, 59)])
    chute.wait_state("t.csv", "loaded")
    assert chute.rows("t") == [(0, 59)]


@pytest.mark.core
@pytest.mark.parametrize("is_good", [True, False], ids=["good", "bad"])
def test_an_older_file_that_comes_while_the_newest_is_loaded_does_not_replace_it(chute, is_good):
    """Unless the newest turns out bad, in its last row."""
    chute.configure({"table": "latest", "load": "replace"}, dest={"lock_timeout": "60s"})
    chute.start()
    put_file(chute.inbox / "first.csv", "a\n0\n")
    os.utime(chute.inbox / "first.csv", (1600000000, 1600000000))
    chute.wait_rows("latest", [(0,)])
    with contextlib.closing(sqlite3.connect(chute.db, isolation_level=None, timeout=30)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        put_file(chute.inbox / "new.csv", "a\n2\n" if is_good else "a\n" + "2\n" * 600000 + "2,3\n")
        chute.wait_state("new.csv", "loading")
        write_file(chute.home / "old.csv", "a\n1\n")
        os.utime(chute.home / "old.csv", (1700000000, 1700000000))
        os.rename(chute.home / "old.csv", chute.inbox / "old.csv")
        chute.wait_state("old.csv", "loading")
        lock.execute("ROLLBACK")
    chute.wait_state("new.csv", "loaded" if is_good else "quarantined")
    chute.wait_state("old.csv", "skipped" if is_good else "loaded")
    assert chute.rows("latest") == [(2,) if is_good else (1,)]
    if is_good:
        assert "new.csv is newer" in chute.explain(chute.inbox / "old.csv")


def test_a_constant_table_holds_the_newest_file(chute):
    chute.configure({"table": "latest", "load": "replace"})
    put_file(chute.inbox / "b.csv", "a\n1\n")
    put_file(chute.inbox / "a.csv", "a\n2\n")
    os.utime(chute.inbox / "b.csv", (1700000000, 1700000000))
    os.utime(chute.inbox / "a.csv", (1700000001, 1700000001))
    chute.start()
    chute.wait_rows("latest", [(2,)])
    put_file(chute.inbox / "c.csv", "a\n3\n")
    chute.wait_rows("latest", [(3,)])


GOOD, BAD = "a\n%d\n", "a\n%d\n1,2\n"
STEP = 1700000000


def put_at(chute, name, text, when):
    """NAME appears whole, as written WHEN seconds after a moment long ago."""
    write_file(chute.home / "whole", text)
    os.utime(chute.home / "whole", (STEP + when, STEP + when))
    os.rename(chute.home / "whole", chute.inbox / name)


@pytest.mark.core
@pytest.mark.parametrize("texts, kept, states", [
    ([GOOD, GOOD, BAD], 2, ["skipped", "loaded", "quarantined"]),
    ([GOOD, BAD, BAD], 1, ["loaded", "quarantined", "quarantined"]),
    ([BAD, BAD, BAD], None, ["quarantined"] * 3),
    ([GOOD, BAD, GOOD], 3, ["skipped", "skipped", "loaded"]),
    ([GOOD, GOOD, ""], 2, ["skipped", "loaded", "skipped"]),
])
def test_a_constant_table_holds_the_newest_file_that_can_be_loaded(chute, texts, kept, states):
    chute.configure({"table": "latest", "load": "replace"})
    names = ["n%d.csv" % i for i in range(1, 4)]
    for i, (name, text) in enumerate(zip(names, texts), 1):
        put_at(chute, name, text % i if "%d" in text else text, i)
    chute.once(expect=1 if "quarantined" in states else 0)
    assert [chute.state_of(name) for name in names] == states
    assert chute.rows("latest") == ([(kept,)] if kept else None)


def test_a_constant_table_keeps_what_it_holds_when_a_newer_file_is_bad(chute):
    """Those that were skipped for what is in the table are not better than that."""
    chute.configure({"table": "latest", "load": "replace"})
    for i in (1, 2, 3):
        put_at(chute, "n%d.csv" % i, GOOD % i, i)
    chute.once()
    put_at(chute, "n4.csv", BAD % 4, 4)
    chute.once(expect=1)
    assert chute.rows("latest") == [(3,)]
    assert [chute.state_of("n%d.csv" % i) for i in (1, 2, 3, 4)] == ["skipped", "skipped", "loaded", "quarantined"]
    put_at(chute, "n4.csv", GOOD % 4, 5)  # and when it is mended, it is the newest
    chute.once()
    assert chute.rows("latest") == [(4,)]


@pytest.mark.core
@pytest.mark.parametrize("end", ["deleted", "given up"])
def test_a_constant_table_gets_the_next_file_when_the_newest_never_becomes_whole(chute, end):
    """The newest waits for the rest of its bytes; the others are skipped for it meanwhile."""
    chute.configure({"table": "latest", "load": "replace", "incomplete_after": "1h" if end == "deleted" else "4s"})
    for i in (1, 2):
        put_at(chute, "n%d.csv" % i, GOOD % i, i)
    put_at(chute, "n3.csv", 'a\n"3', 3)
    chute.start()
    chute.wait_state("n3.csv", "settling")
    if end == "deleted":
        assert chute.state_of("n2.csv") == chute.state_of("n1.csv") == "skipped" and "latest" not in chute.tables()
        chute.kill9()
        chute.start()
        (chute.inbox / "n3.csv").unlink()
    chute.wait_rows("latest", [(2,)])
    chute.wait_state("n3.csv", "gone" if end == "deleted" else "quarantined")
    assert chute.state_of("n1.csv") == "skipped"


@pytest.mark.parametrize("files", [8, 8, 8, 8, 8, 30])
def test_files_of_one_moment_come_in_the_order_of_their_age(chute, files):
    """The clock of the file system is coarse: many have the same time, and the name decides. Two flows must see the same."""
    flow = {"load": "keep_first", "key": ["id"], "table": "t", "types": {"id": "bigint", "v": "text"}}
    chute.configure(source={"settle": "50ms"}, flows=[{"name": n, "to": n, **flow} for n in "ps"],
                    dests={n: {"type": "sqlite", "path": str(chute.home / (n + ".db"))} for n in "ps"})
    for i in range(files):
        put_file(chute.inbox / ("%02d.csv" % i), "id,v\n1,%d\n" % i)
    chute.once()
    for name in "ps":
        with contextlib.closing(sqlite3.connect(chute.home / (name + ".db"))) as db:
            assert db.execute("SELECT v FROM t").fetchall() == [("0",)], name
