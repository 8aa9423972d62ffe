"""Keboola Storage: what is gone when it is looked for, and what must go: tables, buckets and files that vanish under an
import; drops that fail, are cut off or come too late; a reset while an import runs.
"""
import itertools
import os
import re
import subprocess
import time
import urllib.request

import pytest
from chute import BINARY, wait_until
from keboola import Emulator
from keboola_side import LOADS, RETRY, Loader, kill_at, killing, was_killed

FIRST = "id,name,value\n9,first,9\n"
TEXT = "id,name,value\n0,name_0,17\n1,name_1,942\n2,name_2,5\n"
ROWS = [line.split(",") for line in TEXT.splitlines()[1:]]
TABLE = "in.c-sales.basic"
DROP = r"tables/in\.c-sales\.basic\?async"
TURNS_MAX = 8  # of keboola_walk.h: import jobs of one try at most
SLOW = {"first": "1h", "max": "1h"}  # one try, and none after it


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


def send(emulator, method, path):
    """What a person does in the project by hand."""
    request = urllib.request.Request("%s/v2/storage/%s" % (emulator.url, path), method=method,
                                     headers={"X-StorageApi-Token": emulator.token})
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()


def gone(code):
    return {"code": code, "message": "The thing was not found in the project"}


def asked(kbc, method, words):
    return [s for s in kbc.sequence() if re.match("%s %s$" % (method, words), s)]


def drops(kbc):
    """The jobs that drop a table, oldest first."""
    return [job for job in sorted(kbc.emulator.state("jobs")["jobs"], key=lambda job: job["id"]) if job["operation"] == "tableDrop"]


def loaded(kbc, **flow):
    """A daemon that has loaded sales/basic.csv and would drop its table; the path."""
    kbc.set_up({"on_delete": "drop", **flow}, {"stall_timeout": "1s"}).start()
    path = kbc.place("sales/basic.csv", TEXT)
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    return path


def wait_order(kbc):
    """Wait until the number of an import job is in the ledger."""
    wait_until(lambda: any(re.search(r"job=[1-9]", text) for text in kbc.checkpoints()), "the job's number in the ledger")


# ---- gone under an import ---------------------------------------------------------------------------------------------
@pytest.mark.core
@pytest.mark.parametrize("code", ["storage.tables.notFound", "storage.buckets.notFound", "storage.files.notFound", "storage.fileNotUploaded"])
@pytest.mark.parametrize("is_new", [True, False], ids=["create", "import"])
def test_a_job_that_finds_its_table_bucket_or_file_gone_is_ordered_anew(kbc, code, is_new):
    kbc.set_up()
    if not is_new:
        kbc.place("sales/basic.csv", FIRST)
        kbc.once()
    kbc.emulator.forget_requests()
    kbc.emulator.fault(job_error=gone(code), times=2)
    kbc.place("sales/basic.csv", TEXT)
    kbc.once()
    assert kbc.state_of("sales/basic.csv") == "loaded" and sorted(kbc.emulator.rows(TABLE)) == ROWS
    loads = kbc.emulator.loads(TABLE)
    assert (loads["failed"], loads["succeeded"]) == (2, 1 if is_new else 2)
    # a file that is there is used again, one that is not goes up again
    assert len(asked(kbc, "POST", "files/prepare")) == (3 if "file" in code else 1)
    assert kbc.checkpoints() == []


@pytest.mark.parametrize("what", ["tables/%s" % TABLE, "buckets/in.c-sales?force=1"])
@pytest.mark.parametrize("how", ["KILL", "none"])
def test_a_table_or_bucket_that_a_person_drops_while_an_import_waits_is_made_again(kbc, what, how):
    kbc.set_up().place("sales/basic.csv", FIRST)
    kbc.once()
    kbc.emulator.fault(job_hang=True)
    kbc.start()
    kbc.place("sales/basic.csv", TEXT)
    wait_order(kbc)
    if how == "KILL":
        kbc.kill9()
    send(kbc.emulator, "DELETE", what)
    assert kbc.emulator.tables() == {}
    kbc.emulator.clear_faults()
    if how == "KILL":
        kbc.start()
    kbc.wait_receipts("sales/basic.csv", "loaded", 2)
    assert sorted(kbc.emulator.rows(TABLE)) == ROWS and not kbc.files("quarantined")


