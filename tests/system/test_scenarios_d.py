"""Scenario part D: an inbox of JSON events, with the rules that `chute init events` writes. In the order of its list."""
import contextlib
import gzip
import json
import os
import random
import shutil
import sqlite3

import pytest
from chute import LONG, put_file, tool, wait_until, write_file
from events import BAD, EVENTS, GOOD, Inbox, Lite, Pg

pytestmark = pytest.mark.core
SHUFFLES = 100


@pytest.fixture(params=["sqlite", "postgres"])
def events(request, chute):
    return Inbox(chute, Lite(chute) if request.param == "sqlite" else Pg(request.getfixturevalue("pg_database")))


USERS = {0: ("Brian Hill", 0.7496072140369432), 1: ("José Álvarez", 0.0), 2: ("Mary O'Connor", 0.1234567890123456)}
CARDS = {10: (1, False, "2022-06-24 10:00:09"), 11: (2, False, "2022-06-24 10:00:20"), 13: (0, True, "2022-06-24 10:00:08"),
         14: (1000, True, "2022-06-24 10:00:08")}


TYPES = {"sqlite": ["BIGINT", "TEXT", "TEXT", "TEXT"], "postgres": ["bigint", "numeric", "timestamp without time zone", "jsonb"]}


def age(events, names):
    """Times of change in the past, in the order of NAMES: files are taken in that order, and at once."""
    for i, name in enumerate(names):
        os.utime(events.inbox / name, (1600000000 + i, 1600000000 + i))


def test_01_to_03_one_pass(events):
    events.configure(incomplete_after="100ms")
    events.fill()
    events.chute.once(expect=1)  # some were quarantined
    assert events.users() == USERS
    assert events.cards() == CARDS
    assert events.files("completed") == GOOD
    assert events.files("invalid") == sorted(BAD)
    assert events.files("inbox") == ["cards/__id_counter"]
    assert (events.inbox / "cards/__id_counter").read_bytes() == (EVENTS / "cards/__id_counter").read_bytes()
    reasons = {name[-8:-5]: events.reason(name) for name in BAD}
    assert "user_id is missing" in reasons["105"] and "user_id is missing" in reasons["106"]
    assert "incomplete" in reasons["0e1"] and "line 3" in reasons["0e1"]
    assert "invoice" in reasons["0e2"]
    assert "not an object" in reasons["0e3"]
    for name in GOOD:
        assert (events.home / "completed" / name).read_bytes() == (EVENTS / name).read_bytes()


def test_01_newest_lets_the_later_event_win(events):
    events.configure(("load: keep_first", "load: newest"))
    events.fill(GOOD)
    age(events, GOOD)
    events.chute.once()
    assert events.users()[1] == ("Jose Alvarez (dup id, later event)", 0.5)
    assert events.cards() == CARDS


def test_04_any_order_of_arrival_gives_the_same_tables(events):
    random.seed(4)
    orders = [random.sample(GOOD, len(GOOD)) for _ in range(SHUFFLES)]
    cuts = [random.randrange(len(GOOD)) for _ in range(SHUFFLES)]
    events.configure_many(SHUFFLES)
    for is_second in (False, True):  # two passes: what meets in one transaction differs too
        for i, (names, cut) in enumerate(zip(orders, cuts)):
            part = names[cut:] if is_second else names[:cut]
            events.fill(part, below=str(i))
            age(events, ["%d/%s" % (i, name) for name in part])
        events.chute.once()
    store, tables = events.store, []
    for i, names in enumerate(orders):
        events.store = store.number(i)
        assert events.users() == USERS, names
        assert events.cards() == CARDS, names
        tables.append(events.tables_whole())
    assert all(one == tables[0] for one in tables)


def test_05_the_same_files_again_change_nothing(events):
    events.configure()
    events.fill(GOOD)
    age(events, GOOD)
    events.chute.once()
    before = events.tables_whole()
    events.fill(GOOD)
    age(events, GOOD)
    events.chute.once()
    assert events.tables_whole() == before
    assert events.files("inbox") == []
    assert events.files("completed") == GOOD  # the same bytes replace those that were there
    for name in GOOD:
        assert len(events.chute.receipts_of(name, "loaded")) == 1
        assert len(events.chute.receipts_of(name, "skipped")) == 1


