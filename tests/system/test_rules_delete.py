"""Deletes by the user, and what chute itself does to files afterwards."""
import hashlib
import json
import os
import shutil
import subprocess
import time

import pytest
from chute import put_file, wait_until, write_file

DROP = {"on_delete": "drop", "types": "infer"}


def test_without_on_delete_nothing_is_ever_dropped(chute):
    chute.configure()
    chute.start()
    write_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_tables("a")
    os.unlink(chute.inbox / "a.csv")
    chute.wait_state("a.csv", "gone")
    assert chute.rows("a") == [(1,)]


def test_a_command_line_without_profile_never_drops(chute):
    chute.start(profile=None)
    write_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_tables("a")
    os.unlink(chute.inbox / "a.csv")
    chute.wait_state("a.csv", "gone")
    assert chute.tables() == {"a"}


def test_on_delete_empty_keeps_the_table(chute):
    chute.configure({"on_delete": "empty", "types": "infer"})
    chute.start()
    write_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("a", [(1,)])
    os.unlink(chute.inbox / "a.csv")
    chute.wait_rows("a", [])


@pytest.mark.core
def test_deletes_while_down_are_noticed(chute):
    chute.configure(DROP)
    for name in "abc":
        write_file(chute.inbox / (name + ".csv"), "x\n1\n")
    chute.start()
    chute.wait_tables("a", "b", "c")
    chute.kill9()
    os.unlink(chute.inbox / "b.csv")
    chute.start()
    chute.wait_tables("a", "c")


@pytest.mark.core
def test_an_unmounted_root_deletes_nothing(chute, small_disk):
    chute.configure(DROP, source={"poll_interval": "300ms"})
    small_disk(chute.inbox)
    for name in "abc":
        write_file(chute.inbox / (name + ".csv"), "x\n1\n")
    chute.start()
    chute.wait_tables("a", "b", "c")
    assert chute.stop() == 0
    subprocess.run(["umount", str(chute.inbox)], check=True)
    chute.start(ready=False)
    time.sleep(2)
    assert chute.tables() == {"a", "b", "c"}
    assert chute.process.poll() is None


def test_a_root_unmounted_while_running_deletes_nothing(chute, small_disk):
    chute.configure(DROP, source={"poll_interval": "300ms"})
    small_disk(chute.inbox)
    for name in "abc":
        write_file(chute.inbox / (name + ".csv"), "x\n1\n")
    chute.start()
    chute.wait_tables("a", "b", "c")
    subprocess.run(["umount", "-l", str(chute.inbox)], check=True)
    time.sleep(2)
    assert chute.tables() == {"a", "b", "c"}


def test_another_folder_at_the_roots_place_deletes_nothing(chute):
    chute.configure(DROP)
    for name in "abc":
        write_file(chute.inbox / (name + ".csv"), "x\n1\n")
    chute.start()
    chute.wait_tables("a", "b", "c")
    assert chute.stop() == 0
    os.rename(chute.inbox, chute.home / "aside")
    chute.inbox.mkdir()
    chute.start(ready=False)
    time.sleep(2)
    assert chute.tables() == {"a", "b", "c"}


@pytest.mark.core
def test_a_reconcile_that_would_drop_most_tables_is_held(chute):
    chute.configure(DROP)
    names = ["t%02d" % i for i in range(12)]
    for name in names:
        write_file(chute.inbox / (name + ".csv"), "x\n1\n")
    chute.start()
    chute.wait_tables(*names)
    assert chute.stop() == 0
    for name in names[:8]:
        os.unlink(chute.inbox / (name + ".csv"))
    chute.start()
    wait_until(lambda: "retry --deletes" in chute.ask("status"), "status to show the held deletes", pause=0.1)
    assert chute.tables() == set(names)
    chute.ask("retry", "--deletes")
    chute.wait_tables(*names[8:])


def test_few_deletes_are_not_held(chute):
    chute.configure(DROP)
    names = ["t%02d" % i for i in range(12)]
    for name in names:
        write_file(chute.inbox / (name + ".csv"), "x\n1\n")
    chute.start()
    chute.wait_tables(*names)
    assert chute.stop() == 0
    for name in names[:4]:
        os.unlink(chute.inbox / (name + ".csv"))
    chute.start()
    chute.wait_tables(*names[4:])


def test_an_unreadable_parent_deletes_nothing(chute):
    """A folder that can't be listed proves nothing about the files in it."""
    write_file(chute.inbox / "d/a.csv", "x\n1\n")
    write_file(chute.inbox / "b.csv", "x\n1\n")
    chute.configure(DROP)
    chute.start()
    chute.wait_tables("d_a", "b")
    assert chute.stop() == 0
    # root may read everything: what stands in for "can't be listed" is a folder replaced by something else
    os.rename(chute.inbox / "d", chute.home / "d")
    os.symlink("/nonexistent", chute.inbox / "d")
    write_file(chute.inbox / "c.csv", "x\n1\n")
    chute.start()
    chute.wait_state("c.csv", "loaded")
    os.unlink(chute.inbox / "d")
    os.rename(chute.home / "d", chute.inbox / "d")
    chute.wait_tables("d_a", "b", "c")


