"""Replacing a table of PostgreSQL while others use it: what each strategy keeps, and what readers see. A real server."""
import threading
import time

import pytest
from chute import put_file
from postgres_side import configure, counts, load, nothing_is_open, reason, wait_value

STRATEGIES = ["delete-and-copy", "truncate-and-insert", "staging-optimized"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_table_is_replaced(chute, pg_database, strategy):
    configure(chute, pg_database, dest={"replace": strategy}, key=["id"])
    load(chute, "t.csv", "id,v\n1,a\n2,b\n")
    load(chute, "t.csv", "id,v\n2,c\n3,d\n4,e\n")
    assert pg_database.query("select id, v from t order by id") == [["2", "c"], ["3", "d"], ["4", "e"]]
    assert counts(chute, "t.csv") == (3, 0, 0, 0)
    load(chute, "t.csv", "id,v\n2,c\n2,d\n", expect=1)
    assert "line 3" in reason(chute, "t.csv")
    assert pg_database.value("select count(*) from t") == "3"
    load(chute, "t.csv", "id,v\n9,z\n")
    assert pg_database.query("select id, v from t") == [["9", "z"]]
    assert pg_database.value("select count(*) from pg_class where relname like '\\_chute\\_new%'") == "0"
    assert pg_database.value("select count(*) from pg_class where relname = 't_pkey'") == "1"


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
def test_what_others_made_survives(chute, pg_database, strategy):
    configure(chute, pg_database, dest={"replace": strategy})
    load(chute, "t.csv", "id,v\n1,a\n")
    pg_database.psql("create view w as select id from t; create index mine on t(v); create role reader_%s; grant select on t to reader_%s;"
                     " create function f() returns trigger language plpgsql as $$begin new.v := upper(new.v); return new; end$$;"
                     " create trigger g before insert on t for each row execute function f();" % ((strategy[:5],) * 2))
    load(chute, "t.csv", "id,v\n2,b\n")
    assert pg_database.query("select * from w") == [["2"]] and pg_database.value("select v from t") == "B"
    assert pg_database.value("select count(*) from pg_indexes where indexname = 'mine'") == "1"
    assert pg_database.value("select has_table_privilege('reader_%s', 't', 'select')" % strategy[:5]) == "t"
    pg_database.psql("drop owned by reader_%s; drop role reader_%s;" % ((strategy[:5],) * 2))


def test_staging_keeps_definition_and_indexes_and_refuses_a_view(chute, pg_database):
    pg_database.psql("create table t(id bigint primary key, v varchar(5) not null default 'x' check (v <> 'bad'), n int generated always as (1) stored);"
                     " create index mine on t(v); insert into t values (1, 'a');")
    configure(chute, pg_database, dest={"replace": "staging-optimized"})
    load(chute, "t.csv", "id,v\n2,b\n")
    assert pg_database.query("select * from t") == [["2", "b", "1"]]
    assert pg_database.value("select count(*) from pg_index where indrelid = 't'::regclass") == "2"
    load(chute, "t.csv", "id,v\n2,bad\n", expect=1)
    assert "line 2" in reason(chute, "t.csv")
    pg_database.psql("create view watcher as select id from t;")
    load(chute, "t.csv", "id,v\n3,c\n", expect=1)
    assert "watcher" in reason(chute, "t.csv")
    assert pg_database.query("select id from watcher") == [["2"]]


def test_check_says_what_a_strategy_costs(chute, pg_database):
    configure(chute, pg_database, dest={"replace": "staging-optimized"})
    load(chute, "t.csv", "a\n1\n")
    pg_database.psql("create view watcher as select a from t;")
    said = chute.command("check", "-c", chute.config, "--connect")
    assert said.returncode == 0 and "public.t" in said.stdout and "grants" in said.stdout, said
    configure(chute, pg_database)
    assert "note:" not in chute.command("check", "-c", chute.config, "--connect").stdout


def test_readers_see_one_whole_version(chute, pg_database):
    """delete-and-copy: a reader that loops never waits for a lock and never sees a mix."""
    configure(chute, pg_database)
    load(chute, "t.csv", "v,n\n" + "".join("0,%d\n" % i for i in range(20000)))
    seen, stop = [], threading.Event()

    def read():
        with pg_database.session("reader") as session:
            while not stop.is_set():
                seen.append(session.run("set lock_timeout = 1; select min(v), max(v), count(*) from t;").split("\n")[-2])
    reader = threading.Thread(target=read)
    reader.start()
    try:
        while not seen and reader.is_alive():
            time.sleep(0.01)
        for version in range(1, 6):
            load(chute, "t.csv", "v,n\n" + "".join("%d,%d\n" % (version, i) for i in range(20000)))
    finally:
        stop.set()
        reader.join()
    assert set(seen) <= {"%d|%d|20000" % (v, v) for v in range(6)}, sorted(set(seen))
    assert seen[0] == "0|0|20000" and pg_database.value("select min(v) from t") == "5"


def test_an_open_reader_keeps_its_version_and_does_not_hold_up_the_load(chute, pg_database):
    configure(chute, pg_database)
    load(chute, "t.csv", "v\n1\n")
    with pg_database.session() as session:
        assert session.run("begin isolation level repeatable read; select v from t;").strip() == "1"
        load(chute, "t.csv", "v\n2\n")
        assert session.run("select v from t;").strip() == "1"
        assert session.run("commit; select v from t;").strip() == "2"


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_a_reader_that_stays_makes_the_others_wait_and_retry(chute, pg_database, strategy):
    configure(chute, pg_database, dest={"replace": strategy, "lock_timeout": "200ms"}, top={"retry": {"first": "100ms", "max": "200ms"}})
    load(chute, "t.csv", "v\n1\n")
    chute.start()
    with pg_database.session() as session:
        session.run("begin; select v from t;")
        put_file(chute.inbox / "t.csv", "v\n2\n")
        chute.wait_log("others hold a lock")
        assert session.run("select v from t;").strip() == "1"
        session.run("commit;")
    wait_value(pg_database, "select v from t", "2", chute)
    chute.wait_receipts("t.csv", "loaded", 2)
    assert nothing_is_open(pg_database)


PARTITIONED = ("create table t(id bigint, day date) partition by range (day);"
               " create table t_1 partition of t for values from ('2026-01-01') to ('2026-02-01');"
               " create table t_2 partition of t for values from ('2026-02-01') to ('2026-03-01');"
               " insert into t values (1, '2026-01-05'), (2, '2026-02-05');")
FAMILY = "create table t(id bigint, day date); create table child() inherits (t); insert into t values (1, '2026-01-05'); insert into child values (7, '2026-07-07');"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_partitioned_table_stays_one(chute, pg_database, strategy):
    pg_database.psql(PARTITIONED)
    configure(chute, pg_database, dest={"replace": strategy})
    if strategy == "staging-optimized":
        load(chute, "t.csv", "id,day\n3,2026-02-07\n", expect=1)
        assert "partitioned" in reason(chute, "t.csv") and "delete-and-copy" in reason(chute, "t.csv")
        assert pg_database.query("select id from t order by id") == [["1"], ["2"]]
    else:
        load(chute, "t.csv", "id,day\n3,2026-02-07\n4,2026-01-07\n")
        assert pg_database.query("select tableoid::regclass, id from t order by id") == [["t_2", "3"], ["t_1", "4"]]
    assert pg_database.value("select count(*) from pg_inherits where inhparent = 't'::regclass") == "2"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_of_tables_that_inherit_are_not_the_files(chute, pg_database, strategy):
    pg_database.psql(FAMILY)
    configure(chute, pg_database, dest={"replace": strategy})
    if strategy == "staging-optimized":
        load(chute, "t.csv", "id,day\n3,2026-02-07\n", expect=1)
        assert "inherit" in reason(chute, "t.csv")
        assert pg_database.query("select id from t order by id") == [["1"], ["7"]]
    else:
        load(chute, "t.csv", "id,day\n3,2026-02-07\n")
        assert pg_database.query("select tableoid::regclass, id from t order by id") == [["t", "3"], ["child", "7"]]
    assert pg_database.value("select count(*) from pg_inherits where inhparent = 't'::regclass") == "1"


def test_a_partition_keeps_its_place(chute, pg_database):
    """Also one that chute made and somebody attached."""
    configure(chute, pg_database, on_schema_change="recreate")
    load(chute, "t.csv", "id,day\n3,2026-02-07\n")
    pg_database.psql("create table whole (like t) partition by range (day); alter table t alter day set not null;"
                     " alter table whole attach partition t for values from ('2026-01-01') to ('2027-01-01');")
    load(chute, "t.csv", "id,day,more\n3,2026-02-07,x\n", expect=1)
    assert "partition" in reason(chute, "t.csv")
    assert pg_database.value("select count(*) from whole") == "1"
    load(chute, "t.csv", "id,day\n4,2026-03-07\n5,2026-03-08\n")
    assert pg_database.value("select count(*) from whole") == "2"


@pytest.mark.parametrize("how", ["bigint generated always as (id * 2) stored", "bigint generated always as identity"])
def test_a_column_that_only_the_server_fills_is_named(chute, pg_database, how):
    pg_database.psql("create table t(id bigint, twice %s)" % how)
    configure(chute, pg_database)
    load(chute, "t.csv", "id,twice\n3,6\n", expect=1)
    assert 'column "twice"' in reason(chute, "t.csv") and "GENERATED ALWAYS" in reason(chute, "t.csv")
    load(chute, "t.csv", "id\n3\n")
    assert pg_database.value("select count(*) from t where twice is not null") == "1"
