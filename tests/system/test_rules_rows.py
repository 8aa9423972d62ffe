"""What a file is: dialect, header, rows, types, names, and how changes of schema are met."""
import os
import sqlite3
import time

import pytest
from chute import put_file, wait_until, write_file


def infer(**more):
    return {"types": "infer", **more}


@pytest.mark.core
@pytest.mark.parametrize("text,columns,row", [
    ("a;b\n1,5;2\n", ["a", "b"], ("1,5", 2)),
    ("a\tb\n1\t2\n", ["a", "b"], (1, 2)),
    ("a|b\n1|2\n", ["a", "b"], (1, 2)),
    ("one\nword\n", ["one"], ("word",)),
    ("\ufeffid,b\n1,2\n", ["id", "b"], (1, 2)),
    ("a,,\n1,2,3\n", ["a", "column_1", "column_2"], (1, 2, 3)),
    ("a,a,a\n1,2,3\n", ["a", "a.1", "a.2"], (1, 2, 3)),
    ("a,b\r\n1,2\r\n", ["a", "b"], (1, 2)),
    ('a,b\n"x\ny",2\n', ["a", "b"], ("x\ny", 2)),
    ('a,b\n" x ", y \n', ["a", "b"], (" x ", " y ")),
    ('a,b\n"say ""hi""",\n', ["a", "b"], ('say "hi"', None)),
    ('a,b\nx,""\n', ["a", "b"], ("x", "")),
    ("a,b\n1,2", ["a", "b"], (1, 2)),
], ids=["semicolon", "tab", "pipe", "one-column", "bom", "blank-names", "repeated-names", "crlf", "line-break-in-quotes", "spaces", "doubled-quotes",
        "quoted-empty", "no-last-newline"])
def test_dialects_and_headers(chute, text, columns, row):
    chute.configure(infer())
    chute.start()
    put_file(chute.inbox / "t.csv", text)
    chute.wait_rows("t", [row])
    assert [name for name, _ in chute.columns("t")] == columns


@pytest.mark.parametrize("text,words", [
    (b"a,b\n1,2\n3\n", ["line 3", "2", "1"]),
    (b"a,b\n1,2,3\n", ["line 2", "2", "3"]),
    (b"a,b\n1,x\0y\n", ["NUL", "line 2"]),
    (b"a,b\n1,f\xfcr\n", ["UTF-8", "line 2"]),
], ids=["short", "wide", "nul", "not-utf-8"])
def test_bad_rows_are_refused_with_their_place(chute, text, words):
    chute.configure(infer())
    chute.start()
    put_file(chute.inbox / "t.csv", text)
    chute.wait_state("t.csv", "quarantined")
    why = chute.explain(chute.inbox / "t.csv")
    for word in words:
        assert word in why, why
    assert "byte" in why or "offset" in why, why


def test_blank_lines_are_no_rows(chute):
    chute.configure(infer())
    chute.start()
    put_file(chute.inbox / "t.csv", "a,b\n\n1,2\n\n\n3,4\n\n")
    chute.wait_rows("t", [(1, 2), (3, 4)])


def test_a_quoted_empty_field_is_a_row_of_a_one_column_file(chute):
    chute.configure({"types": "text", "row_number": "n"})
    chute.start()
    put_file(chute.inbox / "t.csv", 'a\nx\n""\n\ny\n')
    chute.wait_rows("t", [(0, "x"), (1, ""), (2, "y")])


def test_encodings_are_told_not_guessed(chute):
    chute.configure({"csv": {"encoding": "windows-1250"}})
    chute.start()
    put_file(chute.inbox / "t.csv", "a\nžluťoučký\n".encode("cp1250"))
    chute.wait_rows("t", [("žluťoučký",)])


def test_utf16_by_its_bom(chute):
    chute.configure({"csv": {"encoding": "utf-16"}})
    chute.start()
    put_file(chute.inbox / "t.csv", "a,b\ně,1\n".encode("utf-16"))
    chute.wait_rows("t", [("ě", 1)])