# ---- after_success, after_failure ----

@pytest.mark.core
def test_after_success_delete_removes_the_file_and_keeps_the_table(chute):
    chute.configure({"after_success": "delete", "on_delete": "drop"})
    chute.start()
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("a", [(1,)])
    chute.wait_inbox()
    assert chute.stop() == 0
    chute.start()
    put_file(chute.inbox / "b.csv", "x\n1\n")
    chute.wait_tables("a", "b")
    assert chute.rows("a") == [(1,)]  # what chute itself deleted never counts as the user's delete
    chute.wait_inbox()
    assert chute.tables() == {"a", "b"}


def test_after_success_move_numbers_names_that_are_taken(chute):
    done = chute.home / "done"
    chute.configure({"after_success": {"move": str(done)}, "load": "append", "table": "all", "on_changed": "again"})
    chute.start()
    for text in ("x\n1\n", "x\n2\n", "x\n3\n"):
        put_file(chute.inbox / "a.csv", text)
        chute.wait_inbox()
    names = sorted(p.name for p in done.rglob("*") if p.is_file())
    assert len(names) == 3 and names[0] == "a.csv" and any("1" in n for n in names) and any("2" in n for n in names), names
    assert {p.read_text() for p in done.rglob("*") if p.is_file()} == {"x\n1\n", "x\n2\n", "x\n3\n"}
    chute.wait_rows("all", [(1,), (2,), (3,)])


def test_after_success_move_replaces_the_same_bytes(chute):
    done = chute.home / "done"
    chute.configure({"after_success": {"move": str(done)}})
    chute.start()
    for _ in range(2):
        put_file(chute.inbox / "a.csv", "x\n1\n")
        chute.wait_inbox()
    assert [p.name for p in done.rglob("*") if p.is_file()] == ["a.csv"]


def test_after_success_move_inside_the_root_is_not_input_again(chute):
    chute.configure({"after_success": {"move": str(chute.inbox / "done")}, "load": "append", "table": "all"})
    chute.start()
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_inbox("done")
    put_file(chute.inbox / "b.csv", "x\n2\n")
    chute.wait_rows("all", [(1,), (2,)])
    assert chute.stop() == 0
    chute.start()
    put_file(chute.inbox / "c.csv", "x\n3\n")
    chute.wait_rows("all", [(1,), (2,), (3,)])


def test_after_success_move_across_file_systems(chute, small_disk):
    done = small_disk(chute.home / "other")
    chute.configure({"after_success": {"move": str(done)}})
    chute.start()
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_inbox()
    assert (done / "a.csv").read_text() == "x\n1\n"
    assert [p.name for p in done.rglob("*") if p.is_file()] == ["a.csv"]


def test_after_success_waits_for_all_flows(chute):
    chute.configure(flows=[{"name": "one", "table": "one", "after_success": "delete"},
                           {"name": "two", "table": "two", "types": {"x": "bigint"}, "after_success": "delete"}])
    chute.start()
    put_file(chute.inbox / "a.csv", "x\nword\n")  # fits one, not two
    chute.wait_rows("one", [("word",)])
    chute.wait_receipts("a.csv", "loaded", 1)
    chute.wait_receipts("a.csv", "quarantined", 1)
    assert (chute.inbox / "a.csv").exists()
    put_file(chute.inbox / "b.csv", "x\n1\n")
    chute.wait_inbox("a.csv")
    assert chute.rows("one") == [(1,)] or chute.rows("one") == [("1",)]
    assert chute.rows("two") == [(1,)]


@pytest.mark.core
def test_quarantine_says_why_and_the_file_stays(chute):
    chute.configure()
    chute.start()
    put_file(chute.inbox / "d/bad.csv", "a,b\n1,2\n3,4,5\n")
    chute.wait_state("d/bad.csv", "quarantined")
    reason = chute.state / "quarantine/main/d/bad.csv.error.json"
    wait_until(reason.exists, "the reason file, which comes after the state")
    note = json.loads(reason.read_text())
    assert note["path"] == "d/bad.csv" and note["flow"] == "main"
    assert note["tries"] == 1 == chute.receipts_of("d/bad.csv")[0]["tries"]
    for word in ("line 3", "2", "3"):
        assert word in note["reason"], note
    assert (chute.inbox / "d/bad.csv").read_text() == "a,b\n1,2\n3,4,5\n"
    assert "line 3" in chute.explain(chute.inbox / "d/bad.csv")
    put_file(chute.inbox / "d/bad.csv", "a,b\n1,2\n3,4\n")  # corrected: loaded without a restart, the reason goes
    chute.wait_rows("d_bad", [(1, 2), (3, 4)])
    wait_until(lambda: not (chute.state / "quarantine/main/d/bad.csv.error.json").exists(), "the reason to go")