def user(number, at="2024-01-01 00:00:00", **payload):
    return json.dumps({"metadata": {"type": "user", "event_at": at, "event_id": str(number)}, "payload": {"id": number, **payload}})


@pytest.mark.parametrize("seed", range(6 if LONG else 2))
def test_06_killed_in_the_middle_of_a_thousand_events(events, seed):
    count = 1000
    events.configure()
    for i in range(count):
        write_file(events.inbox / ("%d/%04d.json" % (i % 7, i)), user(i, name="n%d" % i))
    random.seed(seed)
    # the milestones only make the kills land in the middle; what must hold does not depend on where they land
    for milestone in sorted(random.sample(range(1, count), 3)):
        events.chute.start()
        wait_until(lambda: len(events.files("completed")) >= milestone or not events.files("inbox"), "%d loaded" % milestone, pause=0.001)
        events.chute.kill9()
        everywhere = events.files("inbox") + events.files("completed") + events.files("invalid")
        assert len(everywhere) == count  # each is in exactly one place, if under a private name
    events.chute.start()
    events.wait_empty()
    assert events.chute.stop() == 0
    assert sorted(events.users()) == list(range(count))
    assert events.files("invalid") == []
    assert sorted(name[-9:] for name in events.files("completed")) == ["%04d.json" % i for i in range(count)]
    receipts = events.store.rows("SELECT path, sum(parsed), sum(inserted + updated + unchanged + rejected) FROM _chute_loads GROUP BY path")
    assert len(receipts) == count and {(int(p), int(q)) for _, p, q in receipts} == {(1, 1)}


@pytest.mark.parametrize("names", ["fdatasync,fsync", "renameat,rename,renameat2,unlinkat,unlink"])
def test_06_killed_at_every_step_that_reaches_the_disk(events, names):
    """Die at the 1st, 2nd, 3rd … of them: each file is in one place, each event in the tables once."""
    chute = events.chute
    bad = BAD[-1]  # user_id is missing
    some = GOOD[:2] + GOOD[-2:] + [bad]
    history = """    records:
      - {table: history, columns: {id: {from: /metadata/event_id}}, load: append, continue: true}
"""
    when, killed = 0, True
    while killed and when < (400 if LONG else 40):
        when += 1
        for place in (chute.state, events.inbox, events.home / "completed", events.home / "invalid"):
            shutil.rmtree(place, ignore_errors=True)
        for path in chute.home.glob("out.db*"):
            path.unlink()
        if events.store.kind == "postgres":
            events.store.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        events.configure(("    records:                       # the first rule whose `when` matches takes the event; none is an error\n", history))
        events.fill(some)
        age(events, some)
        code = chute.once(prefix=[tool("strace"), "-f", "-qq", "-o", str(chute.home / "strace.out"), "-e", "trace=" + names,
                                  "-e", "inject=%s:signal=SIGKILL:when=%d" % (names, when)], expect=None)
        killed = code not in (0, 1)
        chute.once(expect=None)
        assert events.files("inbox") == [], when
        assert events.files("completed") == sorted(some[:4]) and events.files("invalid") == [bad], when
        assert "user_id is missing" in events.reason(bad), when
        assert sorted(file["state"] for file in chute.files()) == ["loaded"] * 4 + ["quarantined"], when
        loaded = sorted(i for i, in events.store.rows("SELECT id FROM history"))
        assert loaded == sorted(name[-41:-5] for name in some[:4]), "killed at call %d of %s" % (when, names)
    assert when > 3


