"""Scenario part A: file2sql, a folder mirrored into SQLite. One test for each of the twelve, in their order."""
import os
import shutil
import sqlite3
import subprocess
import threading
import time

import pytest
from chute import BINARY, DATA, TOP, put_file, sample, wait_until, write_file

pytestmark = pytest.mark.core


def test_01_a_file_written_becomes_a_table(chute):
    chute.start()
    write_file(chute.inbox / "test1.csv", sample("test1_step1.csv"))
    chute.wait_rows("test1", [(0, "l1", "l2", "l3")])
    assert [name for name, _ in chute.columns("test1")] == ["index", "header1", "header2", "header2.1"]


def test_02_a_line_appended_is_in_the_table_once(chute):
    chute.start()
    write_file(chute.inbox / "test1.csv", sample("test1_step1.csv"))
    chute.wait_rows("test1", [(0, "l1", "l2", "l3")])
    with open(chute.inbox / "test1.csv", "a") as f:
        f.write("l4,l5,l6\n")
    chute.wait_rows("test1", [(0, "l1", "l2", "l3"), (1, "l4", "l5", "l6")])


def test_03_a_removed_file_has_no_table(chute):
    chute.start()
    write_file(chute.inbox / "test1.csv", sample("test1_step1.csv"))
    chute.wait_tables("test1")
    os.unlink(chute.inbox / "test1.csv")
    chute.wait_tables()


def test_04_types_are_inferred(chute):
    chute.start()
    for name in ("types.csv", "leading_zeros.csv"):
        shutil.copy(DATA / name, chute.inbox)
    chute.wait_rows("types", [(0, 1, 2.5, "2024-01-02", 1, "a,b"), (1, 2, None, "2024-01-03", 0, None)])
    assert [type_ for _, type_ in chute.columns("types")][1:] == ["BIGINT", "DOUBLE", "TEXT", "BOOLEAN", "TEXT"]
    chute.wait_rows("leading_zeros", [(0, "007"), (1, "008")])


def test_05_odd_names_load_and_so_does_what_comes_after(chute):
    chute.start()
    for name in ("2024-01.csv", "group.csv", "column_named_index.csv"):
        shutil.copy(DATA / name, chute.inbox)
    chute.wait_rows("2024-01", [(0, 1)])
    chute.wait_rows("group", [(0, 1, 2)])
    chute.wait_rows("column_named_index", [(0, 1, 2)])
    assert [name for name, _ in chute.columns("group")] == ["index", "order", "select"]
    assert [name for name, _ in chute.columns("column_named_index")] == ["index.1", "index", "b"]
    write_file(chute.inbox / "after.csv", "a\n1\n")
    chute.wait_rows("after", [(0, 1)])


@pytest.mark.parametrize("name,line", [("ragged_long_row.csv", 3), ("all_rows_wider_than_header.csv", 2)])
def test_06_a_row_too_wide_is_refused_with_its_place(chute, name, line):
    stem = name[:-4]
    chute.start()
    shutil.copy(DATA / name, chute.inbox)
    chute.wait_state(name, "quarantined")
    assert chute.tables() == set()

    def errors_told():
        return [text for text in chute.log_text().splitlines() if name in text and "error" in text.lower()]
    errors = wait_until(errors_told, "the log to tell it, which comes after the state")
    assert len(errors) == 1, errors
    assert "line %d" % line in errors[0] and "2" in errors[0] and "3" in errors[0]
    # the old table stays when a good file turns bad
    write_file(chute.inbox / name, "a,b\n1,2\n")
    chute.wait_rows(stem, [(0, 1, 2)])
    shutil.copy(DATA / name, chute.inbox)
    chute.wait_state(name, "quarantined")
    assert chute.rows(stem) == [(0, 1, 2)]


def test_06_a_short_row_is_padded(chute):
    chute.start()
    shutil.copy(DATA / "short_row.csv", chute.inbox)
    chute.wait_rows("short_row", [(0, 1, None)])


def test_07_a_rename_into_place_makes_the_table(chute):
    chute.start()
    write_file(chute.inbox / "a.tmp", "x\n1\n")
    os.rename(chute.inbox / "a.tmp", chute.inbox / "a.csv")
    chute.wait_rows("a", [(0, 1)])