def test_after_failure_move_takes_the_file_with_its_reason(chute):
    chute.configure({"after_failure": {"move": str(chute.home / "bad")}})
    chute.start()
    put_file(chute.inbox / "bad.csv", "a\n1,2\n")
    chute.wait_inbox()
    moved = [p for p in (chute.home / "bad").rglob("bad.csv")]
    assert len(moved) == 1 and moved[0].read_text() == "a\n1,2\n"
    wait_until(lambda: moved[0].with_name("bad.csv.error.json").exists(), "the reason beside it")
    assert "line 2" in json.loads(moved[0].with_name("bad.csv.error.json").read_text())["reason"]


@pytest.mark.core
def test_bad_rows_skip_keeps_them_with_line_and_reason(chute):
    chute.configure({"bad_rows": {"skip": 2}, "types": "infer"})
    chute.start()
    put_file(chute.inbox / "t.csv", "a,b\n1,2\n3,4,5\n6\n7,8\n")
    chute.wait_rows("t", [(1, 2), (7, 8)])
    wait_until(lambda: list((chute.state / "quarantine").rglob("t.csv.rejected.csv")), "the rejected rows")
    text = list((chute.state / "quarantine").rglob("t.csv.rejected.csv"))[0].read_text()
    assert "3" in text and "4" in text and "5" in text and "6" in text
    (receipt,) = chute.wait_receipts("t.csv", "loaded", 1)
    assert (receipt["parsed"], receipt["inserted"], receipt["rejected"]) == (4, 2, 2)


def test_more_bad_rows_than_allowed_refuse_the_file(chute):
    chute.configure({"bad_rows": {"skip": 1}})
    chute.start()
    put_file(chute.inbox / "t.csv", "a,b\n1,2\n3,4,5\n6\n7,8\n")
    chute.wait_state("t.csv", "quarantined")
    assert chute.tables() == set()
    quarantine = chute.state / "quarantine"
    wait_until(lambda: list(quarantine.rglob("*.error.json")), "the reason file, which comes after the state")
    assert not list(quarantine.rglob("*.part"))


def test_no_error_changes_the_file(chute):
    """Promise 6, over several kinds of bad input at once."""
    bad = {"wide.csv": b"a\n1,2\n", "nul.csv": b"a\n1\0\n", "latin.csv": b"a\nf\xfc\n", "quote.csv": b'a\n"x\n', "cut.csv.gz": b"\x1f\x8b\x08\0\0\0\0\0"}
    chute.configure({"incomplete_after": "500ms"})
    chute.start()
    for name, content in bad.items():
        put_file(chute.inbox / name, content)
    for name in bad:
        chute.wait_state(name, "quarantined")
    for name, content in bad.items():
        assert hashlib.sha256((chute.inbox / name).read_bytes()).digest() == hashlib.sha256(content).digest()
    put_file(chute.inbox / "good.csv", "a\n1\n")
    chute.wait_tables("good")


def test_the_state_folder_inside_the_root_is_not_input(chute):
    chute.state = chute.inbox / "state"
    chute.configure({"bad_rows": {"skip": 5}, "table": "all", "load": "append"})
    chute.start()
    put_file(chute.inbox / "t.csv", "a,b\n1,2\n3,4,5\n")
    chute.wait_rows("all", [(1, 2)])
    put_file(chute.inbox / "u.csv", "a,b\n5,6\n")
    chute.wait_rows("all", [(1, 2), (5, 6)])
    shutil.rmtree(chute.home / "nothing", ignore_errors=True)


@pytest.mark.core
@pytest.mark.parametrize("how", ["rmdir", "rename", "parent"])
def test_a_root_that_goes_away_while_chute_runs_is_told_deletes_nothing_and_is_found_again(chute, how):
    chute.inbox = chute.home / "above/in"
    chute.inbox.mkdir(parents=True)
    chute.start()
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("a", [(0, 1)])
    if how == "rmdir":
        (chute.inbox / "a.csv").rename(chute.home / "kept.csv")
        chute.wait_tables()
        chute.inbox.rmdir()
    elif how == "rename":
        chute.inbox.rename(chute.home / "elsewhere")
    else:
        (chute.home / "above").rename(chute.home / "elsewhere")
    wait_until(lambda: not chute.status()["sources"][0]["reachable"], "the missing root to be told")
    chute.wait_log("above/in")
    if how != "rmdir":
        assert chute.rows("a") == [(0, 1)]
    chute.inbox.mkdir(parents=True)
    put_file(chute.inbox / "b.csv", "x\n2\n")
    chute.wait_rows("b", [(0, 2)])
    if how != "rmdir":
        assert chute.rows("a") == [(0, 1)]
