"""One chute under test: its folder, its database, its daemon and its commands.

No assertion here depends on how fast the machine is: things are waited for, with a generous limit.
"""
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("CHUTE_BIN") or str(TOP / "build/src/chute")
LONG = os.environ.get("CHUTE_TEST_LONG") == "1"
DATA = TOP / "tests/data/file2sql"
PATIENCE = 60 if "asan" in BINARY else 30  # seconds until waiting is a failure


def wait_until(condition, what="a condition", timeout=PATIENCE, pause=0.02):
    """The first true value of CONDITION(); fails after TIMEOUT seconds, naming WHAT (a text, or a function making one)."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("waited %d s for %s" % (timeout, what() if callable(what) else what))
        time.sleep(pause)


def write_file(path, text):
    """Write PATH in place: open, write, close."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        f.write(text.encode() if isinstance(text, str) else text)


def put_file(path, text):
    """Make PATH appear whole, by a rename."""
    temporary = path.with_name(path.name + ".part")
    write_file(temporary, text)
    os.rename(temporary, path)


class Chute:
    def __init__(self, home):
        self.home = Path(home)
        self.inbox = self.home / "in"
        self.db = self.home / "out.db"
        self.state = self.home / "state"
        self.log = self.home / "chute.log"
        self.config = self.home / "chute.yaml"
        self.process = None
        self.started = []  # every process, for the clean-up
        self.inbox.mkdir(parents=True, exist_ok=True)

    # ---- configuration ----
    def configure(self, flow=None, source=None, dest=None, flows=None, sources=None, dests=None, **top):
        """Write a configuration (JSON is YAML): one directory, one database, one flow unless told otherwise."""
        base_source = {"type": "directory", "path": str(self.inbox)}
        base_dest = {"type": "sqlite", "path": str(self.db)}
        base_flow = {"name": "main", "from": "inbox", "to": "lite"}
        text = {
            "state": str(self.state),
            "log": [{"to": "stderr", "level": "debug", "format": "text"}],
            "sources": sources or {"inbox": {**base_source, **(source or {})}},
            "destinations": dests or {"lite": {**base_dest, **(dest or {})}},
            "flows": [{**base_flow, **f} for f in (flows or [flow or {}])],
        }
        text.update(top)
        self.config.write_text(json.dumps(text, indent=1))
        return self.config

    # ---- the daemon ----
    def run_arguments(self, profile="file2sql"):
        if self.config.exists():
            return ["run", "-c", str(self.config)]
        profiled = ["--profile", profile] if profile else []
        return ["run", *profiled, "--watch", str(self.inbox), "--to", "sqlite:%s" % self.db, "--state", str(self.state)]

    def spawn(self, arguments, prefix=(), env=None, binary=BINARY, **popen):
        with open(self.log, "ab") as log:
            process = subprocess.Popen([*prefix, binary, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       cwd=popen.pop("cwd", self.home), env={**os.environ, **(env or {})}, start_new_session=True, **popen)
        self.started.append(process)
        return process

    def start(self, *extra, ready=True, profile="file2sql", prefix=(), env=None, **popen):
        assert self.process is None or self.process.poll() is not None, "already running"
        self.process = self.spawn([*self.run_arguments(profile), *extra], prefix, env, **popen)
        if ready:
            self.wait_ready()
        return self

    def is_live(self):
        return self.command("status", "--live", "--state", str(self.state)).returncode == 0

    def wait_ready(self, timeout=PATIENCE):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError("chute ended with %s:\n%s" % (self.process.returncode, self.log_text()[-3000:]))
            return (self.state / "chute.sock").exists() and self.is_live()
        wait_until(ready, lambda: "readiness; log:\n" + self.log_text()[-3000:], timeout)

    def stop(self, sig=signal.SIGTERM, timeout=PATIENCE):
        """Ask the daemon to end; its exit code."""
        self.process.send_signal(sig)
        return self.process.wait(timeout)

    def kill9(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait()

    def once(self, *extra, expect=0, timeout=120, prefix=(), env=None, **popen):
        """run --once to its end."""
        process = self.spawn([*self.run_arguments(), "--once", *extra], prefix, env, **popen)
        code = process.wait(timeout)
        if expect is not None:
            assert code == expect, "run --once: exit %s, not %s:\n%s" % (code, expect, self.log_text()[-3000:])
        return code

    # ---- commands ----
    def command(self, *arguments, timeout=60, env=None, **popen):
        return subprocess.run([BINARY, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=timeout, cwd=popen.pop("cwd", self.home), env={**os.environ, **(env or {})}, **popen)

    def ask(self, *arguments, code=0):
        """A command about this chute's state; its standard output."""
        done = self.command(*arguments, "--state", str(self.state))
        assert done.returncode == code, "%s: exit %d\n%s%s" % (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def status(self):
        return json.loads(self.ask("status", "--json"))

    def receipts(self, *arguments):
        return json.loads(self.ask("receipts", "--json", *arguments))

    def receipts_of(self, path, state=None):
        return [r for r in self.receipts() if r["path"] == str(path) and state in (None, r["state"])]

    def wait_receipts(self, path, state, count):
        """The receipts of PATH in STATE: waits until there are COUNT; more are a failure. They come after the rows of their load."""
        wait_until(lambda: len(self.receipts_of(path, state)) >= count,
                   lambda: "%d receipts of %s, %s; there are %s\n%s" % (count, path, state, self.receipts_of(path), self.log_text()[-3000:]),
                   pause=0.1)
        found = self.receipts_of(path, state)
        assert len(found) == count, found
        return found

    def files(self, *states):
        """What the ledger has about files, a dict each; all files, or those in STATES."""
        words = [word for state in states or STATES for word in ("--state", state)]
        return json.loads(self.ask("status", "--json", *words))["file_list"]

    def state_of(self, path):
        """The state word of a file below the inbox; None if the ledger doesn't know it."""
        for file in self.files():
            if file["path"] == str(path):
                return file["state"]
        return None

    def wait_state(self, path, state):
        wait_until(lambda: self.state_of(path) == state,
                   lambda: "%s to be %s; it is %s\n%s" % (path, state, self.state_of(path), self.log_text()[-3000:]), pause=0.1)

    def explain(self, path):
        return self.ask("explain", path)

    # ---- what came of it ----
    def connect(self):
        return contextlib.closing(sqlite3.connect("file:%s?mode=ro" % self.db, uri=True, timeout=PATIENCE))

    def query(self, sql, *parameters):
        with self.connect() as db:
            return db.execute(sql, parameters).fetchall()

    def tables(self):
        """Tables that belong to users: chute's own begin with _chute, SQLite's with sqlite_."""
        if not self.db.exists() or self.db.stat().st_size == 0:
            return set()
        return {name for (name,) in self.query("SELECT name FROM sqlite_schema WHERE type = 'table'")
                if not name.startswith(("_chute", "sqlite_"))}

    def rows(self, table):
        """All rows in order, or None while there is no such table."""
        try:
            return self.query('SELECT * FROM "%s" ORDER BY 1' % table)
        except sqlite3.OperationalError as error:
            if "no such table" in str(error) or "unable to open" in str(error):
                return None
            raise

    def columns(self, table):
        return [(row[1], row[2]) for row in self.query('PRAGMA table_info("%s")' % table)]

    def wait_rows(self, table, rows, timeout=PATIENCE):
        wait_until(lambda: self.rows(table) == rows,
                   lambda: "table %s to hold %s; it has %s\n%s" % (table, rows, self.rows(table), self.log_text()[-3000:]), timeout)

    def wait_tables(self, *tables):
        wait_until(lambda: self.tables() == set(tables),
                   lambda: "tables %s; there are %s\n%s" % (sorted(tables), sorted(self.tables()), self.log_text()[-3000:]))

    def log_text(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def http_port(self):
        """The port that a chute configured with {"listen": "127.0.0.1:0"} was given: nobody else can have taken it meanwhile."""
        found = wait_until(lambda: re.findall(r"http: listening on \S+, port (\d+)", self.log_text()), "the port in the log")
        return int(found[-1])

    def wait_log(self, *texts):
        wait_until(lambda: all(text in self.log_text() for text in texts),
                   lambda: "the log to say %s:\n%s" % (texts, self.log_text()[-3000:]))

    def wait_inbox(self, *names):
        """Wait until the inbox holds NAMES and nothing else, also none under the private name that a move or delete takes first."""
        wait_until(lambda: sorted(os.listdir(self.inbox)) == sorted(names),
                   lambda: "the inbox to hold %s; it has %s\n%s" % (sorted(names), sorted(os.listdir(self.inbox)), self.log_text()[-3000:]))

    # ---- end ----
    def clean_up(self):
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what ran it (strace), which would let go of it
            process.wait()
        text = self.log_text()
        if text:
            print("---- log of chute in %s\n%s" % (self.home, text[-6000:]))
        for word in ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error: ", "Assertion `", "uv loop still has"):
            assert word not in text, "the log has %r" % word


STATES = ["seen", "settling", "queued", "loading", "retrying", "loaded", "skipped", "quarantined", "gone"]


def sample(name):
    return (DATA / name).read_text()


def tool(name):
    found = shutil.which(name)
    assert found, "%s is not installed; tests/run installs what is needed" % name
    return found
