"""What the tests of JSON events share: the profile `events` with another destination, and that destination seen alike.

A store is where the events go: STORES[kind]. Its rows come as Python values, whatever the database.
"""
import contextlib
import re
import shutil
import sqlite3
from pathlib import Path

from chute import PATIENCE, TOP, wait_until

EVENTS = TOP / "tests/data/events/inbox"
BAD = ["users/00000000-0000-4000-8000-0000000000e%d.json" % n for n in (1, 2, 3)] + \
      ["cards/00000000-0000-4000-8000-000000000%d.json" % n for n in (105, 106)]
GOOD = sorted(str(path.relative_to(EVENTS)) for path in EVENTS.rglob("*.json") if str(path.relative_to(EVENTS)) not in BAD)


def _query(path, sql):
    with contextlib.closing(sqlite3.connect("file:%s?mode=ro" % path, uri=True, timeout=PATIENCE)) as db:
        return db.execute(sql).fetchall()


class Lite:
    """A SQLite file."""
    kind = "sqlite"

    def __init__(self, chute):
        self.chute = chute

    def config(self):
        return "type: sqlite\n    path: %s" % self.chute.db

    to_many = "to: here%d"

    def many(self, count):
        """The destinations of COUNT flows that must not meet."""
        return "".join("  here%d:\n    type: sqlite\n    path: %s.%d\n" % (i, self.chute.db, i) for i in range(count))

    def number(self, i):
        """The store of the I-th of them."""
        other = Lite(self.chute)
        other.rows = lambda sql: _query("%s.%d" % (self.chute.db, i), sql)
        return other

    def rows(self, sql):
        return self.chute.query(sql)

    def tables(self):
        return self.chute.tables()

    def types(self, table):
        return dict(self.chute.columns(table))

    def execute(self, sql):
        with sqlite3.connect(self.chute.db, timeout=PATIENCE) as db:
            db.executescript(sql)
        db.close()

    def is_there(self):
        return self.chute.db.exists()


class Pg:
    """A database of PostgreSQL; with many flows, a schema for each."""
    kind = "postgres"

    def __init__(self, database, schema="public"):
        self.database = database
        self.schema = schema

    def config(self):
        return "type: postgres\n    url: %s\n    schema: %s" % (self.database.socket_url, self.schema)

    to_many = "to: here\n    schema: s%d"

    def many(self, _):
        """The destinations of COUNT flows that must not meet: one, in which each has a schema."""
        return "  here:\n    %s\n" % self.config()

    def number(self, i):
        """The store of the I-th of them."""
        return Pg(self.database, "s%d" % i)

    def rows(self, sql):
        return self.database.as_schema(self.schema).query(sql)

    def tables(self):
        return {name for name, in self.rows("SELECT tablename FROM pg_tables WHERE schemaname = '%s'" % self.schema) if not name.startswith("_chute")}

    def execute(self, sql):
        self.database.as_schema(self.schema).psql(sql)

    def is_there(self):
        return True


class Inbox:
    """A chute that runs the profile `events`."""

    def __init__(self, chute, store):
        self.chute = chute
        self.store = store
        self.home = chute.home
        chute.inbox = self.inbox = chute.home / "inbox"
        chute.state = chute.home / ".chute"
        self.inbox.mkdir(exist_ok=True)

    def configure(self, *changes, **options):
        """Write what `chute init events` writes, with this store for a destination. CHANGES: pairs (text, other text); OPTIONS: of the flow."""
        if self.chute.config.exists():
            self.chute.config.unlink()
        assert self.chute.command("init", "events", self.home).returncode == 0
        text = self.chute.config.read_text()
        text, n = re.subn(r"(?s)^destinations:\n.*?\n\nflows:", "destinations:\n  here:\n    %s\n\nflows:" % self.store.config(), text, count=1,
                          flags=re.MULTILINE)
        assert n == 1
        text, n = re.subn(r"\n    to: \w+", "\n    to: here" + "".join("\n    %s: %s" % pair for pair in options.items()), text)
        assert n == 1
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        text = text.replace("level: info, format: text}", "level: debug, format: text}", 1)
        self.chute.config.write_text(text)
        return self

    def configure_many(self, count):
        """COUNT inboxes (0, 1, 2 ... in the inbox), each with a flow and tables of its own."""
        self.configure()
        head, source, dest, flow = re.fullmatch(r"(?s)(.*sources:\n)(.*)destinations:\n(.*)flows:\n(.*)", self.chute.config.read_text()).groups()
        numbers = range(count)

        def repeat(text, *changes):
            parts = []
            for i in numbers:
                part = text
                for old, new in changes:
                    assert old in part, old
                    part = part.replace(old, new % i)
                parts.append(part)
            return "".join(parts)
        sources = repeat(source, ("  inbox:\n", "  inbox%d:\n"), ("path: inbox ", "path: inbox/%d "))
        dests = self.store.many(count)
        flows = repeat(flow, ("name: events", "name: events%d"), ("from: inbox", "from: inbox%d"), ("to: here", self.store.to_many),
                       ("{move: completed}", "{move: completed/%d}"))
        self.chute.config.write_text(head + sources + "destinations:\n" + dests + "\nflows:\n" + flows)
        for i in numbers:
            (self.inbox / str(i)).mkdir()

    def fill(self, names=None, below=""):
        """Copy the sample events, or some of them."""
        for name in names if names is not None else [str(p.relative_to(EVENTS)) for p in EVENTS.rglob("*") if p.is_file()]:
            target = self.inbox / below / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(EVENTS / name, target)

    def files(self, folder):
        """Paths of all files in FOLDER (inbox, completed, invalid), without reasons."""
        top = self.home / folder
        return sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_file() and not p.name.endswith(".error.json"))

    def reason(self, name):
        return Path(self.home / "invalid" / (name + ".error.json")).read_text()

    def users(self):
        return {int(i): (name, None if score is None else float(score)) for i, name, score in self.store.rows("SELECT external_id, name, score FROM users")}

    def users_names(self):
        return {int(i): name for i, name in self.store.rows("SELECT external_id, name FROM users")}

    def cards(self):
        """Card: (user, is it active, updated at)."""
        rows = self.store.rows("SELECT external_id, user_id, active, updated_at FROM cards")
        return {int(i): (int(user), active in (1, "t", True), updated) for i, user, active, updated in rows}

    def tables_whole(self):
        return {table: sorted(map(tuple, self.store.rows("SELECT * FROM %s" % table))) for table in ("users", "cards")}

    def wait_empty(self, *left):
        """Until the inbox holds the files LEFT and nothing else."""
        wait_until(lambda: self.files("inbox") == sorted(left),
                   lambda: "an inbox with %s; there are %s\n%s" % (left, self.files("inbox")[:20], self.chute.log_text()[-3000:]), pause=0.1)