@pytest.mark.core
@pytest.mark.parametrize("code", ["storage.tables.notFound", "storage.files.notFound"])
def test_what_is_always_gone_ends_in_a_pause_and_not_in_quarantine(kbc, code):
    kbc.set_up(retry=SLOW)
    kbc.emulator.fault(job_error=gone(code), times=None)
    kbc.start()
    kbc.place("sales/basic.csv", TEXT)
    kbc.wait_state("sales/basic.csv", "retrying")
    assert 2 <= kbc.emulator.loads(TABLE)["accepted"] <= TURNS_MAX, "one try orders it a few times and not for ever"
    assert [d["state"] for d in kbc.status()["destinations"]] == ["ok"]
    kbc.place("sales/next.csv", "a\n1\n")  # others are not held up
    kbc.emulator.clear_faults()
    kbc.wait_receipts("sales/next.csv", "loaded", 1)
    kbc.stop()
    kbc.set_up(retry=RETRY).start()
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    assert sorted(kbc.emulator.rows(TABLE)) == ROWS


@pytest.mark.parametrize("do", [{"job_error": gone("storage.buckets.notFound")},
                                {"status": 404, "body": {"error": "Bucket in.c-sales not found", "code": "storage.buckets.notFound"}}],
                         ids=["as its job's error", "as its answer"])
def test_a_definition_that_finds_its_bucket_gone_is_repeated(kbc, do):
    kbc.set_up({"types": "infer"})
    kbc.emulator.fault("tables-definition$", "POST", **do)
    kbc.place("sales/basic.csv", TEXT)
    kbc.once()
    assert sorted(kbc.emulator.rows(TABLE)) == ROWS and kbc.emulator.tables()[TABLE]["isTyped"]
    assert kbc.emulator.loads(TABLE)["accepted"] == 1


# ---- a drop is done once -----------------------------------------------------------------------------------------------
API_ERROR = {"error": "Application error. Please contact support", "exceptionId": "keboola-connection-5f0e1c2d3a4b5"}
DROP_REQUESTS = {"table": ("GET", r"tables/in\.c-sales\.basic$"), "delete": ("DELETE", DROP), "job": ("GET", r"jobs/\d+$")}
DROP_FAULTS = {
    "500": {"status": 500, "body": API_ERROR},
    "500 after the effect": {"status": 500, "body": API_ERROR, "after_effect": True},
    "503 with Retry-After": {"status": 503, "headers": {"Retry-After": 1}, "body": API_ERROR},
    "reset": {"reset": True},
    "closed after the effect": {"cut": "after_effect"},
    "html 404": {"status": 404, "body": "<html>nginx</html>"},
    "truncated JSON": {"truncate": 20},
    "401": {"status": 401, "body": {"error": "Invalid access token", "code": "storage.tokenInvalid"}},
}


@pytest.mark.parametrize("fault", DROP_FAULTS)
@pytest.mark.parametrize("request_name", DROP_REQUESTS)
def test_a_drop_with_a_fault_is_done_in_the_end(kbc, request_name, fault):
    path = loaded(kbc)
    method, words = DROP_REQUESTS[request_name]
    kbc.emulator.fault(words, method, **DROP_FAULTS[fault])
    path.unlink()
    if fault == "401":
        wait_until(lambda: kbc.status()["destinations"][0]["state"] == "blocked", "the destination to be blocked")
        kbc.ask("retry", "--all")
    kbc.wait_receipts("sales/basic.csv", "gone", 1)
    assert kbc.emulator.tables() == {} and "its table stays" not in kbc.log_text()
    assert "dropped sales.basic" in kbc.log_text()  # and it says so, whichever try did it
    assert 1 <= len(drops(kbc)) <= 2
    assert request_name != "job" or len(drops(kbc)) == 1, "a job that is known is not asked for again"
    kbc.stop()
    assert kbc.checkpoints() == []


