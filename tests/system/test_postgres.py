"""The PostgreSQL destination: tables, types, names, policies, errors with their place. A real server."""
import gzip
import hashlib
import re
from pathlib import Path

import pytest
from chute import BINARY, put_file, write_file
from postgres_side import columns, configure, counts, load, reason, receipt, tables, wait_value


def test_types_are_inferred_and_digits_kept(chute, pg_database):
    configure(chute, pg_database)
    load(chute, "t.csv", "i,d,b,day,at,tz,zero,plus,mixed,nothing\n"
         "1,1.50,true,2024-01-02,2024-01-02 10:00,2024-01-02T10:00:00Z,007,+420,1,\n"
         "-9223372036854775808,123456789012345678901234567890.5,FALSE,2024-02-29,2024-01-02T10:00:01.123456,2024-01-02 10:00+02,08,+421,x,\n")
    assert columns(pg_database, "t") == [
        ("i", "bigint"), ("d", "numeric"), ("b", "boolean"), ("day", "date"), ("at", "timestamp without time zone"),
        ("tz", "timestamp with time zone"), ("zero", "text"), ("plus", "text"), ("mixed", "text"), ("nothing", "text")]
    rows = pg_database.query("select * from t order by i desc")
    assert rows[0][1] == "1.50" and rows[1][1] == "123456789012345678901234567890.5"
    assert rows[1][4] == "2024-01-02 10:00:01.123456" and rows[0][6] == "007" and rows[0][9] is None


def test_a_value_that_a_type_would_change_makes_its_column_text(chute, pg_database):
    configure(chute, pg_database)
    load(chute, "t.csv", "ns,year0,ok\n2024-01-02 10:00:00.123456789,0000-01-01,2024-01-02\n2024-01-02 10:00:00,2024-01-01,2024-01-02\n")
    assert columns(pg_database, "t") == [("ns", "text"), ("year0", "text"), ("ok", "date")]
    assert pg_database.value("select ns from t where year0 = '0000-01-01'") == "2024-01-02 10:00:00.123456789"


def test_types_are_right_for_all_of_a_large_file(chute, pg_database):
    lines = ["%d,%d,2024-01-02 10:00:00" % (i, i) for i in range(60000)]
    lines += ["60000,not a number,2024-01-02 10:00:00.1234567"]
    configure(chute, pg_database)
    load(chute, "t.csv", "id,late,ns\n" + "\n".join(lines) + "\n")
    assert columns(pg_database, "t") == [("id", "bigint"), ("late", "text"), ("ns", "text")]
    assert pg_database.query("select count(*), sum(id), max(late) from t") == [["60001", str(sum(range(60001))), "not a number"]]
    assert counts(chute, "t.csv") == (60001, 0, 0, 0)


def test_texts_arrive_byte_for_byte(chute, pg_database):
    configure(chute, pg_database, types="text")
    load(chute, "t.csv", 'a,b\n"line\nbreak","q""uote"\n"tab\there","back\\slash\\n"\n,""\n\\N,\\.\né 😀, x \n')
    assert pg_database.query("select a, b from t") == [
        ["line\nbreak", 'q"uote'], ["tab\there", "back\\slash\\n"], [None, ""], ["\\N", "\\."], ["é 😀", " x "]]


