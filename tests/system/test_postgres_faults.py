"""PostgreSQL that stops, refuses, is full or locked; chute that is killed; two chutes. Rows exactly once, nothing left open."""
import os
import select
import signal
import socket
import subprocess
import threading

import pytest
from chute import Chute, put_file, tool, wait_until
from postgres_side import configure, load, nothing_is_open, receipt, tables, wait_value

RETRY = {"retry": {"first": "50ms", "max": "200ms"}}


def big(version=1, rows=60000):
    return "id,v\n" + "".join("%d,%d\n" % (i, version) for i in range(rows))


def wait_copy(database):
    """Wait until chute's COPY runs."""
    return wait_until(lambda: [row[0] for row in database.sessions("state = 'active' and query like 'COPY%'")], "COPY to run", pause=0.005)


def hold_back(database, table):
    """Rows of TABLE go in so slowly that a COPY can be met in the middle: each waits for a lock that the session holds."""
    database.psql("create table gate(a int); create function wait_gate() returns trigger language plpgsql as $$begin perform 1 from gate; return new;"
                  " end$$; create trigger slow before insert on %s for each row execute function wait_gate();" % table)
    session = database.session("gate")
    session.run("begin; lock table gate;")
    return session


@pytest.mark.parametrize("how", ["fast", "immediate", "kill9"])
def test_a_server_that_stops_in_the_middle_of_copy(chute, postgres, how):
    db = postgres.make_database()
    db.psql("create table t(id bigint, v bigint);")
    configure(chute, db, top=RETRY)
    gate = hold_back(db, "t")
    chute.start()
    put_file(chute.inbox / "t.csv", big(rows=60000))
    wait_copy(db)
    gate.close()
    postgres.kill9() if how == "kill9" else postgres.stop(how)
    chute.wait_log("its files wait")
    postgres.start()
    wait_value(db, "select count(*) from t", "60000", chute)
    chute.wait_receipts("t.csv", "loaded", 1)
    assert receipt(chute, "t.csv")["inserted"] == 60000
    assert db.value("select count(*) from _chute_loads") == "1" and nothing_is_open(db)


def test_a_server_restarted_while_nothing_happens(chute, postgres):
    db = postgres.make_database()
    configure(chute, db, top=RETRY)
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_state("t.csv", "loaded")
    postgres.restart()
    put_file(chute.inbox / "t.csv", "a\n2\n")
    wait_value(db, "select a from t", "2", chute)
    chute.wait_receipts("t.csv", "loaded", 2)


def test_a_database_that_is_down_when_the_file_arrives(chute, postgres):
    db = postgres.make_database()
    configure(chute, db, top=RETRY)
    postgres.stop()
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_log("its files wait")
    postgres.start()
    wait_value(db, "select count(*) from pg_class where relname = 't'", "1", chute)
    chute.wait_state("t.csv", "loaded")


def test_a_backend_that_is_terminated_or_cancelled(chute, pg_database):
    configure(chute, pg_database, top=RETRY)
    pg_database.psql("create table t(id bigint, v bigint);")
    chute.start()
    for version, how in ((1, "pg_terminate_backend"), (2, "pg_cancel_backend")):
        gate = hold_back(pg_database, "t")
        put_file(chute.inbox / "t.csv", big(version, 60000))
        pid = wait_copy(pg_database)[0]
        pg_database.query("select %s(%s)" % (how, pid))
        gate.close()
        wait_value(pg_database, "select sum(v) from t", str(60000 * version), chute)
        chute.wait_receipts("t.csv", "loaded", version)
        pg_database.psql("drop trigger slow on t; drop function wait_gate; drop table gate;")


def test_statement_timeout_is_tried_again(chute, pg_database):
    pg_database.psql("create table t(id bigint, v bigint); alter database \"%s\" set statement_timeout = '300ms';" % pg_database.name)
    configure(chute, pg_database, top=RETRY)
    gate = hold_back(pg_database, "t")
    chute.start()
    put_file(chute.inbox / "t.csv", big(rows=10))
    chute.wait_log("statement_timeout of this role?")
    gate.close()
    wait_value(pg_database, "select count(*) from t", "10", chute)
    chute.wait_receipts("t.csv", "loaded", 1)