@pytest.mark.core
@pytest.mark.parametrize("how", ["KILL", "TERM"])
def test_a_drop_that_the_service_has_taken_is_followed_after_a_stop(kbc, how):
    path = loaded(kbc)
    kbc.emulator.fault(DROP, "DELETE", job_hang=True)
    path.unlink()
    wait_until(lambda: drops(kbc), "the drop to be taken")
    wait_order(kbc)
    if how == "KILL":
        kbc.kill9()
    else:
        kbc.process.terminate()
        kbc.process.terminate()  # the second one does not wait
        kbc.process.wait()
    kbc.emulator.clear_faults()
    kbc.start()
    kbc.wait_receipts("sales/basic.csv", "gone", 1)
    assert kbc.emulator.tables() == {} and len(drops(kbc)) == 1


@pytest.mark.core
def test_a_drop_whose_job_failed_is_asked_for_again_after_a_pause(kbc):
    path = loaded(kbc)
    kbc.emulator.fault(DROP, "DELETE", job_error={"code": "", "message": "Internal Server Error occurred"}, times=2)
    path.unlink()
    kbc.wait_receipts("sales/basic.csv", "gone", 1)
    assert kbc.emulator.tables() == {} and [job["status"] for job in drops(kbc)] == ["error", "error", "success"]
    assert re.search(r"try 1 failed, next in .*: drop sales\.basic in kbc: job \d+ failed: Internal Server Error", kbc.log_text())


def test_a_drop_that_is_refused_says_why_and_is_not_repeated(kbc):
    path = loaded(kbc)
    kbc.emulator.fault(DROP, "DELETE", job_error={"code": "storage.tables.hasAliases", "message": "The table has aliases: in.c-a.b"})
    path.unlink()
    wait_until(lambda: "its table stays" in kbc.log_text(), "the end of the drop")
    assert "The table has aliases: in.c-a.b" in kbc.log_text()
    assert len(drops(kbc)) == 1 and list(kbc.emulator.tables()) == [TABLE]
    kbc.stop()
    assert kbc.checkpoints() == []


def test_a_drop_that_finds_the_table_gone_has_nothing_to_complain_of(kbc):
    """Two jobs of one drop, since an answer got lost; the second finds what the first has left."""
    path = loaded(kbc)
    kbc.emulator.fault(DROP, "DELETE", job_error=gone("storage.tables.notFound"))
    path.unlink()
    kbc.wait_receipts("sales/basic.csv", "gone", 1)
    assert "its table stays" not in kbc.log_text() and len(drops(kbc)) == 1


@pytest.mark.core
def test_a_late_drop_leaves_a_table_that_somebody_has_made_since(kbc):
    """The answer to the delete was lost. Before the next try another one has made a table of that name."""
    path = loaded(kbc)
    kbc.stop()
    kbc.set_up({"on_delete": "drop"}, retry=SLOW).start()
    created = kbc.emulator.tables()[TABLE]["created"]
    kbc.emulator.fault(DROP, "DELETE", status=500, body=API_ERROR, after_effect=True)
    path.unlink()
    wait_until(lambda: "try 1 failed" in kbc.log_text(), "the answer to be lost")
    wait_until(lambda: kbc.emulator.tables() == {}, "the table to go")
    kbc.stop()
    other = Loader(kbc.home / "other", kbc.emulator).set_up()
    other.place("sales/basic.csv", FIRST)
    wait_until(lambda: time.strftime("%S") != created[17:19], "another second by the clock of the service")
    other.once()
    kbc.set_up({"on_delete": "drop"}, retry=RETRY).start()
    kbc.wait_receipts("sales/basic.csv", "gone", 1)
    kbc.stop()
    assert kbc.emulator.rows(TABLE) == [FIRST.splitlines()[1].split(",")] and len(drops(kbc)) == 1
    other.clean_up()