@pytest.mark.parametrize("text,rows", [
    ('a,b\n1,x\n\\.\n', None),  # too few fields: quarantined by us, and not the end of the input
    ('a,b\n"1\n\\.\n2",x\n3,y\n', [["1\n\\.\n2", "x"], ["3", "y"]]),
    ('a,b\n5" pipe,6" hose\n"x","y"\n', [['5" pipe', '6" hose'], ["x", "y"]]),
    ('a,b\n1,say "hi, you"\n', None),
    ('a,b\n\n1,2\n\n3,4\n', [["1", "2"], ["3", "4"]]),
    ('a,b\r\n1,2\n3,4\r\n', [["1", "2"], ["3", "4"]]),
    ('a;b\n1;"2;3"\n', [["1", "2;3"]]),
    ('a\tb\n1\t2\n', [["1", "2"]]),
    ('\ufeffa,b\n1,2', [["1", "2"]]),
])
def test_what_the_server_reads_in_another_way_is_read_as_by_us(chute, pg_database, text, rows):
    """With types: text a file goes to COPY as it is, unless something in it stands against that."""
    configure(chute, pg_database, types="text")
    load(chute, "t.csv", text, expect=None)
    if rows is None:
        assert chute.state_of("t.csv") == "quarantined"
    else:
        assert pg_database.query("select * from t") == rows


def test_short_rows_are_padded(chute, pg_database):
    configure(chute, pg_database, types="text", csv={"short_rows": "pad"})
    load(chute, "t.csv", "a,b,c\n1\n2,3\n4,5,6\n")
    assert pg_database.query("select * from t") == [["1", None, None], ["2", "3", None], ["4", "5", "6"]]


def test_null_words(chute, pg_database):
    configure(chute, pg_database, types="text", csv={"null_values": ["NA"]})
    load(chute, "t.csv", 'a,b\nNA,"NA"\n,x\n')
    assert pg_database.query("select a, b from t") == [[None, "NA"], ["", "x"]]
    pg_database.psql("create table n(a bigint, b text);")
    load(chute, "n.csv", 'a,b\n1,x\nNA,\n"",y\n')
    assert pg_database.query("select a, b from n") == [["1", "x"], [None, ""], [None, "y"]]


def test_a_quoted_empty_field_is_null_where_the_type_has_no_empty_value(chute, pg_database):
    pg_database.psql("create table t(a bigint, b date, c text);")
    configure(chute, pg_database)
    load(chute, "t.csv", 'a,b,c\n"","",""\n1,2024-01-02,x\n')
    assert pg_database.query("select a, b, c from t") == [[None, None, ""], ["1", "2024-01-02", "x"]]


def test_names(chute, pg_database):
    configure(chute, pg_database)
    for name in ("2024-01.csv", "group.csv", "Order Items.csv"):
        put_file(chute.inbox / name, "Select,order By\n1,2\n")
    chute.once()
    assert tables(pg_database) == {"2024_01", "group", "order_items"}
    assert [name for name, _ in columns(pg_database, '"group"')] == ["select", "order_by"]


def test_names_that_are_kept(chute, pg_database):
    configure(chute, pg_database, names="keep")
    put_file(chute.inbox / '2024-01 "x".csv', 'A "b",A\n1,2\n')
    chute.once()
    assert tables(pg_database) == {'2024-01 "x"'}
    assert pg_database.query('select "A ""b""", "A" from "2024-01 ""x"""') == [["1", "2"]]


def test_a_name_that_postgresql_would_cut_is_refused(chute, pg_database):
    configure(chute, pg_database)
    load(chute, "x" * 64 + ".csv", "a\n1\n", expect=1)
    assert "at most 63" in reason(chute, "x" * 64 + ".csv")
    load(chute, "t.csv", "y" * 64 + ",b\n1,2\n", expect=1)
    assert "64 bytes" in reason(chute, "t.csv") and tables(pg_database) == set()


def test_two_files_that_would_own_one_table_are_told(chute, pg_database):
    configure(chute, pg_database)
    put_file(chute.inbox / "A b.csv", "a\n1\n")
    put_file(chute.inbox / "a_b.csv", "a\n2\n")
    chute.once(expect=1)
    lost = [f["path"] for f in chute.files("quarantined")]
    assert len(lost) == 1
    text = chute.explain(chute.inbox / lost[0])
    assert "A b.csv" in text and "a_b.csv" in text, text


