"""Rows that meet rows with the same key in PostgreSQL: upsert, keep_first, newest. A real server."""
import itertools
import os
import random
import sqlite3

import pytest
from chute import put_file
from postgres_side import configure, counts, load, reason, receipt


def test_upsert_inserts_updates_and_leaves_alone(chute, pg_database):
    configure(chute, pg_database, load="upsert", key=["id"], table="t")
    load(chute, "1.csv", "id,v\n1,a\n2,b\n3,c\n")
    assert counts(chute, "1.csv") == (3, 0, 0, 0)
    load(chute, "2.csv", "id,v\n2,b\n3,C\n4,d\n4,D\n")
    assert pg_database.query("select id, v from t order by id") == [["1", "a"], ["2", "b"], ["3", "C"], ["4", "D"]]
    assert counts(chute, "2.csv") == (1, 1, 2, 0)


def test_a_null_in_a_key_is_a_bad_row(chute, pg_database):
    configure(chute, pg_database, load="upsert", key=["id"], table="t", bad_rows={"skip": 1})
    load(chute, "1.csv", "id,v\n1,a\n,b\n3,c\n")
    assert counts(chute, "1.csv") == (2, 0, 0, 1)
    load(chute, "2.csv", "id,v\n,a\n,b\n", expect=1)
    assert "line 3" in reason(chute, "2.csv") and "key" in reason(chute, "2.csv")


def test_duplicate_keys_of_a_replace_are_bad_rows(chute, pg_database):
    configure(chute, pg_database, key=["id"])
    load(chute, "t.csv", "id,v\n1,a\n2,b\n")
    load(chute, "t.csv", "id,v\n1,a\n2,b\n1,c\n", expect=1)
    assert "line 4" in reason(chute, "t.csv") and "duplicate key" in reason(chute, "t.csv")
    assert pg_database.query("select id, v from t order by id") == [["1", "a"], ["2", "b"]]


def test_a_table_of_others_needs_a_unique_index(chute, pg_database):
    pg_database.psql("create table t(id bigint, v text);")
    configure(chute, pg_database, load="upsert", key=["id"], table="t")
    load(chute, "1.csv", "id,v\n1,a\n", expect=1)
    words = reason(chute, "1.csv")
    assert 'CREATE UNIQUE INDEX ON "public"."t"("id")' in words, words
    pg_database.psql('CREATE UNIQUE INDEX ON "public"."t"("id")')
    chute.ask("retry", "--all")
    chute.once()
    assert pg_database.query("select * from t") == [["1", "a"]]


def test_partial_and_other_indexes_are_no_key(chute, pg_database):
    pg_database.psql("create table t(id bigint, k bigint, v text); create unique index on t(id) where k > 0; create unique index on t(id, k);"
                     " create unique index on t((id + 0));")
    configure(chute, pg_database, load="upsert", key=["id"], table="t")
    load(chute, "1.csv", "id,k,v\n1,1,a\n", expect=1)
    assert "unique index" in reason(chute, "1.csv")
    pg_database.psql("create unique index on t(k, id);")  # the order of the columns means nothing
    configure(chute, pg_database, load="upsert", key=["id", "k"], table="t")
    load(chute, "2.csv", "id,k,v\n1,1,a\n1,1,b\n")
    assert pg_database.query("select v from t") == [["b"]]


def test_a_table_that_chute_made_gets_its_key_later(chute, pg_database):
    configure(chute, pg_database, load="append", table="t")
    load(chute, "1.csv", "id,v\n1,a\n2,b\n")
    configure(chute, pg_database, load="upsert", key=["id"], table="t")
    load(chute, "2.csv", "id,v\n2,c\n")
    assert pg_database.query("select id, v from t order by id") == [["1", "a"], ["2", "c"]]


def test_columns_that_the_file_lacks(chute, pg_database):
    pg_database.psql("create table t(id bigint primary key, v text, made timestamptz default '2020-01-01', note text);"
                     " insert into t values (1, 'a', '2001-01-01', 'n');")
    configure(chute, pg_database, load="upsert", key=["id"], table="t", on_schema_change="add_columns")
    load(chute, "1.csv", "id,v\n1,b\n2,c\n")
    assert pg_database.query("select id, v, made::date, note from t order by id") == [["1", "b", "2001-01-01", None], ["2", "c", "2020-01-01", None]]


VERSIONS = [("1", "2024-01-02 10:00:00", "x"), ("1", "2024-01-02 10:00:05", "y"), ("1", "", "z"), ("1", "2024-01-02 10:00:05", "yy"),
            ("2", "2024-01-01 00:00:00", "b"), ("2", "2024-01-01 00:00:00", "a"), ("2", "2023-01-01 00:00:00", "")]