@pytest.mark.core
@pytest.mark.parametrize("how", ["KILL", "none"])
@pytest.mark.parametrize("is_new", [True, False], ids=["other content", "same content"])
def test_a_file_that_comes_again_while_its_table_is_dropped_is_loaded_after_that(kbc, how, is_new):
    path = loaded(kbc)
    kbc.emulator.fault(DROP, "DELETE", job_hang=True)
    path.unlink()
    wait_until(lambda: drops(kbc), "the drop to be taken")
    wait_order(kbc)
    if how == "KILL":
        kbc.kill9()
    kbc.place("sales/basic.csv", FIRST if is_new else TEXT)
    if how == "KILL":
        kbc.start()
        wait_until(lambda: len(asked(kbc, "GET", r"jobs/%d" % drops(kbc)[0]["id"])) >= 2, "the new load to ask for the old drop")
    assert kbc.emulator.loads(TABLE)["accepted"] == 1, "nothing is loaded into a table that is about to go"
    kbc.emulator.clear_faults()
    kbc.wait_remote(TABLE, [FIRST.splitlines()[1].split(",")] if is_new else ROWS)
    wait_until(lambda: kbc.state_of("sales/basic.csv") == "loaded", "the end")
    kbc.stop()
    assert len(drops(kbc)) == 1 and kbc.checkpoints() == []


@pytest.mark.core
@pytest.mark.parametrize("what", ["load", "drop"])
def test_an_outage_that_is_longer_than_give_up_after_gives_nothing_up(kbc, what):
    """The first try after it fails once more, and only the pauses of the file itself count."""
    kbc.set_up({"on_delete": "drop"}, retry={**RETRY, "give_up_after": "2s"}).start()
    path = kbc.place("sales/basic.csv", FIRST)
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    method, words = ("POST", "files/prepare") if what == "load" else ("GET", r"tables/in\.c-sales\.basic$")
    kbc.emulator.fault(words, method, refuse=4)
    failed = kbc.emulator.fault(words, method, status=500, body=API_ERROR)
    if what == "load":
        kbc.place("sales/basic.csv", TEXT)
        kbc.wait_receipts("sales/basic.csv", "loaded", 2)
    else:
        path.unlink()
        kbc.wait_receipts("sales/basic.csv", "gone", 1)
    assert "given up" not in kbc.log_text()
    assert [f for f in kbc.emulator.faults() if f["id"] == failed][0]["done"] == 1, "nothing failed after the outage"
    assert (kbc.emulator.tables() == {}) == (what == "drop")


def test_a_drop_that_never_works_is_given_up_and_says_so(kbc):
    kbc.set_up({"on_delete": "drop"}, retry={**RETRY, "give_up_after": "1s"}).start()
    path = kbc.place("sales/basic.csv", FIRST)
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    kbc.emulator.fault(DROP, "DELETE", status=500, body=API_ERROR, times=None)
    path.unlink()
    wait_until(lambda: "its table stays: given up after" in kbc.log_text(), lambda: "the end of the drop\n" + kbc.log_text()[-3000:])
    assert list(kbc.emulator.tables()) == [TABLE] and "500: Application error" in kbc.log_text()


def test_a_token_without_the_right_to_drop_in_one_bucket_stops_that_drop_only(kbc):
    path = loaded(kbc)
    kbc.emulator.settings(token={"canManageBuckets": False, "bucketPermissions": {"in.c-sales": "write", "in.c-other": "manage"}})
    kbc.stop()
    kbc.start()
    path.unlink()
    wait_until(lambda: "may not drop table in.c-sales.basic" in kbc.log_text(), lambda: "the refusal\n" + kbc.log_text()[-3000:])
    kbc.place("sales/next.csv", "a\n1\n")
    kbc.wait_receipts("sales/next.csv", "loaded", 1)
    assert "manage that bucket in Keboola" in kbc.log_text() and TABLE in kbc.emulator.tables()
    kbc.emulator.settings(token={"canManageBuckets": True, "bucketPermissions": {}})
    kbc.wait_receipts("sales/basic.csv", "gone", 1)
    assert TABLE not in kbc.emulator.tables()


