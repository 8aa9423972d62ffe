"""Files into Azure Blob Storage, as they are: Azurite as the service, the SDK of Azure as the other reader."""
import base64
import hashlib
import http.client
import os
import re
import signal
import socketserver
import threading
import time
import urllib.parse
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from azure.storage.blob import BlobServiceClient, generate_account_sas
from chute import put_file, tool, wait_until, write_file
from servers import Azurite

KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module")
def azurite():
    with Azurite() as one:
        yield one


class Lake:
    """A container of its own, and a chute whose flow ends there."""

    def __init__(self, chute, azurite, name):
        self.chute = chute
        self.url = azurite.account_url
        self.container = name
        self.string = "AccountName=devstoreaccount1;AccountKey=%s;BlobEndpoint=%s;" % (KEY, self.url)
        self.service = BlobServiceClient.from_connection_string(self.string)
        self.client = self.service.get_container_client(name)

    def configure(self, flow=None, url=None, top=None, **dest):
        string = self.string if url is None else self.string.replace(self.url, url)
        lake = {"type": "azure_blob", "container": self.container, "create_container": True, **({} if "sas" in dest or "account" in dest else {"connection_string": string}), **dest}
        self.chute.configure(source={"settle": "50ms", "debounce": "20ms"}, flows=[{"to": "lake", **(flow or {})}], dests={"lake": lake},
                             retry={"first": "50ms", "max": "300ms"}, **(top or {}))
        return self

    def names(self):
        return sorted(b.name for b in self.client.list_blobs())

    def snapshots(self, name):
        return [b.snapshot for b in self.client.list_blobs(include=["snapshots"]) if b.name == name and b.snapshot]

    def read(self, name, snapshot=None):
        return self.client.get_blob_client(name, snapshot=snapshot).download_blob().readall()

    def properties(self, name):
        return self.client.get_blob_client(name).get_blob_properties()

    def uncommitted(self, name):
        return self.client.get_blob_client(name).get_block_list("uncommitted")[1]


@pytest.fixture
def lake(chute, azurite, request):
    return Lake(chute, azurite, "c" + hashlib.md5(request.node.nodeid.encode()).hexdigest()[:20])


def age(path, seconds=1700000000):
    os.utime(path, (seconds, seconds))


def test_a_file_is_a_blob_with_its_time_and_sum(lake):
    lake.configure()
    write_file(lake.chute.inbox / "sub/plain.txt", "hello\n")
    age(lake.chute.inbox / "sub/plain.txt")
    lake.chute.once()
    assert lake.names() == ["sub/plain.txt"] and lake.read("sub/plain.txt") == b"hello\n"
    found = lake.properties("sub/plain.txt")
    assert base64.b64encode(found.content_settings.content_md5).decode() == base64.b64encode(hashlib.md5(b"hello\n").digest()).decode()
    assert found.content_settings.content_type == "text/plain"
    assert (found.metadata["original_name"], found.metadata["original_size"], found.metadata["modified_seconds"], found.metadata["modified"]) == \
        ("plain.txt", "6", "1700000000", "2023-11-14T22:13:20Z")
    receipt, = lake.chute.receipts_of("sub/plain.txt", "loaded")
    assert receipt["bytes"] == 6


def test_nothing_changed_sends_nothing(lake):
    lake.configure()
    for i in range(5):
        write_file(lake.chute.inbox / ("%d.bin" % i), os.urandom(1000))
    lake.chute.once()
    before = [lake.properties("%d.bin" % i).etag for i in range(5)]
    lake.chute.once()
    assert [lake.properties("%d.bin" % i).etag for i in range(5)] == before
    # also where the ledger is lost
    import shutil
    shutil.rmtree(lake.chute.state)
    lake.chute.once()
    assert [lake.properties("%d.bin" % i).etag for i in range(5)] == before
    assert all(lake.chute.state_of("%d.bin" % i) == "skipped" for i in range(5)) and not lake.snapshots("0.bin")


@pytest.mark.parametrize("keeps", [True, False])
def test_old_bytes_stay_retrievable(lake, keeps):
    lake.configure({} if keeps else {"on_changed": "overwrite"})
    put_file(lake.chute.inbox / "a.txt", "one\n")
    lake.chute.once()
    put_file(lake.chute.inbox / "a.txt", "one\ntwo\n")
    lake.chute.once()
    assert lake.read("a.txt") == b"one\ntwo\n"
    assert [lake.read("a.txt", s) for s in lake.snapshots("a.txt")] == ([b"one\n"] if keeps else [])