def test_schemas_from_folders(chute, pg_database):
    configure(chute, pg_database, dest={"schema": "Own Place"}, schema="{folder}", table="{stem}")
    write_file(chute.inbox / "sales" / "o.csv", "a\n1\n")
    write_file(chute.inbox / "Web Shop" / "o.csv", "a\n2\n")
    chute.once()
    assert pg_database.value("select a from sales.o") == "1" and pg_database.value("select a from web_shop.o") == "2"
    assert pg_database.value('select count(*) from "Own Place"._chute_loads') == "2"
    pg_database.psql("drop schema sales cascade;")
    write_file(chute.inbox / "sales" / "p.csv", "a\n3\n")
    chute.once()
    assert pg_database.value("select a from sales.p") == "3"


def test_the_schema_of_the_destination_is_that_of_its_flows(chute, pg_database):
    configure(chute, pg_database, dest={"schema": "Own Place"})
    load(chute, "t.csv", "a\n1\n")
    assert pg_database.value('select a from "Own Place".t') == "1"


def test_row_number_and_declared_types(chute, pg_database):
    configure(chute, pg_database, row_number="no", types={"code": "text", "price": "decimal", "at": "timestamptz"})
    load(chute, "t.csv", "code,price,at,n\n1,2,2024-01-02 10:00Z,5\n2,3.10,2024-01-02 10:00+01:00,6\n")
    assert columns(pg_database, "t") == [("no", "bigint"), ("code", "text"), ("price", "numeric"), ("at", "timestamp with time zone"),
                                         ("n", "bigint")]
    assert pg_database.query("select no, code, price from t order by no") == [["0", "1", "2"], ["1", "2", "3.10"]]
    load(chute, "u.csv", "code,price,at\n1,many,2024-01-02 10:00Z\n", expect=1)
    assert "line 2" in reason(chute, "u.csv") and "decimal" in reason(chute, "u.csv")


def test_a_header_that_changed_is_refused_in_words(chute, pg_database):
    configure(chute, pg_database)
    load(chute, "t.csv", "a,b,c\n1,2,3\n")
    load(chute, "t.csv", "a,c,d\n1,2,3\n", expect=1)
    assert "b" in reason(chute, "t.csv") and "d" in reason(chute, "t.csv")
    assert pg_database.query("select * from t") == [["1", "2", "3"]]


def test_columns_are_added(chute, pg_database):
    configure(chute, pg_database, on_schema_change="add_columns", load="append", table="all", types="infer")
    load(chute, "1.csv", "a,b\n1,2\n")
    load(chute, "2.csv", "b,new\n3,2024-01-02\n")
    assert columns(pg_database, "\"all\"") == [("a", "bigint"), ("b", "bigint"), ("new", "date")]
    assert pg_database.query('select * from "all" order by b') == [["1", "2", None], [None, "3", "2024-01-02"]]


def test_recreate_infers_anew_and_only_then(chute, pg_database):
    configure(chute, pg_database, on_schema_change="recreate")
    load(chute, "t.csv", "a,b\n1,2\n")
    pg_database.psql("create index mine on t(a);")
    load(chute, "t.csv", "a,b\n3,4\n")
    assert pg_database.value("select count(*) from pg_indexes where indexname = 'mine'") == "1"
    load(chute, "t.csv", "a,b\nx,4.5\n")
    assert columns(pg_database, "t") == [("a", "text"), ("b", "numeric")]
    load(chute, "t.csv", "b,c\n1,2\n")
    assert columns(pg_database, "t") == [("b", "numeric"), ("c", "bigint")] or columns(pg_database, "t") == [("b", "bigint"), ("c", "bigint")]
    lines = "".join("%d,%d\n" % (i, i) for i in range(60000))
    load(chute, "t.csv", "b,c\n" + lines + "late,1\n")
    assert columns(pg_database, "t") == [("b", "text"), ("c", "bigint")]
    assert pg_database.value("select count(*) from t") == "60001"