def test_07_a_moved_file_takes_its_rows_along_and_one_of_both_is_always_there(chute):
    chute.start()
    write_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("a", [(0, 1)])
    missing, stop = [], threading.Event()

    def watch():
        with chute.connect() as db:
            while not stop.is_set():
                names = {n for (n,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
                if not names & {"a", "b"}:
                    missing.append(names)
    reader = threading.Thread(target=watch)
    reader.start()
    os.rename(chute.inbox / "a.csv", chute.inbox / "b.csv")
    try:
        chute.wait_tables("b")
    finally:
        stop.set()
        reader.join()
    assert chute.rows("b") == [(0, 1)]
    assert not missing


def test_07_a_renamed_folder_carries_its_tables(chute):
    chute.start()
    write_file(chute.inbox / "old/x.csv", "x\n1\n")
    write_file(chute.inbox / "old/deep/y.csv", "y\n2\n")
    chute.wait_tables("old_x", "old_deep_y")
    os.rename(chute.inbox / "old", chute.inbox / "new")
    chute.wait_tables("new_x", "new_deep_y")
    assert chute.rows("new_x") == [(0, 1)] and chute.rows("new_deep_y") == [(0, 2)]


def test_07_a_name_that_is_no_csv_any_more_drops_the_table(chute):
    chute.start()
    write_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_tables("a")
    os.rename(chute.inbox / "a.csv", chute.inbox / "a.txt")
    chute.wait_tables()


def test_08_what_was_there_before_is_loaded_and_what_went_meanwhile_is_dropped(chute):
    write_file(chute.inbox / "one.csv", "x\n1\n")
    write_file(chute.inbox / "sub/two.csv", "x\n2\n")
    chute.start()
    chute.wait_tables("one", "sub_two")
    assert chute.stop() == 0
    os.unlink(chute.inbox / "one.csv")
    write_file(chute.inbox / "sub/two.csv", "x\n3\n")
    chute.start()
    chute.wait_tables("sub_two")
    chute.wait_rows("sub_two", [(0, 3)])


def test_09_the_same_name_in_two_folders_is_two_tables(chute):
    chute.start()
    write_file(chute.inbox / "a/same.csv", "x\n1\n")
    write_file(chute.inbox / "b/same.csv", "x\n2\n")
    chute.wait_tables("a_same", "b_same")
    os.unlink(chute.inbox / "a/same.csv")
    chute.wait_tables("b_same")
    assert chute.rows("b_same") == [(0, 2)]


def test_10_a_reader_sees_old_or_new_never_anything_else(chute):
    rows = 200
    chute.start()
    write_file(chute.inbox / "t.csv", "v\n" + "0\n" * rows)
    chute.wait_rows("t", [(i, 0) for i in range(rows)])
    wrong, seen, stop = [], set(), threading.Event()

    def read():
        with chute.connect() as db:
            while not stop.is_set():
                try:
                    got = db.execute("SELECT count(*), min(v), max(v) FROM t").fetchone()
                except sqlite3.Error as error:
                    wrong.append(str(error))
                    continue
                if got[0] != rows or got[1] != got[2]:
                    wrong.append(got)
                seen.add(got[1])
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in range(1, 101):
            put_file(chute.inbox / "t.csv", "v\n" + "%d\n" % version * rows)
            time.sleep(0.05)
            if version % 10 == 0:  # versions overtaken while waiting are skipped; some must get through
                wait_until(lambda v=version: v in seen, "version %d at the reader" % version)
    finally:
        stop.set()
        reader.join()
    assert not wrong, wrong[:5]
    assert len(seen) >= 10


def test_11_many_writes_to_one_open_file_are_one_load(chute):
    chute.start()
    with open(chute.inbox / "slow.csv", "w") as f:
        f.write("n\n")
        for i in range(40):
            f.write("%d\n" % i)
            f.flush()
            time.sleep(0.025)
    chute.wait_rows("slow", [(i, i) for i in range(40)])
    chute.wait_receipts("slow.csv", "loaded", 1)


def test_12_the_script_of_the_seed_prints_what_its_document_says(chute):
    """The script as it is there, but that it waits for the daemon's readiness, and sleeps are what it has."""
    script = r'''
TEST_DIR=./test-dir
TEST_DB=./test.db
rm -f $TEST_DB
rm -rf $TEST_DIR
mkdir $TEST_DIR
$CHUTE run --profile file2sql --watch $TEST_DIR --to sqlite:$TEST_DB &>chute.log &
PID=$!
echo "Wait for startup..."
until $CHUTE status --live >/dev/null 2>&1; do sleep 0.1; done
echo -e "header1,header2,header2\nl1,l2,l3" > $TEST_DIR/test1.csv
sleep 2
sqlite3 $TEST_DB "SELECT * FROM test1"
echo -e "l4,l5,l6" >> $TEST_DIR/test1.csv
sleep 2
sqlite3 $TEST_DB "SELECT * FROM test1"
rm $TEST_DIR/test1.csv
sleep 2
sqlite3 $TEST_DB "SELECT * FROM test1" 2>&1
kill $PID
wait $PID
'''
    done = subprocess.run(["bash", "-c", script], cwd=chute.home, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "CHUTE": BINARY})
    out = done.stdout.splitlines()
    assert out[:4] == ["Wait for startup...", "0|l1|l2|l3", "0|l1|l2|l3", "1|l4|l5|l6"], done.stdout + done.stderr
    assert len(out) == 5 and "no such table: test1" in out[4], out
    assert done.returncode == 0


def test_the_samples_are_those_of_the_specification():
    """Guards the copies in tests/data against edits."""
    assert (TOP / "tests/data/file2sql/types.csv").read_text().splitlines()[0] == "id,price,when,ok,name"
    assert len(list((TOP / "tests/data/file2sql").glob("*.csv"))) == 11