def test_names_and_empty_files(lake):
    lake.configure({"names": "blob", "blob": "x/{ext}/{name}"})
    for name in ("sp ace.txt", "per%cent.txt", "hash#1.txt", "ñandú😀.txt", "noext", "empty.txt"):
        write_file(lake.chute.inbox / name, "" if name == "empty.txt" else name)
    lake.chute.once()
    assert lake.names() == ["x/none/noext", "x/txt/-and--.txt", "x/txt/empty.txt", "x/txt/hash-1.txt", "x/txt/per-cent.txt", "x/txt/sp ace.txt"]
    assert lake.read("x/txt/-and--.txt").decode() == "ñandú😀.txt" and lake.read("x/txt/empty.txt") == b""
    assert urllib.parse.unquote(lake.properties("x/txt/-and--.txt").metadata["original_name"]) == "ñandú😀.txt"


def test_names_as_they_are(lake):
    lake.configure()
    names = ["a b/ü%41+&=?#.txt", "😀/x;y,z'\".bin", "(1)[2]{3}$!~.x"]
    for name in names:
        write_file(lake.chute.inbox / name, name)
    lake.chute.once()
    assert lake.names() == sorted(names)
    for name in names:
        assert lake.read(name).decode() == name


def test_two_files_for_one_blob_are_refused_with_both_names(lake):
    lake.configure({"blob": "{name}"})
    write_file(lake.chute.inbox / "a/same.csv", "a")
    write_file(lake.chute.inbox / "b/same.csv", "b")
    lake.chute.once(expect=1)
    states = sorted((f["path"], f["state"]) for f in lake.chute.files())
    assert sorted(state for _, state in states) == ["loaded", "quarantined"]
    bad = next(path for path, state in states if state == "quarantined")
    text = lake.chute.explain(lake.chute.inbox / bad)
    assert "a/same.csv" in text and "b/same.csv" in text
    assert len(lake.names()) == 1


def test_another_chutes_blob_and_a_strangers_are_not_written_over(lake, tmp_path):
    lake.configure()
    lake.client.create_container()
    lake.client.upload_blob("theirs.txt", b"theirs")
    lake.client.upload_blob("other.txt", b"other", metadata={"chute_hash": "00", "chute_source": "elsewhere", "chute_path": "x/other.txt"})
    put_file(lake.chute.inbox / "theirs.txt", "mine")
    put_file(lake.chute.inbox / "other.txt", "mine")
    lake.chute.once(expect=1)
    assert (lake.read("theirs.txt"), lake.read("other.txt")) == (b"theirs", b"other")
    assert "was not written by chute" in lake.chute.explain(lake.chute.inbox / "theirs.txt")
    assert "x/other.txt of source elsewhere" in lake.chute.explain(lake.chute.inbox / "other.txt")


LARGE = 45 * 1024 * 1024 + 12345


def large_file(path, size=LARGE):
    block = hashlib.sha512(str(path.name).encode()).digest() * 16384
    with open(path, "wb") as f:
        left = size
        while left > 0:
            f.write(block[:left])
            block = block[1:] + block[:1]
            left -= len(block)
    return hashlib.md5(path.read_bytes()).digest()


def test_a_large_file_goes_up_in_blocks(lake):
    lake.configure()
    md5 = large_file(lake.chute.inbox / "large.bin")
    lake.chute.once()
    found = lake.properties("large.bin")
    assert found.size == LARGE and bytes(found.content_settings.content_md5) == md5
    assert hashlib.md5(lake.read("large.bin")).digest() == md5
    committed, left = lake.client.get_blob_client("large.bin").get_block_list("all")
    assert len(committed) == 6 and left == []
    put_file(lake.chute.inbox / "large.bin", "small now")
    lake.chute.once()
    assert lake.read("large.bin") == b"small now" and hashlib.md5(lake.read("large.bin", lake.snapshots("large.bin")[0])).digest() == md5


def test_a_deleted_file_takes_its_blob_along_and_no_other(lake):
    lake.configure({"on_delete": "drop"})
    put_file(lake.chute.inbox / "a.txt", "a")
    put_file(lake.chute.inbox / "b.txt", "b")
    lake.chute.once()
    put_file(lake.chute.inbox / "a.txt", "a2")
    lake.chute.once()
    os.unlink(lake.chute.inbox / "a.txt")
    lake.chute.once()
    assert lake.names() == ["b.txt"] and not lake.snapshots("a.txt")
    # somebody's own blob of that name stays
    os.unlink(lake.chute.inbox / "b.txt")
    lake.client.upload_blob("b.txt", b"theirs", overwrite=True)
    lake.chute.once()
    assert lake.read("b.txt") == b"theirs"