@pytest.mark.core
def test_a_row_beyond_max_row_is_an_error_with_its_place(chute):
    chute.configure(infer(csv={"max_row": "64KiB"}))
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n" + "x" * 200000 + "\n")
    chute.wait_state("t.csv", "quarantined")
    assert "line 3" in chute.explain(chute.inbox / "t.csv") and "max_row" in chute.explain(chute.inbox / "t.csv")


@pytest.mark.core
def test_inference_is_right_for_the_whole_file(chute):
    """The value that does not fit is in the last of many rows."""
    rows = 200000
    chute.configure(infer())
    chute.start()
    put_file(chute.inbox / "t.csv", "n,d\n" + "1,2.5\n" * rows + "+420,x\n")
    wait_until(lambda: "t" in chute.tables(), "the table")
    assert [t for _, t in chute.columns("t")] == ["TEXT", "TEXT"]
    assert chute.query("SELECT count(*), count(CASE WHEN n = '1' AND d = '2.5' THEN 1 END) FROM t") == [(rows + 1, rows)]
    assert chute.query("SELECT n, d FROM t WHERE n <> '1'") == [("+420", "x")]


@pytest.mark.parametrize("values,declared", [
    (["1", "-2", "9223372036854775807"], "BIGINT"), (["1", "9223372036854775808"], "TEXT"), (["1", "+2"], "TEXT"),
    (["01"], "TEXT"), (["1.5", "2"], "DOUBLE"), (["1.23456789012345678"], "TEXT"), (["true", "FALSE"], "BOOLEAN"),
    (["true", "1"], "TEXT"), (["2024-01-02"], "TEXT"), ([""], "TEXT"), (["NA", "1"], "TEXT"), (["1e5"], "TEXT"),
], ids=lambda v: v if isinstance(v, str) else v[-1] or "empty")
def test_inferred_types(chute, values, declared):
    chute.configure(infer())
    chute.start()
    put_file(chute.inbox / "t.csv", "k,v\n" + "".join("x,%s\n" % v for v in values))
    wait_until(lambda: "t" in chute.tables(), "the table")
    assert chute.columns("t")[1] == ("v", declared)
    assert chute.query("SELECT count(*) FROM t") == [(len(values),)]


def test_declared_types_bind(chute):
    chute.configure({"types": {"b": "text", "c": "bigint"}})
    chute.start()
    put_file(chute.inbox / "t.csv", "a,b,c\n1,2,3\n")
    chute.wait_rows("t", [(1, "2", 3)])
    put_file(chute.inbox / "u.csv", "a,b\n1,2\n")
    chute.wait_state("u.csv", "quarantined")
    assert "c" in chute.explain(chute.inbox / "u.csv")


def test_empty_and_header_only_files(chute):
    chute.configure(infer())
    chute.start()
    put_file(chute.inbox / "empty.csv", "")
    chute.wait_state("empty.csv", "skipped")
    put_file(chute.inbox / "head.csv", "a,b\n")
    chute.wait_rows("head", [])
    assert [n for n, _ in chute.columns("head")] == ["a", "b"]


@pytest.mark.core
def test_on_schema_change_reject_names_what_differs(chute):
    chute.configure(infer(on_schema_change="reject"))
    chute.start()
    put_file(chute.inbox / "t.csv", "a,b,c\n1,2,3\n")
    chute.wait_rows("t", [(1, 2, 3)])
    put_file(chute.inbox / "t.csv", "a,c,d\n1,2,3\n")
    chute.wait_state("t.csv", "quarantined")
    why = chute.explain(chute.inbox / "t.csv")
    assert "b" in why and "d" in why and ("missing" in why or "extra" in why or "renamed" in why), why
    assert chute.rows("t") == [(1, 2, 3)]


def test_on_schema_change_reject_refuses_values_that_do_not_fit(chute):
    chute.configure(infer(on_schema_change="reject"))
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("t", [(1,)])
    put_file(chute.inbox / "t.csv", "a\n2\nword\n")
    chute.wait_state("t.csv", "quarantined")
    why = chute.explain(chute.inbox / "t.csv")
    assert "line 3" in why and "a" in why
    assert chute.rows("t") == [(1,)]


def test_on_schema_change_add_columns(chute):
    chute.configure(infer(on_schema_change="add_columns", load="append", table="all"))
    chute.start()
    put_file(chute.inbox / "x.csv", "a\n1\n")
    chute.wait_rows("all", [(1,)])
    put_file(chute.inbox / "y.csv", "a,b\n2,new\n")
    chute.wait_rows("all", [(1, None), (2, "new")])


