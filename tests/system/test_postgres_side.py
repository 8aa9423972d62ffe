"""The tests' own PostgreSQL does what they rely on."""
import os
import signal
import subprocess

import pytest
from chute import wait_until
from postgres import NULL, PASSWORD, binary, clean_environment


def over_tcp(database, sql="select 1", **environment):
    return subprocess.run([binary("psql"), "-X", "-A", "-t", "-w", "-c", sql, database.url], env=clean_environment(**environment), cwd="/",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def test_rows_come_as_they_are(pg_database):
    assert pg_database.query("select 1, null, '', 'a,\"b\n', 'ü'") == [["1", None, "", 'a,"b\n', "ü"]]
    assert pg_database.query("select 1 where false") == []
    assert "division by zero" in pg_database.psql("select 1/0;", expect=3)
    assert pg_database.value("select count(*) from pg_class where relname = '%s'" % NULL[1:-1]) == "0"


def test_databases_are_fresh(shared_postgres, pg_database):
    pg_database.psql("create table t (a int);")
    other = shared_postgres.make_database()
    assert other.query("select 1 from pg_tables where tablename = 't'") == []


def test_passwords_are_asked_over_tcp(shared_postgres, pg_database):
    shared_postgres.make_role("reader")
    assert over_tcp(pg_database, PGPASSWORD=PASSWORD).stdout == "1\n"
    assert over_tcp(pg_database.as_role("reader"), "select current_user", PGPASSWORD=PASSWORD).stdout == "reader\n"
    assert "password authentication failed" in over_tcp(pg_database, PGPASSWORD="wrong").stdout


@pytest.mark.parametrize("end", ["smart", "fast", "immediate", "kill9"])
def test_a_cluster_keeps_its_rows_and_its_port(postgres, end):
    database = postgres.make_database("kept")
    database.psql("create table t as select 7 as a;")
    port = postgres.port
    if end == "kill9":
        postgres.kill9()
    else:
        postgres.stop(end)
    assert "psql: error" in database.psql("select 1;", expect=2)
    postgres.start()
    assert postgres.port == port
    assert database.value("select a from t") == "7"


def test_sessions_hold_locks(pg_database):
    pg_database.psql("create table t (a int);")
    with pg_database.session("holder") as holder, pg_database.session("waiter") as waiter:
        holder.run("begin; lock table t;")
        number = waiter.send("select 'got it' from (select count(*) from t) as x;")
        wait_until(lambda: pg_database.sessions("wait_event_type = 'Lock'"), "a session that waits")
        assert not waiter.is_done(number)
        holder.run("rollback;")
        assert waiter.finish(number) == "got it\n"
        assert "syntax error" in waiter.run("selec;")
    wait_until(lambda: pg_database.sessions() == [], "the end of the sessions")


def test_tls_with_a_ca_of_its_own(make_postgres):
    postgres = make_postgres()
    postgres.tls()
    postgres.hba("hostssl all all 127.0.0.1/32 trust", "hostnossl all all 127.0.0.1/32 reject")
    postgres.start()
    sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
    trusted = {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(postgres.ca_file)}
    assert over_tcp(postgres.database(), sql, **trusted).stdout == "t\n"
    assert "certificate verify failed" in over_tcp(postgres.database(), sql, **{**trusted, "PGSSLROOTCERT": "/etc/ssl/certs/ca-certificates.crt"}).stdout
    assert "rejects connection" in over_tcp(postgres.database(), sql, PGSSLMODE="disable").stdout


def test_a_small_tablespace_gets_full(postgres):
    space = postgres.make_small_tablespace("tiny", "4m")
    said = postgres.database().psql("create table t tablespace %s as select repeat('x', 900) from generate_series(1, 20000);" % space, expect=3)
    assert "No space left on device" in said
    postgres.database().psql("create table small tablespace %s as select 1;" % space)


def test_nothing_stays_behind(pg_template):
    from postgres import Postgres
    with Postgres(pg_template) as made:
        pids = [made.process.pid, *made.children()]
        os.kill(made.children()[0], signal.SIGSTOP)  # also with a process that does not answer
    assert not made.folder.exists()
    wait_until(lambda: not any(os.path.exists("/proc/%d" % pid) for pid in pids), "the end of the server")
