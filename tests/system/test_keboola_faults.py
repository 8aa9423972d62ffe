"""Keboola Storage, faults swept: each request times each fault, a kill after each write of the ledger, TLS, secrets.

What must be true at the end of each: the table holds the file, no version of it was accepted by two jobs, the daemon goes on,
and no secret is anywhere that chute wrote or told.
"""
import contextlib
import gzip
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from chute import BINARY, LONG, wait_until
from keboola import TOKEN, Emulator
from keboola_side import LOADS, STORES, Loader, kill_at

FIRST = "id,name,value\n9,first,9\n"
TEXT = "id,name,value\n0,name_0,17\n1,name_1,942\n2,name_2,5\n"
ROWS = [line.split(",") for line in TEXT.splitlines()[1:]]
LARGE_ROW = "x" * 100000
LARGE = "id,name,value\n" + "".join("%d,%s,%d\n" % (i, LARGE_ROW, i) for i in range((34 << 20) // 100000))


@pytest.fixture(scope="module")
def running():
    with Emulator() as one:
        yield one


@pytest.fixture
def emulator(running):
    running.reset()
    return running


@pytest.fixture
def kbc(tmp_path, emulator):
    made = Loader(tmp_path, emulator)
    yield made
    made.clean_up()


# ---- requests times faults --------------------------------------------------------------------------------------------
# name: (method, pattern, what is needed for it to be sent: "", "import": the table exists, "large": several parts,
#        "lost": the answer to the order was lost)
REQUESTS = {
    "verify": ("GET", "tokens/verify$", ""),
    "bucket get": ("GET", r"buckets/in\.c-sales$", ""),
    "bucket post": ("POST", "buckets$", ""),
    "table get": ("GET", r"tables/in\.c-sales\.basic$", ""),
    "prepare": ("POST", "files/prepare$", ""),
    "upload": ("PUT", STORES, ""),
    "part begin": ("POST", STORES + r".*\?uploads", "large"),
    "part": ("PUT", STORES + ".*partNumber=2", "large"),
    "part end": ("POST", STORES + ".*uploadId=", "large"),
    "create": ("POST", "tables-async$", ""),
    "import": ("POST", "import-async$", "import"),
    "jobs list": ("GET", r"jobs\?", "lost"),
    "job get": ("GET", r"jobs/\d+$", ""),
}
API_ERROR = {"error": "Application error. Please contact support", "exceptionId": "keboola-connection-5f0e1c2d3a4b5"}
WRONG = {"id": ["a"], "status": {"x": 1}, "columns": 5, "provider": 7, "uploadParams": "none", "owner": [], "code": [1], "rowsCount": "many"}
FAULTS = {
    "refused": {"refuse": 0.5},
    "reset": {"reset": True},
    "closed": {"cut": "before"},
    "reset in the body": {"cut": "mid_body", "reset": True},
    "reset after the effect": {"cut": "after_effect", "reset": True},
    "closed after the effect": {"cut": "after_effect"},
    "cut in the answer": {"cut": "mid_answer"},
    "timeout": {"delay": 2.5, "status": 503, "body": "{}"},
    "timeout and a late effect": {"delay": 2.5},
    "500": {"status": 500, "body": API_ERROR},
    "500 after the effect": {"status": 500, "body": API_ERROR, "after_effect": True},
    "503": {"status": 503, "body": "", "times": 2},
    "503 with Retry-After": {"status": 503, "headers": {"Retry-After": 1}, "body": API_ERROR},
    "429": {"status": 429, "headers": {"Retry-After": 1}, "body": API_ERROR},
    "html 200": {"status": 200, "body": "<html>log in, please</html>"},
    "html 200 after the effect": {"status": 200, "body": "<html>log in, please</html>", "after_effect": True},
    "html 404": {"status": 404, "body": "<html>nginx</html>"},
    "a redirect": {"status": 302, "headers": {"Location": "http://127.0.0.1:1/login"}, "body": ""},
    "a redirect after the effect": {"status": 302, "headers": {"Location": "http://127.0.0.1:1/login"}, "body": "", "after_effect": True},
    "html 405": {"status": 405, "body": "<html>not here</html>"},
    "html 502 after the effect": {"status": 502, "body": "<html>nginx</html>", "after_effect": True},
    "truncated JSON": {"truncate": 20},
    "wrong types": {"json": WRONG},
    "an array": {"json": []},
    "a text": {"json": "fine"},
    "401": {"status": 401, "body": {"error": "Invalid access token", "code": "storage.tokenInvalid"}},
    "credentials expire": {"expire_credentials": True},
}
STORE_REQUESTS = {"upload", "part begin", "part", "part end"}
# What makes no sense: no upload credentials in it, and bodies that a store has not got.
NONSENSE = {(r, f) for r in REQUESTS for f in FAULTS
            if (f == "credentials expire" and r not in STORE_REQUESTS and r != "prepare")
            or (f in ("wrong types", "an array", "a text") and r in STORE_REQUESTS)
            or (f == "reset in the body" and REQUESTS[r][0] == "GET")
            # a store that says yes and has nothing: no client can know that
            or (f == "html 200" and r in ("upload", "part"))}
ALL = [(r, f) for r in REQUESTS for f in FAULTS if (r, f) not in NONSENSE]
# Each order with each fault, and a diagonal of the rest.
SOME = [(r, f) for i, r in enumerate(REQUESTS) for j, f in enumerate(FAULTS)
        if (r, f) not in NONSENSE and (r in ("create", "import") and (i + j) % 2 == 0 or (i + 2 * j) % 7 == 0)]
CORE = {("create", "html 200 after the effect"), ("create", "closed after the effect"), ("upload", "500"), ("job get", "truncated JSON"),
        ("prepare", "wrong types"), ("table get", "html 404")}


def sweep(cases):
    return [pytest.param(r, f, id="%s, %s" % (r, f), marks=[pytest.mark.core] if (r, f) in CORE else []) for r, f in cases]


def settle_401(kbc):
    """The destination is blocked by one refusal: ask it again, as a person does who has looked at the token."""
    wait_until(lambda: any(d["state"] == "blocked" for d in kbc.status()["destinations"]) or kbc.state_of("sales/basic.csv") == "loaded",
               lambda: "the destination to be blocked\n" + kbc.log_text()[-3000:])
    wait_until(lambda: kbc.ask("retry", "--all") is not None and all(d["state"] == "ok" for d in kbc.status()["destinations"]),
               "the destination to be back")


@pytest.mark.parametrize("request_name, fault", sweep(ALL if LONG else sorted(set(SOME) | CORE)))
def test_each_request_with_each_fault(kbc, request_name, fault):
    method, path, needs = REQUESTS[request_name]
    do = dict(FAULTS[fault])
    kbc.set_up(dest={"stall_timeout": "1s", "gzip_above": "1GiB"}, http={"listen": "127.0.0.1:0"})
    before = 0
    if needs == "import":
        kbc.place("sales/basic.csv", FIRST)
        kbc.once()
        before = 1
    if needs == "lost":
        kbc.emulator.fault(LOADS, "POST", cut="after_effect")
    fault_id = kbc.emulator.fault(path, method, times=do.pop("times", 1), **do)
    kbc.place("sales/basic.csv", LARGE if needs == "large" else TEXT)
    kbc.start()
    if fault == "401" and request_name not in STORE_REQUESTS:
        settle_401(kbc)
    kbc.wait_receipts("sales/basic.csv", "loaded", 1 + before)
    assert next(f for f in kbc.emulator.faults() if f["id"] == fault_id)["done"] >= 1, "the fault never happened"
    rows = kbc.emulator.rows("in.c-sales.basic")
    assert len(rows) == LARGE.count("\n") - 1 if needs == "large" else sorted(rows) == ROWS
    loads = kbc.emulator.loads("in.c-sales.basic")
    assert loads["accepted"] == loads["succeeded"] == 1 + before, loads
    assert [b["id"] for b in kbc.emulator.state()["buckets"]] == ["in.c-sales"]
    kbc.place("sales/next.csv", "a\n1\n")  # it goes on
    kbc.wait_receipts("sales/next.csv", "loaded", 1)
    assert kbc.emulator.rows("in.c-sales.next") == [["1"]] and not kbc.files("quarantined")
    kbc.assert_no_secret()


@pytest.mark.parametrize("provider", ["azure", "gcp"])
@pytest.mark.parametrize("fault", ["reset in the body", "closed after the effect", "500", "503", "429", "timeout", "401", "html 404"])
def test_the_other_stores_with_faults(kbc, provider, fault):
    do = dict(FAULTS[fault])
    kbc.emulator.settings(provider=provider)
    kbc.emulator.fault(STORES, "PUT", times=do.pop("times", 1), **do)
    kbc.set_up(dest={"stall_timeout": "1s"}, http={"listen": "127.0.0.1:0"}).place("sales/basic.csv", TEXT)
    kbc.start()
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == ROWS
    assert kbc.emulator.loads("in.c-sales.basic")["accepted"] == 1
    kbc.assert_no_secret()


@pytest.mark.core
@pytest.mark.parametrize("fault", ["closed after the effect", "500 after the effect", "html 200 after the effect", "truncated JSON",
                                   "wrong types", "an array", "timeout and a late effect", "503 with Retry-After"])
def test_rows_are_appended_once_whatever_becomes_of_the_answer(kbc, fault):
    """Where a second import would show in the table."""
    kbc.set_up({"load": "append", "table": "all"}, {"stall_timeout": "1s"}).place("sales/a.csv", "id\n1\n")
    kbc.once()
    kbc.emulator.fault("import-async$", "POST", **FAULTS[fault])
    kbc.place("sales/b.csv", "id\n2\n")
    kbc.once()
    assert sorted(kbc.emulator.rows("in.c-sales.all")) == [["1"], ["2"]]
    assert kbc.emulator.loads("in.c-sales.all")["accepted"] == 2


@pytest.mark.parametrize("fault", ["closed after the effect", "500", "html 404", "wrong types", "401", "truncated JSON", "timeout"])
@pytest.mark.parametrize("what", ["DELETE", "GET"])
def test_a_drop_with_faults_is_done_in_the_end(kbc, fault, what):
    kbc.set_up({"on_delete": "drop"}, {"stall_timeout": "1s"}).start()
    path = kbc.place("sales/basic.csv", TEXT)
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    kbc.emulator.fault(r"tables/" if what == "DELETE" else r"jobs/\d+$", what, **FAULTS[fault])
    path.unlink()
    if fault == "401":
        wait_until(lambda: kbc.status()["destinations"][0]["state"] == "blocked", "the destination to be blocked")
        kbc.ask("retry", "--all")
    wait_until(lambda: kbc.emulator.tables() == {}, lambda: "the table to go\n" + kbc.log_text()[-3000:])
    kbc.place("sales/basic.csv", TEXT)
    kbc.wait_remote("in.c-sales.basic", ROWS)
    assert "its table stays" not in kbc.log_text()


@pytest.mark.parametrize("fault", ["closed after the effect", "500 after the effect", "wrong types", "html 404", "truncated JSON"])
def test_a_definition_with_faults_makes_one_table_that_is_ours(kbc, fault):
    kbc.set_up({"types": "infer", "on_delete": "drop"}).start()
    kbc.emulator.fault("tables-definition$", "POST", **FAULTS[fault])
    path = kbc.place("sales/basic.csv", TEXT)
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == ROWS and kbc.emulator.tables()["in.c-sales.basic"]["isTyped"]
    assert kbc.emulator.loads("in.c-sales.basic")["accepted"] == 1
    path.unlink()
    wait_until(lambda: kbc.emulator.tables() == {}, lambda: "the table to go\n" + kbc.log_text()[-3000:])


def test_an_order_of_which_nothing_came_is_given_again(kbc):
    """The connection breaks before the service has it: looked for, not found, ordered."""
    kbc.emulator.fault("tables-async$", "POST", cut="before")
    kbc.set_up().place("sales/basic.csv", TEXT)
    kbc.once()
    sequence = kbc.sequence()
    assert sequence.count("POST buckets/in.c-sales/tables-async") == 2 and sequence.count("GET jobs") >= 1
    assert sequence.count("POST files/prepare") == 1  # what was uploaded is used
    assert kbc.emulator.loads("in.c-sales.basic")["accepted"] == 1


@pytest.mark.core
def test_an_order_whose_answer_was_lost_is_looked_for_before_it_is_repeated(kbc):
    kbc.emulator.fault("tables-async$", "POST", cut="after_effect")
    kbc.set_up().place("sales/basic.csv", TEXT)
    kbc.once()
    sequence = kbc.sequence()
    assert sequence.count("POST buckets/in.c-sales/tables-async") == 1 and sequence.count("GET jobs") == 1
    assert kbc.emulator.loads("in.c-sales.basic")["accepted"] == 1


def test_a_job_that_is_older_than_a_page_of_others_is_found(kbc):
    """Others work in the project as well."""
    kbc.set_up().place("sales/basic.csv", TEXT)
    kbc.emulator.fault("tables-async$", "POST", cut="after_effect")
    held = kbc.emulator.fault(r"jobs\?", "GET", delay=600, status=503)
    kbc.start()
    wait_until(lambda: [f for f in kbc.emulator.faults() if f["id"] == held][0]["done"] == 1, "the question for jobs")
    kbc.kill9()
    other = Loader(kbc.home / "other", kbc.emulator).set_up()
    for i in range(130):
        other.place("others/f%d.csv" % i, "a\n1\n")
    other.once()
    kbc.emulator.clear_faults()
    kbc.start()
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    assert kbc.emulator.loads("in.c-sales.basic")["accepted"] == 1


def test_a_dead_service_is_waited_for(tmp_path):
    """The breaker opens, nothing is quarantined, and everything goes on when it is back."""
    emulator = Emulator()
    with emulator:
        kbc = Loader(tmp_path, emulator)
        port = int(emulator.url.rsplit(":", 1)[1])
        kbc.set_up().start()
        emulator.stop()
        for i in range(5):
            kbc.place("sales/f%d.csv" % i, "a\n%d\n" % i)
        wait_until(lambda: kbc.status()["destinations"][0]["state"] == "down", "the breaker")
        emulator.options["port"] = port
        emulator.start()
        for i in range(5):
            kbc.wait_receipts("sales/f%d.csv" % i, "loaded", 1)
        assert len(emulator.tables()) == 5 and not kbc.files("quarantined")
        kbc.clean_up()


# ---- kills ------------------------------------------------------------------------------------------------------------
KILL_FAULTS = {
    "": None,
    "the answer to the order is lost": (LOADS, "POST", {"cut": "after_effect"}),
    "a 500 to the upload": (STORES, "PUT", FAULTS["500"]),
    "no JSON to the order": (LOADS, "POST", FAULTS["html 200 after the effect"]),
}


def only_long(test):
    """Not even a skipped test of the normal run."""
    return test if LONG else None




@pytest.mark.parametrize("share", range(4))
@pytest.mark.parametrize("load", ["create", "append"])
@pytest.mark.parametrize("fault", KILL_FAULTS if LONG else list(KILL_FAULTS)[:2])
def test_a_kill_at_every_write_of_the_ledger(tmp_path, emulator, fault, load, share):
    """Each commit syncs: die at the 1st, 2nd, 3rd … of them, then go on. One accepted job for each version."""
    for when in itertools.count(1 + share, 4):
        emulator.reset()
        kbc = Loader(tmp_path / str(when), emulator)
        kbc.set_up({"load": "append", "table": "all"} if load == "append" else {"table": "all"})
        if load == "append":
            kbc.place("sales/first.csv", FIRST)
            kbc.once()
        kbc.place("sales/basic.csv", TEXT)
        if KILL_FAULTS[fault] is not None:
            path, method, do = KILL_FAULTS[fault]
            emulator.fault(path, method, **do)
        was_killed = kill_at(kbc, "fdatasync,fsync", when)
        kbc.once()
        want = ROWS + ([FIRST.splitlines()[1].split(",")] if load == "append" else [])
        assert sorted(emulator.rows("in.c-sales.all")) == sorted(want), when
        assert emulator.loads("in.c-sales.all")["accepted"] == (2 if load == "append" else 1), when
        assert len(kbc.receipts_of("sales/basic.csv", "loaded")) == 1
        kbc.assert_no_secret(running=False)
        kbc.clean_up()
        if not was_killed:
            break
        assert when < 200
    assert when > share + 1


@pytest.mark.parametrize("share", range(2))
@pytest.mark.parametrize("runs", [False, True], ids=["loaded", "its import runs"])
def test_a_kill_at_every_write_while_a_file_is_removed(tmp_path, emulator, runs, share):
    """Whatever is cut off, the table that we made goes in the end; also where only the service knows that it made it."""
    for when in itertools.count(1 + share, 2):
        emulator.reset()
        kbc = Loader(tmp_path / str(when), emulator)
        kbc.set_up({"on_delete": "drop"})
        path = kbc.place("sales/basic.csv", TEXT)
        if runs:
            emulator.fault(LOADS, "POST", cut="after_effect")
            held = emulator.fault(r"jobs\?", "GET", delay=600, status=503)
            kbc.start(ready=False)
            wait_until(lambda: [f for f in emulator.faults() if f["id"] == held][0]["done"] == 1, "the question for jobs")
            kbc.kill9()
            emulator.clear_faults()
        else:
            kbc.once()
        path.unlink()
        was_killed = kill_at(kbc, "fdatasync,fsync", when)
        kbc.once()
        assert emulator.tables() == {}, (when, kbc.log_text()[-3000:])
        assert kbc.state_of("sales/basic.csv") == "gone" and kbc.checkpoints() == []
        kbc.clean_up()
        if not was_killed:
            break
    assert when > share + 1


@only_long
@pytest.mark.parametrize("share", range(4))
def test_a_kill_before_every_write_of_the_ledger(tmp_path, emulator, share):
    for when in itertools.count(1 + share, 4):
        emulator.reset()
        kbc = Loader(tmp_path / str(when), emulator)
        kbc.set_up({"load": "append", "table": "all"}).place("sales/basic.csv", TEXT)
        was_killed = kill_at(kbc, "pwrite64", when)
        kbc.once()
        assert sorted(emulator.rows("in.c-sales.all")) == ROWS, when
        assert emulator.loads("in.c-sales.all")["accepted"] == 1, when
        kbc.clean_up()
        if not was_killed:
            break


@only_long
@pytest.mark.parametrize("request_name", [r for r in REQUESTS if REQUESTS[r][2] in ("", "import")])
@pytest.mark.parametrize("fault", ["reset", "closed after the effect", "500 after the effect", "html 200 after the effect", "wrong types"])
def test_requests_with_faults_and_kills(tmp_path, emulator, request_name, fault):
    if (request_name, fault) in NONSENSE:
        pytest.skip("makes no sense")
    method, path, needs = REQUESTS[request_name]
    for when in itertools.count(1, 3):
        emulator.reset()
        kbc = Loader(tmp_path / str(when), emulator)
        kbc.set_up()
        if needs == "import":
            kbc.place("sales/basic.csv", FIRST)
            kbc.once()
        emulator.fault(path, method, **FAULTS[fault])
        kbc.place("sales/basic.csv", TEXT)
        was_killed = kill_at(kbc, "fdatasync,fsync", when)
        kbc.once()
        assert sorted(emulator.rows("in.c-sales.basic")) == ROWS, when
        assert emulator.loads("in.c-sales.basic")["accepted"] == (2 if needs == "import" else 1), when
        kbc.clean_up()
        if not was_killed:
            break


@pytest.mark.core
@pytest.mark.parametrize("step, hold", [("file", STORES), ("uploaded", LOADS), ("ordered", LOADS), ("job", r"jobs/\d+$")])
def test_a_kill_when_a_checkpoint_is_on_disk(kbc, step, hold):
    """The ledger is looked at while the next request is held; what it says is what the next start goes on from."""
    words = {"file": r"file=[1-9]\d* job=0 ordered=0 flags=\d*[02468] ", "uploaded": r"flags=\d*[13579] ",
             "ordered": r"job=0 ordered=[1-9]", "job": r"job=[1-9]"}[step]
    kbc.set_up()
    kbc.emulator.fault(hold, delay=600, status=503)
    if step == "job":
        kbc.emulator.fault(job_hang=True)
    kbc.start()
    kbc.place("sales/basic.csv", TEXT)
    wait_until(lambda: any(re.search(words, text) for text in kbc.checkpoints()), lambda: "a checkpoint with %s: %s" % (words, kbc.checkpoints()))
    kbc.kill9()
    kbc.emulator.clear_faults()
    before = kbc.emulator.requests()[-1]["n"]
    kbc.start()
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    asked = kbc.sequence(since=before)
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == ROWS and kbc.emulator.loads("in.c-sales.basic")["accepted"] == 1
    assert ("POST files/prepare" in asked) == (step == "file")
    if step == "job":
        assert not [s for s in asked if s.startswith(("POST", "PUT"))]
    kbc.stop()
    assert kbc.checkpoints() == []


@pytest.mark.core
@pytest.mark.parametrize("how", ["KILL", "none"])
def test_a_file_that_changes_while_its_import_runs(kbc, how):
    """The service has the old version: it is told as loaded, then the new one goes up. Two versions, two jobs."""
    kbc.set_up().start()
    kbc.emulator.fault(job_hang=True)
    path = kbc.place("sales/basic.csv", FIRST)
    wait_until(lambda: any("job=" in text and "job=0" not in text for text in kbc.checkpoints()), "the job's number in the ledger")
    if how == "KILL":
        kbc.kill9()
    path.write_text(TEXT)
    if how == "KILL":
        kbc.start()
    kbc.emulator.clear_faults()
    kbc.wait_remote("in.c-sales.basic", ROWS)
    wait_until(lambda: kbc.state_of("sales/basic.csv") == "loaded", "the end")
    assert kbc.emulator.loads("in.c-sales.basic")["accepted"] == 2
    kbc.stop()
    assert kbc.checkpoints() == []


def test_a_file_that_is_removed_and_comes_again_while_its_import_runs(kbc):
    kbc.set_up({"on_delete": "drop"}).start()
    kbc.emulator.fault(job_hang=True)
    path = kbc.place("sales/basic.csv", FIRST)
    wait_until(lambda: kbc.emulator.loads("in.c-sales.basic")["accepted"] == 1, "the order")
    path.unlink()
    kbc.wait_state("sales/basic.csv", "gone")
    kbc.place("sales/basic.csv", TEXT)
    kbc.emulator.clear_faults()
    kbc.wait_remote("in.c-sales.basic", ROWS)
    wait_until(lambda: kbc.state_of("sales/basic.csv") == "loaded", "the end")
    kbc.stop()
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == ROWS
    assert kbc.checkpoints() == []


@pytest.mark.core
@pytest.mark.parametrize("load", ["replace", "append"])
@pytest.mark.parametrize("is_other", [False, True], ids=["same name", "other name, same table"])
def test_a_file_that_is_removed_and_comes_again_while_its_bytes_go_up(kbc, load, is_other):
    """One load of a table at a time, though the row of the first has been gone meanwhile: the newer version wins."""
    kbc.set_up({} if load == "replace" else {"load": "append", "on_changed": "again", "table": "basic"}).start()
    held = kbc.emulator.fault(STORES, "PUT", delay=3)
    path = kbc.place("sales/basic.csv", FIRST)
    wait_until(lambda: [f for f in kbc.emulator.faults() if f["id"] == held][0]["done"] == 1, "the upload that is held")
    path.unlink()
    kbc.wait_state("sales/basic.csv", "gone")
    if is_other:
        name, content = "sales/basic.csv.gz", gzip.compress(TEXT.encode())
    else:
        name, content = "sales/basic.csv", TEXT
    kbc.place(name, content)
    wait_until(lambda: kbc.state_of(name) == "loaded", lambda: "the second to be loaded\n" + kbc.log_text()[-3000:])
    wait_until(lambda: kbc.receipts_of("sales/basic.csv") != [] and not kbc.checkpoints(), "the end of the first")
    kbc.stop()
    first = [FIRST.splitlines()[1].split(",")] if load == "append" else []
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == sorted(ROWS + first)
    orders = [one["n"] for one in kbc.emulator.requests("POST") if re.search(LOADS, one["path"])]
    prepared = [one["n"] for one in kbc.emulator.requests("POST", "files/prepare")]
    assert len(prepared) == len(orders) == 2 and prepared[1] > orders[0], "they ran beside one another"


@pytest.mark.parametrize("how", ["KILL", "none"])
@pytest.mark.parametrize("step", ["ordered", "job"])
def test_a_file_that_is_removed_while_its_import_runs_leaves_no_table(kbc, how, step):
    kbc.set_up({"on_delete": "drop"}, {"stall_timeout": "1s"}).start()
    kbc.emulator.fault(job_hang=True, **({"cut": "after_effect"} if step == "ordered" else {}))
    if step == "ordered":
        kbc.emulator.fault(r"jobs\?", "GET", delay=600, status=503)
    path = kbc.place("sales/basic.csv", FIRST)
    words = {"ordered": r"job=0 ordered=[1-9]", "job": r"job=[1-9]"}[step]
    wait_until(lambda: any(re.search(words, text) for text in kbc.checkpoints()), "the checkpoint")
    wait_until(lambda: kbc.emulator.loads("in.c-sales.basic")["accepted"] == 1, "the order")
    if how == "KILL":
        kbc.kill9()
    path.unlink()
    if how == "KILL":
        kbc.start()
    kbc.wait_state("sales/basic.csv", "gone")
    kbc.emulator.clear_faults()
    wait_until(lambda: kbc.emulator.loads("in.c-sales.basic")["finished"] == 1, "the import to end")
    wait_until(lambda: kbc.emulator.tables() == {}, lambda: "the table to go\n" + kbc.log_text()[-3000:])
    kbc.place("sales/basic.csv", TEXT)
    kbc.wait_remote("in.c-sales.basic", ROWS)


def test_what_was_ordered_is_known_to_a_retry_by_hand(kbc):
    """Whatever the service said when it was asked for the job, it has accepted it: a retry follows that one."""
    kbc.set_up({"load": "append", "table": "all"}).start()
    kbc.emulator.fault(LOADS, "POST", seconds=0.5)
    kbc.emulator.fault(r"jobs/\d+$", "GET", status=400, body={"error": "Not today", "code": "storage.jobs.today"})
    kbc.place("sales/basic.csv", TEXT)
    kbc.wait_state("sales/basic.csv", "quarantined")
    kbc.ask("retry", "sales/basic.csv")
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    kbc.stop()
    assert sorted(kbc.emulator.rows("in.c-sales.all")) == ROWS
    assert kbc.emulator.loads("in.c-sales.all")["accepted"] == 1 and kbc.checkpoints() == []


# ---- another stage, another project -------------------------------------------------------------------------------------
def choose(kbc, dest="kbc", **options):
    """Other options for the destination, or another destination for the flow, in the configuration."""
    text = json.loads(kbc.config.read_text())
    text["destinations"][dest] = {**text["destinations"]["kbc"], **options}
    text["flows"][0]["to"] = dest
    kbc.config.write_text(json.dumps(text))


@pytest.mark.parametrize("dest", ["kbc", "other"])
def test_a_job_in_another_stage_is_none_of_this_one(kbc, dest):
    """Killed while an import runs, and started with another stage: the file has to go there."""
    kbc.set_up().start()
    kbc.emulator.fault(job_hang=True)
    kbc.place("sales/basic.csv", TEXT)
    wait_until(lambda: any("job=" in text and "job=0" not in text for text in kbc.checkpoints()), "the job's number in the ledger")
    kbc.kill9()
    kbc.emulator.clear_faults()
    choose(kbc, dest, stage="out")
    kbc.start()
    kbc.wait_remote("out.c-sales.basic", ROWS)
    wait_until(lambda: kbc.state_of("sales/basic.csv") == "loaded", "the end")
    assert kbc.emulator.loads("out.c-sales.basic")["accepted"] == 1
    kbc.stop()
    assert kbc.checkpoints() == []


@pytest.mark.core
@pytest.mark.parametrize("at", ["upload", "order", "import"])
@pytest.mark.parametrize("is_new", [True, False], ids=["create", "import"])
def test_a_reload_with_another_stage_while_a_file_is_loaded(kbc, at, is_new):
    """What ends after the reload went where the old configuration said; it goes where the new one says as well."""
    kbc.set_up().start()
    if not is_new:
        kbc.place("sales/basic.csv", FIRST)
        kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    path, method = {"upload": (STORES, "PUT"), "order": (LOADS, "POST"), "import": (r"jobs/\d+$", "GET")}[at]
    held = kbc.emulator.fault(path, method, delay=2)
    kbc.place("sales/basic.csv", TEXT)
    wait_until(lambda: [f for f in kbc.emulator.faults() if f["id"] == held][0]["done"] == 1, "the request that is held")
    choose(kbc, stage="out")
    kbc.process.send_signal(signal.SIGHUP)
    kbc.wait_remote("out.c-sales.basic", ROWS)
    wait_until(lambda: kbc.state_of("sales/basic.csv") == "loaded", "the end")
    assert kbc.emulator.loads("out.c-sales.basic")["accepted"] == 1
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == ROWS
    kbc.stop()
    assert kbc.checkpoints() == []


@pytest.mark.core
def test_a_table_that_was_there_in_the_other_stage_is_not_dropped(kbc):
    """We made one of that name, but not there."""
    other = Loader(kbc.home / "other", kbc.emulator).set_up(dest={"stage": "out"})
    other.place("sales/basic.csv", FIRST)
    other.once()
    other.clean_up()
    kbc.set_up({"on_delete": "drop"}).start()
    path = kbc.place("sales/basic.csv", TEXT)
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    choose(kbc, stage="out")
    kbc.process.send_signal(signal.SIGHUP)
    kbc.wait_remote("out.c-sales.basic", ROWS)
    kbc.wait_receipts("sales/basic.csv", "loaded", 2)
    path.unlink()
    kbc.wait_log("file deleted")
    kbc.wait_state("sales/basic.csv", "gone")
    assert kbc.stop() == 0
    assert sorted(kbc.emulator.rows("out.c-sales.basic")) == ROWS


# ---- secrets ----------------------------------------------------------------------------------------------------------
@pytest.mark.core
@pytest.mark.parametrize("provider", ["aws", "azure", "gcp"])
def test_no_secret_in_anything_also_where_the_service_repeats_it(kbc, provider):
    """Errors that quote the token, a signed URL, a header: cleaned before they are written anywhere."""
    kbc.emulator.settings(provider=provider)
    kbc.set_up(http={"listen": "127.0.0.1:0"}, log=[{"to": str(kbc.home / "all.log"), "level": "debug", "format": "json"},
                                                    {"to": "stderr", "level": "debug", "format": "text"}])
    kbc.emulator.fault("files/prepare", "POST", status=400, body={"error": "bad token %s" % TOKEN, "code": "x.%s" % TOKEN, "exceptionId": TOKEN})
    kbc.start()
    kbc.place("sales/quoted.csv", TEXT)
    kbc.wait_state("sales/quoted.csv", "quarantined")
    kbc.emulator.fault(job_error={"code": "invalidData", "message": "token %s" % TOKEN})
    kbc.place("sales/job.csv", TEXT)
    kbc.wait_state("sales/job.csv", "quarantined")
    kbc.emulator.fault(STORES, "PUT", status=403, body="<Error><Code>AccessDenied</Code><Message>%s</Message></Error>" % TOKEN)
    kbc.place("sales/store.csv", TEXT)
    kbc.wait_receipts("sales/store.csv", "loaded", 1)
    kbc.emulator.settings(token={"description": "for %s" % TOKEN})
    kbc.ask("retry", "--all")
    kbc.process.send_signal(signal.SIGUSR1)
    kbc.wait_receipts("sales/quoted.csv", "loaded", 1)
    kbc.wait_receipts("sales/job.csv", "loaded", 1)
    kbc.assert_no_secret()
    kbc.stop()
    kbc.assert_no_secret(running=False)


def test_the_token_is_not_in_its_environment_or_arguments_for_others(kbc):
    kbc.set_up().start()
    assert TOKEN not in Path("/proc/%d/cmdline" % kbc.process.pid).read_text()


@pytest.fixture
def open_home():
    """A folder that another user may use."""
    home = Path(tempfile.mkdtemp(prefix="chute-user-"))
    yield home
    shutil.rmtree(home, ignore_errors=True)


def test_no_core_is_dumped(open_home, emulator):
    kbc = Loader(open_home, emulator)
    kbc.set_up().place("sales/basic.csv", TEXT)
    binary = open_home / "chute"
    shutil.copy(BINARY, binary)
    for path in [open_home, *open_home.rglob("*")]:
        os.chown(path, 65534, 65534)
    try:
        kbc.process = kbc.spawn(kbc.run_arguments(), binary=str(binary), user=65534, group=65534, extra_groups=[])
        kbc.wait_ready()
        kbc.wait_receipts("sales/basic.csv", "loaded", 1)
        limits = Path("/proc/%d/limits" % kbc.process.pid).read_text()
        assert re.search(r"Max core file size\s+0\s+0", limits), limits
        if "asan" not in BINARY:  # the kernel gives what is not dumpable to root
            assert os.stat("/proc/%d/mem" % kbc.process.pid).st_uid == 0
        kbc.process.send_signal(signal.SIGQUIT if "asan" in BINARY else signal.SIGABRT)
        kbc.process.wait(30)
        assert not [p for p in open_home.rglob("*") if p.name.startswith("core")]
        if "core" not in Path("/proc/sys/kernel/core_pattern").read_text().split("|")[0]:
            pytest.skip("cores go elsewhere on this machine: only the limits were seen")
    finally:
        with contextlib.suppress(AssertionError):
            kbc.clean_up()


# ---- TLS --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Certificates of one authority for this address, another name, and last year; and one of another authority."""
    home = tmp_path_factory.mktemp("tls")

    def openssl(*words):
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, cwd=home)
    for ca in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", ca + ".key", "-out", ca + ".pem", "-days", 30, "-subj", "/CN=" + ca)
    for name, ca, subject, days in (("right", "ca", "IP:127.0.0.1", 30), ("wrong CA", "other", "IP:127.0.0.1", 30),
                                    ("wrong host", "ca", "DNS:example.org", 30), ("expired", "ca", "IP:127.0.0.1", -1)):
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", name + ".key", "-out", name + ".csr", "-subj", "/CN=emulator",
                "-addext", "subjectAltName=" + subject)
        openssl("x509", "-req", "-in", name + ".csr", "-CA", ca + ".pem", "-CAkey", ca + ".key", "-CAcreateserial", "-days", days,
                "-copy_extensions", "copy", "-out", name + ".pem")
    return home