@pytest.mark.parametrize("mode", ["replace", "append", "upsert"])
def test_chute_killed_in_the_middle_of_copy(chute, pg_database, mode):
    pg_database.psql("create table t(id bigint primary key, v bigint);")
    configure(chute, pg_database, load=mode, key=["id"], table="t")
    gate = hold_back(pg_database, "t")
    put_file(chute.inbox / "t.csv", big(rows=60000))
    chute.start()
    # the rows of an upsert meet the gate when they are merged: its COPY into a temporary table is over in no time
    running = "query like 'COPY%'" if mode != "upsert" else "query like '%INSERT INTO%' and wait_event_type = 'Lock'"
    wait_until(lambda: pg_database.sessions("state = 'active' and application_name like 'chute%%' and %s" % running), "the load to run")
    chute.kill9()
    gate.close()
    wait_until(lambda: not pg_database.sessions("application_name like 'chute%'"), "the server to notice")
    assert pg_database.value("select count(*) from t") == "0" and pg_database.value("select count(*) from _chute_loads") == "0"
    chute.once()
    assert pg_database.value("select count(*) from t") == "60000"
    assert receipt(chute, "t.csv")["inserted"] == 60000


def test_killed_after_the_commit_and_before_the_ledger_knows(chute, pg_database):
    """The ledger is put back to what it was before the load: only the database knows."""
    configure(chute, pg_database, load="append", table="t")
    load(chute, "first.csv", "a\n1\n")
    put_file(chute.inbox / "t.csv", "a\n2\n3\n")
    for i in range(40):
        process = chute.spawn([*chute.run_arguments(), "--once"])
        wait_until(lambda p=process, i=i: p.poll() is not None or pg_database.value("select count(*) from _chute_loads") == str(i + 2), "a commit", pause=0.001)
        process.kill()
        process.wait()
        assert pg_database.value("select count(*) from _chute_loads") == str(i + 2)
        chute.once()
        assert pg_database.value("select count(*) from t") == str(1 + 2 * (i + 1))
        put_file(chute.inbox / ("t%d.csv" % i), "a\n2\n3\n")
    chute.once()


def test_chute_killed_at_each_write_of_its_ledger(chute, pg_database):
    """As test_faults.py does for SQLite: dead at the first, second, third … write that reaches the disk."""
    configure(chute, pg_database, load="append", table="t")
    n, expected = 0, 0
    while True:
        n += 1
        name = "f%d.csv" % n
        put_file(chute.inbox / name, "a\n%d\n" % n)
        expected += 1
        strace = [tool("strace"), "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync",
                  "-e", "inject=fdatasync,fsync:signal=KILL:when=%d" % n]
        code = chute.once(expect=None, prefix=strace)
        survived = code not in (-signal.SIGKILL, 128 + signal.SIGKILL)
        if not survived:
            chute.once()
        assert pg_database.value("select count(*) from t") == str(expected), n
        assert pg_database.value("select count(distinct a) from t") == str(expected), n
        assert receipt(chute, name)["parsed"] == 1
        if survived:
            break
    assert n > 3


def test_a_table_locked_by_others_is_waited_for(chute, pg_database):
    configure(chute, pg_database, dest={"lock_timeout": "200ms"}, top=RETRY)
    load(chute, "t.csv", "a\n1\n")
    chute.start()
    with pg_database.session() as session:
        session.run("begin; lock table t;")
        put_file(chute.inbox / "t.csv", "a\n2\n")
        chute.wait_log("others hold a lock on the table")
        session.run("commit;")
    wait_value(pg_database, "select a from t", "2", chute)
    chute.wait_receipts("t.csv", "loaded", 2)
    assert nothing_is_open(pg_database)