@pytest.mark.parametrize("is_back", [False, True], ids=["stays away", "comes again"])
@pytest.mark.parametrize("fault", [("DELETE", DROP, "500 after the effect"), ("DELETE", DROP, "500"), ("GET", r"jobs/\d+$", "500")], ids=lambda f: " ".join(f[::2]))
def test_a_kill_at_every_write_of_a_drop_with_a_fault(tmp_path, emulator, fault, is_back):
    """Whatever is cut off: the table goes once; or, where the file comes again after the kill, it holds that."""
    for when in itertools.count(1):
        emulator.reset()
        kbc = Loader(tmp_path / str(when), emulator)
        kbc.set_up({"on_delete": "drop"})
        path = kbc.place("sales/basic.csv", TEXT)
        kbc.once()
        path.unlink()
        emulator.fault(fault[1], fault[0], **DROP_FAULTS[fault[2]])
        is_killed = kill_at(kbc, "fdatasync,fsync", when)
        emulator.clear_faults()
        if is_back:
            kbc.place("sales/basic.csv", FIRST)
        kbc.once()
        if is_back:
            assert emulator.rows(TABLE) == [FIRST.splitlines()[1].split(",")] and kbc.state_of("sales/basic.csv") == "loaded", when
        else:
            assert emulator.tables() == {} and kbc.state_of("sales/basic.csv") == "gone", (when, kbc.log_text()[-3000:])
        assert len(drops(kbc)) <= 2 and kbc.checkpoints() == [], when
        assert [d for d in drops(kbc) if d["status"] != "success"] == [], when
        kbc.clean_up()
        if not is_killed:
            break
        assert when < 100
    assert when > 3