@pytest.mark.core
@pytest.mark.parametrize("certificate, dest, is_fine", [
    ("right", {"ca_file": "ca"}, True), ("right", {}, False), ("wrong CA", {"ca_file": "ca"}, False), ("wrong host", {"ca_file": "ca"}, False),
    ("expired", {"ca_file": "ca"}, False), ("expired", {"tls_verify": False}, True), ("wrong CA", {"tls_verify": False}, True)])
def test_tls(tmp_path, certificates, certificate, dest, is_fine):
    with Emulator(tls_cert=certificates / (certificate + ".pem"), tls_key=certificates / (certificate + ".key")) as emulator:
        kbc = Loader(tmp_path, emulator)
        if "ca_file" in dest:
            dest = {"ca_file": str(certificates / (dest["ca_file"] + ".pem"))}
        kbc.set_up(dest=dest).place("sales/basic.csv", TEXT)
        done = kbc.command("check", "--connect", "-c", kbc.config)
        assert (done.returncode == 0) == is_fine, done.stdout + done.stderr
        if is_fine:
            kbc.once()
            assert sorted(emulator.rows("in.c-sales.basic")) == ROWS
        else:
            assert "certificate" in done.stderr.lower() or "tls" in done.stderr.lower(), done.stderr
            kbc.start()
            wait_until(lambda: kbc.status()["destinations"][0]["state"] == "down", "the destination to be down")
            assert re.search("certificate|tls", kbc.ask("status"), re.I), kbc.ask("status")
            kbc.wait_state("sales/basic.csv", "queued")
            assert emulator.requests() == []  # not even the token went over
        kbc.clean_up()


