"""Scenario part C: job titles in PostgreSQL: staging, warehouse, views. The profile as `chute init titles` writes it, on a real server."""
import json
import os
import shutil
import time

import pytest
from chute import TOP, put_file, wait_until, write_file
from postgres import clean_environment

pytestmark = pytest.mark.core

SAMPLE = TOP / "tests/data/csv/titles_small.csv"


class Titles:
    """One folder that `chute init titles` made, and the database it is for."""

    def __init__(self, chute, database):
        self.chute = chute
        self.database = database
        self.env = {name: value for name, value in clean_environment().items() if name not in os.environ}
        self.env.update(TITLES_DB=database.url, PGPASSWORD=database.password, PGPASSFILE="/nonexistent")
        shutil.rmtree(chute.inbox)
        done = chute.command("init", "titles", str(chute.home))
        assert done.returncode == 0, done.stderr
        chute.inbox = chute.home / "inbox"
        chute.state = chute.home / ".chute"

    def change(self, old, new):
        text = self.chute.config.read_text()
        assert text.count(old) == 1, old
        self.chute.config.write_text(text.replace(old, new))

    def start(self, **more):
        self.chute.start(env=self.env, **more)

    def once(self, *arguments, expect=0):
        return self.chute.once(*arguments, expect=expect, env=self.env)

    def pipeline(self, name, code=0):
        done = self.chute.command("pipeline", name, "-c", str(self.chute.config), env=self.env)
        assert done.returncode == code, "%s%s\n%s" % (done.stdout, done.stderr, self.chute.log_text()[-3000:])
        return done.stdout if code == 0 else done.stderr

    def status(self):
        done = self.chute.command("status", "--json", "-c", str(self.chute.config), env=self.env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def wait(self, sql, rows):
        def there():
            if self.database.value("select count(*) from pg_class where relname = 'titles'") == "0":
                return None
            return self.database.query(sql)
        wait_until(lambda: there() == rows, lambda: "%s to give %s; it gives %s\n%s" % (sql, rows, there(), self.chute.log_text()[-3000:]), pause=0.1)

    def wait_runs(self, name, good):
        wait_until(lambda: [p["good_runs"] for p in self.status()["pipelines"] if p["name"] == name and p["state"] == "idle"] == [good],
                   lambda: "%d runs of %s; there are %s\n%s" % (good, name, self.status()["pipelines"], self.chute.log_text()[-3000:]), pause=0.2)

    def tables(self):
        return [row for row, in self.database.query(
            "select schemaname || '.' || tablename from pg_tables where schemaname in ('staging', 'datawarehouse') order by 1")]


@pytest.fixture
def titles(chute, pg_database):
    return Titles(chute, pg_database)


def sample():
    return SAMPLE.read_text(encoding="utf-8")


UNICODE = [["assistant manager", "30"], ["ceo founder", "20"], ["co founder", "80"], ["cofounder", "70"], ["manager", "40"], ["null", "50"],
           ["owner", "100"], ["директор", "60"]]
ASCII = [["assistant manager", "30"], ["ceo  founder", "20"], ["cofounder", "80"], ["manager", "40"], ["no data", "60"], ["owner", "100"]]
JOBS = "select job_title, pdl_count from datawarehouse.job_titles order by job_title collate \"C\""
RELATED = "select id, job_title, related_title from datawarehouse.related_titles order by id"


def test_01_schemas_are_there_after_the_start_and_a_second_start_keeps_the_rows(titles):
    titles.start()
    titles.chute.wait_log("init: ")
    assert titles.database.query("select nspname from pg_namespace where nspname in ('staging', 'datawarehouse') order by 1") == [
        ["datawarehouse"], ["staging"]]
    assert titles.tables() == ["datawarehouse.job_titles", "datawarehouse.related_titles"]
    assert titles.chute.stop() == 0
    titles.database.psql("insert into datawarehouse.job_titles values ('mine', 1);")
    titles.start()
    wait_until(lambda: titles.chute.log_text().count("init: ") == 2, "init to run again")
    assert titles.database.query(JOBS) == [["mine", "1"]]
    assert titles.tables() == ["datawarehouse.job_titles", "datawarehouse.related_titles"]
    assert "already exists" not in titles.chute.log_text()


def test_02_a_file_copied_slowly_is_loaded_once_and_deleted(titles):
    titles.start()
    data = SAMPLE.read_bytes()
    pieces = [data[len(data) * i // 20:len(data) * (i + 1) // 20] for i in range(20)]
    with open(titles.chute.inbox / "titles.csv", "wb") as f:
        for piece in pieces:
            f.write(piece)
            f.flush()
            time.sleep(0.25)  # the slowness is what is tested
    titles.wait("select count(*) from staging.titles", [["8"]])
    titles.chute.wait_inbox()
    titles.wait_runs("analysis", 1)
    assert titles.database.query("select column_name, data_type from information_schema.columns where table_schema = 'staging' and table_name = 'titles'"
                                 " order by ordinal_position") == [
        ["row_no", "bigint"], ["title", "text"], ["pdl_count", "text"], ["top_related_titles", "text"], ["column_3", "text"], ["column_4", "text"],
        ["column_5", "text"], ["column_6", "text"]]
    assert titles.database.query("select row_no, title, column_3 from staging.titles order by row_no limit 2") == [
        ["0", "Owner", " sales"], ["1", " Co-Founder ", None]]
    receipts = [r for r in titles.chute.receipts() if r["state"] == "loaded"]
    assert len(receipts) == 1


def test_03_etl_by_the_unicode_rule(titles):
    write_file(titles.chute.inbox / "titles.csv", sample())
    titles.once()
    assert titles.database.query(JOBS) == UNICODE
    related = titles.database.query(RELATED)
    assert len(related) == 25
    assert related[:6] == [["1", "owner", "marketing"], ["2", "owner", "sales"], ["3", "owner", "president"], ["4", "owner", "partner"],
                           ["5", "owner", "manager"], ["6", "co founder", "strategy"]]
    assert titles.pipeline("etl").startswith("etl: ")
    assert titles.database.query(JOBS) == UNICODE and titles.database.query(RELATED) == related
    columns = "select column_name, data_type from information_schema.columns where table_name = '%s' order by ordinal_position"
    assert titles.database.query(columns % "job_titles") == [["job_title", "text"], ["pdl_count", "bigint"]]
    assert titles.database.query(columns % "related_titles") == [["id", "bigint"], ["job_title", "text"], ["related_title", "text"]]


def test_03_etl_by_the_ascii_rule(titles):
    titles.change("settings: {}}", "settings: {title_rule: ascii}}")
    write_file(titles.chute.inbox / "titles.csv", sample())
    titles.once()
    assert titles.database.query(JOBS) == ASCII
    related = titles.database.query(RELATED)
    assert len(related) == 24
    titles.pipeline("etl")
    assert titles.database.query(JOBS) == ASCII and titles.database.query(RELATED) == related
    titles.change("settings: {title_rule: ascii}}", "settings: {title_rule: asci}}")
    said = titles.pipeline("etl", code=1)
    assert "sql/etl.sql:" in said and 'title_rule: expected unicode or ascii, found "asci"' in said
    assert titles.database.query(JOBS) == ASCII


def test_03_titles_of_any_script(titles):
    names = ["  Ing.  arch ", "Führer-Büro", "東京 エンジニア", "प्रबंधक", "مدير  عام", "!!!", "", "C++ / C#", "ŠÉF", "Šéf", "e\u0301cole", "école"]
    write_file(titles.chute.inbox / "titles.csv", "title,pdl count,related\n" + "".join('"%s",%d,x\n' % (n, i) for i, n in enumerate(names)))
    titles.once()
    assert titles.database.query("select job_title, pdl_count from datawarehouse.job_titles order by pdl_count") == [
        ["ing arch", "0"], ["führer büro", "1"], ["東京 エンジニア", "2"], ["प्रबंधक", "3"], ["مدير عام", "4"], ["no data", "5"], ["c c", "7"],
        ["šéf", "8"], ["école", "10"]]


def test_03_a_count_that_is_no_number_is_null_and_told(titles):
    write_file(titles.chute.inbox / "titles.csv", "title,pdl count,related\na,7,\nb,many,x\nc,,y\n")
    titles.once()
    assert titles.database.query(JOBS) == [["a", "7"], ["b", None], ["c", None]]
    titles.chute.wait_log("etl: the server says WARNING: 1 counts are no whole numbers and become NULL; the first is in row 1")


@pytest.mark.parametrize("rule", ["", "ascii"])
def test_04_views(titles, rule):
    if rule:
        titles.change("settings: {}}", "settings: {title_rule: %s}}" % rule)
    write_file(titles.chute.inbox / "titles.csv", sample())
    titles.once()
    top = titles.database.query("table datawarehouse.top_related_titles")
    counts = titles.database.query("table datawarehouse.title_pdl_count")
    if rule:
        assert top == [["cofounder", "5"], ["owner", "5"], ["manager", "4"], ["no data", "4"], ["assistant manager", "3"], ["ceo  founder", "3"]]
        assert counts == [["owner", "100"], ["cofounder", "80"], ["no data", "60"], ["manager", "40"], ["assistant manager", "30"], ["ceo  founder", "20"]]
    else:
        assert top == [["owner", "5"], ["manager", "4"], ["assistant manager", "3"], ["ceo founder", "3"], ["co founder", "3"], ["cofounder", "3"],
                       ["null", "2"], ["директор", "2"]]
        assert counts == sorted(UNICODE, key=lambda row: -int(row[1]))
    assert titles.database.query("table datawarehouse.manager_titles") == [["53"]]
    titles.pipeline("analysis")
    assert titles.database.query("table datawarehouse.top_related_titles") == top


def test_04_ten_rows_and_no_more(titles):
    write_file(titles.chute.inbox / "titles.csv", "title,pdl count,related\n" + "".join("t%02d,5,x\n" % i for i in range(15)))
    titles.once()
    ten = [["t%02d" % i for i in range(10)]]
    for view in ("top_related_titles", "title_pdl_count"):
        assert [[row[0] for row in titles.database.query("table datawarehouse." + view)]] == ten


def test_05_the_database_is_down_when_the_file_arrives(chute, postgres):
    titles = Titles(chute, postgres.make_database())
    titles.change("    init: [sql/init.sql] ", "    retry: {first: 100ms, max: 1s}\n    init: [sql/init.sql] ")
    postgres.stop()
    titles.start()
    write_file(titles.chute.inbox / "titles.csv", sample())
    titles.chute.wait_log("is down; its files wait")
    assert os.listdir(titles.chute.inbox) == ["titles.csv"]
    postgres.start()
    titles.wait("select count(*) from staging.titles", [["8"]])
    titles.wait_runs("analysis", 1)
    assert titles.database.query(JOBS) == UNICODE
    titles.chute.wait_inbox()


def test_05_a_server_lost_during_a_pipeline_runs_it_again(chute, postgres):
    titles = Titles(chute, postgres.make_database())
    titles.change("    init: [sql/init.sql] ", "    retry: {first: 100ms, max: 1s}\n    init: [sql/init.sql] ")
    etl = titles.chute.home / "sql/etl.sql"
    whole = etl.read_text()
    etl.write_text("SELECT pg_sleep(600);\n" + whole)
    titles.start()
    write_file(titles.chute.inbox / "titles.csv", sample())
    wait_until(lambda: titles.database.sessions("query ~ 'pg_sleep' and state = 'active'"), "the pipeline to run", pause=0.1)
    assert [row[1] for row in titles.database.sessions("query ~ 'pg_sleep'")] == ["chute etl"]
    etl.write_text(whole)
    postgres.stop("immediate")
    postgres.start()
    titles.wait_runs("etl", 1)
    assert titles.database.query(JOBS) == UNICODE
    assert titles.database.value("select count(*) from pg_stat_activity where state like 'idle in transaction%'") == "0"


def test_05_killed_during_copy_leaves_nothing_half(titles):
    """kill -9 while rows are on their way: staging has all of the old file, or all of the new one, and at the end the new one."""
    write_file(titles.chute.inbox / "titles.csv", sample())
    titles.once()
    rows = 200000
    for turn in range(3):
        titles.start()
        put_file(titles.chute.inbox / "big.csv", "title,pdl count,top related titles,,,,\n" + "t %d,1,a,b,c,d,e\n" % turn * rows)
        wait_until(lambda: titles.database.sessions("query ~* 'copy' and state = 'active'") or
                   titles.database.value("select count(*) from staging.titles") == str(rows), "the COPY", pause=0.005)
        titles.chute.kill9()
        wait_until(lambda: titles.database.sessions("application_name ~ 'chute'") == [], "the server to notice", pause=0.05)
        assert titles.database.value("select count(*) from staging.titles") in ("8", str(rows))
    titles.once()
    assert titles.database.query("select count(*), min(title), max(title) from staging.titles") == [[str(rows), "t 2", "t 2"]]
    assert os.listdir(titles.chute.inbox) == []
    assert titles.database.query("select count(*) from datawarehouse.job_titles") == [["1"]]


def test_05_killed_between_load_and_etl(titles):
    etl = titles.chute.home / "sql/etl.sql"
    whole = etl.read_text()
    etl.write_text("SELECT pg_sleep(600);\n" + whole)
    titles.start()
    write_file(titles.chute.inbox / "titles.csv", sample())
    wait_until(lambda: titles.database.sessions("query ~ 'pg_sleep' and state = 'active'"), "the pipeline to run", pause=0.1)
    titles.chute.kill9()
    titles.database.psql("select pg_terminate_backend(pid) from pg_stat_activity where query ~ 'pg_sleep' and pid <> pg_backend_pid();")
    etl.write_text(whole)
    titles.once()
    assert titles.database.query(JOBS) == UNICODE


def test_06_short_rows_and_files_that_do_not_belong(titles):
    inbox = titles.chute.inbox
    titles.start()
    write_file(inbox / "wrong.csv", "name,pdl count\na,1\n")
    write_file(inbox / "readme.txt", "hello")
    titles.chute.wait_state("wrong.csv", "quarantined")
    assert 'column "title" is missing, which the flow requires' in titles.chute.explain(inbox / "wrong.csv")
    write_file(inbox / "short.csv", "title,pdl count,top related titles,,,,\nowner,1\nmanager,2,x,y\n")
    titles.wait("select row_no, title, pdl_count, top_related_titles, column_3, column_6 from staging.titles order by row_no",
                [["0", "owner", "1", None, None, None], ["1", "manager", "2", "x", "y", None]])
    titles.chute.wait_inbox("readme.txt", "wrong.csv")
    write_file(inbox / "titles.csv", sample())
    titles.wait("select count(*) from staging.titles", [["8"]])
    titles.wait_runs("analysis", 2)
    # the same file again: the table holds it already
    write_file(inbox / "titles.csv", sample())
    titles.chute.wait_log("already loaded")
    titles.chute.wait_inbox("readme.txt", "wrong.csv")
    assert titles.database.value("select count(*) from staging.titles") == "8"


def test_07_reset_drops_what_the_flow_made_and_nothing_else(titles):
    write_file(titles.chute.inbox / "titles.csv", sample())
    titles.once()
    titles.database.psql("create table staging.mine(a int);")
    done = titles.chute.command("reset", "titles", "--yes", "-c", str(titles.chute.config), env=titles.env)
    assert done.returncode == 0, done.stderr
    assert "titles" in done.stdout and "mine" not in done.stdout
    assert titles.tables() == ["datawarehouse.job_titles", "datawarehouse.related_titles", "staging.mine"]
    assert titles.database.query(JOBS) == UNICODE


# ---- beside the scenario: what scripts in PostgreSQL owe ----

def script(titles, text, code=1):
    write_file(titles.chute.home / "sql/analysis.sql", text)
    return titles.pipeline("analysis", code)


def test_errors_come_with_file_line_and_statement(titles):
    said = script(titles, "SELECT 1;\n\nSELECT 'ž', nope\nFROM datawarehouse.job_titles;\n")
    assert "sql/analysis.sql:3: statement 2 (\"SELECT 'ž', nope FROM datawarehouse.job_titles\"): column \"nope\" does not exist" in said
    # without a position of the server's
    said = script(titles, "-- ;\nSELECT ';';\nDO $$ BEGIN PERFORM 1; END $$;\n\nINSERT INTO datawarehouse.job_titles VALUES ('a', 1),\n ('a', 2);")
    assert "sql/analysis.sql:5: statement 3 (\"INSERT INTO datawarehouse.job_titles" in said
    assert "duplicate key value" in said and "(job_title)=(a) already exists" in said
    said = script(titles, "SELECT 1;\nSELEKT 2;")
    assert "sql/analysis.sql:2: statement 2 (\"SELEKT 2\"): syntax error" in said
    said = script(titles, "DO $$\nBEGIN\n  RAISE EXCEPTION 'not today' USING HINT = 'try tomorrow';\nEND $$;")
    assert "not today; try tomorrow; in PL/pgSQL function inline_code_block line 3 at RAISE" in said
    assert titles.database.query(JOBS) == []
    assert "SELECT 1" not in titles.chute.log_text().lower()


@pytest.mark.parametrize("word", ["COMMIT", "commit and chain", "ROLLBACK", "BEGIN", "END", "START TRANSACTION", "ABORT", "PREPARE TRANSACTION 'x'"])
def test_the_transaction_is_chutes(titles, word):
    said = script(titles, "INSERT INTO datawarehouse.job_titles VALUES ('a', 1);\n/* ; */ %s;\n" % word)
    assert "sql/analysis.sql:2: statement 2 (" in said and "BEGIN, COMMIT and ROLLBACK are chute's" in said
    assert titles.database.query(JOBS) == []


def test_savepoints_and_bodies_are_not_taken_for_it(titles):
    out = script(titles, "SAVEPOINT s;\nINSERT INTO datawarehouse.job_titles VALUES ('gone', 1);\nROLLBACK TO SAVEPOINT s;\nRELEASE SAVEPOINT s;\n"
                 "DO $x$ BEGIN INSERT INTO datawarehouse.job_titles VALUES ('a;b', 1); END $x$;\nPREPARE p AS SELECT 1; EXECUTE p;\n"
                 "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 2 END; END;\nSELECT f();\n", code=0)
    assert out.startswith("analysis: 9 statements, ")
    assert titles.database.query(JOBS) == [["a;b", "1"]]


def test_settings_are_for_the_transaction_and_may_hold_anything(titles):
    titles.change("analysis: {in: dwh, sql: [sql/analysis.sql]}", "analysis: {in: dwh, sql: [sql/analysis.sql], settings: {a: \"it's \\\\ \\\"x\\\"\", b: \"\"}}")
    script(titles, "CREATE TABLE staging.seen AS SELECT current_setting('chute.a', true) a, current_setting('chute.b', true) b, "
           "current_setting('chute.c', true) c;", code=0)
    assert titles.database.query("table staging.seen") == [["it's \\ \"x\"", "", None]]


def test_scripts_run_beside_loads_and_end_with_the_daemon(titles):
    titles.change("state: .chute ", "shutdown_grace: 200ms\nstate: .chute ")
    write_file(titles.chute.home / "sql/analysis.sql", "SELECT pg_sleep(600);\n")
    titles.start()
    write_file(titles.chute.inbox / "titles.csv", sample())
    wait_until(lambda: titles.database.sessions("query ~ 'pg_sleep' and state = 'active'"), "the pipeline to run", pause=0.1)
    write_file(titles.chute.inbox / "titles.csv", sample().replace("Owner", "Proprietor"))
    titles.wait("select title from staging.titles where row_no = 0", [["Proprietor"]])  # the load did not wait
    assert titles.chute.stop() == 0
    wait_until(lambda: titles.database.sessions("application_name ~ 'chute'") == [], "the server to be left alone", pause=0.05)
    titles.chute.wait_log("pipeline analysis: stopped")
    write_file(titles.chute.home / "sql/analysis.sql", "SELECT 1;\n")
    titles.once()
    assert titles.database.query("select count(*) from datawarehouse.job_titles where job_title = 'proprietor'") == [["1"]]


def test_a_lock_of_another_is_waited_for_and_then_tried_again(titles):
    titles.change("    init: [sql/init.sql] ", "    lock_timeout: 200ms\n    retry: {first: 100ms, max: 500ms}\n    init: [sql/init.sql] ")
    write_file(titles.chute.inbox / "titles.csv", sample())
    with titles.database.session() as other:
        titles.start()
        titles.wait_runs("analysis", 1)
        other.run("begin; lock table datawarehouse.job_titles;")
        put_file(titles.chute.inbox / "titles.csv", sample().replace("Owner", "Proprietor"))
        titles.chute.wait_log("canceling statement due to lock timeout; it is tried again")
        other.run("commit;")
        titles.wait("select count(*) from datawarehouse.job_titles where job_title = 'proprietor'", [["1"]])


def test_init_without_the_right_blocks_and_waits_for_it(chute, shared_postgres):
    database = shared_postgres.make_database()
    shared_postgres.make_role("etl_%s" % database.name)
    titles = Titles(chute, database.as_role("etl_%s" % database.name))
    database.psql("create schema chute authorization \"%s\";" % titles.database.role)
    titles.change("    init: [sql/init.sql] ", "    schema: chute\n    init: [sql/init.sql] ")
    write_file(titles.chute.inbox / "titles.csv", sample())
    titles.start()
    titles.chute.wait_log("init: ", "sql/init.sql:4: statement 2", "permission denied for database")
    titles.chute.wait_state("titles.csv", "queued")
    database.psql("grant create on database \"%s\" to \"%s\";" % (database.name, titles.database.role))
    titles.chute.ask("retry", "--all")
    titles.wait("select count(*) from staging.titles", [["8"]])


def test_init_does_not_overwrite(chute):
    done = chute.command("init", "titles", str(chute.home / "a"))
    assert done.returncode == 0
    made = sorted(str(p.relative_to(chute.home / "a")) for p in (chute.home / "a").rglob("*") if p.is_file())
    assert made == ["chute.yaml", "sql/analysis.sql", "sql/etl.sql", "sql/init.sql"]
    assert done.stdout.splitlines()[-1] == "%s/a/chute.yaml" % chute.home
    for name in ("chute.yaml", "sql/init.sql", "sql/analysis.sql"):
        os.unlink(chute.home / "a" / name)
    (chute.home / "a/sql/etl.sql").write_text("mine")
    done = chute.command("init", "titles", str(chute.home / "a"))
    assert done.returncode == 1 and "sql/etl.sql exists and is left as it is" in done.stderr
    assert (chute.home / "a/sql/etl.sql").read_text() == "mine"
    assert os.listdir(chute.home / "a/sql") == ["etl.sql"] and not (chute.home / "a/chute.yaml").exists()


def test_the_profile_on_the_command_line_loads_the_staging_table(titles):
    """Without a configuration file there are no scripts: staging alone."""
    os.unlink(titles.chute.config)
    write_file(titles.chute.inbox / "titles.csv", sample())
    done = titles.chute.command("run", "--once", "--profile", "titles", "--watch", str(titles.chute.inbox), "--to", titles.database.url,
                                "--state", str(titles.chute.state), env=titles.env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert titles.database.value("select count(*) from staging.titles") == "8"
    assert os.listdir(titles.chute.inbox) == []
    assert titles.tables() == ["staging.titles"]


def test_who_moves_from_the_command_line_to_a_file_finds_the_receipts(titles):
    text = titles.chute.config.read_text()
    os.unlink(titles.chute.config)
    write_file(titles.chute.inbox / "titles.csv", sample())
    done = titles.chute.command("run", "--once", "--profile", "titles", "--watch", str(titles.chute.inbox), "--to", titles.database.url,
                                "--state", str(titles.chute.state), env=titles.env, timeout=120)
    assert done.returncode == 0, done.stderr
    titles.chute.config.write_text(text)
    write_file(titles.chute.inbox / "titles.csv", sample())
    titles.once()
    assert "already loaded" in titles.chute.log_text()
    assert {r["flow"] for r in titles.chute.receipts()} == {"titles"}


def test_the_example_for_containers_is_a_valid_configuration(chute):
    done = chute.command("check", "-c", str(TOP / "deploy/chute-titles.yaml"), env={"PGPASSWORD": "secret-for-a-test"})
    assert "fine: 1 sources, 1 destinations, 1 flows" in done.stdout
    assert "/etc/chute/sql/etl.sql can't be read" in done.stderr and "secret-for-a-test" not in done.stdout + done.stderr