def test_a_renamed_file_has_a_new_blob(lake):
    lake.configure({"on_delete": "drop"})
    put_file(lake.chute.inbox / "a.txt", "a")
    lake.chute.start()
    wait_until(lambda: lake.chute.state_of("a.txt") == "loaded", "the load", pause=0.1)
    os.rename(lake.chute.inbox / "a.txt", lake.chute.inbox / "z.txt")
    wait_until(lambda: lake.names() == ["z.txt"], lambda: "z.txt alone; %s" % lake.names(), pause=0.1)
    assert lake.chute.stop() == 0 and lake.read("z.txt") == b"a"


def test_reset_forgets_and_removes(lake):
    lake.configure()
    put_file(lake.chute.inbox / "a.txt", "a")
    lake.chute.once()
    done = lake.chute.command("reset", "main", "--yes", "-c", lake.chute.config)
    assert done.returncode == 0, done
    assert lake.names() == []
    lake.chute.once()
    assert lake.names() == ["a.txt"]


# ---- who we are ----

def sas(permission="rwdlacu", ends=3600, types="sco"):
    from azure.storage.blob import AccountSasPermissions, ResourceTypes
    return generate_account_sas("devstoreaccount1", KEY, ResourceTypes.from_string(types), AccountSasPermissions.from_string(permission),
                                datetime.now(timezone.utc) + timedelta(seconds=ends), start=datetime.now(timezone.utc) - timedelta(days=1))


@pytest.mark.parametrize("how", ["options", "sas", "sas of blobs", "string with sas"])
def test_ways_to_say_who_we_are(lake, how):
    lake.client.create_container()
    if how == "options":
        lake.configure(account="devstoreaccount1", account_key=KEY, endpoint=lake.url)
    elif how == "string with sas":
        lake.configure(connection_string="BlobEndpoint=%s;SharedAccessSignature=%s" % (lake.url, sas()))
    else:
        lake.configure(sas="?" + (sas() if how == "sas" else sas("rcw", types="o")), endpoint=lake.url + "/", create_container=False)
    put_file(lake.chute.inbox / "a ü.txt", "a")
    large_file(lake.chute.inbox / "l.bin")
    lake.chute.once()
    assert lake.names() == ["a ü.txt", "l.bin"]
    assert "sig=" not in lake.chute.log_text() and KEY not in lake.chute.log_text()


@pytest.mark.parametrize("wrong", ["key", "sas", "ended"])
def test_who_is_refused_blocks_the_destination(lake, wrong):
    lake.client.create_container()
    other = base64.b64encode(b"x" * 64).decode()
    ended = sas(ends=-60)
    if wrong == "key":
        lake.configure(account="devstoreaccount1", account_key=other, endpoint=lake.url)
    else:
        false = re.sub("sig=[^&]*", "sig=" + urllib.parse.quote(base64.b64encode(b"y" * 32).decode(), safe=""), sas())
        lake.configure(sas=ended if wrong == "ended" else false, endpoint=lake.url)
    put_file(lake.chute.inbox / "a.txt", "a")
    lake.chute.start()
    wait_until(lambda: "403" in lake.chute.log_text(), lambda: lake.chute.log_text(), pause=0.1)
    assert lake.chute.state_of("a.txt") == "queued" and lake.names() == []
    said = lake.chute.command("check", "--connect", "-c", lake.chute.config)
    assert said.returncode == 1 and "403" in said.stderr
    assert lake.chute.stop() == 0
    for text in (lake.chute.log_text(), said.stderr, said.stdout):
        assert other not in text and "sig=" not in text and urllib.parse.unquote(ended.split("sig=")[1].split("&")[0]) not in text


def test_a_container_that_is_missing_is_waited_for(lake):
    lake.configure(create_container=False)
    put_file(lake.chute.inbox / "a.txt", "a")
    lake.chute.start()
    lake.chute.wait_log("container %s does not exist" % lake.container)
    assert lake.chute.state_of("a.txt") == "queued"
    lake.client.create_container()
    lake.chute.ask("retry", "--all")
    wait_until(lambda: lake.names() == ["a.txt"], "the blob", pause=0.1)


