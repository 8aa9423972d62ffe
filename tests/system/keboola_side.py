"""One chute that loads into the Keboola emulator, and what is asked of both."""
import json
import os
import shutil
import signal
import sqlite3
import urllib.parse
import urllib.request

from chute import PATIENCE, TOP, Chute, tool, wait_until
from keboola import TOKEN

SAMPLES = TOP / "tests/data/keboola"
RETRY = {"first": "50ms", "max": "200ms"}
LOADS = r"(tables-async|import-async)$"
STORES = r"^/(_s3|_azure|_gcs)/"


class Loader(Chute):
    """Folders of self.inbox are buckets of self.emulator."""

    def __init__(self, home, emulator):
        super().__init__(home)
        self.emulator = emulator

    def set_up(self, flow=None, dest=None, token=TOKEN, **top):
        """The configuration: flow `main` from `inbox` to `kbc`, with options of flow and destination."""
        url = self.emulator.url
        source = {"debounce": "50ms", "settle": "100ms", **top.pop("source", {})}
        kbc = {"type": "keboola", "url": url, "token": token, "s3_endpoint": url + "/_s3", "gcs_endpoint": url + "/_gcs",
               "connect_timeout": "20s", "stall_timeout": "20s", **(dest or {})}
        top.setdefault("retry", RETRY)
        self.configure({"to": "kbc", **(flow or {})}, source, dests={"kbc": kbc}, **top)
        return self

    def place(self, name, content=None):
        """The sample NAME, or CONTENT (text, bytes), whole at NAME ("folder/file") below the inbox."""
        path = self.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.home / "whole"
        if content is None:
            shutil.copy(SAMPLES / path.name, whole)
        else:
            whole.write_bytes(content.encode() if isinstance(content, str) else content)
        whole.rename(path)
        return path

    # ---- the far end ----
    def wait_remote(self, table, rows):
        """Wait until TABLE of the emulator holds ROWS (lists of text, in any order)."""
        wait_until(lambda: sorted(self.emulator.rows(table) or []) == sorted(rows) and self.emulator.rows(table) is not None,
                   lambda: "%s to hold %s; it has %s\n%s" % (table, rows, self.emulator.rows(table), self.log_text()[-4000:]))

    def sequence(self, since=0):
        """The requests so far as "METHOD path", without queries and what is below /v2/storage."""
        return ["%s %s" % (one["method"], one["path"].removeprefix("/v2/storage/")) for one in self.emulator.requests(since=since)]

    def bodies(self):
        """The SHA-256 of what was uploaded, in order."""
        return [one["sha256"] for one in self.emulator.requests("PUT") if one["path"].startswith(("/_s3/", "/_azure/", "/_gcs/"))]

    def orders(self):
        """The bodies of the requests that began a load."""
        return [one["json"] for one in self.emulator.requests("POST") if one["path"].endswith(("tables-async", "import-async"))]

    def jobs(self, table=None):
        """Create and import jobs that the emulator accepted, oldest first."""
        return [job for job in sorted(self.emulator.state()["jobs"], key=lambda job: job["id"])
                if job["operation"] in ("tableCreate", "tableImport") and table in (None, job["target"])]

    # ---- what it says ----
    def web(self, path):
        with urllib.request.urlopen("http://127.0.0.1:%d%s" % (self.http_port(), path), timeout=PATIENCE) as answer:
            return answer.read().decode()

    def checkpoints(self):
        """What the ledger keeps of loads under way; [] also while there is no ledger."""
        try:
            with sqlite3.connect("file:%s?mode=ro" % (self.state / "ledger.db"), uri=True, timeout=PATIENCE) as db:
                return [value for (value,) in db.execute("SELECT value FROM meta WHERE key LIKE 'checkpoint:%'")]
        except sqlite3.OperationalError:
            return []

    def secrets(self):
        """The token, and every secret that went over the wire, as it was written there."""
        found = {self.emulator.token}
        for one in self.emulator.requests():
            headers, query = one["headers"], one["query"]
            found.add(headers.get("x-amz-security-token"))
            if headers.get("authorization", "").startswith("Bearer "):
                found.add(headers["authorization"][7:])
            if "sig" in query:
                found |= {query["sig"], urllib.parse.quote(query["sig"], safe="")}
        return {secret for secret in found if secret}

    def assert_no_secret(self, running=True):
        """Neither what it wrote nor what it tells has a secret in it."""
        said = {"log": self.log_text()}
        for path in [*self.home.glob("*.log"), *self.state.rglob("*")]:
            if path.is_file():
                said[str(path.relative_to(self.home))] = path.read_bytes().decode("latin-1")
        for words in (["status", "--json"], ["receipts", "--json"], ["status"]):
            said[" ".join(words)] = self.ask(*words)
        if running and "http: listening" in self.log_text():
            for path in ("/metrics", "/api/v1/status", "/healthz"):
                said[path] = self.web(path)
        for file in json.loads(said["status --json"]).get("file_list", []):
            said["explain " + file["path"]] = self.explain(file["path"])
        for secret in self.secrets():
            for where, text in said.items():
                assert secret not in text, "%s has a secret in it: %s…" % (where, secret[:12])


def killing(kbc, call, when):
    """Words before a command that end it by SIGKILL at the WHEN-th CALL, and the environment it needs."""
    words = [tool("strace"), "-f", "-qq", "-o", str(kbc.home / "strace.out"), "-e", "trace=" + call,
             "-e", "inject=%s:signal=SIGKILL:when=%d" % (call, when)]
    return words, {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}  # which can't be done in a traced process


def was_killed(code):
    """What the exit CODE of a command behind killing() says."""
    assert code in (0, 1, -signal.SIGKILL, 128 + signal.SIGKILL), code
    return code not in (0, 1)


def kill_at(kbc, call, when):
    """run --once, killed at the WHEN-th CALL; True if it was killed."""
    words, env = killing(kbc, call, when)
    return was_killed(kbc.once(prefix=words, expect=None, env=env))