def test_recreate_does_not_drop_what_a_view_needs(chute, pg_database):
    configure(chute, pg_database, on_schema_change="recreate")
    load(chute, "t.csv", "a\n1\n")
    pg_database.psql("create view watcher as select a from t;")
    load(chute, "t.csv", "a\nx\n", expect=1)
    assert "watcher" in reason(chute, "t.csv")
    assert pg_database.query("select * from watcher") == [["1"]]


def test_a_table_of_others_keeps_its_definition(chute, pg_database):
    pg_database.psql("create table t(a bigint check (a < 10), b varchar(3)); grant select on t to public; insert into t values (9, 'old');")
    configure(chute, pg_database, on_schema_change="recreate")
    load(chute, "t.csv", "b,a\nx,1\n")
    assert pg_database.query("select a, b from t") == [["1", "x"]]
    load(chute, "t.csv", "b,a\nlong,1\n", expect=1)
    assert "line 2" in reason(chute, "t.csv") and "column b" in reason(chute, "t.csv")
    load(chute, "t.csv", "b,a\nx,1\ny,11\n", expect=1)
    assert "line 3" in reason(chute, "t.csv") and "t_a_check" in reason(chute, "t.csv")
    load(chute, "t.csv", "b,z\nx,1\n", expect=1)
    assert "did not make" in reason(chute, "t.csv")
    assert pg_database.query("select a, b from t") == [["1", "x"]]


@pytest.mark.parametrize("decl,value", [
    ("numeric(10,2)", "1.005"), ("date", "2024-01-02 10:00"), ("timestamp", "2024-01-02 10:00+02"), ("timestamp(3)", "2024-01-02 10:00:00.1234"),
    ("timestamptz", "2024-01-02 10:00:00.1234567Z"), ("bigint", "1.5"), ("bigint", "99999999999999999999"), ("boolean", "maybe"),
    ("uuid", "no uuid"), ("integer", "x")])
def test_a_value_that_does_not_fit_without_loss_has_its_place(chute, pg_database, decl, value):
    pg_database.psql("create table t(id bigint, v %s);" % decl)
    configure(chute, pg_database)
    load(chute, "t.csv", "id,v\n1,\n2,\"%s\"\n" % value, expect=1)
    words = reason(chute, "t.csv")
    assert "line 3" in words and value[:20] in words and "v" in words, words
    assert pg_database.value("select count(*) from t") == "0"


@pytest.mark.parametrize("decl,value,stored", [
    ("numeric(10,2)", "1.50", "1.50"), ("numeric(10,2)", "1.500", "1.50"), ("date", "2024-01-02", "2024-01-02"), ("boolean", "yes", "t"),
    ("timestamp", "2024-01-02 10:00:00.123456", "2024-01-02 10:00:00.123456"), ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
                                                                                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("jsonb", '{""a"": 1}', '{"a": 1}'), ("double precision", "1e5", "100000"), ("integer[]", "{1,2}", "{1,2}")])
def test_what_a_column_takes_is_taken(chute, pg_database, decl, value, stored):
    pg_database.psql("create table t(id bigint, v %s);" % decl)
    configure(chute, pg_database)
    load(chute, "t.csv", 'id,v\n1,"%s"\n' % value)
    assert pg_database.value("select v from t") == stored


def test_bad_rows_are_left_out_one_by_one(chute, pg_database):
    pg_database.psql("create table t(id bigint primary key, v bigint check (v <> 13));")
    configure(chute, pg_database, bad_rows={"skip": 10}, load="append", table="t")
    lines = ["%d,%d" % (i, i * 2) for i in range(1000, 21000)]
    lines[5] = "5,x"
    lines[5000] = "5000,13"
    lines[9999] = "1001,1"  # a key that is there already
    lines[15000] = "1,2,3"
    load(chute, "f.csv", "id,v\n" + "\n".join(lines) + "\n")
    assert pg_database.value("select count(*) from t") == "19996"
    assert counts(chute, "f.csv") == (19996, 0, 0, 4)
    told = "".join(p.read_text() for p in chute.state.rglob("*") if p.is_file() and p.suffix in (".csv", ".json", ".jsonl") and "reject" in str(p))
    for place in ("line 7", "line 5002", "line 10001", "line 15002"):
        assert place in told, (place, told[:2000])