def test_on_schema_change_recreate(chute):
    chute.configure(infer(on_schema_change="recreate"))
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("t", [(1,)])
    put_file(chute.inbox / "t.csv", "b,a\nx,word\n")
    chute.wait_rows("t", [("x", "word")])
    assert [n for n, _ in chute.columns("t")] == ["b", "a"]


def test_the_dialect_of_a_table_that_exists_is_the_one_whose_header_matches(chute):
    chute.configure(infer(on_schema_change="reject"))
    chute.start()
    put_file(chute.inbox / "t.csv", "a;b\n1;2\n")
    chute.wait_rows("t", [(1, 2)])
    put_file(chute.inbox / "t.csv", "a;b\n1,5;2,5\n3,5;4,5\n")
    chute.wait_state("t.csv", "quarantined")  # text does not fit BIGINT; but it was split by ';'
    assert "missing" not in chute.explain(chute.inbox / "t.csv")


# ---- ways to load ----

@pytest.mark.core
def test_upsert_updates_by_key_and_the_last_of_a_file_wins(chute):
    chute.configure(infer(load="upsert", table="all", key=["id"]))
    chute.start()
    put_file(chute.inbox / "x.csv", "id,v\n1,a\n2,b\n1,c\n")
    chute.wait_rows("all", [(1, "c"), (2, "b")])
    put_file(chute.inbox / "y.csv", "id,v\n2,B\n3,d\n")
    chute.wait_rows("all", [(1, "c"), (2, "B"), (3, "d")])
    (receipt,) = chute.wait_receipts("y.csv", "loaded", 1)
    assert (receipt["parsed"], receipt["inserted"], receipt["updated"]) == (2, 1, 1)
    for r in chute.receipts():
        assert r["parsed"] == r["inserted"] + r["updated"] + r["unchanged"] + r["rejected"], r


@pytest.mark.core
@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
@pytest.mark.parametrize("load", ["newest", "keep_first"])
def test_any_order_of_arrival_gives_one_result(chute, load, order):
    files = ["id,at,v\n1,2024-01-01,old\n2,,none\n", "id,at,v\n1,2024-01-03,new\n2,2024-01-01,some\n3,2024-01-01,tie-a\n",
             "id,at,v\n1,2024-01-02,mid\n3,2024-01-01,tie-b\n"]
    chute.configure(infer(load=load, table="all", key=["id"], order_by=["at"]))
    chute.start()
    for i in order:
        put_file(chute.inbox / ("f%d.csv" % i), files[i])
        chute.wait_state("f%d.csv" % i, "loaded")
    rows = {r[0]: r[2] for r in chute.rows("all")}
    assert rows[1] == ("new" if load == "newest" else "old")
    assert rows[2] == ("some" if load == "newest" else "none")
    assert rows[3] == "tie-b"  # a full tie: the greater row in canonical text


def test_keep_first_without_order_keeps_what_came_first(chute):
    chute.configure(infer(load="keep_first", table="all", key=["id"]))
    chute.start()
    put_file(chute.inbox / "x.csv", "id,v\n1,first\n")
    chute.wait_state("x.csv", "loaded")
    put_file(chute.inbox / "y.csv", "id,v\n1,second\n2,other\n")
    chute.wait_rows("all", [(1, "first"), (2, "other")])


def test_a_null_in_a_key_is_a_bad_row(chute):
    chute.configure(infer(load="upsert", table="all", key=["id"]))
    chute.start()
    put_file(chute.inbox / "x.csv", "id,v\n1,a\n,b\n")
    chute.wait_state("x.csv", "quarantined")
    assert "line 3" in chute.explain(chute.inbox / "x.csv")


def test_a_duplicate_key_is_a_bad_row_for_replace(chute):
    chute.configure(infer(key=["id"]))
    chute.start()
    put_file(chute.inbox / "x.csv", "id,v\n1,a\n2,b\n1,c\n")
    chute.wait_state("x.csv", "quarantined")
    assert "line 4" in chute.explain(chute.inbox / "x.csv")