@pytest.mark.parametrize("mode,expected", [
    ("newest", [["1", "2024-01-02 10:00:05", "yy"], ["2", "2024-01-01 00:00:00", "b"]]),
    ("keep_first", [["1", None, "z"], ["2", "2023-01-01 00:00:00", None]])])
def test_any_order_of_arrival_gives_the_same_table(chute, pg_database, mode, expected):
    """One row a file, in many orders, one by one and grouped; and all in one file."""
    rng = random.Random(4)
    orders = [rng.sample(VERSIONS, len(VERSIONS)) for _ in range(4)]
    flows = [{"name": "f%d" % i, "include": ["%d/*.csv" % i], "load": mode, "key": ["id"], "order_by": ["at"], "table": "t%d" % i,
              "types": {"id": "bigint", "at": "timestamp", "v": "text"}} for i in range(5)]
    configure(chute, pg_database, flows=flows)
    for i, order in enumerate(orders):
        for k, row in enumerate(order):
            path = chute.inbox / str(i) / ("%02d.csv" % k)
            path.parent.mkdir(exist_ok=True)
            put_file(path, "id,at,v\n%s,%s,%s\n" % row)
    (chute.inbox / "4").mkdir()
    put_file(chute.inbox / "4" / "all.csv", "id,at,v\n" + "".join("%s,%s,%s\n" % row for row in orders[0]))
    chute.once()
    for i in range(5):
        assert pg_database.query("select id, at, v from t%d order by id" % i) == expected, i
    for r in chute.receipts():
        assert r["parsed"] == r["inserted"] + r["updated"] + r["unchanged"] + r["rejected"], r


@pytest.mark.parametrize("mode", ["upsert", "keep_first", "newest", "keep_first_by"])
def test_sqlite_and_postgresql_agree(chute, pg_database, mode):
    rng = random.Random(mode)
    texts = ["", "a", "B", "é", "z", "10", "9", "-1"]

    def some_file():
        rows = ["%d,%s,%s,%s" % (rng.randrange(12), rng.choice(["", "1", "2", "10", "-3"]), rng.choice(texts), rng.choice(texts)) for _ in range(20)]
        return "id,n,t,v\n" + "\n".join(rows) + "\n"
    flow = {"load": mode.split("_by")[0], "key": ["id"], "table": "t", "types": {"id": "bigint", "n": "bigint", "t": "text", "v": "text"}}
    if mode in ("newest", "keep_first_by"):
        flow["order_by"] = ["n", "t"]
    flows = [{"name": "p", "to": "dwh", **flow}, {"name": "s", "to": "lite", **flow}]
    chute.configure(source={"settle": "50ms"}, flows=flows,
                    dests={"dwh": {"type": "postgres", "url": pg_database.socket_url}, "lite": {"type": "sqlite", "path": str(chute.db)}})
    for i in range(6):
        put_file(chute.inbox / ("%d.csv" % i), some_file())
    chute.once()
    with sqlite3.connect(chute.db) as db:
        lite = [[None if v is None else str(v) for v in row] for row in db.execute("select id, n, t, v from t order by id")]
    assert pg_database.query("select id, n, t, v from t order by id") == lite
    assert len(lite) == 12
    by_flow = {f: [(r["path"], r["inserted"] + r["updated"] + r["unchanged"]) for r in sorted(chute.receipts(), key=lambda r: r["path"]) if r["flow"] == f]
               for f in ("p", "s")}
    assert by_flow["p"] == by_flow["s"]


def test_large_merges_with_and_without_repeated_keys(chute, pg_database):
    configure(chute, pg_database, load="upsert", key=["id"], table="t")
    load(chute, "1.csv", "id,v\n" + "".join("%d,a\n" % i for i in range(30000)))
    load(chute, "2.csv", "id,v\n" + "".join("%d,b\n" % i for i in range(15000, 45000)))
    assert counts(chute, "2.csv") == (15000, 15000, 0, 0)
    load(chute, "3.csv", "id,v\n" + "".join("%d,b\n" % i for i in range(45000)) + "7,last\n")
    assert counts(chute, "3.csv") == (0, 15000, 30001, 0)
    assert pg_database.query("select count(*), count(*) filter (where v = 'b') from t") == [["45000", "44999"]]
    assert pg_database.value("select v from t where id = 7") == "last"