def test_a_stop_does_not_wait_for_a_lock(chute, pg_database):
    configure(chute, pg_database, dest={"lock_timeout": "1h"}, top={"shutdown_grace": "100ms"})
    load(chute, "t.csv", "a\n1\n")
    chute.start()
    with pg_database.session() as session:
        session.run("begin; lock table t;")
        put_file(chute.inbox / "t.csv", "a\n2\n")
        wait_until(lambda: pg_database.sessions("wait_event_type = 'Lock'"), "chute to wait for the lock")
        assert chute.stop() == 0
        wait_until(lambda: not pg_database.sessions("application_name like 'chute%'"), "the server to let go")
        session.run("commit;")
    chute.once()
    assert pg_database.value("select a from t") == "2"


def test_a_stop_does_not_wait_for_a_server_that_is_silent(chute, postgres):
    db = postgres.make_database()
    configure(chute, db, top={"shutdown_grace": "100ms"})
    load(chute, "t.csv", "a\n1\n")
    gate = hold_back(db, "t")
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n" + "1\n" * 60000)
    pid = int(wait_copy(db)[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        assert chute.stop() == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    gate.close()
    chute.once()
    assert db.value("select count(*) from t") == "60000"


def test_a_right_that_is_missing_blocks_and_is_given_later(chute, shared_postgres, pg_database):
    role = shared_postgres.make_role("poor_" + pg_database.name)
    pg_database.psql("create schema s; grant usage, create on schema s to %s; create table s.t(a bigint); grant select on s.t to %s;" % (role, role))
    configure(chute, pg_database, dest={"schema": "s"}, url=pg_database.as_role(role).socket_url)
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_log("refuses us", "permission denied")
    chute.wait_state("t.csv", "queued")
    pg_database.psql("grant insert, delete on s.t to %s;" % role)
    chute.ask("retry", "--all")
    wait_value(pg_database, "select count(*) from s.t", "1", chute)
    chute.stop()
    pg_database.psql("drop owned by %s; drop role %s;" % (role, role))


def test_a_role_that_may_make_nothing_says_so(chute, shared_postgres, pg_database):
    role = shared_postgres.make_role("poorer_" + pg_database.name)
    configure(chute, pg_database, url=pg_database.as_role(role).socket_url)
    said = chute.command("check", "-c", chute.config, "--connect")
    assert said.returncode == 1 and "permission denied" in said.stderr + said.stdout and "grant" in said.stderr + said.stdout, said
    shared_postgres.database().psql("drop role %s;" % role)


def test_a_disk_that_is_full_is_waited_for(chute, postgres):
    db = postgres.make_database()
    space = postgres.make_small_tablespace("small")
    db.psql("create table t(id bigint, v bigint) tablespace %s; create table filler(a text) tablespace %s;"
            " alter table filler alter a set storage external; insert into filler select repeat('x', 1000000) from generate_series(1, 5);" % (space, space))
    configure(chute, db, top=RETRY)
    chute.start()
    put_file(chute.inbox / "t.csv", big(rows=100000))
    chute.wait_log("disk is full")
    assert db.value("select count(*) from t") == "0"
    db.psql("drop table filler; vacuum t;")
    wait_value(db, "select count(*) from t", "100000", chute)
    chute.wait_receipts("t.csv", "loaded", 1)
    assert nothing_is_open(db)


def test_a_deadlock_is_tried_again_at_once(chute, pg_database):
    pg_database.psql("create table t(id bigint primary key, v bigint); insert into t select i, 0 from generate_series(1, 5) i;"
                     " create table other(id int primary key, n int); insert into other values (1, 0);"
                     " create function f() returns trigger language plpgsql as $$begin"
                     " perform pg_advisory_xact_lock(42); update other set n = n + 1; return new; end$$;"
                     " create trigger g before update on t for each row execute function f();"
                     " alter database \"%s\" set deadlock_timeout = '50ms';" % pg_database.name)
    configure(chute, pg_database, load="upsert", key=["id"], table="t", dest={"lock_timeout": "1h"})
    chute.start()
    # A deadlock is looked for once, by whoever has waited for deadlock_timeout: chute must be the last to begin to wait.
    with pg_database.session() as session, pg_database.session() as gate:
        gate.run("select pg_advisory_lock(42);")
        session.run("set deadlock_timeout = '1h'; begin; update other set n = 100;")
        put_file(chute.inbox / "f.csv", "id,v\n3,1\n")
        wait_until(lambda: len(pg_database.sessions("wait_event_type = 'Lock'")) == 1, "chute to wait at the gate")
        session.send("update t set v = 7 where id = 3;")  # chute holds the row
        wait_until(lambda: len(pg_database.sessions("wait_event_type = 'Lock'")) == 2, "the session to wait for chute")
        gate.run("select pg_advisory_unlock(42);")
        session.run("commit;")
    wait_value(pg_database, "select v from t where id = 3", "1", chute)
    chute.wait_receipts("f.csv", "loaded", 1)
    assert "deadlock" not in "".join(r["reason"] for r in chute.receipts())


def test_two_chutes_feed_one_table(chute, pg_database, tmp_path):
    other = Chute(tmp_path / "other")
    try:
        for c in (chute, other):
            configure(c, pg_database, load="upsert", key=["id"], table="t")
        for i in range(40):
            put_file(chute.inbox / ("a%02d.csv" % i), "id,v\n%d,a\n%d,a\n" % (i, 1000 + i))
            put_file(other.inbox / ("a%02d.csv" % i), "id,v\n%d,b\n%d,b\n" % (i, 2000 + i))
        first = chute.spawn([*chute.run_arguments(), "--once"])
        second = other.spawn([*other.run_arguments(), "--once"])
        assert first.wait(120) == 0 and second.wait(120) == 0, chute.log_text()[-2000:] + other.log_text()[-2000:]
        assert pg_database.value("select count(*) from t") == "120"
        assert pg_database.value("select count(*) from _chute_loads") == "80"
        assert pg_database.value("select count(*) from _chute where key = 'identity'") == "1"
        assert pg_database.value("select count(distinct instance) from _chute_loads") == "2"
    finally:
        other.clean_up()


def test_two_chutes_begin_at_once_on_an_empty_database(chute, pg_database, tmp_path):
    others = [chute] + [Chute(tmp_path / ("other%d" % i)) for i in range(3)]
    try:
        for i, c in enumerate(others):
            configure(c, pg_database, dest={"schema": "fresh"}, load="append", table="t")
            put_file(c.inbox / "f.csv", "a\n%d\n" % i)
        running = [c.spawn([*c.run_arguments(), "--once"]) for c in others]
        assert [p.wait(120) for p in running] == [0] * 4, "".join(c.log_text()[-1500:] for c in others)
        assert pg_database.query("select a from fresh.t order by a") == [["0"], ["1"], ["2"], ["3"]]
    finally:
        for c in others[1:]:
            c.clean_up()


def test_idle_connections_are_closed(chute, pg_database):
    configure(chute, pg_database)
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_state("t.csv", "loaded")
    wait_until(lambda: not pg_database.sessions("application_name like 'chute%'"), "the connection to be closed")
    assert tables(pg_database) == {"t"}


def test_a_server_without_tls_is_not_believed_far_away(chute, pg_database):
    configure(chute, pg_database, url=pg_database.url.replace("127.0.0.1", "127.0.0.1.nip.invalid"))
    said = chute.command("check", "-c", chute.config, "--connect")
    assert said.returncode == 1


def test_tls_is_verified(chute, make_postgres):
    server = make_postgres()
    server.tls()
    server.hba("hostssl all all 127.0.0.1/32 scram-sha-256", "host all all 127.0.0.1/32 reject")
    server.start()
    db = server.make_database()
    host = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    assert host
    url = db.url + "?sslmode=verify-full"
    configure(chute, db, url=url, dest={"password": db.password})
    said = chute.command("check", "-c", chute.config, "--connect", env={"HOME": str(chute.home)})
    assert said.returncode == 1, said
    configure(chute, db, url=url, dest={"password": db.password, "ca_file": str(server.ca_file)})
    said = chute.command("check", "-c", chute.config, "--connect", env={"HOME": str(chute.home)})
    assert said.returncode == 0, said


class Cutter:
    """A man in the middle that cuts the connection: CUT(direction, bytes) says when; once."""

    def __init__(self, port):
        self.port = port
        self.cut = None  # what to look for in what the client sends
        self.cuts = 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.own = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        server = socket.create_connection(("127.0.0.1", self.port))
        try:
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    (server if ready is client else client).sendall(data)
                    if ready is client and self.cut is not None and self.cut in data:
                        self.cut = None
                        self.cuts += 1
                        server.recv(65536)  # the server has obeyed, and nobody hears it
                        return
        except OSError:
            pass
        finally:
            client.close()
            server.close()

    def close(self):
        self.server.close()


@pytest.mark.parametrize("words", [b"RETURNING id;COMMIT", b"BEGIN;SELECT", b"COPY "])
@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_a_connection_cut_where_nobody_knows_what_happened(chute, pg_database, words, mode):
    cutter = Cutter(pg_database.cluster.port)
    try:
        configure(chute, pg_database, url=pg_database.url.replace(":%d/" % pg_database.cluster.port, ":%d/" % cutter.own),
                  dest={"password": pg_database.password}, top=RETRY, load=mode, key=["a"], table="t")
        load(chute, "first.csv", "a,b\n1,1\n")
        for count in (1, 30):
            cutter.cut = words
            for i in range(count):
                put_file(chute.inbox / ("%d_%02d.csv" % (count, i)), "a,b\n%d,%d\n" % (100 * count + i, i))
            chute.once()
        assert cutter.cuts == 2
        assert pg_database.value("select count(*) from t") == "32" and pg_database.value("select count(distinct a) from t") == "32"
        assert pg_database.value("select count(*) from _chute_loads") == "32"
        assert all(receipt(chute, "30_%02d.csv" % i)["parsed"] == 1 for i in range(30))
    finally:
        cutter.close()


@pytest.mark.parametrize("mode", ["append", "newest"])
def test_a_server_killed_again_and_again_under_small_files(chute, postgres, mode):
    db = postgres.make_database()
    configure(chute, db, top=RETRY, load=mode, key=["id"], order_by=["v"] if mode == "newest" else [], table="t")
    for i in range(900):
        put_file(chute.inbox / ("%03d.csv" % i), "id,v\n%d,%d\n" % (i, i))
    chute.start()
    for step in (1, 300, 600):
        wait_until(lambda s=step: len(chute.files("loaded")) >= s, "%d loaded" % step)
        postgres.kill9()
        postgres.start()
    wait_until(lambda: len(chute.files("loaded")) == 900, lambda: "all loaded\n" + chute.log_text()[-2000:])
    assert db.query("select count(*), count(distinct id) from t") == [["900", "900"]]
    assert db.query("select count(*), sum(inserted), sum(parsed) from _chute_loads") == [["900", "900", "900"]]
    assert nothing_is_open(db)


def test_a_locked_table_holds_up_no_other(chute, pg_database):
    """However many files fail at the lock: the destination is well."""
    configure(chute, pg_database, dest={"lock_timeout": "100ms"}, top={"retry": {"first": "1h", "max": "2h"}}, flows=[
        {"name": "a", "include": ["a*.csv"], "table": "t", "load": "append"}, {"name": "b", "include": ["b*.csv"], "table": "u", "load": "append"}])
    load(chute, "a.csv", "a\n1\n")
    chute.start()
    with pg_database.session() as session:
        session.run("begin; lock table t;")
        for i in range(20):
            put_file(chute.inbox / ("a%d.csv" % i), "a\n%d\n" % i)
        wait_until(lambda: len(chute.files("retrying")) == 20, lambda: "20 files to wait\n" + chute.log_text()[-2000:])
        put_file(chute.inbox / "b.csv", "a\n1\n")
        chute.wait_state("b.csv", "loaded")
        session.run("commit;")
    assert "its files wait" not in chute.log_text()