def test_row_numbers_count_records_of_the_file(chute):
    chute.configure(infer(row_number="n", bad_rows={"skip": 5}))
    chute.start()
    put_file(chute.inbox / "t.csv", 'n,b\n1,"x\ny"\n1,2,3\n2,z\n')
    chute.wait_rows("t", [(0, 1, "x\ny"), (2, 2, "z")])
    assert [n for n, _ in chute.columns("t")] == ["n.1", "n", "b"]


# ---- names and ownership ----

@pytest.mark.core
def test_two_files_that_would_own_one_table_are_told_so(chute):
    chute.configure(infer(table="{stem}"))
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("t", [(1,)])
    write_file(chute.inbox / "d/t.csv", "a\n2\n")
    chute.wait_state("d/t.csv", "quarantined")
    why = chute.explain(chute.inbox / "d/t.csv")
    assert "d/t.csv" in why and "t.csv" in why.replace("d/t.csv", "")
    assert chute.rows("t") == [(1,)]


def test_names_that_differ_only_in_case_collide(chute):
    chute.configure(infer())
    chute.start()
    put_file(chute.inbox / "Sales.csv", "a\n1\n")
    chute.wait_rows("Sales", [(1,)])
    put_file(chute.inbox / "sales.csv", "a\n2\n")
    chute.wait_state("sales.csv", "quarantined")
    assert "Sales" in chute.explain(chute.inbox / "sales.csv")
    assert chute.rows("Sales") == [(1,)]


@pytest.mark.parametrize("name", ["select.csv", "with space.csv", "quote\".csv", "brack]et.csv", "ñandú😀.csv", "semi;colon.csv",
                                  "sqlite_x.csv", "_chute_loads.csv", "x" * 150 + ".csv", "a.b.csv"])
def test_odd_names_become_tables_or_a_clear_refusal(chute, name):
    chute.configure(infer())
    chute.start()
    put_file(chute.inbox / name, "a\n1\n")
    if name.startswith(("sqlite_", "_chute")):
        chute.wait_state(name, "quarantined")
    else:
        stem = name[:-4]
        wait_until(lambda: chute.tables(), "a table")
        assert chute.query("SELECT * FROM \"%s\"" % stem.replace('"', '""')) == [(1,)]


def test_two_flows_have_one_job_each(chute):
    chute.configure(flows=[{"name": "one", "table": "one", "types": "text"}, {"name": "two", "table": "two", "types": "infer"}])
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.wait_rows("one", [("1",)])
    chute.wait_rows("two", [(1,)])


def test_include_and_exclude(chute):
    chute.configure(infer(include=["*/*.csv"], exclude=["skip/**"]))
    chute.start()
    for path in ("top.csv", "a/in.csv", "a/b/deep.csv", "skip/no.csv"):
        write_file(chute.inbox / path, "a\n1\n")
    write_file(chute.inbox / "z/last.csv", "a\n1\n")
    chute.wait_tables("a_in", "z_last")


# ---- the database ----

def test_what_others_made_on_a_table_survives_a_replace(chute):
    chute.start()
    put_file(chute.inbox / "t.csv", "a,b\n1,x\n2,y\n")
    chute.wait_rows("t", [(0, 1, "x"), (1, 2, "y")])
    with sqlite3.connect(chute.db, timeout=30) as db:
        db.execute("CREATE INDEX t_a ON t(a)")
        db.execute("CREATE VIEW v AS SELECT a FROM t WHERE b = 'z'")
        db.execute("CREATE TABLE seen(a)")
        db.execute("CREATE TRIGGER trg AFTER DELETE ON t BEGIN INSERT INTO seen VALUES (old.a); END")
    put_file(chute.inbox / "t.csv", "a,b\n3,z\n")
    chute.wait_rows("t", [(0, 3, "z")])
    assert chute.query("SELECT * FROM v") == [(3,)]
    names = {n for (n,) in chute.query("SELECT name FROM sqlite_schema")}
    assert {"t_a", "v", "trg"} <= names
    assert "t_a" in str(chute.query("EXPLAIN QUERY PLAN SELECT * FROM t WHERE a = 3"))