# ---- reset while an import runs ----------------------------------------------------------------------------------------
def reset(kbc):
    """`chute reset` under way."""
    return subprocess.Popen([BINARY, "reset", "main", "--yes", "-c", str(kbc.config)], cwd=kbc.home, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def waits_for_job(kbc, before):
    """Wait until a question about the job has come after request number BEFORE."""
    wait_until(lambda: [s for s in kbc.sequence(since=before) if re.match(r"GET jobs/\d+$", s)], "a question about the import")


@pytest.mark.core
@pytest.mark.parametrize("how", ["KILL", "TERM", "none"])
def test_a_reset_waits_for_an_import_under_way_and_drops_its_table(kbc, how):
    kbc.set_up(shutdown_grace="100ms").start()
    kbc.emulator.fault(job_hang=True)
    kbc.place("sales/basic.csv", TEXT)
    wait_order(kbc)
    if how == "KILL":
        kbc.kill9()
    elif how == "TERM":
        kbc.stop()
    before = kbc.emulator.requests()[-1]["n"]
    process = reset(kbc)
    waits_for_job(kbc, before)
    assert process.poll() is None and kbc.emulator.tables() == {}, "it has not waited"
    kbc.emulator.clear_faults()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "dropped sales.basic in kbc" in out, (out, err)
    assert kbc.emulator.tables() == {} and len(drops(kbc)) == 1 and kbc.emulator.loads(TABLE)["succeeded"] == 1
    assert kbc.checkpoints() == []
    if how == "none":
        kbc.stop()
    ended = len(kbc.receipts_of("sales/basic.csv", "loaded"))
    assert ended <= (how == "none")  # a daemon that runs may have heard of the import's end before the reset has
    kbc.start()  # and it can be loaded anew
    kbc.wait_receipts("sales/basic.csv", "loaded", ended + 1)
    assert sorted(kbc.emulator.rows(TABLE)) == ROWS and kbc.emulator.loads(TABLE)["accepted"] == 2


def test_a_reset_after_an_order_whose_answer_was_lost_looks_for_its_job(kbc):
    kbc.set_up().start()
    kbc.emulator.fault(LOADS, "POST", cut="after_effect", job_hang=True)
    held = kbc.emulator.fault(r"jobs\?", "GET", delay=600, status=503)
    kbc.place("sales/basic.csv", TEXT)
    wait_until(lambda: [f for f in kbc.emulator.faults() if f["id"] == held][0]["done"] == 1, "the question for jobs")
    kbc.kill9()
    before = kbc.emulator.requests()[-1]["n"]
    process = reset(kbc)
    waits_for_job(kbc, before)
    kbc.emulator.clear_faults()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "dropped sales.basic in kbc" in out, (out, err)
    assert kbc.emulator.tables() == {}


def test_a_reset_leaves_a_table_that_was_there_before_the_import(kbc):
    other = Loader(kbc.home / "other", kbc.emulator).set_up()
    other.place("sales/basic.csv", FIRST)
    other.once()
    kbc.set_up().start()
    kbc.emulator.fault(job_hang=True)
    kbc.place("sales/basic.csv", TEXT)
    wait_order(kbc)
    kbc.kill9()
    kbc.emulator.clear_faults()
    done = kbc.command("reset", "main", "--yes", "-c", kbc.config)
    assert done.returncode == 0 and "0 tables dropped, 1 files forgotten" in done.stdout, done.stderr
    assert sorted(kbc.emulator.rows(TABLE)) == ROWS and drops(kbc) == [] and kbc.checkpoints() == []
    other.clean_up()


@pytest.mark.core
def test_a_stop_ends_a_reset_that_waits_and_the_next_one_goes_on(kbc):
    kbc.set_up().start()
    kbc.emulator.fault(job_hang=True)
    kbc.place("sales/basic.csv", TEXT)
    wait_order(kbc)
    before = kbc.emulator.requests()[-1]["n"]
    process = reset(kbc)
    waits_for_job(kbc, before)
    assert kbc.stop() == 0
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "", (out, err)
    assert len(kbc.checkpoints()) == 1, "the order is not forgotten"
    kbc.emulator.clear_faults()
    done = kbc.command("reset", "main", "--yes", "-c", kbc.config)
    assert done.returncode == 0 and "dropped sales.basic in kbc" in done.stdout, done.stderr
    assert kbc.emulator.tables() == {}


@pytest.mark.parametrize("is_new", [True, False], ids=["its import made the table", "loaded before"])
def test_a_kill_at_every_write_of_a_reset(tmp_path, emulator, is_new):
    """The next reset does the rest: no table of ours is left, and no order is forgotten."""
    for when in itertools.count(1):
        emulator.reset()
        kbc = Loader(tmp_path / str(when), emulator)
        kbc.set_up()
        if is_new:
            emulator.fault(job_hang=True)
        kbc.start()
        kbc.place("sales/basic.csv", TEXT)
        if is_new:
            wait_order(kbc)
        else:
            kbc.wait_receipts("sales/basic.csv", "loaded", 1)
        kbc.kill9()
        emulator.clear_faults()
        words, env = killing(kbc, "fdatasync,fsync", when)
        command = ["reset", "main", "--yes", "-c", str(kbc.config)]
        code = subprocess.run([*words, BINARY, *command], cwd=kbc.home, env={**os.environ, **env}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=False).returncode
        is_killed = was_killed(code)
        done = kbc.command(*command)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: emulator.loads(TABLE)["finished"] == 1, "the import to end")
        assert emulator.tables() == {} and kbc.checkpoints() == [] and len(drops(kbc)) <= 1, (when, done.stderr)
        kbc.clean_up()
        if not is_killed:
            assert code == 0
            break
        assert when < 100
    assert when > 3
