"""When is a file whole, and which files are taken at all (promises 1 and 2)."""
import gzip
import os
import shutil
import subprocess
import time

import pytest
from chute import put_file, tool, wait_until, write_file


def quiet(seconds=1.5):
    """Long enough for a daemon that would act wrongly to do it; a slow machine can only make the test kinder."""
    time.sleep(seconds)


@pytest.mark.core
def test_a_writer_that_stalls_with_the_file_open_is_waited_for(chute):
    chute.start()
    with open(chute.inbox / "stalled.csv", "w") as f:
        f.write("a,b\n1,2\n")
        f.flush()
        quiet(3)
        assert chute.tables() == set()
        f.write("3,4\n")
    chute.wait_rows("stalled", [(0, 1, 2), (1, 3, 4)])
    chute.wait_receipts("stalled.csv", "loaded", 1)


def test_a_writer_from_before_the_start_is_waited_for(chute):
    """No event tells of the close that counts: the file was opened before chute began to watch."""
    with open(chute.inbox / "early.csv", "w") as f:
        f.write("a\n1\n")
        f.flush()
        chute.start()
        quiet(3)
        f.write("2\n")
    chute.wait_rows("early", [(0, 1), (1, 2)])


def test_a_half_written_gzip_is_not_loaded_until_it_has_its_trailer(chute):
    whole = gzip.compress(b"a\n" + b"1\n" * 5000)
    chute.start()
    write_file(chute.inbox / "z.csv.gz", whole[: len(whole) // 2])
    quiet()
    assert chute.tables() == set()
    write_file(chute.inbox / "z.csv.gz", whole)
    wait_until(lambda: (chute.rows("z") or [])[-1:] == [(4999, 1)], "the whole gzip")


@pytest.mark.parametrize("kind", ["quote", "gzip"])
def test_input_that_ends_early_is_settling_first_then_incomplete(chute, kind):
    text = b'a,b\n1,"open' if kind == "quote" else gzip.compress(b"a\n1\n" * 100)[:-6]
    name = "cut.csv" if kind == "quote" else "cut.csv.gz"
    chute.configure({"incomplete_after": "3s"})
    chute.start()
    put_file(chute.inbox / name, text)
    chute.wait_state(name, "settling")
    chute.wait_state(name, "quarantined")
    assert kind in chute.explain(chute.inbox / name).lower() or "incomplete" in chute.explain(chute.inbox / name).lower()
    assert chute.tables() == set()


def test_an_early_end_that_is_completed_in_time_is_loaded(chute):
    chute.configure({"incomplete_after": "60s"})
    chute.start()
    put_file(chute.inbox / "two.csv", 'a,b\n1,"open')
    chute.wait_state("two.csv", "settling")
    put_file(chute.inbox / "two.csv", 'a,b\n1,"open and closed"\n')
    chute.wait_rows("two", [(1, "open and closed")])


@pytest.mark.core
def test_a_marker_file_makes_the_file_ready(chute):
    chute.configure(source={"ready_marker": "{name}.done"})
    chute.start()
    write_file(chute.inbox / "m.csv", "a\n1\n")
    quiet()
    assert chute.tables() == set()
    assert "m.csv.done" in chute.explain(chute.inbox / "m.csv")
    write_file(chute.inbox / "m.csv.done", "")
    chute.wait_rows("m", [(1,)])


@pytest.mark.parametrize("name", [".hidden.csv", "x.csv.part", "x.csv.tmp", "x.csv~", "x.csv.crdownload", "notes.txt"])
def test_names_that_are_never_taken(chute, name):
    chute.start()
    write_file(chute.inbox / name, "a\n1\n")
    write_file(chute.inbox / "after.csv", "a\n1\n")
    chute.wait_tables("after")
    assert chute.tables() == {"after"}


@pytest.mark.core
@pytest.mark.parametrize("how", ["gz", "zst"])
def test_compressed_files_are_read_by_content(chute, how):
    write_file(chute.home / "x.csv", "a,b\n1,ž\n")
    if how == "gz":
        (chute.home / "x.csv.gz").write_bytes(gzip.compress((chute.home / "x.csv").read_bytes()))
    else:
        subprocess.run([tool("zstd"), "-q", str(chute.home / "x.csv")], check=True)
    chute.start()
    shutil.move(chute.home / ("x.csv." + how), chute.inbox)
    chute.wait_rows("x", [(0, 1, "ž")])
    # and one that only says so is read as what it is
    put_file(chute.inbox / ("plain.csv." + how), "a\n5\n")
    chute.wait_rows("plain", [(0, 5)])


def test_several_gzip_members_in_one_file_are_one_text(chute):
    chute.start()
    put_file(chute.inbox / "multi.csv.gz", gzip.compress(b"a\n1\n") + gzip.compress(b"2\n"))
    chute.wait_rows("multi", [(0, 1), (1, 2)])


def test_a_folder_made_a_moment_ago_is_seen(chute):
    chute.start()
    for i in range(20):
        write_file(chute.inbox / ("n%d/a/b/c/f.csv" % i), "x\n%d\n" % i)
    chute.wait_tables(*["n%d_a_b_c_f" % i for i in range(20)])


def test_a_folder_moved_in_brings_its_files(chute):
    write_file(chute.home / "outside/deep/f.csv", "x\n1\n")
    chute.start()
    os.rename(chute.home / "outside", chute.inbox / "moved")
    chute.wait_tables("moved_deep_f")


def test_a_folder_moved_out_takes_its_tables_away(chute):
    write_file(chute.inbox / "d/f.csv", "x\n1\n")
    write_file(chute.inbox / "d/g.csv", "x\n1\n")
    write_file(chute.inbox / "stay.csv", "x\n1\n")
    chute.start()
    chute.wait_tables("d_f", "d_g", "stay")
    os.rename(chute.inbox / "d", chute.home / "gone")
    chute.wait_tables("stay")
    # and what happens out there is nobody's business
    write_file(chute.home / "gone/h.csv", "x\n1\n")
    write_file(chute.inbox / "last.csv", "x\n1\n")
    chute.wait_tables("stay", "last")


def test_symbolic_links_do_not_lead_out_of_the_root(chute):
    write_file(chute.home / "secret/s.csv", "x\n1\n")
    os.symlink(chute.home / "secret", chute.inbox / "linked")
    os.symlink(chute.home / "secret/s.csv", chute.inbox / "link.csv")
    chute.start()
    write_file(chute.inbox / "after.csv", "x\n1\n")
    chute.wait_tables("after")
    quiet()
    assert chute.tables() == {"after"}


@pytest.mark.parametrize("mode", ["poll", "events", "auto"])
def test_each_mode_finds_new_changed_and_deleted_files(chute, mode):
    chute.configure({"row_number": "", "on_delete": "drop"}, source={"mode": mode, "poll_interval": "300ms", "settle": "500ms"})
    write_file(chute.inbox / "a.csv", "x\n1\n")
    chute.start()
    chute.wait_rows("a", [(1,)])
    write_file(chute.inbox / "sub/b.csv", "x\n1\n")
    chute.wait_rows("sub_b", [(1,)])
    write_file(chute.inbox / "a.csv", "x\n22\n")
    chute.wait_rows("a", [(22,)])
    os.unlink(chute.inbox / "a.csv")
    chute.wait_tables("sub_b")


def test_a_root_that_is_missing_at_start_is_taken_when_it_appears(chute):
    chute.configure(source={"poll_interval": "300ms"})
    os.rmdir(chute.inbox)
    chute.start(ready=False)
    wait_until(lambda: (chute.state / "chute.sock").exists(), "the socket")
    assert not chute.is_live() or "inbox" in chute.ask("status")
    write_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("a", [(1,)])


def test_a_file_replaced_by_rename_while_loading_ends_with_the_new_content(chute):
    """The open inode is a whole version; the next one is taken after it."""
    rows = 300000
    chute.start()
    put_file(chute.inbox / "big.csv", "a,b\n" + "".join("%d,x\n" % i for i in range(rows)))
    wait_until(lambda: chute.state_of("big.csv") in ("loading", "loaded"), "the load to begin", pause=0.005)
    put_file(chute.inbox / "big.csv", "a,b\n7,new\n")
    chute.wait_rows("big", [(0, 7, "new")])


def test_a_file_changed_in_place_while_loading_never_shows_a_mix(chute):
    rows = 300000
    chute.start()
    write_file(chute.inbox / "big.csv", "a\n" + "1\n" * rows)
    wait_until(lambda: chute.state_of("big.csv") in ("loading", "loaded"), "the load to begin", pause=0.005)
    with open(chute.inbox / "big.csv", "r+") as f:
        f.seek(2)
        f.write("2\n" * rows)
    wait_until(lambda: "big" in chute.tables() and chute.query("SELECT min(a), max(a), count(*) FROM big") == [(2, 2, rows)],
               "the second version, whole")