def test_a_certificate_that_ends_is_no_fault_of_the_files(tmp_path, certificates):
    """Files wait for somebody who mends it, and go on by themselves."""
    def emulator(certificate, **more):
        return Emulator(tls_cert=certificates / (certificate + ".pem"), tls_key=certificates / (certificate + ".key"), **more)
    with emulator("right") as first:
        kbc = Loader(tmp_path, first)
        kbc.set_up(dest={"ca_file": str(certificates / "ca.pem")}, limits={"jobs": 1}).start()
        kbc.place("sales/first.csv", FIRST)
        kbc.wait_receipts("sales/first.csv", "loaded", 1)
        port = int(first.url.rsplit(":", 1)[1])
    with emulator("expired", port=port):
        for name in ("basic", "other"):
            kbc.place("sales/%s.csv" % name, TEXT)
        wait_until(lambda: kbc.status()["destinations"][0]["state"] == "down", lambda: "the destination to be down\n" + kbc.log_text()[-3000:])
        assert "certificate" in kbc.ask("status")
    with emulator("right", port=port) as kbc.emulator:
        kbc.wait_remote("in.c-sales.basic", ROWS)
        kbc.wait_remote("in.c-sales.other", ROWS)
        kbc.stop()
    assert [r for r in kbc.receipts() if r["state"] != "loaded"] == []
    kbc.clean_up()
