"""Faults, swept: kills, full disks, broken ledgers, lost events, clocks. The tables must equal the files, each row once."""
import contextlib
import ctypes.util
import errno
import glob
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from chute import BINARY, LONG, PATIENCE, Chute, put_file, tool, wait_until, write_file

KILLS = 200 if LONG else 40


# ---- kill -9 ----

class Mirror:
    """A folder, and what the database must hold for it."""

    def __init__(self, chute, seed):
        self.chute, self.random, self.files, self.version = chute, random.Random(seed), {}, 0

    def act(self):
        """One thing a user does: write, replace, append, rename, delete."""
        self.version += 1
        what = self.random.choice(["write", "write", "replace", "append", "rename", "delete"])
        name = "%s/f%d.csv" % (self.random.choice(["", "d", "d/e"]), self.random.randrange(12))
        path = self.chute.inbox / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(self.version, i) for i in range(self.random.choice([1, 5, 400]))]
        text = "v,i\n" + "".join("%d,%d\n" % r for r in rows)
        if what == "write":
            write_file(path, text)
            self.files[path] = rows
        elif what == "replace":
            put_file(path, text)
            self.files[path] = rows
        elif what == "append" and path in self.files:
            with open(path, "a") as f:
                f.write("".join("%d,%d\n" % r for r in rows))
            self.files[path] = self.files[path] + rows
        elif what == "rename" and self.files:
            old = self.random.choice(sorted(self.files))
            if old != path:
                os.rename(old, path)
                self.files[path] = self.files.pop(old)
        elif what == "delete" and self.files:
            old = self.random.choice(sorted(self.files))
            os.unlink(old)
            del self.files[old]

    def expected(self):
        return {str(p.relative_to(self.chute.inbox))[:-4].replace("/", "_"): [(n, *r) for n, r in enumerate(rows)]
                for p, rows in self.files.items()}

    def check(self):
        want = self.expected()

        def difference():
            tables = self.chute.tables()
            return {t: (len(want.get(t, [])), len((self.chute.rows(t) if t in tables else None) or []))
                    for t in set(want) | tables if (self.chute.rows(t) if t in tables else None) != want.get(t)}
        self.chute.wait_ready()
        self.chute.ask("retry", "--deletes")  # a kill may come with more deletes than chute believes at once
        # a renamed file whose new name never came keeps its table for a minute
        wait_until(lambda: not difference(),
                   lambda: "tables to equal files (want, have): %s\n%s" % (difference(), self.chute.log_text()[-4000:]), 120)


