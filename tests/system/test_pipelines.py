"""Pipelines and init in SQLite: when they run, what a kill leaves, what people are told. PostgreSQL: test_scenarios_c.py."""
import json
import os
import signal
import sqlite3
import time

import pytest
from chute import put_file, wait_until, write_file

pytestmark = pytest.mark.core

COUNT = "INSERT INTO runs SELECT count(*), chute_setting('note') FROM t;\n"
INIT = "CREATE TABLE IF NOT EXISTS runs(rows_seen INTEGER, note TEXT);\n"


def scripts(chute, **texts):
    for name, text in texts.items():
        write_file(chute.home / "sql" / (name + ".sql"), text)


def configure(chute, pipelines=None, flow=None, dest=None, init=("init",), **top):
    """init.sql makes the table `runs`; etl.sql adds a row to it, with how many rows it saw in t."""
    scripts(chute, init=INIT, etl=COUNT)
    chute.configure(flow={"then": ["etl"], **(flow or {})},
                    dest={"init": ["sql/%s.sql" % name for name in init], **(dest or {})},
                    pipelines=pipelines or {"etl": {"in": "lite", "sql": ["sql/etl.sql"]}}, **top)


def pipeline_of(chute, name="etl"):
    return next(p for p in chute.status()["pipelines"] if p["name"] == name)


def wait_pipeline(chute, name="etl", **want):
    def as_wanted():
        found = pipeline_of(chute, name)
        return all(found[key] == value for key, value in want.items())
    wait_until(as_wanted, lambda: "pipeline %s to be %s; it is %s\n%s" % (name, want, pipeline_of(chute, name), chute.log_text()[-3000:]), pause=0.1)


def runs(chute):
    """What the runs left behind; nothing while init has not made the table."""
    if "runs" not in chute.tables():
        return []
    return chute.query("SELECT rows_seen, note FROM runs ORDER BY rowid")


def test_init_runs_before_the_first_load_and_a_load_is_followed_by_its_pipeline(chute):
    configure(chute, {"etl": {"in": "lite", "sql": ["sql/etl.sql"], "settings": {"note": "it's"}}})
    write_file(chute.inbox / "t.csv", "a\n1\n2\n")
    chute.once()
    assert runs(chute) == [(2, "it's")]
    log = chute.log_text()
    assert log.index("init: 1 statement") < log.index("loaded 2 rows") < log.index("pipeline etl: 1 statement")
    chute.once()  # nothing new: no run; init again changes nothing
    assert runs(chute) == [(2, "it's")]
    assert chute.log_text().count("init: 1 statement") == 2
    # the same content again is no load
    write_file(chute.inbox / "t.csv", "a\n1\n2\n")
    chute.once()
    assert len(runs(chute)) == 1


def test_many_files_at_once_are_followed_by_few_runs(chute):
    configure(chute)
    for i in range(60):
        write_file(chute.inbox / ("f%d.csv" % i), "a\n%d\n" % i)
    write_file(chute.inbox / "t.csv", "a\n1\n")
    chute.once()
    assert 1 <= len(runs(chute)) <= 3


