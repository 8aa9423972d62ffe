"""Options that no scenario needs: each does what the reference says."""
import json
import os
import pty
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from chute import BINARY, put_file, tool, wait_until, write_file


@pytest.mark.parametrize("encoding,text", [
    ("windows-1250", "žluťoučký €"), ("windows-1252", "crème “brûlée” €"), ("iso-8859-1", "Åse Ødegård"),
    ("iso-8859-2", "příliš łódź"), ("utf-16", "žába 😀"),
])
def test_each_encoding_is_re_encoded(chute, encoding, text):
    chute.configure({"csv": {"encoding": encoding}})
    put_file(chute.inbox / "t.csv", ("name,n\n%s,1\n" % text).encode(encoding))
    chute.once()
    assert chute.rows("t") == [(text, 1)]


def test_a_file_above_max_file_size_is_quarantined_with_both_sizes(chute):
    chute.configure(limits={"max_file_size": "1KiB"})
    put_file(chute.inbox / "small.csv", "a\n1\n")
    put_file(chute.inbox / "large.csv", "a\n" + "1\n" * 1000)
    chute.once(expect=1)
    assert chute.tables() == {"small"}
    assert chute.state_of("large.csv") == "quarantined"
    assert "max_file_size" in chute.explain(chute.inbox / "large.csv")


def test_null_values_are_null_where_they_are_not_quoted(chute):
    chute.configure({"csv": {"null_values": ["", "NA"]}})
    put_file(chute.inbox / "t.csv", 'n,s\n1,NA\nNA,"NA"\n')
    chute.once()
    assert chute.query("SELECT n, s FROM t") == [(1, None), (None, "NA")]


def test_delimiter_and_quote_are_taken_as_given(chute):
    chute.configure({"csv": {"delimiter": ";", "quote": "'"}})
    put_file(chute.inbox / "t.csv", "a,b;c\n1,2;'x;\"y'\n")
    chute.once()
    assert [name for name, _ in chute.columns("t")] == ["a,b", "c"]
    assert chute.rows("t") == [("1,2", 'x;"y')]


def test_snake_names_are_made_of_tables_and_columns(chute):
    chute.configure({"names": "snake"})
    put_file(chute.inbox / "Sales 2024/Net Amount.csv", "Order ID,Unit-Price\n1,2\n")
    chute.once()
    assert chute.tables() == {"sales_2024_net_amount"}
    assert [name for name, _ in chute.columns("sales_2024_net_amount")] == ["order_id", "unit_price"]


@pytest.mark.parametrize("template,table", [
    ("{folder}", "x_y"), ("{name}", "t.csv"), ("{stem}", "t"), ("{first}", "t"), ("{ext}", "csv"), ("{path_stem}", "x_y_t"),
    ("all_{flow}", "all_main"),
])
def test_table_templates(chute, template, table):
    chute.configure({"table": template})
    put_file(chute.inbox / "x/y/t.csv", "a\n1\n")
    chute.once()
    assert chute.tables() == {table}


def test_column_types_bind_and_the_others_are_inferred(chute):
    chute.configure({"types": {"id": "text", "at": "date"}})
    put_file(chute.inbox / "t.csv", "id,at,n\n7,2024-01-31,5\n")
    chute.once()
    assert chute.query("SELECT id, at, n FROM t") == [("7", "2024-01-31", 5)]
    put_file(chute.inbox / "u.csv", "id,n\n7,5\n")  # a column that is named is required
    chute.once(expect=1)
    assert chute.tables() == {"t"}
    assert "at" in chute.explain(chute.inbox / "u.csv")


def test_the_instance_is_part_of_a_receipt_and_stays(chute):
    chute.configure(instance="edge-7")
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.once()
    assert chute.query("SELECT DISTINCT instance FROM _chute_loads") == [("edge-7",)]


def test_a_random_instance_is_kept_in_the_state_folder(chute):
    chute.configure()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.once()
    put_file(chute.inbox / "u.csv", "a\n1\n")
    chute.once()
    (instance,), = chute.query("SELECT DISTINCT instance FROM _chute_loads")
    assert len(instance) >= 8


def test_a_rescan_finds_what_no_event_told(chute, small_disk):
    """What is mounted over a watched folder, no event tells."""
    (chute.inbox / "sub").mkdir()
    chute.configure(source={"rescan_interval": "1s"})
    chute.start()
    disk = small_disk(chute.home / "disk")
    put_file(disk / "t.csv", "a\n1\n")
    subprocess.run([tool("mount"), "--bind", str(disk), str(chute.inbox / "sub")], check=True)
    try:
        chute.wait_rows("sub_t", [(1,)])
    finally:
        chute.stop()
        subprocess.run([tool("umount"), str(chute.inbox / "sub")], check=True)