def test_a_table_of_somebody_else_is_filled_but_never_dropped(chute):
    with sqlite3.connect(chute.db) as db:
        db.execute("CREATE TABLE theirs(a BIGINT, b TEXT, PRIMARY KEY (a))")
        db.execute("INSERT INTO theirs VALUES (42, 'x')")
    chute.configure(infer(on_delete="drop"))
    chute.start()
    put_file(chute.inbox / "theirs.csv", "a,b\n1,2\n")
    put_file(chute.inbox / "mine.csv", "a\n1\n")
    chute.wait_rows("theirs", [(1, "2")])
    chute.wait_rows("mine", [(1,)])
    os.unlink(chute.inbox / "theirs.csv")
    os.unlink(chute.inbox / "mine.csv")
    chute.wait_tables("theirs")
    chute.wait_state("theirs.csv", "gone")
    assert chute.query("SELECT sql FROM sqlite_schema WHERE name = 'theirs'") == [("CREATE TABLE theirs(a BIGINT, b TEXT, PRIMARY KEY (a))",)]


def test_without_a_configuration_a_table_of_somebody_else_is_not_made_anew(chute):
    with sqlite3.connect(chute.db) as db:
        db.execute("CREATE TABLE theirs(x)")
        db.execute("INSERT INTO theirs VALUES (42)")
    chute.start(profile=None)
    put_file(chute.inbox / "theirs.csv", "a,b\n1,2\n")
    chute.wait_state("theirs.csv", "quarantined")
    assert chute.rows("theirs") == [(42,)]


@pytest.mark.core
def test_a_locked_database_is_waited_for(chute):
    chute.start()
    put_file(chute.inbox / "first.csv", "a\n1\n")
    chute.wait_rows("first", [(0, 1)])
    with sqlite3.connect(chute.db, timeout=30, isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")
        put_file(chute.inbox / "t.csv", "a\n2\n")
        time.sleep(2)
        assert chute.state_of("t.csv") != "quarantined"
        db.execute("COMMIT")
    db.close()
    chute.wait_rows("t", [(0, 2)])


def test_an_existing_database_keeps_its_journal_mode(chute):
    with sqlite3.connect(chute.db) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("CREATE TABLE mine(x)")
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n2\n")
    chute.wait_rows("t", [(0, 2)])
    assert chute.query("PRAGMA journal_mode") == [("delete",)]


def test_a_new_database_is_in_wal_mode(chute):
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n2\n")
    chute.wait_rows("t", [(0, 2)])
    assert chute.query("PRAGMA journal_mode") == [("wal",)]


def test_others_can_write_while_a_large_file_is_loaded(chute):
    chute.start()
    put_file(chute.inbox / "first.csv", "a\n1\n")
    chute.wait_rows("first", [(0, 1)])
    with sqlite3.connect(chute.db, timeout=30) as db:
        db.execute("CREATE TABLE other(x)")
    put_file(chute.inbox / "big.csv", "a,b\n" + "1,x\n" * 600000)
    written = 0
    with sqlite3.connect(chute.db, timeout=20, isolation_level=None) as db:
        while "big" not in chute.tables():
            db.execute("INSERT INTO other VALUES (1)")
            written += 1
            time.sleep(0.05)
    db.close()
    assert written >= 1
    wait_until(lambda: chute.query("SELECT count(*) FROM big") == [(600000,)], "big")
    assert chute.query("SELECT count(*) FROM other") == [(written,)]


# ---- secrets ----

def test_secrets_never_show(chute):
    """Nothing in this build takes a token but the configuration's own values; a value by ${VAR} must not be repeated in errors."""
    chute.configure(infer())
    text = chute.config.read_text().replace('"types"', '"no_such_key": "${TOKEN_X}", "types"')
    chute.config.write_text(text)
    done = chute.command("check", "-c", chute.config, env={"TOKEN_X": "s3cr3t-value"})
    assert done.returncode == 78
    assert "s3cr3t-value" not in done.stdout + done.stderr
    assert "no_such_key" in done.stderr


def test_files_of_chute_are_private(chute):
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n2\n")
    chute.wait_rows("t", [(0, 2)])
    assert (chute.state / "chute.sock").stat().st_mode & 0o777 == 0o600
    assert chute.state.stat().st_mode & 0o007 == 0