def test_status_metrics_and_the_command(chute):
    configure(chute, {"etl": {"in": "lite", "sql": ["sql/etl.sql"]},
                      "bad": {"in": "lite", "sql": ["sql/etl.sql", "sql/bad.sql"]},
                      "hourly": {"in": "lite", "sql": ["sql/etl.sql"], "every": "1h"},
                      "nightly": {"in": "lite", "sql": ["sql/etl.sql"], "cron": "30 3 * * *"}},
              http={"listen": "127.0.0.1:0"}, timezone="UTC")
    scripts(chute, bad="SELECT 1;\n\n-- no such thing\nSELECT * FROM nowhere;\n")
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n2\n3\n")
    wait_pipeline(chute, good_runs=1, state="idle")
    etl = pipeline_of(chute)
    assert (etl["in"], etl["last_trigger"], etl["last_statements"], etl["last_error"], etl["next"]) == ("lite", "load", 1, "", None)
    assert etl["last_began"] <= etl["last_ended"] == etl["last_good"]
    assert pipeline_of(chute, "hourly")["next"] is not None
    assert pipeline_of(chute, "nightly")["next"].endswith("T03:30:00.000Z")
    assert chute.ask("pipeline", "etl").startswith("etl: 1 statement, ")
    failed = chute.command("pipeline", "bad", "--state", str(chute.state))
    assert failed.returncode == 1 and failed.stdout == ""
    assert "sql/bad.sql:4: statement 2 (\"SELECT * FROM nowhere\"): no such table: nowhere" in failed.stderr
    assert runs(chute) == [(3, None), (3, None)]  # what the failed one did was undone
    unknown = chute.command("pipeline", "elt", "--state", str(chute.state))
    assert unknown.returncode == 1 and "did you mean etl?" in unknown.stderr
    assert chute.command("pipeline", "--state", str(chute.state)).returncode == 2
    text = chute.ask("status")
    assert "pipelines\n" in text and "no such table: nowhere" in text and "next run at " in text
    port = chute.http_port()
    import urllib.request
    with urllib.request.urlopen("http://127.0.0.1:%d/metrics" % port, timeout=30) as answer:
        metrics = answer.read().decode()
    assert 'chute_pipeline_runs_total{pipeline="etl",result="good"} 2\n' in metrics
    assert 'chute_pipeline_runs_total{pipeline="bad",result="failed"} 1\n' in metrics
    assert 'chute_pipeline_failing{pipeline="bad"} 1\n' in metrics
    assert chute.stop() == 0
    # without a daemon the ledger says it, and the command does it by itself
    assert pipeline_of(chute, "bad")["last_error"].endswith("no such table: nowhere")
    assert pipeline_of(chute, "nightly")["next"].endswith("T03:30:00.000Z")
    done = chute.command("pipeline", "etl", "-c", str(chute.config))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("etl: 1 statement, ")
    assert len(runs(chute)) == 3
    failed = chute.command("pipeline", "bad", "-c", str(chute.config))
    assert failed.returncode == 1 and "sql/bad.sql:4" in failed.stderr
    assert chute.command("pipeline", "elt", "-c", str(chute.config)).returncode == 1


def test_a_failed_pipeline_fails_run_once_and_waits_for_the_next_load(chute):
    configure(chute)
    scripts(chute, etl="SELECT broken")
    write_file(chute.inbox / "t.csv", "a\n1\n")
    chute.once(expect=1)
    assert chute.state_of("t.csv") == "loaded"  # the load is good; its pipeline is not
    chute.once()  # nothing new
    scripts(chute, etl=COUNT)
    write_file(chute.inbox / "t.csv", "a\n1\n2\n")
    chute.once()
    assert runs(chute) == [(2, None)]


def test_an_init_that_fails_blocks_the_destination_and_no_file_is_lost(chute):
    configure(chute)
    scripts(chute, init=INIT + "CREATE TABEL x(a);\n")
    write_file(chute.inbox / "t.csv", "a\n1\n")
    chute.start()
    chute.wait_log("can't be prepared", "sql/init.sql:2: statement 2 (\"CREATE TABEL x(a)\"): near \"TABEL\": syntax error")
    chute.wait_state("t.csv", "queued")
    dest = chute.status()["destinations"][0]
    assert dest["state"] == "blocked" and "init.sql:2" in dest["reason"] and dest["next_probe"]
    assert chute.tables() == set()
    assert "init.sql:2" in chute.explain(chute.inbox / "t.csv")
    asked = chute.command("pipeline", "etl", "--state", str(chute.state))
    assert asked.returncode == 1 and "destination lite is blocked" in asked.stderr
    scripts(chute, init=INIT)
    chute.ask("retry", "--all")
    chute.wait_rows("t", [(1,)])
    wait_pipeline(chute, good_runs=1)


def test_run_once_fails_when_init_does_even_with_nothing_to_load(chute):
    configure(chute)
    scripts(chute, init="SELECT nope;")
    chute.once(expect=1)
    scripts(chute, init=INIT)
    chute.once()