@pytest.mark.parametrize("dest, words", [
    ({"connection_string": "AccountName=x"}, "AccountKey=… or SharedAccessSignature=…"),
    ({"connection_string": "hello"}, "without '='"),
    ({"connection_string": "AccountName=abc;AccountKey=a b"}, "has a character that none has"),
    ({"connection_string": "AccountName=abc;AccountKey=ab;Hello=World"}, "'Hello'"),
    ({"connection_string": "AccountName=abc;AccountKey=ab", "account": "abc"}, "says all of it"),
    ({"account": "abc"}, "connection_string, or account with account_key, or a sas"),
    ({"sas": "sv=1", "account": "abc"}, "no signature"),
    ({"account": "abc", "account_key": "ab", "endpoint": "http://example.org"}, "https://"),
    ({"account": "abc", "account_key": "ab", "container": "Upper"}, "container: expected 3 to 63"),
])
def test_configurations_that_can_not_work(chute, dest, words):
    chute.configure(dests={"lake": {"type": "azure_blob", "container": "abc", **dest}}, flows=[{"to": "lake"}])
    done = chute.command("check", "-c", chute.config)
    assert done.returncode == 78 and words in done.stderr, done.stderr


@pytest.mark.parametrize("flow, words", [
    ({"format": "csv"}, "expected raw"), ({"format": "json", "records": []}, ""), ({"on_delete": "empty"}, "can't be emptied"),
    ({"blob": "all"}, "all files would be one blob"), ({"table": "x"}, "expected `blob`"), ({"load": "append"}, "a file is a blob"),
    ({"on_changed": "tail"}, "version or overwrite"), ({"key": ["id"]}, "taken as they are")])
def test_flows_that_can_not_work(chute, flow, words):
    chute.configure(dests={"lake": {"type": "azure_blob", "container": "abc", "connection_string": "UseDevelopmentStorage=true"}}, flows=[{"to": "lake", **flow}])
    done = chute.command("check", "-c", chute.config)
    assert done.returncode == 78 and words in done.stderr, done.stderr


def test_a_command_line_is_enough(lake):
    put_file(lake.chute.inbox / "a.txt", "a")
    done = lake.chute.command("run", "--once", "--watch", lake.chute.inbox, "--to", "azblob:" + lake.container, "--state", lake.chute.state,
                              env={"AZURE_STORAGE_CONNECTION_STRING": lake.string})
    assert done.returncode == 0, done
    assert lake.names() == ["a.txt"]
    put_file(lake.chute.home / "b.txt", "b")
    done = lake.chute.command("load", lake.chute.home / "b.txt", "--to", "azblob:" + lake.container, "--state", lake.chute.state,
                              env={"AZURE_STORAGE_CONNECTION_STRING": lake.string})
    assert done.returncode == 0, done
    assert lake.names() == ["a.txt", "b.txt"]


# ---- faults ----

class Between:
    """A proxy before Azurite. RULE(method, path, count) says what becomes of a request: None, a status with headers, "cut" before it is sent,
    "lose" the answer, "half" of the body."""

    def __init__(self, target, rule):
        between = self
        self.rule, self.seen, self.lock = rule, [], threading.Lock()
        host = urllib.parse.urlsplit(target)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_one(self):
                length = int(self.headers.get("Content-Length") or 0)
                with between.lock:
                    between.seen.append((self.command, self.path))
                    what = between.rule(self.command, self.path, len(between.seen))
                if what == "half":
                    if self.headers.get("Expect"):
                        self.send_response_only(100)
                        self.end_headers()
                    self.rfile.read(length // 2)
                    self.close_connection = True
                    self.connection.close()
                    return
                if self.headers.get("Expect"):
                    self.send_response_only(100)
                    self.end_headers()
                body = self.rfile.read(length)
                if what == "cut":
                    self.close_connection = True
                    self.connection.close()
                    return
                if isinstance(what, tuple):
                    status, headers, text = what
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                    return
                try:
                    c = http.client.HTTPConnection(host.hostname, host.port, timeout=60)
                    headers = {k: v for k, v in self.headers.items() if k not in ("Expect", "Connection")}
                    c.request(self.command, self.path, body=body if length else None, headers=headers)
                    answer = c.getresponse()
                    data = answer.read()
                except OSError:
                    self.close_connection = True
                    return
                if what == "lose":
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "date", "server") and not (name.lower() == "content-length" and self.command != "HEAD"):
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data if self.command != "HEAD" else b"")

            do_GET = do_PUT = do_HEAD = do_DELETE = handle_one

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass
        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = "http://127.0.0.1:%d%s" % (self.server.server_address[1], host.path)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def refusal(status, code, **headers):
    return (status, {"x-ms-error-code": code, "Content-Type": "application/xml", **{k.replace("_", "-"): v for k, v in headers.items()}},
            ("<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>no</Message></Error>" % code).encode())


FAULTS = {
    "500": refusal(500, "InternalError"), "503": refusal(503, "ServerBusy", Retry_After="1"), "409": refusal(409, "ContainerBeingDeleted"),
    "412": refusal(412, "ConditionNotMet"), "408": refusal(408, "Timeout"), "429": refusal(429, "TooManyRequests"), "cut": "cut", "lose": "lose", "half": "half"}