def test_too_many_bad_rows_are_a_bad_file(chute, pg_database):
    pg_database.psql("create table t(id bigint);")
    configure(chute, pg_database, bad_rows={"skip": 1})
    load(chute, "t.csv", "id\n1\nx\n2\ny\n", expect=1)
    assert "bad_rows allows 1" in reason(chute, "t.csv") and "line 5" in reason(chute, "t.csv")
    assert pg_database.value("select count(*) from t") == "0"


def test_a_foreign_key_names_the_row(chute, pg_database):
    pg_database.psql("create table p(id bigint primary key); insert into p values (1), (2); create table c(id bigint references p(id));")
    configure(chute, pg_database, load="append", table="c", bad_rows={"skip": 5})
    load(chute, "f.csv", "id\n1\n7\n2\n8\n")
    assert pg_database.query("select id from c order by id") == [["1"], ["2"]]
    assert counts(chute, "f.csv") == (2, 0, 0, 2)


def test_a_deferred_constraint_is_an_error_of_the_file(chute, pg_database):
    pg_database.psql("create table p(id bigint primary key); create table c(id bigint references p(id) deferrable initially deferred);")
    configure(chute, pg_database, load="append", table="c")
    load(chute, "f.csv", "id\n7\n", expect=1)
    assert "c_id_fkey" in reason(chute, "f.csv")
    assert pg_database.value("select count(*) from c") == "0"


def test_a_trigger_that_leaves_rows_out_is_noticed(chute, pg_database):
    pg_database.psql("create table t(id bigint); create function f() returns trigger language plpgsql as $$begin if new.id = 2 then return null;"
                     " end if; return new; end$$; create trigger g before insert on t for each row execute function f();")
    configure(chute, pg_database)
    load(chute, "t.csv", "id\n1\n2\n", expect=1)
    assert "trigger" in reason(chute, "t.csv") and pg_database.value("select count(*) from t") == "0"


def test_the_same_content_again_is_skipped(chute, pg_database):
    configure(chute, pg_database, load="append", table="t")
    load(chute, "f.csv", "a\n1\n")
    load(chute, "f.csv", "a\n1\n")
    chute.kill9()
    for path in chute.state.glob("ledger.db*"):
        path.unlink()  # the database's own receipts decide
    chute.once()
    assert pg_database.query("select a from t") == [["1"]]
    assert chute.state_of("f.csv") in ("skipped", "loaded")


def test_replace_comes_back_to_an_older_content(chute, pg_database):
    configure(chute, pg_database)
    for text in ("a\n1\n", "a\n2\n", "a\n1\n"):
        load(chute, "t.csv", text)
    assert pg_database.query("select a from t") == [["1"]]
    assert len(chute.receipts_of("t.csv", "loaded")) == 3


def test_an_appended_file_that_grew(chute, pg_database):
    configure(chute, pg_database, load="append", table="t", on_changed="tail")
    load(chute, "f.csv", "a,b\n1,x\n")
    load(chute, "f.csv", "a,b\n1,x\n2,y\n3,z\n")
    assert pg_database.query("select a from t order by a") == [["1"], ["2"], ["3"]]
    assert counts(chute, "f.csv") == (2, 0, 1, 0)


def test_header_only_and_empty(chute, pg_database):
    configure(chute, pg_database)
    load(chute, "t.csv", "a,b\n")
    load(chute, "empty.csv", "")
    assert tables(pg_database) == {"t"} and pg_database.value("select count(*) from t") == "0"
    assert chute.state_of("empty.csv") == "skipped"