def test_a_lock_is_waited_for_and_the_run_tried_again(chute):
    configure(chute, dest={"lock_timeout": "100ms"}, retry={"first": "50ms", "max": "200ms"})
    write_file(chute.inbox / "t.csv", "a\n1\n")
    chute.start()
    wait_pipeline(chute, good_runs=1, state="idle")
    other = sqlite3.connect(chute.db, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asked = chute.command("pipeline", "etl", "--state", str(chute.state))
    assert asked.returncode == 1 and "another program holds its lock" in asked.stderr
    other.execute("ROLLBACK")
    other.close()
    assert chute.ask("pipeline", "etl").startswith("etl: 1 statement")


def slow():
    """Busy for a long while, stopped by an interrupt; then it would count."""
    return "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n;\n"


def wait_running(chute, name="etl"):
    wait_pipeline(chute, name, state="running")


def test_a_run_that_a_load_asked_for_survives_kill_9(chute):
    configure(chute)
    scripts(chute, etl=slow() + COUNT)
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    wait_running(chute)
    chute.kill9()
    assert runs(chute) == []
    assert pipeline_of(chute)["state"] == "waiting"
    scripts(chute, etl=COUNT)
    chute.start()
    wait_until(lambda: runs(chute) == [(1, None)], lambda: "the run; there are %s\n%s" % (runs(chute), chute.log_text()[-2000:]))
    wait_pipeline(chute, state="idle")
    chute.stop()
    chute.once()
    assert runs(chute) == [(1, None)]


def test_killed_between_load_and_run_at_every_step(chute):
    """kill -9 right after the load is in the database, many times: at the end the last run has seen the last load."""
    configure(chute)
    for i in range(1, 9):
        chute.start()
        put_file(chute.inbox / "t.csv", "a\n" + "1\n" * i)
        wait_until(lambda: chute.rows("t") is not None and len(chute.rows("t")) == i, "the load")
        time.sleep(0.002 * i)  # not waited for: only another moment for the kill
        chute.kill9()
    chute.once()
    assert runs(chute)[-1] == (8, None)
    assert pipeline_of(chute)["state"] == "idle"


def test_stop_ends_a_run_in_time_and_it_is_owed(chute):
    configure(chute, shutdown_grace="100ms")
    scripts(chute, etl=slow() + COUNT)
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    wait_running(chute)
    assert chute.stop() == 0
    chute.wait_log("pipeline etl: stopped; nothing of it was kept, it runs again")
    assert runs(chute) == []
    scripts(chute, etl=COUNT)
    chute.once()
    assert runs(chute) == [(1, None)]


def test_stop_ends_init(chute):
    configure(chute)
    scripts(chute, init=INIT + slow())
    chute.start()
    chute.wait_log("started: process")
    assert chute.stop() == 0
    assert chute.query("SELECT count(*) FROM sqlite_schema WHERE name = 'runs'") == [(0,)]


def test_a_grace_lets_a_run_end(chute):
    """A run that needs a moment ends within the grace; what is asked for meanwhile is refused."""
    configure(chute, shutdown_grace="10m")
    scripts(chute, etl="WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000000) SELECT count(*) FROM n;\n" + COUNT)
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    wait_until(lambda: pipeline_of(chute)["state"] == "running" or runs(chute), "the run")
    assert chute.stop(timeout=120) == 0
    assert runs(chute) == [(1, None)]


def test_reload_takes_new_pipelines_and_waits_for_those_that_run(chute):
    configure(chute)
    scripts(chute, etl=slow())
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    wait_running(chute)
    text = json.loads(chute.config.read_text())
    text["pipelines"]["more"] = {"in": "lite", "sql": ["sql/more.sql"]}
    chute.config.write_text(json.dumps(text))
    scripts(chute, more="INSERT INTO runs VALUES (100, 'more');")
    chute.ask("reload")
    assert pipeline_of(chute, "more")["state"] == "idle"
    # the old one still runs: nothing of the new configuration runs beside it, until it is stopped
    more = chute.spawn(["pipeline", "more", "--state", str(chute.state)])
    time.sleep(0.3)
    assert more.poll() is None and runs(chute) == []
    assert "can't be prepared" not in chute.log_text()  # nor does init: it would wait for the lock in vain
    chute.kill9()
    scripts(chute, etl=COUNT)
    chute.start()
    wait_pipeline(chute, "etl", state="idle", last_error="")
    assert runs(chute)[0] == (1, None)
    assert chute.ask("pipeline", "more").startswith("more: 1 statement")
    # a timezone is for the whole process
    text["timezone"] = "UTC"
    chute.config.write_text(json.dumps(text))
    refused = chute.command("reload", "--state", str(chute.state))
    assert refused.returncode == 1 and "timezone" in refused.stderr


def test_every_runs_by_itself_and_what_was_missed_is_caught_up_once(chute):
    configure(chute, {"etl": {"in": "lite", "sql": ["sql/etl.sql"], "every": "1s"}}, flow={"then": []})
    write_file(chute.inbox / "t.csv", "a\n1\n")
    chute.start()
    wait_until(lambda: len(runs(chute)) >= 2, "two runs")
    assert chute.stop() == 0
    have = len(runs(chute))
    time.sleep(2.5)  # at least two are missed
    chute.once()
    assert len(runs(chute)) == have + 1
    assert pipeline_of(chute)["last_trigger"] == "schedule"


def test_a_file_without_a_required_column_waits_with_its_reason(chute):
    configure(chute, flow={"require": ["a", "b b"], "then": []})
    write_file(chute.inbox / "t.csv", "x,a\n1,2\n")
    chute.once(expect=1)
    assert chute.state_of("t.csv") == "quarantined"
    assert 'column "b b" is missing, which the flow requires; line 1 names 2 columns: x, a' in chute.explain(chute.inbox / "t.csv")
    assert "t" not in chute.tables()
    write_file(chute.inbox / "t.csv", "x,a,b b\n1,2,3\n")
    chute.once()
    assert chute.rows("t") == [(1, 2, 3)]


def test_check_finds_scripts_that_are_not_there(chute):
    configure(chute, {"etl": {"in": "lite", "sql": ["sql/etl.sql", "sql/nope.sql"]}})
    done = chute.command("check", "-c", str(chute.config))
    assert done.returncode == 1 and "pipeline etl: %s/sql/nope.sql can't be read: No such file" % chute.home in done.stderr
    os.unlink(chute.home / "sql" / "init.sql")
    done = chute.command("check", "-c", str(chute.config))
    assert "init of destination lite" in done.stderr


def test_idle_means_idle_with_pipelines(chute):
    """A pipeline that nothing asks for wakes nobody: the process sleeps in one call for seconds."""
    configure(chute, {"etl": {"in": "lite", "sql": ["sql/etl.sql"], "cron": "0 0 1 1 *"}})
    write_file(chute.inbox / "t.csv", "a\n1\n")
    chute.start()
    wait_pipeline(chute, good_runs=1)

    def switches():
        with open("/proc/%d/status" % chute.process.pid) as f:
            text = f.read()
        return int(text.split("voluntary_ctxt_switches:\t")[1].split()[0])

    def sleeps():
        before = switches()
        time.sleep(1.5)
        return switches() - before <= 1
    wait_until(sleeps, "the process to sleep", timeout=60)


def test_hup_runs_init_again(chute):
    configure(chute)
    chute.start()
    chute.wait_log("init: 1 statement")
    scripts(chute, init=INIT + "CREATE TABLE IF NOT EXISTS second(a);\n")
    chute.process.send_signal(signal.SIGHUP)
    chute.wait_log("init: 2 statements")
    assert "second" in chute.tables()


def test_another_database_is_prepared_before_anything_is_loaded_into_it(chute):
    configure(chute)
    chute.start()
    write_file(chute.inbox / "t.csv", "a\n1\n")
    wait_pipeline(chute, good_runs=1, state="idle")
    wait_until(lambda: not (chute.home / "out.db-wal").exists(), "the database to be closed")
    for name in ("out.db", "out.db-shm", "out.db-wal"):
        if (chute.home / name).exists():
            os.unlink(chute.home / name)
    write_file(chute.inbox / "u.csv", "a\n2\n")  # only a load finds out that it is another one
    chute.wait_rows("t", [(1,)])
    chute.wait_rows("u", [(2,)])
    wait_until(lambda: "runs" in chute.tables() and runs(chute), lambda: "init and a run\n" + chute.log_text()[-3000:])
    assert chute.log_text().count("init: 1 statement") >= 2


def test_a_load_may_be_followed_by_a_pipeline_elsewhere(chute):
    scripts(chute, note="CREATE TABLE IF NOT EXISTS seen(at TEXT); INSERT INTO seen VALUES ('now');\n")
    other = chute.home / "other.db"
    chute.configure(flow={"then": ["note"]}, dests={"lite": {"type": "sqlite", "path": str(chute.db)}, "other": {"type": "sqlite", "path": str(other)}},
                    pipelines={"note": {"in": "other", "sql": ["sql/note.sql"]}})
    write_file(chute.inbox / "t.csv", "a\n1\n")
    chute.once()
    assert chute.rows("t") == [(1,)]
    with sqlite3.connect(other) as db:
        assert db.execute("SELECT count(*) FROM seen").fetchall() == [(1,)]