def test_a_destination_has_retries_of_its_own(chute):
    """One second as the limit of all waits: with the global day it would not be back in time."""
    chute.configure(dest={"lock_timeout": "100ms", "retry": {"first": "50ms", "max": "100ms"}}, retry={"first": "1d", "max": "1d"})
    put_file(chute.inbox / "a.csv", "a\n1\n")
    chute.start()
    chute.wait_rows("a", [(1,)])
    with sqlite3.connect(chute.db, timeout=30, isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")
        put_file(chute.inbox / "t.csv", "a\n1\n")
        wait_until(lambda: sum(chute.status()["retries"].values()) > 0, "a retry", pause=0.1)
        db.execute("COMMIT")
    db.close()
    chute.wait_rows("t", [(1,)])


def test_old_receipts_leave_the_history_and_the_file_is_not_loaded_again(chute):
    chute.configure({"load": "append"}, history={"keep": "1h"})
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.once()
    with sqlite3.connect(chute.state / "ledger.db") as db:  # two hours pass
        assert db.execute("UPDATE receipt SET at_ms = at_ms - 7200000").rowcount == 1
    db.close()
    os.utime(chute.inbox / "t.csv")  # read again, and known by what it was loaded as
    chute.once()
    assert chute.rows("t") == [(1,)]
    assert not chute.receipts_of("t.csv", "loaded")


def test_status_json_has_what_scripts_read(chute):
    chute.configure()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.start()
    chute.wait_rows("t", [(1,)])
    chute.wait_state("t.csv", "loaded")
    chute.wait_log("loaded 1 rows")  # said once its rows are counted, which is after the ledger has the state
    status = chute.status()
    assert status["running"] is True and status["ready"] is True and status["ledger"]["ok"] is True
    assert status["pid"] == chute.process.pid
    assert status["files"] == {**dict.fromkeys(status["files"], 0), "loaded": 1} and len(status["files"]) == 9
    source, destination, flow = status["sources"][0], status["destinations"][0], status["flows"][0]
    assert source["name"] == "inbox" and source["type"] == "directory" and source["mode"] in ("events", "poll")
    assert {"reason", "evidence", "folders", "overflows", "pending_deletes", "problem"} <= set(source)
    assert destination["name"] == "lite" and destination["type"] == "sqlite" and destination["state"] == "ok"
    assert flow["name"] == "main" and (flow["from"], flow["to"]) == ("inbox", "lite") and flow["rows"] == 1
    chute.stop()
    offline = chute.status()
    assert offline["running"] is False and offline["files"] == status["files"]


def test_colours_are_for_terminals_that_want_them(chute):
    chute.configure()
    put_file(chute.inbox / "t.csv", "a\n1,2\n")
    chute.once(expect=1)

    def shown(**env):
        leader, follower = pty.openpty()
        done = subprocess.run([BINARY, "status", "--state", str(chute.state)], stdin=subprocess.DEVNULL, stdout=follower,
                              env={**os.environ, "TERM": "xterm", "NO_COLOR": "", **env}, timeout=60)
        os.close(follower)
        text = os.read(leader, 65536)
        os.close(leader)
        assert done.returncode == 0
        return text
    assert b"\033[31m" in shown()
    assert b"\033[" not in shown(NO_COLOR="1")
    assert "\033[" not in chute.ask("status")


def test_the_log_writes_to_several_outputs_by_their_levels(chute):
    info, error = chute.home / "info.log", chute.home / "error.log"
    chute.configure(log=[{"to": str(info), "level": "info", "format": "json"}, {"to": str(error), "level": "error", "format": "text"}])
    put_file(chute.inbox / "t.csv", "a\n1\n")
    put_file(chute.inbox / "bad.csv", "a\n1,2\n")
    chute.once(expect=1)
    lines = [json.loads(line) for line in info.read_text().splitlines()]
    assert {line["level"] for line in lines} >= {"info", "error"} or {line["level"] for line in lines} >= {"info", "warn"}
    assert "debug" not in {line["level"] for line in lines}
    assert "bad.csv" in info.read_text()
    assert "info" not in error.read_text()


def test_a_file_written_slowly_waits_for_its_debounce(chute):
    chute.configure(source={"debounce": "2s"})
    chute.start()
    began = time.monotonic()
    write_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("t", [(1,)])
    assert time.monotonic() - began >= 2  # however slow the machine is, never less


def test_no_core_dump_can_hold_rows_or_secrets(chute):
    chute.configure()
    chute.start()
    assert "Max core file size        0 " in Path("/proc/%d/limits" % chute.process.pid).read_text()


def test_a_supervisor_is_told_when_it_is_ready_reloading_and_stopping(chute):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(chute.home / "notify"))
        told.settimeout(30)
        chute.configure()
        chute.start(env={"NOTIFY_SOCKET": str(chute.home / "notify")})
        assert told.recv(100) == b"READY=1"
        chute.process.send_signal(signal.SIGHUP)
        assert [told.recv(100), told.recv(100)] == [b"RELOADING=1", b"READY=1"]
        assert chute.stop() == 0
        assert told.recv(100) == b"STOPPING=1"


def test_readiness_names_its_reasons_and_liveness_is_another_thing(chute):
    away = chute.home / "away"
    chute.configure(http={"listen": "127.0.0.1:0"}, source={"poll_interval": "300ms"}, retry={"first": "100ms", "max": "200ms"},
                    dests={"lite": {"type": "sqlite", "path": str(away / "out.db")}})
    chute.inbox.rmdir()
    chute.start()  # live: a restart would not bring back what is missing
    port = chute.http_port()

    def ready():
        try:
            with urllib.request.urlopen("http://127.0.0.1:%d/readyz" % port, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
    wait_until(lambda: ready()[0] == 503 and "source inbox" in ready()[1] and "destination lite" in ready()[1], lambda: "the reasons: %s" % (ready(),))
    assert chute.is_live() and not chute.status()["ready"]
    chute.inbox.mkdir()
    away.mkdir()
    wait_until(lambda: ready()[0] == 200, lambda: "readiness: %s" % (ready(),))