def test_a_deleted_file_takes_its_table_along(chute, pg_database):
    configure(chute, pg_database, on_delete="drop")
    load(chute, "t.csv", "a\n1\n")
    (chute.inbox / "t.csv").unlink()
    chute.once()
    assert tables(pg_database) == set()


def test_a_table_that_a_view_needs_is_not_dropped(chute, pg_database):
    configure(chute, pg_database, on_delete="drop")
    load(chute, "t.csv", "a\n1\n")
    pg_database.psql("create view watcher as select * from t;")
    (chute.inbox / "t.csv").unlink()
    chute.once(expect=None)
    assert tables(pg_database) == {"t"} and "watcher" in chute.log_text()


def test_a_deleted_file_empties_its_table(chute, pg_database):
    configure(chute, pg_database, on_delete="empty")
    load(chute, "t.csv", "a\n1\n")
    (chute.inbox / "t.csv").unlink()
    chute.once()
    assert pg_database.value("select count(*) from t") == "0"


def test_what_chute_did_not_make_is_never_dropped(chute, pg_database):
    pg_database.psql("create table t(a bigint);")
    configure(chute, pg_database, on_delete="drop")
    load(chute, "t.csv", "a\n1\n")
    (chute.inbox / "t.csv").unlink()
    chute.once(expect=None)
    assert tables(pg_database) == {"t"}
    chute.ask("reset", "main", "--yes", "-c", str(chute.config))
    assert tables(pg_database) == {"t"}


def test_reset_drops_what_the_flow_made(chute, pg_database):
    configure(chute, pg_database)
    load(chute, "t.csv", "a\n1\n")
    load(chute, "u.csv", "a\n1\n")
    said = chute.command("reset", "main", "--yes", "-c", chute.config)
    assert said.returncode == 0 and "t" in said.stdout + said.stderr, said
    assert tables(pg_database) == set() and pg_database.value("select count(*) from _chute_loads") == "0"


def test_a_rename_carries_the_receipt(chute, pg_database):
    configure(chute, pg_database, load="append", table="t")
    chute.start()
    put_file(chute.inbox / "f.csv", "a\n1\n")
    chute.wait_state("f.csv", "loaded")
    (chute.inbox / "f.csv").rename(chute.inbox / "g.csv")
    wait_value(pg_database, "select count(*) from _chute_loads where path = 'g.csv' and kind = 'carry'", "1", chute)
    chute.stop()
    for path in chute.state.glob("ledger.db*"):
        path.unlink()
    chute.once()
    assert pg_database.query("select a from t") == [["1"]]


def test_a_database_made_anew_is_filled_again(chute, pg_database):
    configure(chute, pg_database)
    load(chute, "t.csv", "a\n1\n")
    pg_database.psql("drop table t, _chute, _chute_loads, _chute_tables;")
    chute.once()
    assert pg_database.query("select a from t") == [["1"]]


def test_from_the_command_line(chute, pg_database):
    put_file(chute.inbox / "Some File.csv", "a\n1\n")
    said = chute.command("load", chute.inbox / "Some File.csv", "--to", pg_database.socket_url, "--state", chute.state)
    assert said.returncode == 0, said
    assert pg_database.query("select a from some_file") == [["1"]]
    said = chute.command("load", chute.inbox / "Some File.csv", "--to", pg_database.socket_url, "--table", "stage.{stem}", "--state", chute.state)
    assert said.returncode == 0, said
    assert pg_database.query("select a from stage.some_file") == [["1"]]


def test_check_connects(chute, pg_database):
    configure(chute, pg_database, dest={"replace": "truncate-and-insert"})
    said = chute.command("check", "-c", chute.config, "--connect")
    assert said.returncode == 0 and "PostgreSQL 15" in said.stdout and pg_database.name in said.stdout, said
    configure(chute, pg_database, url="postgres://nobody@127.0.0.1:1/x")
    said = chute.command("check", "-c", chute.config, "--connect")
    assert said.returncode == 1 and "127.0.0.1" in said.stdout + said.stderr, said