def test_07_a_file_written_in_two_halves_is_loaded(events):
    events.configure(incomplete_after="10m")
    events.chute.start()
    text = user(1, name="whole")
    half = len(text) // 2
    with open(events.inbox / "one_open.json", "w") as f:
        f.write(text[:half])
        f.flush()
        write_file(events.inbox / "two_opens.json", text.replace('"id": 1', '"id": 2')[:half])
        events.chute.wait_log("file=two_opens.json", "incomplete so far")
        assert events.files("completed") == []
        f.write(text[half:])
    with open(events.inbox / "two_opens.json", "a") as f:
        f.write(text[half:].replace('"id": 1', '"id": 2'))
    events.wait_empty()
    assert events.files("completed") == ["one_open.json", "two_opens.json"]
    assert sorted(events.users()) == [1, 2]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_08_the_server_restarted_in_between(chute, postgres, mode):
    events = Inbox(chute, Pg(postgres.make_database())).configure()
    chute.start()
    events.fill(GOOD[:5])
    events.wait_empty()
    postgres.stop(mode)
    events.fill(GOOD[5:])
    chute.wait_log("try 1 failed")
    postgres.start()
    events.wait_empty()
    assert events.files("completed") == GOOD and events.files("invalid") == []
    assert events.users() == USERS and events.cards() == CARDS
    assert chute.stop() == 0


