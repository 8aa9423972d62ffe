"""What a stranger meets: exit codes and lines that say what happened, commands that can be followed as printed."""
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import threading
import time
import urllib.request

import pytest
from chute import BINARY, tool, wait_until, write_file


def test_a_missing_folder_is_said_and_fails_run_once(chute):
    chute.inbox.rmdir()
    chute.once(expect=1)
    assert str(chute.inbox) in chute.log_text()


def test_a_missing_folder_is_said_once_and_its_return_as_well(chute):
    chute.configure(source={"poll_interval": "100ms"})
    chute.inbox.rmdir()
    chute.start(ready=False)
    chute.wait_log("can't read the source's folder")
    time.sleep(0.5)
    assert chute.log_text().count("can't read the source's folder") == 1
    write_file(chute.inbox / "a.csv", "a\n1\n")
    chute.wait_log("is there again", "loaded 1 rows")


def test_a_table_of_another_file_is_an_error_in_log_and_exit_code(chute):
    write_file(chute.inbox / "Big.csv", "a\n1\n")
    write_file(chute.inbox / "big.csv", "a\n2\n")
    chute.once(expect=1)
    assert chute.log_text().count("quarantined: table already belongs to") == 1
    assert len(chute.tables()) == 1


def test_a_retry_that_worked_is_no_failure(chute):
    write_file(chute.inbox / "a.csv", "a\n1\n")
    chute.configure(dest={"lock_timeout": "100ms"}, retry={"first": "100ms", "max": "200ms"})
    chute.once()
    other = sqlite3.connect(chute.db, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    write_file(chute.inbox / "a.csv", "a\n2\n")

    def let_go():
        chute.wait_log("failed, next in")
        other.execute("ROLLBACK")
    thread = threading.Thread(target=let_go)
    thread.start()
    chute.once(expect=0)
    thread.join()
    other.close()
    assert chute.rows("a") == [(2,)]


def test_two_signals_at_once_are_one(chute):
    """timeout(1) tells the process, and then its group. Two numbers, as one would be pending once; stopped, so that both are there at once."""
    chute.start()
    for sig in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        chute.process.send_signal(sig)
    assert chute.process.wait(60) == 0
    assert "told twice" not in chute.log_text()


def test_init_prints_commands_that_work(chute):
    done = chute.command("init", "file2sql", "here")
    assert done.returncode == 0
    write_file(chute.home / "here/inbox/sales.csv", "a\n1\n")
    assert chute.command("check", "--connect", "-c", done.stdout.strip()).returncode == 0
    done = chute.command("run", "--once", "-c", done.stdout.strip())
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(chute.home / "here/warehouse.db") as db:
        assert db.execute("SELECT * FROM sales").fetchall() == [(0, 1)]


def test_load_tells_each_file_once(chute):
    write_file(chute.home / "bad.csv", "a,b\n1,2,3\n")
    write_file(chute.home / "ok.csv", "a,b\n1,2\n")
    done = chute.command("load", "bad.csv", "ok.csv", "./ok.csv", "--to", "sqlite:o.db")
    assert done.returncode == 1
    assert done.stderr.count("3 fields, expected 2") == 1
    assert done.stdout.count("ok.csv") == 1


def test_names_of_files_never_steer_the_terminal(chute):
    name = "\x1b[31mred\nline.csv"
    write_file(chute.home / name, "a\n1\n")
    write_file(chute.inbox / name, "a\n1\n")
    chute.once()
    done = [chute.command("load", name, "--to", "sqlite:o.db"), chute.command("receipts"),
            chute.command("receipts", "--state", str(chute.state)), chute.command("explain", chute.inbox / name, "--state", str(chute.state)),
            chute.command("status", "--state", "loaded", "--state", str(chute.state))]
    for one in done:
        assert one.returncode == 0, one.stderr
        assert "red" in one.stdout
        assert "\x1b" not in one.stdout + one.stderr and "red\n" not in one.stdout + one.stderr


def test_a_name_that_is_no_text_does_not_spoil_what_scripts_read(chute):
    name = b"\xff\xfe\xc3.csv"
    chute.configure({"table": "all", "load": "append"}, http={"listen": "127.0.0.1:0"})
    chute.start()
    with open(os.fsencode(chute.inbox) + b"/" + name, "wb") as f:
        f.write(b"a\n1\n")
    chute.wait_rows("all", [(1,)])
    chute.wait_state("\ufffd\ufffd\ufffd.csv", "loaded")
    chute.wait_receipts("\ufffd\ufffd\ufffd.csv", "loaded", 1)
    with urllib.request.urlopen("http://127.0.0.1:%d/api/v1/status" % chute.http_port(), timeout=30) as answer:
        assert json.loads(answer.read())["files"]["loaded"] == 1
    for command in (["status", "--state", "loaded"], ["receipts"], ["explain", os.fsencode(chute.inbox) + b"/" + name]):
        done = subprocess.run([BINARY, *command, "--state", str(chute.state)], capture_output=True, check=True)
        assert ".csv" in done.stdout.decode()  # text, all of it


def test_load_into_what_is_no_database_ends_at_once(chute):
    write_file(chute.home / "ok.csv", "a,b\n1,2\n")
    write_file(chute.home / "no.db", "this is text\n" * 100)
    done = chute.command("load", "ok.csv", "--to", "sqlite:no.db", timeout=60)
    assert done.returncode == 1
    assert "no SQLite database" in done.stderr and "still queued" in done.stderr


def test_a_paused_flow_is_explained(chute):
    write_file(chute.inbox / "a.csv", "a\n1\n")
    chute.configure()
    chute.start()
    chute.wait_state("a.csv", "loaded")
    assert "dropped a in lite" in chute.ask("reset", "main", "--yes")
    assert "flow main is paused since it was reset" in chute.explain(chute.inbox / "a.csv")
    assert chute.status()["flows"][0]["paused"] is True
    assert "paused since it was reset" in chute.ask("status")
    chute.command("retry", "--all", "--state", str(chute.state))
    chute.wait_state("a.csv", "loaded")
    assert chute.explain(chute.inbox / "a.csv").count("is paused") == 0


def test_load_into_a_folder_that_does_not_exist_says_so_at_once(chute):
    write_file(chute.home / "a.csv", "a\n1\n")
    done = chute.command("load", "a.csv", "--to", "sqlite:missing/out.db", timeout=15)
    assert done.returncode == 1
    assert "its folder does not exist; create or mount it" in done.stderr


@pytest.mark.parametrize("when", [1, 2, 3])
def test_load_ends_well_also_where_the_disk_is_slow(chute, when):
    """It gives up while the ledger still forgets the load before, which takes longer here than the look at the destination."""
    write_file(chute.home / "a.csv", "a\n1\n")
    assert chute.command("load", "a.csv", "--to", "sqlite:out.db").returncode == 0
    process = chute.spawn(["load", "a.csv", "--to", "sqlite:missing/out.db"], prefix=[
        tool("strace"), "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync",
        "-e", "inject=fdatasync,fsync:delay_enter=3000000:when=%d" % when])
    assert process.wait(60) == 1
    assert "its folder does not exist" in chute.log_text()


def test_reset_of_no_flow_says_so(chute):
    write_file(chute.inbox / "a.csv", "a\n1\n")
    chute.configure()
    chute.once()
    done = chute.command("reset", "mian", "-c", str(chute.config))
    assert done.returncode == 2
    assert "no flow is called mian" in done.stderr


def test_questions_never_make_a_full_state_disk_look_well(chute, small_disk):
    """An answer to `status` comes out of the ledger; that it can be read says nothing about writing it."""
    small_disk(chute.state, "400k")
    chute.configure()
    chute.start()
    write_file(chute.inbox / "a.csv", "a\n1\n")
    chute.wait_state("a.csv", "loaded")
    filler = chute.state / "filler"

    def fill():
        with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as f:
            while f.write(b"\0" * 4096) > 0:
                pass
    count = 0

    def told():
        """What the ledger has written back leaves it room for a few more: not for ever more."""
        nonlocal count
        fill()
        count += 1
        write_file(chute.inbox / ("b%d.csv" % count), "a\n1\n")
        return "nothing new is taken until it can be written" in chute.log_text()
    wait_until(told, lambda: "a word about the full disk:\n" + chute.log_text()[-3000:], pause=0.2)
    fill()  # also what the ledger's write-ahead log took until then
    for _ in range(5):
        assert not chute.is_live()
        assert chute.status()["ready"] is False
        time.sleep(0.3)
    filler.unlink()
    chute.wait_log("the ledger is written again")
    wait_until(chute.is_live, "readiness")


def test_load_puts_all_files_into_the_table_that_is_named(chute):
    write_file(chute.home / "1.csv", "a,b\n1,2\n")
    write_file(chute.home / "2.csv", "a,b\n3,4\n")
    write_file(chute.home / "3.csv", "a,c\n5,6\n")

    def load(*files, code=0):
        done = chute.command("load", *files, "--to", "sqlite:out.db", "--table", "all")
        assert done.returncode == code, done.stderr
        return done
    load("1.csv", "2.csv")
    assert chute.rows("all") == [(1, 2), (3, 4)]
    assert load("1.csv").stdout.count("already loaded") == 1
    assert "renamed: b -> c" in load("2.csv", "3.csv", code=1).stderr
    assert chute.rows("all") == [(1, 2), (3, 4)]


def test_a_damaged_ledger_is_called_damaged(chute):
    write_file(chute.inbox / "a.csv", "a\n1\n")
    chute.once()
    with open(chute.state / "ledger.db", "r+b") as f:
        f.seek(4096)
        f.write(b"\x5a" * 20480)
    for command in (["status"], ["receipts"], ["explain", chute.inbox / "a.csv"]):
        done = chute.command(*command, "--state", str(chute.state))
        assert done.returncode == 1
        assert "recovered at the next start" in done.stderr


def test_a_file_that_cannot_be_read_is_said_once(chute):
    """As a user of its own: root may read everything."""
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    binary = chute.home / "chute"  # the build may lie where that user can't go
    shutil.copy(BINARY, binary)
    write_file(chute.inbox / "a.csv", "a\n1\n")
    (chute.inbox / "a.csv").chmod(0o600)
    for folder in (chute.home, *chute.home.parents):
        if folder.stat().st_mode & stat.S_ISVTX:
            break  # /tmp, and what is above it
        folder.chmod(0o777)
    chute.start(prefix=user, binary=binary)
    chute.wait_log("Permission denied")
    done = subprocess.run(["setpriv", "--reuid", "65533", "--regid", "65533", "--clear-groups", binary, "status", "--state", str(chute.state)],
                          capture_output=True, text=True, check=False)
    assert "no daemon runs" not in done.stdout
    time.sleep(1)
    assert chute.log_text().count("Permission denied") == 1
    (chute.inbox / "a.csv").chmod(0o644)
    chute.wait_log("loaded 1 rows")


def test_a_renamed_flow_keeps_its_tables(chute):
    write_file(chute.inbox / "a.csv", "a\n1\n")
    chute.configure({"name": "old"})
    chute.once()
    chute.configure({"name": "new"})
    chute.once(expect=0)
    write_file(chute.inbox / "a.csv", "a\n2\n")
    chute.once(expect=0)
    assert chute.rows("a") == [(2,)]