@pytest.mark.parametrize("dest,words", [
    ({"url": "postgres://h/x?sslmoed=1"}, "sslmoed"), ({"schema": ""}, "schema"), ({"schema": "pg_mine"}, "pg_"), ({"schema": "a.b"}, "schema"),
    ({"replace": "drop"}, "delete-and-copy"), ({"connections": 0}, "connections"), ({"proxy": "http://x"}, "proxy"),
    ({"lock_timeout": "0s"}, "lock_timeout")])
def test_options_that_can_not_be(chute, pg_database, dest, words):
    configure(chute, pg_database, dest=dest)
    said = chute.command("check", "-c", chute.config)
    assert said.returncode == 78 and words in said.stderr + said.stdout, said


def test_schema_is_no_word_for_sqlite_and_bucket_none_for_postgres(chute, pg_database):
    configure(chute, pg_database, bucket="x")
    said = chute.command("check", "-c", chute.config)
    assert said.returncode == 78 and "buckets" in said.stderr, said
    chute.configure(flow={"schema": "x"})
    said = chute.command("check", "-c", chute.config)
    assert said.returncode == 78 and "schemas" in said.stderr, said


def test_the_password_goes_nowhere(chute, shared_postgres, pg_database):
    secret = pg_database.password
    configure(chute, pg_database, url=pg_database.url, dest={"password": secret})
    load(chute, "t.csv", "a\n1\n")
    assert pg_database.query("select a from t") == [["1"]]
    configure(chute, pg_database, url=pg_database.url, dest={"password": "wrong " + secret})
    put_file(chute.inbox / "u.csv", "a\n1\n")
    chute.start(ready=False)
    chute.wait_log("password authentication failed")
    said = chute.log_text() + chute.ask("status", "--json") + chute.command("status", "--state", chute.state).stdout
    assert secret not in said
    chute.wait_state("u.csv", "queued")


def test_files_load_beside_each_other(chute, pg_database):
    configure(chute, pg_database, dest={"connections": 3})
    for i in range(12):
        put_file(chute.inbox / ("f%d.csv" % i), "a,b\n" + "".join("%d,%d\n" % (k, i) for k in range(500)))
    chute.once()
    assert len(tables(pg_database)) == 12
    assert all(receipt(chute, "f%d.csv" % i)["inserted"] == 500 for i in range(12))


@pytest.mark.parametrize("text,raw", [("id,v,at\n1,x,2024-01-02\n", True), ("id,v,at\n1,x\"y,2024-01-02\n", False), ("id,v,at\n\n1,x,2024-01-02 10:00\n", False)])
def test_bytes_go_as_they_are_where_they_can(chute, shared_postgres, pg_database, text, raw):
    """What the server was told last: COPY of CSV, or of rows written anew after that."""
    pg_database.psql("create table t(id bigint, v text, at timestamp); alter database \"%s\" set log_statement = 'all';" % pg_database.name)
    configure(chute, pg_database)
    load(chute, "t.csv", text)
    said = [line for line in shared_postgres.log_text().splitlines() if 'COPY "public"."t"' in line and 'chute' in line][-1]
    assert ("FORMAT csv" in said) == raw, said
    assert pg_database.value("select count(*) from t") == "1"


def test_other_encodings_and_compressed_files(chute, pg_database):
    configure(chute, pg_database, flows=[{"name": "a", "include": ["*.csv"], "csv": {"encoding": "windows-1250"}},
                                         {"name": "b", "include": ["*.gz"], "types": "text"}])
    (chute.inbox / "cz.csv").write_bytes("id,v\n1,\u017elu\u0165ou\u010dk\u00fd k\u016f\u0148\n".encode("windows-1250"))
    (chute.inbox / "packed.csv.gz").write_bytes(gzip.compress("id,v\n1,é\n".encode() * 1))
    chute.once()
    assert pg_database.query("select v from cz") == [["\u017elu\u0165ou\u010dk\u00fd k\u016f\u0148"]]
    assert pg_database.query("select * from packed") == [["1", "é"]]