@pytest.mark.parametrize("seed", range(4))
def test_random_kills_while_files_are_written_replaced_renamed_and_deleted(chute, seed):
    mirror = Mirror(chute, seed)
    chute.start()
    for kill in range(KILLS // 4):
        for _ in range(mirror.random.randrange(1, 5)):
            mirror.act()
            time.sleep(mirror.random.random() * 0.05)
        time.sleep(mirror.random.random() * 0.4)
        chute.kill9()
        for _ in range(mirror.random.randrange(0, 3)):
            mirror.act()
        chute.start(ready=mirror.random.random() < 0.5)
        if kill % 10 == 9:
            mirror.check()
    mirror.check()
    assert chute.is_live()


@pytest.mark.parametrize("seed", range(2))
def test_random_kills_append_each_row_once(chute, seed):
    choose = random.Random(seed)
    chute.configure({"table": "all", "load": "append", "types": "infer"})
    chute.start()
    count = 0
    for _ in range(KILLS // 4):
        for _ in range(choose.randrange(1, 12)):
            put_file(chute.inbox / ("f%d.csv" % count), "n,i\n" + "".join("%d,%d\n" % (count, i) for i in range(3)))
            if choose.random() < 0.3:
                os.rename(chute.inbox / ("f%d.csv" % count), chute.inbox / ("g%d.csv" % count))
            count += 1
            time.sleep(choose.random() * 0.02)
        time.sleep(choose.random() * 0.4)
        chute.kill9()
        chute.start(ready=choose.random() < 0.5)
    want = [(n, i) for n in range(count) for i in range(3)]
    wait_until(lambda: chute.rows("all") is not None and len(chute.rows("all")) >= len(want), "all rows", 60)
    time.sleep(1)
    assert sorted(chute.rows("all")) == want


def calls(chute, prepare, names, when, more=()):
    """run --once in a fresh home, killed at the WHEN-th call of NAMES; True if it was killed. Home is remade each time."""
    prepare()
    code = chute.once(prefix=[tool("strace"), "-f", "-qq", "-o", str(chute.home / "strace.out"), "-e", "trace=" + names,
                              "-e", "inject=%s:signal=SIGKILL:when=%d" % (names, when), *more], expect=None)
    return code not in (0, 1)


@pytest.mark.parametrize("names", ["fdatasync,fsync", "renameat,rename,renameat2,unlinkat,unlink"])
def test_a_kill_at_every_step_that_reaches_the_disk(chute, names):
    """Each commit of the ledger and of the destination syncs; each move of a file renames. Die at the 1st, 2nd, 3rd … of them."""
    def prepare():
        for place in (chute.state, chute.inbox, chute.home / "done"):
            shutil.rmtree(place, ignore_errors=True)
        for path in glob.glob(str(chute.db) + "*"):
            os.unlink(path)
        for i in range(3):
            write_file(chute.inbox / ("f%d.csv" % i), "n,i\n%d,1\n%d,2\n" % (i, i))
            os.utime(chute.inbox / ("f%d.csv" % i), (1700000000 + i, 1700000000 + i))
    chute.configure({"table": "all", "load": "append", "types": "infer", "after_success": {"move": str(chute.home / "done")}})
    prepare()
    when, killed = 0, True
    while killed and when < (400 if LONG else 60):
        when += 1
        killed = calls(chute, prepare, names, when)
        chute.once()
        rows = chute.query('SELECT * FROM "all" ORDER BY n, i')
        assert rows == [(n, i) for n in range(3) for i in (1, 2)], "killed at call %d of %s: %s" % (when, names, rows)
        assert sorted(p.name for p in (chute.home / "done").rglob("*") if p.is_file()) == ["f0.csv", "f1.csv", "f2.csv"], when
        assert os.listdir(chute.inbox) == [], when
    assert when > 3


@contextlib.contextmanager
def locked(path):
    """Nobody else writes this database meanwhile."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


def kill_between_the_commits(chute, path, committed):
    """kill -9 when the destination has PATH, as COMMITTED() tells, and the ledger does not know it yet. Then the file may change."""
    with locked(chute.db):
        chute.start()
        chute.wait_state(path, "loading")
        ledger = locked(chute.state / "ledger.db")
        ledger.__enter__()
    wait_until(committed, "the destination's commit", pause=0.005)
    chute.kill9()
    ledger.__exit__(None, None, None)


@pytest.mark.core
@pytest.mark.parametrize("rows", [2, 600000], ids=["small", "large"])
@pytest.mark.parametrize("change", ["none", "size", "content"])
@pytest.mark.parametrize("load", ["replace", "append", "again"])
def test_a_kill_between_the_two_commits_loads_each_version_once(chute, load, change, rows):
    """The destination answers the attempt with what it wrote, which is the version from before the kill, whatever the file is now."""
    flow = {"load": "append", "on_changed": "again"} if load != "replace" else {"load": "replace"}
    chute.configure({"types": "infer", **flow, **({"on_duplicate": "reload"} if load == "again" else {})}, dest={"lock_timeout": "60s"})
    put_file(chute.inbox / "first.csv", "v\n1\n")
    chute.once()
    write_file(chute.inbox / "t.csv", "v\n" + "1\n" * rows)
    kill_between_the_commits(chute, "t.csv", lambda: "t" in chute.tables())
    value = {"none": 1, "size": 22, "content": 2}[change]
    if change != "none":
        write_file(chute.inbox / "t.csv", "v\n" + "%d\n" % value * rows)
    chute.once()
    had = dict(chute.query("SELECT v, count(*) FROM t GROUP BY v"))
    assert had == ({value: rows} if load == "replace" else {1: rows, value: rows})
    assert len(chute.receipts_of("t.csv", "loaded")) == (1 if change == "none" else 2)
    chute.once()
    assert dict(chute.query("SELECT v, count(*) FROM t GROUP BY v")) == had


BAD_ROWS = "a,b\n1,2\n3,4,5\n6,7\n"


def rejected_rows(chute):
    return [p.read_text().splitlines()[1:] for p in (chute.state / "quarantine").rglob("*.rejected.csv")]


@pytest.mark.core
def test_rows_that_were_left_out_survive_a_kill_and_the_file_they_were_in(chute):
    """after_success deletes the file: the quarantine is then the only place that has them."""
    chute.configure({"types": "infer", "bad_rows": {"skip": 1}, "after_success": "delete"}, dest={"lock_timeout": "60s"})
    put_file(chute.inbox / "first.csv", "v\n1\n")
    chute.once()
    put_file(chute.inbox / "t.csv", BAD_ROWS)
    kill_between_the_commits(chute, "t.csv", lambda: "t" in chute.tables())
    chute.once()
    assert chute.rows("t") == [(1, 2), (6, 7)] and os.listdir(chute.inbox) == []
    (rows,) = rejected_rows(chute)
    assert len(rows) == 1 and rows[0].startswith("3,8,") and rows[0].endswith(",3,4,5")
    assert not list((chute.state / "quarantine").rglob("*.part"))


@pytest.mark.parametrize("names", ["fdatasync,fsync", "renameat,rename,renameat2,unlinkat,unlink", "write,pwrite64"])
def test_a_kill_at_every_step_leaves_out_no_row_unseen(chute, names):
    def prepare():
        shutil.rmtree(chute.state, ignore_errors=True)
        for path in glob.glob(str(chute.db) + "*"):
            os.unlink(path)
        write_file(chute.inbox / "t.csv", BAD_ROWS)
    chute.configure({"types": "infer", "bad_rows": {"skip": 1}, "after_success": "delete"}, log=[])
    step = 7 if names.startswith("write") and not LONG else 1
    when, killed = 1 - step, True
    while killed and when < 400:
        when += step
        killed = calls(chute, prepare, names, when)
        chute.once()
        assert chute.rows("t") == [(1, 2), (6, 7)] and os.listdir(chute.inbox) == [], when
        assert [len(rows) for rows in rejected_rows(chute)] == [1], "killed at call %d of %s" % (when, names)
    assert when > 3 and not killed


@pytest.mark.core
def test_a_file_whose_left_out_rows_cant_be_kept_is_neither_loaded_nor_deleted(chute):
    chute.configure({"types": "infer", "bad_rows": {"skip": 1}, "after_success": "delete"}, retry={"first": "50ms", "max": "100ms"})
    chute.start()
    put_file(chute.inbox / "first.csv", "v\n1\n")
    chute.wait_inbox()
    in_the_way = chute.state / "quarantine"
    shutil.rmtree(in_the_way, ignore_errors=True)
    in_the_way.write_text("a file where the folder should be")
    put_file(chute.inbox / "t.csv", BAD_ROWS)
    wait_until(lambda: chute.log_text().count("failed, next in") >= 2, "the load to be retried")
    assert chute.tables() == {"first"} and (chute.inbox / "t.csv").exists()
    in_the_way.unlink()
    chute.wait_inbox()
    assert chute.rows("t") == [(1, 2), (6, 7)] and [len(rows) for rows in rejected_rows(chute)] == [1]


@pytest.mark.parametrize("state", ["seen", "settling", "queued", "loading", "loaded"])
def test_a_kill_when_the_ledger_says(chute, state):
    """Kill as soon as the ledger shows that state (or a later one: they pass quickly)."""
    chute.configure({"types": "infer"})
    for turn in range(3 if not LONG else 20):
        chute.start()
        text = "n\n" + "%d\n" % turn * 60000
        put_file(chute.inbox / "t.csv", text)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and chute.state_of("t.csv") not in (state, "loaded"):
            pass
        chute.kill9()
        chute.start()
        wait_until(lambda t=turn: "t" in chute.tables() and chute.query("SELECT min(n), max(n), count(*) FROM t") == [(t, t, 60000)],
                   "version %d, whole" % turn)
        assert chute.stop() == 0
    assert chute.tables() == {"t"}  # no shadow table of a killed load is left


# ---- calls that fail ----

@pytest.mark.parametrize("fault", ["fdatasync,fsync:error=EIO", "pwrite64:error=ENOSPC", "openat:error=EMFILE", "renameat,rename,renameat2:error=EIO"])
def test_a_call_that_fails_once_loses_nothing(chute, fault):
    names, what = fault.split(":")
    step = {"openat": 7, "pwrite64": 5}.get(names, 1)

    def prepare():
        shutil.rmtree(chute.state, ignore_errors=True)
        for path in glob.glob(str(chute.db) + "*"):
            os.unlink(path)
        for i in range(2):
            write_file(chute.inbox / ("f%d.csv" % i), "n\n%d\n" % i)
    chute.configure({"table": "all", "load": "append", "types": "infer", "on_changed": "reject"}, retry={"first": "50ms", "max": "200ms"})
    for when in range(1, (40 if LONG else 12) * step, step):
        prepare()
        chute.once("--deadline", "30s", expect=None, prefix=[
            tool("strace"), "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + names, "-e", "inject=%s:%s:when=%d" % (names, what, when)])
        chute.once()
        assert chute.rows("all") == [(0,), (1,)], "%s at call %d" % (fault, when)


# ---- full disks ----

def fill(folder):
    """Take all space of a file system; the file that holds it."""
    path = folder / "filler"
    with open(path, "wb") as f:
        try:
            for size in (65536, 4096, 512):
                while True:
                    f.write(b"x" * size)
                    f.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC
            size = 512
    with open(path, "ab", buffering=0) as f:
        try:
            while True:
                f.write(b"x" * 512)
        except OSError:
            pass
    return path


@pytest.mark.core
def test_a_full_destination_is_waited_for_and_quarantines_nothing(chute, small_disk):
    chute.db = small_disk(chute.home / "disk", "2m") / "out.db"
    chute.configure({"types": "infer"}, retry={"first": "100ms", "max": "500ms"})
    chute.start()
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("a", [(1,)])
    filler = fill(chute.home / "disk")
    put_file(chute.inbox / "b.csv", "x\n" + "some text to fill pages with\n" * 20000)
    wait_until(lambda: chute.state_of("b.csv") == "retrying", "the load to be retried", pause=0.1)
    assert chute.rows("a") == [(1,)]
    os.unlink(filler)
    wait_until(lambda: "b" in chute.tables() and chute.query("SELECT count(*) FROM b") == [(20000,)], "b")


@pytest.mark.core
def test_a_full_state_disk_stops_intake_and_readiness_and_goes_on_by_itself(chute, small_disk):
    small_disk(chute.state, "2m")
    chute.configure({"types": "infer", "table": "all", "load": "append"}, retry={"first": "100ms", "max": "500ms"})
    chute.start()
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("all", [(1,)])
    filler = fill(chute.state)
    for i in range(300):
        put_file(chute.inbox / ("f%d.csv" % i), "x\n%d\n" % (i + 2))
    wait_until(lambda: not chute.is_live(), "readiness to go", pause=0.1)
    assert chute.process.poll() is None
    os.unlink(filler)
    chute.wait_rows("all", [(i + 1,) for i in range(301)], timeout=60)
    wait_until(chute.is_live, "readiness to come back", pause=0.1)


def test_the_ledger_never_fills_a_small_disk_with_what_it_has_not_written_back(chute, small_disk):
    """One commit after the other, as files come: its write-ahead log would grow past this disk."""
    small_disk(chute.state, "2m")
    chute.configure({"types": "infer", "table": "all", "load": "append"})
    chute.start()
    for i in range(300):
        put_file(chute.inbox / ("f%d.csv" % i), "x\n%d\n" % i)
        time.sleep(0.01)
    chute.wait_rows("all", [(i,) for i in range(300)])
    assert "the disk is full" not in chute.log_text() and "can be written" not in chute.log_text()


def test_a_disk_full_from_the_start_is_said(chute, small_disk):
    small_disk(chute.state, "64k")
    fill(chute.state)
    chute.configure({"types": "infer"})
    process = chute.spawn(chute.run_arguments())
    put_file(chute.inbox / "a.csv", "x\n1\n")
    wait_until(lambda: process.poll() is not None or "space" in chute.log_text() or "full" in chute.log_text(), "a word about it")
    assert process.poll() != 0 and process.poll() != -signal.SIGSEGV
    assert (chute.inbox / "a.csv").exists()


# ---- the ledger ----

@pytest.mark.core
@pytest.mark.parametrize("damage", ["noise", "truncated", "empty", "text", "header", "half"])
def test_a_broken_ledger_is_recovered_with_a_loud_word(chute, damage):
    chute.configure({"types": "infer", "table": "all", "load": "append"})
    for i in range(300):
        write_file(chute.inbox / ("f%d.csv" % i), "x\n%d\n" % i)
    chute.start()
    wait_until(lambda: len(chute.rows("all") or []) == 300, "the rows")
    assert chute.stop() == 0
    ledger = chute.state / "ledger.db"
    for suffix in ("-wal", "-shm"):
        if os.path.exists(str(ledger) + suffix):
            os.unlink(str(ledger) + suffix)
    size = ledger.stat().st_size
    with open(ledger, "r+b") as f:
        if damage == "noise":
            for at in range(4096, size, 4096):
                f.seek(at)
                f.write(os.urandom(2048))
        elif damage == "truncated":
            f.truncate(size // 2 + 100)
        elif damage == "empty":
            f.truncate(0)
        elif damage == "text":
            f.truncate(0)
            f.write(b"this is not a database\n" * 500)
        elif damage == "header":
            f.write(b"\0" * 100)
        elif damage == "half":
            f.seek(size // 2)
            f.write(b"\xff" * 4096)
    put_file(chute.inbox / "new.csv", "x\n1000\n")
    chute.start()
    wait_until(lambda: (1000,) in (chute.rows("all") or []), "the new file", 60)
    time.sleep(1)
    assert sorted(chute.rows("all")) == [(i,) for i in range(300)] + [(1000,)]
    if damage in ("noise", "truncated", "text", "header"):
        assert "ledger" in chute.log_text() and ("corrupt" in chute.log_text() or "recover" in chute.log_text())
        assert list(chute.state.glob("ledger.db.corrupt*")), os.listdir(chute.state)


def test_a_ledger_deleted_under_a_running_daemon(chute):
    """What was loaded is not loaded twice after the restart that follows."""
    chute.configure({"types": "infer", "table": "all", "load": "append"})
    chute.start()
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("all", [(1,)])
    for path in chute.state.glob("ledger.db*"):
        path.unlink()
    chute.kill9()
    put_file(chute.inbox / "b.csv", "x\n2\n")
    chute.start()
    chute.wait_rows("all", [(1,), (2,)])


def test_a_destination_that_is_no_database_is_down_not_overwritten(chute):
    chute.db.write_text("my letters, not a database\n" * 100)
    before = chute.db.read_bytes()
    chute.configure({"types": "infer"})
    chute.start(ready=False)
    put_file(chute.inbox / "a.csv", "x\n1\n")
    wait_until(lambda: "out.db" in chute.log_text(), "a word about it")
    time.sleep(1)
    assert chute.db.read_bytes() == before and chute.process.poll() is None


# ---- events ----

@pytest.mark.core
def test_a_queue_overflow_loses_nothing(chute):
    chute.configure({"types": "infer", "on_delete": "drop"})
    write_file(chute.inbox / "old.csv", "x\n1\n")
    write_file(chute.inbox / "change.csv", "x\n1\n")
    chute.start()
    chute.wait_tables("old", "change")
    room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    chute.process.send_signal(signal.SIGSTOP)
    write_file(chute.inbox / "a.tmp", "x")
    for i in range(room // 2 + 100):  # two events each; different ones, so that none are merged
        os.rename(chute.inbox / ("a.tmp" if i % 2 == 0 else "b.tmp"), chute.inbox / ("b.tmp" if i % 2 == 0 else "a.tmp"))
    write_file(chute.inbox / "new.csv", "x\n2\n")
    write_file(chute.inbox / "deep/er/new.csv", "x\n3\n")
    write_file(chute.inbox / "change.csv", "x\n22\n")
    os.unlink(chute.inbox / "old.csv")
    chute.process.send_signal(signal.SIGCONT)
    chute.wait_tables("new", "deep_er_new", "change")
    chute.wait_rows("change", [(22,)])
    # folders made during the overflow are watched
    write_file(chute.inbox / "deep/er/later.csv", "x\n4\n")
    chute.wait_rows("deep_er_later", [(4,)])
    assert "overflow" in chute.log_text()


def strace_inject(rule, chute):
    return [tool("strace"), "-f", "-qq", "-o", "/dev/null", "--seccomp-bpf", "-e", "trace=" + rule.split(":")[0], "-e", "inject=" + rule]


@pytest.mark.parametrize("rule,why", [("inotify_add_watch:error=ENOSPC:when=3+", "limit"), ("inotify_init1:error=EMFILE", "")])
def test_where_events_cant_work_the_folder_is_polled_and_status_says_why(chute, rule, why):
    chute.configure({"types": "infer"}, source={"poll_interval": "500ms", "settle": "500ms"})
    for i in range(6):
        write_file(chute.inbox / ("d%d/f.csv" % i), "x\n%d\n" % i)
    chute.start(prefix=strace_inject(rule, chute))
    chute.wait_tables(*["d%d_f" % i for i in range(6)])
    text = chute.ask("status")
    assert "poll" in text and why in text, text
    write_file(chute.inbox / "d5/later.csv", "x\n1\n")
    chute.wait_rows("d5_later", [(1,)])


@pytest.mark.core
def test_a_folder_deleted_while_it_is_scanned(chute):
    chute.configure({"types": "infer", "table": "all", "load": "append"})
    for turn in range(5):
        for i in range(200):
            write_file(chute.inbox / ("d%d/e%d/f.txt" % (turn, i)), "")
    chute.start(ready=False)
    for turn in range(5):
        shutil.rmtree(chute.inbox / ("d%d" % turn))
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("all", [(1,)])
    chute.wait_ready()


def test_folders_made_and_filled_in_one_breath(chute):
    """10,000 times `mkdir -p a/b/c && cp f a/b/c/`."""
    count = 10000 if LONG else 500
    chute.configure({"types": "infer", "table": "all", "load": "append"})
    chute.start()
    write_file(chute.home / "f.csv", "x\n1\n")
    script = 'i=0; while [ $i -lt %d ]; do mkdir -p in/$i/b/c && cp f.csv in/$i/b/c/; i=$((i+1)); done' % count
    subprocess.run(["sh", "-c", script], cwd=chute.home, check=True)
    wait_until(lambda: chute.query('SELECT count(*) FROM "all"')[0][0] >= count if "all" in chute.tables() else False,
               lambda: "%d rows, have %s" % (count, chute.query('SELECT count(*) FROM "all"')), 300 if LONG else 60, 0.2)
    assert chute.query('SELECT count(*) FROM "all"') == [(count,)]


def test_an_unreadable_folder_is_said_and_the_others_go_on():
    """As a user without root's powers. The home is outside pytest's, which only its owner may enter."""
    user = 54321
    home = Path(tempfile.mkdtemp(prefix="chute-test-"))
    try:
        os.chmod(home, 0o755)
        chute = Chute(home)
        for name in ("open", "closed"):
            write_file(chute.inbox / name / "f.csv", "x\n1\n")
        shutil.copy(BINARY, home / "chute-binary")
        for path in [home, *home.rglob("*")]:
            os.chown(path, user, user)
        chute.configure({"types": "infer", "on_delete": "drop"}, source={"poll_interval": "300ms"})
        os.chmod(chute.config, 0o644)
        chute.log.touch()
        chute.start(ready=False, user=user, group=user, extra_groups=[])
        chute.wait_tables("open_f", "closed_f")
        os.chmod(chute.inbox / "closed", 0)
        chute.stop()
        chute.start(ready=False, user=user, group=user, extra_groups=[])
        write_file(chute.inbox / "open/g.csv", "x\n2\n")
        chute.wait_rows("open_g", [(2,)])
        wait_until(lambda: "closed" in chute.log_text(), "a word about the folder")
        assert "closed_f" in chute.tables()  # what can't be listed is not deleted
        os.chmod(chute.inbox / "closed", 0o755)
        write_file(chute.inbox / "closed/h.csv", "x\n3\n")
        wait_until(lambda: chute.command("retry", "--all", "--state", chute.state) and "closed_h" in chute.tables(), "the folder again", 60)
    finally:
        chute.clean_up()
        shutil.rmtree(home)


# ---- clocks ----

def test_the_clock_moved_back_a_day(chute):
    library = ctypes.util.find_library("faketime") or (glob.glob("/usr/lib/*/faketime/libfaketime.so.1") + [None])[0]
    assert library, "libfaketime is not installed; tests/run installs what is needed"
    clock = chute.home / "clock"
    clock.write_text("+0")
    chute.configure({"types": "infer"}, retry={"first": "100ms", "max": "500ms"}, history={"keep": "90d"})
    chute.start(env={"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
                     "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"})
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("a", [(1,)])
    clock.write_text("-1d")
    put_file(chute.inbox / "a.csv", "x\n22\n")
    put_file(chute.inbox / "b.csv", "x\n2\n")
    chute.wait_rows("a", [(22,)])
    chute.wait_rows("b", [(2,)])
    with sqlite3.connect(chute.db, timeout=30, isolation_level=None) as db:  # a retry planned before the move still comes
        db.execute("BEGIN IMMEDIATE")
        put_file(chute.inbox / "c.csv", "x\n3\n")
        time.sleep(1)
        clock.write_text("-2d")
        time.sleep(1)
        db.execute("COMMIT")
    db.close()
    chute.wait_rows("c", [(3,)])
    clock.write_text("+0")
    put_file(chute.inbox / "d.csv", "x\n4\n")
    chute.wait_rows("d", [(4,)])


def test_files_from_the_future_are_loaded(chute):
    write_file(chute.inbox / "f.csv", "x\n1\n")
    os.utime(chute.inbox / "f.csv", (4000000000, 4000000000))
    chute.start()
    chute.wait_rows("f", [(0, 1)])


# ---- limits ----

def test_one_dead_destination_holds_up_no_other(chute):
    chute.configure(dests={"good": {"type": "sqlite", "path": str(chute.db)}, "dead": {"type": "sqlite", "path": "/proc/no/x.db"}},
                    flows=[{"name": "one", "to": "good", "types": "infer"}, {"name": "two", "to": "dead"}])
    chute.start(ready=False)
    for i in range(50):
        put_file(chute.inbox / ("f%d.csv" % i), "x\n%d\n" % i)
    chute.wait_tables(*["f%d" % i for i in range(50)])


def test_many_bad_files_hold_up_no_good_one(chute):
    chute.configure({"types": "infer"})
    chute.start()
    for i in range(100):
        put_file(chute.inbox / ("bad%d.csv" % i), "x\n1,2\n")
        put_file(chute.inbox / ("good%d.csv" % i), "x\n%d\n" % i)
    chute.wait_tables(*["good%d" % i for i in range(100)])
    wait_until(lambda: len([f for f in chute.files("quarantined")]) == 100, "the bad ones to be quarantined", pause=0.2)
