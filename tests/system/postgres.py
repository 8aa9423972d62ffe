"""PostgreSQL as the tests use it: clusters of their own, on loopback and in folders of their own, gone with the test.

    def test_something(pg_database):    # a fresh database on a cluster that other tests use too
        pg_database.query("select 1")
        chute.configure(dest={"type": "postgres", "url": pg_database.url, ...})

    def test_something_rude(postgres):  # a cluster of its own, that may be stopped, killed, filled
        postgres.stop("immediate"); postgres.start()

The server must not run as root: a test that is root starts it as the user postgres. It ends when the test process does.
"""
import contextlib
import csv
import fcntl
import io
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

from chute import tool, wait_until

PATIENCE = 60
BINARIES = Path(os.environ.get("CHUTE_TEST_POSTGRES") or "/usr/lib/postgresql/15/bin")
PASSWORD = "s3cr3t pass:w@rd/%"  # with what a URL must not hold as it is
NULL = "\x01null\x01"
SETTINGS = {
    "fsync": "off",  # a killed server keeps what it wrote; only a machine that loses power would lose it
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "40",
    "min_wal_size": "32MB",
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "lc_messages": "C",
    "log_line_prefix": "%m [%p] %a ",
    "autovacuum_naptime": "1h",  # nothing happens by itself
}


def owner():
    """Who runs the server: (user id, group id, words before its command)."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid(), []
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid, [tool("setpriv"), "--reuid=%d" % entry.pw_uid, "--regid=%d" % entry.pw_gid, "--clear-groups",
                                        "--pdeathsig=INT"]


def binary(name):
    path = BINARIES / name
    assert path.exists(), "%s is not installed (Debian: postgresql-15); or set CHUTE_TEST_POSTGRES to the folder of the programs" % path
    return str(path)


def clean_environment(**more):
    """The environment without what libpq reads, and no .pgpass or service of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "PGPASSFILE": "/nonexistent", "PGSERVICEFILE": "/nonexistent", "PGSYSCONFDIR": "/nonexistent", "LC_ALL": "C.UTF-8",
            "PGCLIENTENCODING": "UTF8", **more}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _give(path):
    uid, gid, _ = owner()
    if os.geteuid() == 0:
        os.chown(path, uid, gid)