@pytest.mark.parametrize("decl", ["text", "timestamp"])
def test_rows_of_megabytes(chute, pg_database, decl):
    pg_database.psql("create table t(id text, long text, at %s);" % decl)
    long = "line with \"\"quotes\"\", commas and\nbreaks " * 60000  # 2.4 MB
    configure(chute, pg_database)
    load(chute, "t.csv", "id,long,at\n1,x,2024-01-02\n2,\"%s\",2024-01-02\n3,\"%s\",2024-01-03\n4,y,\n" % (long, long))
    whole = long.replace('""', '"')
    assert pg_database.query("select id, length(long), md5(long), at is null from t order by id") == [
        ["1", "1", hashlib.md5(b"x").hexdigest(), "f"], ["2", str(len(whole)), hashlib.md5(whole.encode()).hexdigest(), "f"],
        ["3", str(len(whole)), hashlib.md5(whole.encode()).hexdigest(), "f"], ["4", "1", hashlib.md5(b"y").hexdigest(), "t"]]


def test_a_database_in_another_encoding_names_what_it_lacks(chute, shared_postgres):
    shared_postgres.database().psql("create database latin encoding 'LATIN2' lc_collate 'C' lc_ctype 'C' template template0;")
    db = shared_postgres.database("latin")
    try:
        configure(chute, db, types="text")
        load(chute, "t.csv", "id,v\n1,\u010d\n")
        assert db.value("select v from t") == "\u010d"
        load(chute, "u.csv", "id,v\n1,x\n2,\u0434\n", expect=1)
        assert "line 3" in reason(chute, "u.csv") and "LATIN2" in reason(chute, "u.csv")
    finally:
        chute.kill9()
        shared_postgres.database().psql("drop database latin with (force);")


def test_the_memory_of_a_large_file_is_that_of_a_small_one(chute, pg_database):
    peaks = []
    for rows in (1000, 800000):
        pg_database.psql("drop table if exists t; create table t(id bigint, v text, at timestamp);")
        configure(chute, pg_database, load="append", table="t")
        put_file(chute.inbox / ("%d.csv" % rows), "id,v,at\n" + "".join("%d,some text of row %d,2024-01-02 10:00:00\n" % (i, i) for i in range(rows)))
        chute.start()
        chute.wait_receipts("%d.csv" % rows, "loaded", 1)
        peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/%d/status" % chute.process.pid).read_text())[1]))
        assert chute.stop() == 0 and pg_database.value("select count(*) from t") == str(rows)
    if "asan" not in BINARY:
        assert peaks[1] < peaks[0] + 12 * 1024, peaks  # KiB


@pytest.mark.parametrize("files", [1, 3])
def test_a_warning_of_the_server_is_in_the_receipt(chute, pg_database, files):
    pg_database.psql("create table t(id bigint);"
                     " create function f() returns trigger language plpgsql as $$begin if new.id > 1 then raise warning 'strange: %', new.id;"
                     " else raise notice 'talk'; end if; return new; end$$; create trigger g before insert on t for each row execute function f();")
    configure(chute, pg_database, load="append", table="t")
    for i in range(files):
        put_file(chute.inbox / ("%d.csv" % i), "id\n1\n7\n8\n")
    chute.once()
    assert pg_database.value("select count(*) from t") == str(3 * files)
    for i in range(files):
        text = chute.explain(chute.inbox / ("%d.csv" % i))
        assert "strange: 7" in text and "talk" not in text, text
    put_file(chute.inbox / "quiet.csv", "id\n1\n")
    chute.once()
    assert "strange" not in chute.explain(chute.inbox / "quiet.csv")