@pytest.mark.parametrize("size", ["small", "changed", "large"])
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_each_request_fails_once(lake, fault, size):
    """The first, the second, the third … of them: in the end the blob is right, and nothing else is there."""
    path = lake.chute.inbox / "f.bin"
    n = 0
    while n < 14:
        n += 1
        import shutil
        shutil.rmtree(lake.chute.state, ignore_errors=True)
        if lake.client.exists():
            for name in lake.names():
                lake.client.delete_blob(name, delete_snapshots="include")
        want = hashlib.md5(b"one two").digest()
        if size == "changed":
            lake.configure()
            put_file(path, "one")
            lake.chute.once()
        if size == "large":
            want = large_file(path)
        else:
            put_file(path, "one two")
        with Between(lake.url, lambda method, path, count: FAULTS[fault] if count == n else None) as between:
            lake.configure(url=between.url, stall_timeout="3s")
            lake.chute.once()
            seen = len(between.seen)
        assert lake.names() == ["f.bin"] and hashlib.md5(lake.read("f.bin")).digest() == want, n
        assert lake.chute.state_of("f.bin") == "loaded", n
        assert lake.uncommitted("f.bin") == []
        if size == "changed":
            assert {lake.read("f.bin", s) for s in lake.snapshots("f.bin")} == {b"one"}, n
        if seen < n:
            break
    assert n > 2


def test_azurite_restarted_in_the_middle_goes_on_with_the_blocks_that_are_there(lake):
    """The connection dies after three blocks; what had arrived is not sent again."""
    sent = []

    def rule(method, path, count):
        if "comp=block&" in path or path.endswith("comp=block"):
            sent.append(path)
            return "cut" if len(sent) > 3 and not rule.is_well else None
        return None
    rule.is_well = False
    md5 = large_file(lake.chute.inbox / "l.bin")
    with Between(lake.url, rule) as between:
        lake.configure(url=between.url, top={"limits": {"jobs": 1}})
        lake.chute.start()
        wait_until(lambda: len(sent) > 8, lambda: lake.chute.log_text()[-2000:], pause=0.1)
        lake.chute.kill9()
        rule.is_well = True
        before = len(sent)
        lake.chute.once()
    assert len(sent) - before == 3, sent
    assert hashlib.md5(lake.read("l.bin")).digest() == md5 and lake.uncommitted("l.bin") == []


@pytest.mark.parametrize("names", ["fdatasync,fsync", "sendto,write,writev,sendmsg"])
def test_killed_at_every_step(lake, names):
    """Each file is there once and right, whenever chute dies."""
    import shutil
    when, killed = 0, True
    while killed and when < 25:
        when += 1
        shutil.rmtree(lake.chute.state, ignore_errors=True)
        if lake.client.exists():
            for name in lake.names():
                lake.client.delete_blob(name, delete_snapshots="include")
        lake.configure()
        for i in range(3):
            write_file(lake.chute.inbox / ("%d.txt" % i), "text %d %d" % (i, when))
            age(lake.chute.inbox / ("%d.txt" % i), time.time() - 100)
        code = lake.chute.once(prefix=[tool("strace"), "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + names,
                                       "-e", "inject=%s:signal=SIGKILL:when=%d" % (names, when)], expect=None)
        killed = code not in (0, 1)
        lake.chute.once()
        assert lake.names() == ["0.txt", "1.txt", "2.txt"], when
        assert [lake.read("%d.txt" % i).decode() for i in range(3)] == ["text %d %d" % (i, when) for i in range(3)], when
        assert sorted(f["state"] for f in lake.chute.files()) == ["loaded"] * 3, when
        assert not any(lake.snapshots("%d.txt" % i) for i in range(3)), when
    assert when > 3


def test_a_stop_in_the_middle_of_a_large_file(lake):
    hold = threading.Event()

    def rule(method, path, count):
        if "comp=block&" in path or path.endswith("comp=block"):
            hold.wait(30)
        return None
    md5 = large_file(lake.chute.inbox / "l.bin")
    with Between(lake.url, rule) as between:
        lake.configure(url=between.url, top={"shutdown_grace": "200ms"})
        lake.chute.start()
        wait_until(lambda: any("comp=block" in path for _, path in between.seen), "a block", pause=0.05)
        assert lake.chute.stop(signal.SIGTERM, 30) == 0
        hold.set()
    lake.configure()
    lake.chute.once()
    assert hashlib.md5(lake.read("l.bin")).digest() == md5