def make_template(folder):
    """A new cluster in FOLDER/template, made once for everybody who shares FOLDER."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / "template.ready"
    with open(folder / "template.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            work = Path(tempfile.mkdtemp(prefix="chute-initdb-"))
            _give(work)
            done = subprocess.run([*owner()[2], binary("initdb"), "-D", str(work / "data"), "-U", "postgres", "-A", "trust", "--no-sync",
                                   "--no-instructions", "-E", "UTF8", "--locale=C.UTF-8", "--wal-segsize=1"],
                                  cwd="/", env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            assert done.returncode == 0, "initdb: " + done.stdout
            subprocess.run(["cp", "-a", str(work / "data"), str(folder / "template")], check=True)
            shutil.rmtree(work)
            ready.touch()
    return folder / "template"


class Database:
    """One database of a cluster, and how to reach it as one of its roles."""

    def __init__(self, cluster, name, role="postgres", password=PASSWORD):
        self.cluster = cluster
        self.name = name
        self.role = role
        self.password = password
        self.schema = None

    @property
    def url(self):
        """Over TCP, without the password."""
        return "postgresql://%s@127.0.0.1:%d/%s" % (self.role, self.cluster.port, self.name)

    @property
    def socket_url(self):
        """Over the Unix socket, where everybody is believed."""
        return "postgresql:///%s?host=%s&port=%d&user=%s" % (self.name, self.cluster.sockets, self.cluster.port, self.role)

    def as_role(self, role, password=PASSWORD):
        return Database(self.cluster, self.name, role, password)

    def as_schema(self, schema):
        """The same, with SCHEMA before all others where a name has none."""
        other = Database(self.cluster, self.name, self.role, self.password)
        other.schema = schema
        return other

    def _psql(self, *more):
        return [binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", str(self.cluster.sockets), "-p", str(self.cluster.port), "-U", self.role,
                "-d", self.name, *more]

    def _environment(self):
        return clean_environment(**({"PGOPTIONS": "-c search_path=%s" % self.schema} if self.schema else {}))

    def psql(self, sql, expect=0):
        """What psql prints for SQL, which may be several statements; unaligned, without headers."""
        done = subprocess.run(self._psql("-A", "-t", "-f", "-"), input=sql, env=self._environment(), cwd="/", stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=PATIENCE * 5, check=False)
        assert done.returncode == expect, "psql ended with %d: %s\n%s" % (done.returncode, done.stderr, sql[:2000])
        return done.stdout if expect == 0 else done.stderr

    def query(self, sql):
        """Rows of one statement, as lists of text; None is null."""
        done = subprocess.run(self._psql("--csv", "-t", "-P", "null=" + NULL, "-c", sql), env=self._environment(), cwd="/", stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=PATIENCE * 5, check=False)
        assert done.returncode == 0, "psql ended with %d: %s\n%s" % (done.returncode, done.stderr.decode(), sql[:2000])
        return [[None if value == NULL else value for value in row] for row in csv.reader(io.StringIO(done.stdout.decode(), newline=""))]

    def value(self, sql):
        """The only value of the only row."""
        rows = self.query(sql)
        assert len(rows) == 1 and len(rows[0]) == 1, rows
        return rows[0][0]

    def session(self, name="session"):
        return Session(self, name)

    def sessions(self, where="true"):
        """What pg_stat_activity has of this database, without those who ask: [pid, application, state, wait event, query]."""
        return self.query("select pid, application_name, state, wait_event_type, query from pg_stat_activity where datname = current_database()"
                          " and pid <> pg_backend_pid() and backend_type = 'client backend' and (%s) order by pid" % where)


class Session:
    """A psql that stays: for locks that are held, and statements that wait for them. For `with`."""

    def __init__(self, database, name):
        self.lines = []
        self.count = 0
        self.process = subprocess.Popen(database._psql("-A", "-t", "-v", "ON_ERROR_STOP=0"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True, bufsize=1, env=clean_environment(PGAPPNAME=name), cwd="/")
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.pid = int(self.run("select pg_backend_pid();"))

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def send(self, sql):
        """Begin SQL and don't wait; finish() does. Every statement ends with a semicolon."""
        self.count += 1
        self.process.stdin.write("%s\n\\echo ---- %d\n" % (sql, self.count))
        self.process.stdin.flush()
        return self.count

    def is_done(self, number):
        return "---- %d\n" % number in self.lines

    def finish(self, number=None):
        """What the statements of send() printed, errors included."""
        number = number or self.count
        wait_until(lambda: self.is_done(number) or self.process.poll() is not None, "psql", PATIENCE)
        self.reader.join(0 if self.is_done(number) else 5)
        assert self.is_done(number), "psql ended: " + "".join(self.lines)
        end = self.lines.index("---- %d\n" % number)
        begin = self.lines.index("---- %d\n" % (number - 1)) + 1 if number > 1 else 0
        return "".join(self.lines[begin:end])

    def run(self, sql):
        return self.finish(self.send(sql))

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdin.close()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Postgres:
    """A cluster. start() it; stop() ends it and keeps its data, clean_up() removes them."""

    def __init__(self, template, settings=None):
        self.folder = Path(tempfile.mkdtemp(prefix="chute-pg-"))
        os.chmod(self.folder, 0o755)
        _give(self.folder)
        self.data = self.folder / "data"
        self.sockets = self.folder  # short: a socket's path has 107 bytes
        self.log = self.folder / "server.log"
        self.port = None
        self.process = None
        self.mounted = []
        self.ca_file = None
        self.names = 0
        subprocess.run(["cp", "-a", "--reflink=auto", str(template), str(self.data)], check=True)
        self.configure(**{**SETTINGS, **(settings or {})})
        self.hba()

    # ---- settings ---------------------------------------------------------------------------------------------------

    def configure(self, **settings):
        """Settings as the server names them; of a running one only after reload() or restart()."""
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as f:
            for name, value in settings.items():
                f.write("%s = '%s'\n" % (name, str(value).replace("'", "''")))

    def hba(self, *lines):
        """Who may come in: LINES go before the default, which believes the socket and asks for passwords over TCP."""
        text = "\n".join([*lines, "local all all trust", "host all all 127.0.0.1/32 scram-sha-256", ""])
        (self.data / "pg_hba.conf").write_text(text, encoding="utf-8")

    def reload(self):
        self.database().psql("select pg_reload_conf();")

    def tls(self):
        """Make a CA of our own and speak TLS with a certificate of it, for 127.0.0.1 and localhost; before start()."""
        self.ca_file = self.folder / "ca.pem"
        ca_key = self.folder / "ca.key"
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=chute test CA",
                 "-keyout", ca_key, "-out", self.ca_file)
        key, certificate = self.certificate("server", "subjectAltName=IP:127.0.0.1,DNS:localhost")
        for path in (key, certificate):
            _give(path)
        self.configure(ssl="on", ssl_ca_file=self.ca_file, ssl_cert_file=certificate, ssl_key_file=key)

    def certificate(self, name, extension="basicConstraints=CA:FALSE"):
        """Key and certificate for the common name NAME, signed by the CA of tls()."""
        key, request, certificate = (self.folder / (name + end) for end in (".key", ".csr", ".pem"))
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=" + name, "-keyout", key, "-out", request)
        extensions = self.folder / (name + ".ext")
        extensions.write_text(extension + "\n")
        _openssl("x509", "-req", "-in", request, "-CA", self.ca_file, "-CAkey", self.folder / "ca.key", "-CAcreateserial", "-days", "2",
                 "-extfile", extensions, "-out", certificate)
        os.chmod(key, 0o600)
        return key, certificate

    # ---- life -------------------------------------------------------------------------------------------------------

    def start(self, wait=True):
        """On the port it had before, if it had one."""
        assert self.process is None, "it runs"
        fresh = self.port is None
        for _ in range(10):
            if fresh:
                self.port = free_port()
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen([*owner()[2], binary("postgres"), "-D", str(self.data), "-h", "127.0.0.1", "-p", str(self.port),
                                                 "-k", str(self.sockets)],
                                                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=clean_environment(),
                                                start_new_session=True)
            if not wait or wait_until(self._has_started, self._why_not, PATIENCE) == "ready":
                return self
            # Somebody took the port in between, or what was killed has not let go of its shared memory.
            self.process.wait()
            self.process = None
            if not any(words in self.log_text()[-2000:] for words in ("in use", "could not create any TCP/IP sockets")):
                break
        raise AssertionError("PostgreSQL did not start:\n" + self.log_text()[-3000:])

    def _has_started(self):
        if self.process.poll() is not None:
            return "ended"
        with contextlib.suppress(OSError, IndexError, ValueError):  # half written
            lines = (self.data / "postmaster.pid").read_text().split("\n")
            if int(lines[0]) == self.process.pid and lines[7].strip() == "ready":
                return "ready"
        return None

    def _why_not(self):
        return "PostgreSQL:\n" + self.log_text()[-3000:]

    def wait_ready(self):
        assert wait_until(self._has_started, self._why_not, PATIENCE) == "ready"

    def stop(self, mode="fast"):
        """smart (waits for clients), fast (rolls back), immediate (as a crash). Waits for the end."""
        self.process.send_signal({"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])
        self.process.wait(PATIENCE)
        self.process = None

    def kill9(self):
        """The whole server, at once."""
        pids = [self.process.pid, *self.children()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        wait_until(lambda: not any(_is_alive(pid) for pid in pids), "the end of the server's processes", PATIENCE)

    def restart(self, mode="fast"):
        self.stop(mode)
        return self.start()

    def children(self):
        """Process ids of the server's processes."""
        found = []
        for task in Path("/proc/%d/task" % self.process.pid).iterdir():
            found += [int(pid) for pid in (task / "children").read_text().split()]
        return found

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def clean_up(self):
        if self.is_running():
            for pid in self.children():  # one that a test has stopped would never end
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self.process.send_signal(signal.SIGCONT)
            self.stop("immediate")
        for path in reversed(self.mounted):
            subprocess.run(["umount", "-l", str(path)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self.start() if self.process is None else self

    def __exit__(self, *_):
        self.clean_up()

    # ---- what is in it ----------------------------------------------------------------------------------------------

    def database(self, name="postgres", role="postgres", password=PASSWORD):
        return Database(self, name, role, password)

    def make_database(self, name=None, owner_role=None):
        """A new empty database; NAME is made up when it is not given. The password of postgres is PASSWORD."""
        self.names += 1
        name = name or "test_%d" % self.names
        self.database().psql("create database \"%s\"%s;\nalter role postgres password '%s';" % (
            name, ' owner "%s"' % owner_role if owner_role else "", PASSWORD.replace("'", "''")))
        return self.database(name)

    def make_role(self, name, rights="login", password=PASSWORD):
        self.database().psql("create role \"%s\" %s password '%s';" % (name, rights, password.replace("'", "''")))
        return name

    def make_small_tablespace(self, name, size="8m"):
        """A tablespace that holds no more than SIZE: a disk that gets full. Needs root, as tests/run has."""
        path = self.folder / ("space-" + name)
        path.mkdir()
        uid, gid, _ = owner()
        subprocess.run([tool("mount"), "-t", "tmpfs", "-o", "size=%s,uid=%d,gid=%d,mode=700" % (size, uid, gid), "tmpfs", str(path)], check=True)
        self.mounted.append(path)
        self.database().psql("create tablespace \"%s\" location '%s';" % (name, path))
        return name

    def log_text(self):
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait_log(self, *texts):
        wait_until(lambda: all(text in self.log_text() for text in texts), lambda: "%s in:\n%s" % (texts, self.log_text()[-3000:]))


def _is_alive(pid):
    with contextlib.suppress(OSError):
        return Path("/proc/%d/stat" % pid).read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    return False


def _openssl(*arguments):
    done = subprocess.run([tool("openssl"), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