def test_a_partitioned_table(chute, pg_database):
    pg_database.psql("create table t(id bigint primary key, v text) partition by range (id); create table t1 partition of t for values from (0) to (10);"
                     " create table t2 partition of t for values from (10) to (20);")
    configure(chute, pg_database, load="upsert", key=["id"], table="t")
    load(chute, "1.csv", "id,v\n1,a\n11,b\n")
    load(chute, "2.csv", "id,v\n1,A\n12,c\n11,b\n")
    assert pg_database.query("select id, v from t order by id") == [["1", "A"], ["11", "b"], ["12", "c"]]
    assert counts(chute, "2.csv") == (1, 1, 1, 0)


def test_triggers_see_inserts_and_updates(chute, pg_database):
    pg_database.psql("create table t(id bigint primary key, v text, at timestamptz); create function f() returns trigger language plpgsql as"
                     " $$begin new.at := '2020-01-01'; return new; end$$; create trigger g before insert or update on t for each row execute function f();")
    configure(chute, pg_database, load="upsert", key=["id"], table="t", on_schema_change="add_columns")
    load(chute, "1.csv", "id,v\n1,a\n2,b\n")
    load(chute, "2.csv", "id,v\n1,A\n3,c\n")
    assert pg_database.value("select count(*) from t where at is not null") == "3"
    assert counts(chute, "2.csv") == (1, 1, 0, 0)


def test_a_constraint_that_a_merge_hits(chute, pg_database):
    pg_database.psql("create table t(id bigint primary key, v bigint unique);")
    configure(chute, pg_database, load="upsert", key=["id"], table="t")
    load(chute, "1.csv", "id,v\n1,1\n2,2\n")
    load(chute, "2.csv", "id,v\n3,2\n", expect=1)
    assert "t_v_key" in reason(chute, "2.csv")
    assert receipt(chute, "1.csv")["inserted"] == 2


def test_a_bad_file_in_a_group_is_taken_out(chute, pg_database):
    pg_database.psql("create table t(id bigint primary key, v bigint check (v <> 13));")
    configure(chute, pg_database, load="upsert", key=["id"], table="t")
    for i in range(60):
        value = {17: "x", 31: "13", 50: "99999999999999999999"}.get(i, str(i if i != 13 else 0))
        put_file(chute.inbox / ("%03d.csv" % i), "id,v\n%d,%s\n" % (i, value))
    chute.once(expect=1)
    assert sorted(f["path"] for f in chute.files("quarantined")) == ["017.csv", "031.csv", "050.csv"]
    assert pg_database.value("select count(*) from t") == "57"
    for path in ("017.csv", "050.csv"):
        assert "line 2" in reason(chute, path), reason(chute, path)
    assert "t_v_check" in reason(chute, "031.csv")
    assert pg_database.value("select count(*) from _chute_loads") == "57"


def test_groups_keep_the_order_of_the_files(chute, pg_database):
    configure(chute, pg_database, load="upsert", key=["id"], table="t")
    for i, k in itertools.product(range(20), range(3)):
        put_file(chute.inbox / ("%02d_%d.csv" % (i, k)), "id,v\n%d,%d\n" % (i, k))
        # in the past: what is still settling when chute starts is queued when it has settled, and not in the order of its age
        os.utime(chute.inbox / ("%02d_%d.csv" % (i, k)), (1600000000 + 3 * i + k,) * 2)
    chute.once()
    assert pg_database.value("select count(*) from t where v = 2") == "20"


def test_a_trigger_that_writes_to_the_table_too_does_not_count(chute, pg_database):
    pg_database.psql("create table t(id bigint primary key, v text); create function f() returns trigger language plpgsql as $$begin"
                     " if new.id between 1 and 100 then insert into t values (-new.id, 'trigger') on conflict do nothing; end if; return null; end$$;"
                     " create trigger g after insert on t for each row execute function f();")
    configure(chute, pg_database, load="upsert", key=["id"], table="t")
    load(chute, "1.csv", "id,v\n" + "".join("%d,a\n" % i for i in range(30000)))
    assert counts(chute, "1.csv") == (30000, 0, 0, 0)
    assert pg_database.value("select count(*) from t") == "30100"


def test_counters_that_are_off_are_not_asked(chute, pg_database):
    pg_database.psql("alter database \"%s\" set track_counts = off;" % pg_database.name)
    configure(chute, pg_database, load="upsert", key=["id"], table="t")
    load(chute, "1.csv", "id,v\n" + "".join("%d,a\n" % i for i in range(30000)))
    load(chute, "2.csv", "id,v\n" + "".join("%d,b\n" % i for i in range(20000, 50000)))
    assert counts(chute, "2.csv") == (20000, 10000, 0, 0)