def test_08_the_file_locked_in_between(chute):
    events = Inbox(chute, Lite(chute)).configure()
    chute.start()
    events.fill(GOOD[:5])
    events.wait_empty()
    with contextlib.closing(sqlite3.connect(chute.db, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        events.fill(GOOD[5:])
        chute.wait_log("try 1 failed")
        other.execute("COMMIT")
    events.wait_empty()
    assert events.files("completed") == GOOD and events.files("invalid") == []
    assert events.users() == USERS and events.cards() == CARDS


def test_09_every_character_arrives_byte_for_byte(events):
    odd = "line\nbreak\r\n\ttab \"quoted\" 'single' back\\slash \u00e9\u010d\u20ac \U0001f600 \\N \\. , ; | \u2028 \x7f"
    text = json.dumps({"metadata": {"type": "user", "event_at": "2024-01-01 00:00:00", "event_id": ""},
                       "payload": {"id": 1, "name": odd, "address": odd.encode("unicode_escape").decode(), "score": 0.1}}, indent=2)
    plain = text.replace('"id": 1', '"id": 2')
    plain = json.dumps(json.loads(plain), ensure_ascii=False)
    events.configure()
    write_file(events.inbox / "escaped.json", text)
    write_file(events.inbox / "plain.json", plain)
    events.chute.once()
    rows = events.store.rows("SELECT external_id, name, address, raw FROM users ORDER BY external_id")
    assert [tuple(row[1:3]) for row in rows] == [(odd, odd.encode("unicode_escape").decode())] * 2
    if events.store.kind == "sqlite":
        assert [row[3] for row in rows] == [text, plain]
    else:  # jsonb keeps what was said, not how
        assert [json.loads(row[3]) for row in rows] == [json.loads(text), json.loads(plain)]


# ---- what the list does not say ----

def test_arrays_lines_and_compressed_files(events):
    events.configure()
    write_file(events.inbox / "array.json", "[\n %s ,\n%s]\n" % (user(1), user(2)))
    write_file(events.inbox / "lines.jsonl", "".join(user(i) + "\n" for i in (3, 4, 5)))
    write_file(events.inbox / "packed.ndjson.gz", gzip.compress(("%s\n%s" % (user(6), user(7))).encode()))
    write_file(events.inbox / "empty.json", "")
    write_file(events.inbox / "blank.json", " \n ")
    events.chute.once()
    assert [i for i, in events.store.rows("SELECT external_id FROM users ORDER BY external_id")] in (list(range(1, 8)), [str(i) for i in range(1, 8)])
    assert events.files("completed") == ["array.json", "lines.jsonl", "packed.ndjson.gz"]
    assert [r["parsed"] for r in events.chute.receipts_of("lines.jsonl")] == [3]
    assert events.chute.state_of("empty.json") == events.chute.state_of("blank.json") == "skipped"


def test_one_bad_event_rejects_its_file_and_no_other(events):
    events.configure()
    write_file(events.inbox / "bad.jsonl", user(1) + "\n" + user("x") + "\n" + user(2) + "\n")
    write_file(events.inbox / "good.jsonl", user(3) + "\n")
    events.chute.once(expect=1)
    assert [int(i) for i, in events.store.rows("SELECT external_id FROM users")] == [3]
    assert events.files("invalid") == ["bad.jsonl"]
    reason = events.reason("bad.jsonl")
    for words in ("line 2", "/payload/id", "expected bigint", 'found the text \\"x\\"'):
        assert words in reason, reason


def test_bad_events_that_may_be_skipped_are_kept_with_their_reason(events):
    events.configure(("bad_rows: reject_file ", "bad_rows: {skip: 2} "))
    bad = user("x"), '{"metadata": {"type": "user"} "payload": {}}'
    write_file(events.inbox / "some.jsonl", "\n".join([user(1), bad[0], user(2), bad[1], user(3)]))
    events.chute.once()
    assert [int(i) for i, in events.store.rows("SELECT external_id FROM users ORDER BY external_id")] == [1, 2, 3]
    receipt, = events.chute.receipts_of("some.jsonl")
    assert (receipt["parsed"], receipt["rejected"]) == (5, 2)
    kept = (events.home / ".chute/quarantine/events/some.jsonl.rejected.csv").read_text()
    for text in bad:
        assert text.replace('"', '""') in kept
    assert "expected bigint" in kept and "expected ',' or '}'" in kept


TWICE = [{"when": {"/kind": "user"}, "continue": True, "table": "users", "load": "newest", "key": ["id"], "order_by": ["at"],
          "columns": {"id": {"from": "/id", "type": "bigint", "required": True}, "at": {"from": "/at", "type": "bigint"}}},
         {"when": {"/kind": "user"}, "table": "history", "load": "append", "columns": {"id": {"from": "/id", "type": "bigint"}, "note": {"from": "/note"}}}]


@pytest.mark.parametrize("count", [30, 20000])
@pytest.mark.parametrize("refusing", ["users", "history"])
def test_an_event_with_a_refused_row_goes_in_nowhere(events, refusing, count):
    """`continue: true`: what the server refuses of one table is left out of the other as well."""
    store = events.store
    dest = {"type": "sqlite", "path": str(events.chute.db)} if store.kind == "sqlite" else {"type": "postgres", "url": store.database.socket_url}
    bad = [5, 17, count - 1]
    for table, columns in (("users", "id bigint PRIMARY KEY, at bigint"), ("history", "id bigint, note text")):
        store.execute("CREATE TABLE %s(%s%s)" % (table, columns, ", CHECK (id NOT IN (%s))" % ", ".join(map(str, bad)) if table == refusing else ""))
    write_file(events.inbox / "e.jsonl", "".join(json.dumps({"kind": "user", "id": i, "at": i, "note": "n%d" % i}) + "\n" for i in range(count)))

    def configure(skip):
        events.chute.configure(dests={"here": dest}, flows=[{"to": "here", "format": "json", "include": ["*.jsonl"], "load": "append", "on_changed": "tail",
                                                             "records": TWICE, "bad_rows": {"skip": skip}}])
    configure(2)
    events.chute.once(expect=1)
    assert [store.rows("SELECT count(*) FROM %s" % t) for t in ("users", "history")] in ([[(0,)], [(0,)]], [[["0"]], [["0"]]])
    shows_late = refusing == "users" if store.kind == "postgres" else count > 30  # when the rows meet the table, all at once
    assert ("constraint" if shows_late else "3 bad rows") in events.chute.explain(events.inbox / "e.jsonl")
    configure(3)
    events.chute.once(expect=1 if shows_late else 0)
    if shows_late:
        assert [[int(n) for n, in store.rows("SELECT count(*) FROM %s" % t)] for t in ("users", "history")] == [[0], [0]]
        return
    for table in ("users", "history"):
        assert [int(i) for i, in store.rows("SELECT id FROM %s ORDER BY id" % table)] == [i for i in range(count) if i not in bad], table
    receipt, = events.chute.receipts_of("e.jsonl", "loaded")
    assert (receipt["parsed"], receipt["inserted"], receipt["rejected"]) == (2 * count, 2 * count - 6, 6), receipt
    kept = (events.chute.state / "quarantine/main/e.jsonl.rejected.csv").read_text()
    assert [kept.count('""id"": %d,' % i) for i in bad] == [1, 1, 1], kept
    # what follows is counted on from there
    with open(events.inbox / "e.jsonl", "a") as f:
        f.write(json.dumps({"kind": "user", "id": count, "at": 1, "note": "last"}) + "\n")
    events.chute.once()
    assert [int(i) for i, in store.rows("SELECT id FROM history ORDER BY id")] == [i for i in range(count + 1) if i not in bad]


def test_a_large_file_fills_several_tables_at_once(events):
    events.configure(("load: keep_first", "load: newest"))
    count = 3000
    texts = []
    for i in range(count):
        texts.append(user(i % 1000, "2024-01-01 00:%02d:%02d" % (i // 60 % 60, i % 60), name="v%d" % i))
        texts.append(json.dumps({"metadata": {"type": "card", "event_at": "2024-01-01 00:00:00", "event_id": "x"},
                                 "payload": {"id": i, "user_id": i % 1000}}))
    write_file(events.inbox / "large.json", "[%s]" % ",\n".join(texts))
    assert (events.inbox / "large.json").stat().st_size > 512 * 1024
    events.chute.once()
    assert {int(i): name for i, name in events.store.rows("SELECT external_id, name FROM users")} == {i: "v%d" % (2000 + i) for i in range(1000)}
    assert [int(n) for n, in events.store.rows("SELECT count(*) FROM cards")] == [count]
    receipt, = events.chute.receipts_of("large.json")
    assert (receipt["parsed"], receipt["inserted"], receipt["updated"] + receipt["unchanged"]) == (2 * count, count + 1000, 2000)
    assert receipt["rejected"] == 0
    # a bad event at its end: nothing of it
    write_file(events.inbox / "large2.json", "[%s]" % ",\n".join(texts + [user("x")]).replace('"v', '"w'))
    events.chute.once(expect=1)
    assert {name[0] for name, in events.store.rows("SELECT name FROM users")} == {"v"}
    assert events.store.tables() == {"users", "cards"}


def test_times_are_ordered_by_their_instant(events):
    events.configure(("load: keep_first", "load: newest"))
    # the text of the later one sorts before that of the earlier one
    put_file(events.inbox / "a.json", user(1, "2024-01-01T10:00:09", name="earlier"))
    put_file(events.inbox / "b.json", user(1, "2024-01-01 10:00:09.5", name="later"))
    events.chute.once()
    assert events.users_names() == {1: "later"}
    put_file(events.inbox / "c.json", user(1, "2024-01-01T10:00:09.49", name="between"))
    events.chute.once()
    assert events.users_names() == {1: "later"}


def test_reset_drops_all_tables_of_the_rules(events):
    events.configure()
    events.fill(GOOD)
    age(events, GOOD)
    events.chute.once()
    assert events.store.tables() == {"users", "cards"}
    text = events.chute.ask("reset", "events", "--yes")
    assert "dropped users, cards in here" in text and "2 tables dropped" in text, text
    assert events.store.tables() == set()
    assert events.store.rows("SELECT count(*) FROM _chute_loads")[0][0] in (0, "0")
    events.fill(GOOD)
    age(events, GOOD)
    events.chute.once()
    assert events.users() == USERS and events.cards() == CARDS


def test_a_csv_of_the_flow_s_name_is_another_table(events):
    csv = ("flows:\n", "flows:\n  - {name: csvs, from: inbox, to: here, include: [\"*.csv\"], table: \"{path_stem}\", types: text}\n")
    events.configure(csv)
    events.fill(GOOD)
    age(events, GOOD)
    write_file(events.inbox / "events.csv", "a\n1\n")
    events.chute.once()
    assert events.store.tables() == {"users", "cards", "events"}
    assert [tuple(row) for row in events.store.rows("SELECT a FROM events")] == [("1",)]
    assert events.users() == USERS and events.cards() == CARDS
    assert events.files("inbox") == ["events.csv"]


def test_a_table_that_lacks_a_column_is_refused_or_gets_it(events):
    events.configure()
    write_file(events.inbox / "1.json", user(1))
    events.chute.once()
    events.configure(('          job:         {from: /payload/job}\n', '          job:         {from: /payload/job}\n          age: {from: /payload/age, type: bigint}\n'))
    write_file(events.inbox / "2.json", user(2, age=40))
    events.chute.once(expect=1)
    assert "age" in events.reason("2.json")
    events.configure(('          job:         {from: /payload/job}\n', '          job:         {from: /payload/job}\n          age: {from: /payload/age, type: bigint}\n'),
                     on_schema_change="add_columns")
    write_file(events.inbox / "3.json", user(3, age=40))
    events.chute.once()
    assert [(int(i), a and int(a)) for i, a in events.store.rows("SELECT external_id, age FROM users ORDER BY 1")] == [(1, None), (3, 40)]


def test_types_of_the_columns_are_as_declared(events):
    events.configure(("score:       {from: /payload/score, type: double}", "score:       {from: /payload/score, type: decimal}"))
    number = "12345678901234567890123.4567890123456789"
    write_file(events.inbox / "1.json", user(1).replace('"id": 1', '"id": 9223372036854775807, "score": ' + number))
    events.chute.once()
    (id_, score), = events.store.rows("SELECT external_id, score FROM users")
    assert (int(id_), score) == (9223372036854775807, number)
    if events.store.kind == "sqlite":
        types = dict(events.chute.columns("users"))
    else:
        types = dict(map(tuple, events.store.rows("SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'users'")))
    assert [types[name] for name in ("external_id", "score", "event_at", "raw")] == TYPES[events.store.kind]


def test_state_and_history_side_by_side(events):
    history = """    records:
      - table: history
        columns: {id: {from: /payload/id, type: bigint}, raw: {from: "", type: json}}
        load: append
        continue: true
"""
    events.configure(("    records:                       # the first rule whose `when` matches takes the event; none is an error\n", history))
    for name in GOOD:
        events.fill([name])
    age(events, GOOD)
    events.chute.once()
    assert events.users() == USERS and events.cards() == CARDS
    assert [int(n) for n, in events.store.rows("SELECT count(*) FROM history")] == [len(GOOD)]
    events.fill(GOOD)
    age(events, GOOD)
    events.chute.once()  # a repeat is no new history
    assert [int(n) for n, in events.store.rows("SELECT count(*) FROM history")] == [len(GOOD)]


def test_rows_added_to_a_log_are_appended_once(events):
    events.configure(("load: keep_first           # the earliest event of a user stays; newest: the latest wins\n        order_by: [event_at]\n", "load: append\n"),
                     ("after_success: {move: completed}", "after_success: keep"), ("        key: [external_id]\n        load: append", "        load: append"),
                     on_changed="tail")
    log = events.inbox / "log.jsonl"
    write_file(log, user(1) + "\n" + user(1) + "\n")
    events.chute.once()
    with open(log, "a") as f:
        f.write(user(1, name="third") + "\n")
    events.chute.once()
    assert [int(n) for n, in events.store.rows("SELECT count(*) FROM users")] == [3]
    assert [int(n) for n, in events.store.rows("SELECT count(*) FROM users WHERE name = 'third'")] == [1]


def test_the_profile_works_without_a_configuration(events):
    events.fill(GOOD)
    age(events, GOOD)
    chute = events.chute
    url = "sqlite:%s" % chute.db if events.store.kind == "sqlite" else events.store.database.socket_url
    done = chute.command("run", "--once", "--profile", "events", "--watch", events.inbox, "--to", url)
    assert done.returncode == 0, done.stderr
    assert events.users() == USERS
    assert events.files("completed") == GOOD


def test_an_event_that_a_constraint_refuses_is_taken_out(chute, pg_database):
    events = Inbox(chute, Pg(pg_database))
    events.configure()
    write_file(events.inbox / "first.json", user(100))
    events.chute.once()
    pg_database.psql("alter table users add constraint no_fives check (external_id % 10 <> 5); alter table users alter name type varchar(10);")
    for i in range(40):
        write_file(events.inbox / ("%02d.json" % i), user(i, name="far too long a name" if i == 33 else "n%d" % i))
    write_file(events.inbox / "some.jsonl", user(201) + "\n" + user(205) + "\n" + user(202) + "\n")
    events.chute.once(expect=1)
    bad = {5, 15, 25, 33, 35}
    assert sorted(events.users_names()) == sorted(set(range(40)) - bad | {100})
    assert events.files("invalid") == ["%02d.json" % i for i in sorted(bad)] + ["some.jsonl"]
    assert "no_fives" in events.reason("05.json") and "too long" in events.reason("33.json")
    assert pg_database.value("select count(*) from _chute_loads") == "36"
