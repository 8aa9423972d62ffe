"""The http endpoints: health, readiness with reasons, metrics, status."""
import json
import os
import re
import socket
import sqlite3
import subprocess
import threading
import urllib.error
import urllib.request

import pytest
from chute import put_file, wait_until

pytestmark = pytest.mark.core
SAMPLE = re.compile(r'^([a-z_]+)(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? ([0-9.e+-]+|\+Inf|NaN)$')


@pytest.fixture
def web(chute):
    chute.configure({"types": "infer"}, http={"listen": "127.0.0.1:0"})
    chute.start()
    chute.port = port = chute.http_port()

    def get(path, method="GET"):
        try:
            with urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:%d%s" % (port, path), method=method), timeout=30) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers
    chute.get = get
    return chute


def metrics(text):
    """{name: {labels: value}}; fails on anything that is not the Prometheus text format."""
    found, types, helps = {}, {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in types, "two TYPE lines for " + name
            types[name] = kind
        elif line.startswith("# HELP "):
            helps.add(line.split()[2])
        elif line:
            match = SAMPLE.match(line)
            assert match, "not a sample: " + line
            name = match.group(1)
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in types or types.get(base) == "histogram", "no TYPE for " + name
            assert match.group(2) not in found.setdefault(name, {}), "twice: " + line
            found[name][match.group(2) or ""] = float(match.group(4))
    assert set(types) == helps
    assert text.endswith("\n")
    return found, types


def test_health_and_readiness(web):
    assert web.get("/healthz")[0] == 200
    wait_until(lambda: web.get("/readyz")[0] == 200, "readiness")
    assert web.get("/nothing")[0] == 404
    assert web.get("/healthz", "POST")[0] == 405
    assert web.get("/healthz", "HEAD")[0] == 200


def test_metrics_are_prometheus_text(web):
    put_file(web.inbox / "t.csv", "a\n1\n2\n")
    put_file(web.inbox / "bad.csv", "a\n1,2\n")
    web.wait_rows("t", [(1,), (2,)])
    web.wait_state("bad.csv", "quarantined")
    web.wait_log("loaded 2 rows", "quarantined: ")  # said once both are counted
    code, text, headers = web.get("/metrics")
    assert code == 200 and headers["Content-Type"].startswith("text/plain")
    found, types = metrics(text)
    for name in ("chute_files", "chute_rows_total", "chute_bytes_total", "chute_oldest_pending_seconds", "chute_retries_total",
                 "chute_breaker_open", "chute_watch_overflow_total", "chute_build_info"):
        assert name in types, name
        assert types[name] == ("counter" if name.endswith("_total") else "gauge"), name
    assert types["chute_load_seconds"] == "histogram"
    files = {k: v for k, v in found["chute_files"].items()}
    assert [v for k, v in files.items() if 'state="loaded"' in k] == [1]
    assert [v for k, v in files.items() if 'state="quarantined"' in k] == [1]
    assert sum(found["chute_rows_total"].values()) == 2
    assert sum(found["chute_bytes_total"].values()) == 6
    assert "t.csv" not in text and "bad.csv" not in text and str(web.inbox) not in text
    buckets = [v for k, v in found["chute_load_seconds_bucket"].items() if 'flow="main"' in k]
    assert buckets == sorted(buckets) and buckets[-1] == sum(found["chute_load_seconds_count"].values())
    assert 'le="+Inf"' in list(found["chute_load_seconds_bucket"])[-1]


def test_the_status_is_the_one_of_the_command(web):
    put_file(web.inbox / "t.csv", "a\n1\n")
    web.wait_rows("t", [(1,)])
    web.wait_state("t.csv", "loaded")
    answer = json.loads(web.get("/api/v1/status")[1])
    command = web.status()
    assert set(answer) == set(command)


def test_a_locked_destination_does_not_stop_the_answers(web):
    put_file(web.inbox / "a.csv", "a\n1\n")
    web.wait_rows("a", [(1,)])
    with sqlite3.connect(web.db, timeout=30, isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")
        put_file(web.inbox / "t.csv", "a\n1\n")
        wait_until(lambda: web.state_of("t.csv") in ("loading", "retrying", "queued"), "the load to wait", pause=0.1)
        for _ in range(5):
            assert web.get("/healthz")[0] == 200
        db.execute("COMMIT")
    db.close()
    web.wait_rows("t", [(1,)])


def test_many_connections_and_broken_ones_do_no_harm(web):
    def broken():
        with socket.create_connection(("127.0.0.1", web.port)) as s:
            s.sendall(b"GET /metr")
    for _ in range(50):
        broken()
    threads = [threading.Thread(target=web.get, args=("/metrics",)) for _ in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert web.get("/healthz")[0] == 200
    put_file(web.inbox / "t.csv", "a\n1\n")
    web.wait_rows("t", [(1,)])


@pytest.mark.parametrize("line", [b"GARBAGE\r\n", b"GARBAGE\n", b"GARBAGE LINE\r\n", b"GET /healthz\r\n\r\n"])
def test_what_is_no_request_is_refused_not_left_waiting(web, line):
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as s:  # less than the 15 s a silent client has
        s.sendall(line)
        assert s.recv(100)[:12] in (b"", b"HTTP/1.1 400")
    assert web.get("/healthz")[0] == 200


def test_a_port_that_is_taken_is_said(web, make_chute):
    other = make_chute("other")
    other.configure({"types": "infer"}, http={"listen": "127.0.0.1:%d" % web.port})
    process = other.spawn(other.run_arguments())
    wait_until(lambda: process.poll() is not None or str(web.port) in other.log_text(), "a word about the port")
    assert str(web.port) in other.log_text()
    assert os.path.exists("/proc/%d" % web.process.pid)
    assert subprocess.run(["true"]).returncode == 0
