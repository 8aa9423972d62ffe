"""The Keboola emulator: what it must answer so that a client cannot tell it from the service. Its program, project, jobs and faults;
the object stores are in test_emulator_stores.py, files and tables in test_emulator_tables.py.
"""
import concurrent.futures
import gzip
import hashlib
import http.client
import json
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.parse

import pytest
from chute import TOP, wait_until
from emulator_client import api, Api, bucket, emulator, MIB, put, running, send, Signer, table, uploaded  # noqa: F401: fixtures
from keboola import PROGRAM, TOKEN, Emulator

sys.path.insert(0, str(TOP / "tests/emulator"))
import names  # noqa: E402


# ---- the program ------------------------------------------------------------------------------------------------------
def test_it_says_where_it_listens_and_ends_on_sigterm():
    one = Emulator().start()
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", one.url)
    connection = socket.create_connection(urllib.parse.urlsplit(one.url).netloc.split(":"))  # an open one must not keep it
    assert one.stop() == 0
    connection.close()


def test_it_ends_with_the_standard_input_of_who_started_it():
    one = Emulator().start()
    one.process.stdin.close()
    assert one.process.wait(30) == 0
    one.process.stdout.close()


def test_a_port_in_use_is_said_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run([sys.executable, str(PROGRAM), "--port", str(taken.getsockname()[1]), "--data", str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "cannot start" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_its_folder_is_gone_afterwards(tmp_path):
    with Emulator(data=tmp_path / "data") as one:
        Api(one).upload(b"x" * 200000)
        assert [file for file in (tmp_path / "data").rglob("*") if file.is_file()]
    assert list((tmp_path / "data").iterdir()) == []


def test_tls(tmp_path):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key", "-out", tmp_path / "cert", "-days", "2",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    with Emulator(tls_cert=tmp_path / "cert", tls_key=tmp_path / "key") as one:
        assert one.url.startswith("https://")
        with pytest.raises(ssl.SSLCertVerificationError):
            send(one.url, "GET", "/v2/storage")
        answer = send(one.url, "GET", "/v2/storage/tokens/verify", headers={"X-StorageApi-Token": TOKEN},
                      context=ssl.create_default_context(cafile=tmp_path / "cert"))
        assert answer.status == 200 and answer.json["uri"].startswith("https://")
        assert one.state()["buckets"] == []


def test_the_page_shows_buckets_tables_and_rows(emulator, api, bucket):
    api.create(bucket, "cities", "name,country\n<Praha>,Czechia\n")
    page = send(emulator.url, "GET", "/", headers={"Accept": "text/html,*/*"})
    assert page.headers["Content-Type"].startswith("text/html")
    text = page.body.decode()
    assert "in.c-b" in text and "<h3>cities" in text and "&lt;Praha&gt;" in text and "tableCreate" in text
    assert not re.search(r"(src|href)=['\"]?https?:", text)
    assert send(emulator.url, "GET", "/", headers={"Accept": "application/json"}).json["tables"]["in.c-b.cities"]["rowsCount"] == 1


def test_200_connections_at_once(emulator):
    host = urllib.parse.urlsplit(emulator.url).netloc
    connections = [http.client.HTTPConnection(host, timeout=30) for _ in range(200)]
    for _ in range(3):
        for connection in connections:
            connection.request("GET", "/v2/storage/tokens/verify", headers={"X-StorageApi-Token": TOKEN})
        for connection in connections:
            answer = connection.getresponse()
            assert answer.status == 200 and json.loads(answer.read())["id"] == "98765"
    for connection in connections:
        connection.close()


def test_a_large_upload_is_not_held_in_memory():
    with Emulator() as one:
        api = Api(one)
        api.bucket("b")

        def peak():
            return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/%d/status" % one.process.pid).read()).group(1)) * 1024
        api.upload(b"id\n1\n")
        before = peak()
        row = b"0123456789abcdef,0123456789abcdef,0123456789abcdef\n"
        data = b"a,b,c\n" + row * (64 * MIB // len(row))
        one.settings(keep_rows=1000)
        job = api.create("in.c-b", "big", data)
        assert job["status"] == "success" and job["results"]["rowsCount"] == data.count(b"\n") - 1
        assert one.tables()["in.c-b.big"]["sha256"] == hashlib.sha256(data).hexdigest()
        assert not one.tables()["in.c-b.big"]["kept"]
        assert peak() - before < 30 * MIB


@pytest.mark.parametrize("head", [b"nonsense\r\n\r\n", b"GET / FTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
                                  b"PUT / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
def test_what_is_no_request_is_refused(emulator, head):
    with socket.create_connection(urllib.parse.urlsplit(emulator.url).netloc.split(":"), timeout=30) as sock:
        sock.sendall(head)
        assert sock.makefile("rb").read().startswith(b"HTTP/1.1 400 ")


# ---- index, tokens, branches --------------------------------------------------------------------------------------------
def test_the_index_needs_no_token(emulator):
    for token in (None, "wrong"):
        for path in ("", "/"):
            body = Api(emulator, token)("GET", path).json
            assert body["api"] == "storage" and body["version"] == "v2" and body["components"] == []
            assert {"id": "import", "url": "https://import.keboola.invalid"} in body["services"]
    assert "components" not in Api(emulator, None)("GET", "?exclude=components").json


@pytest.mark.parametrize("method,path,status", [
    ("GET", "/not-a-url", 404), ("GET", "//not-a-url", 404), ("POST", "//not-a-url", 404), ("DELETE", "/delete/not-a-url", 404),
    ("GET", "/tables/", 200), ("PATCH", "/buckets", 405), ("GET", "/branch/default/jobs", 404), ("GET", "/branch/77/buckets", 404),
    ("POST", "/files/1", 405), ("GET", "/buckets/in.c-b//tables", 404)])
def test_paths(api, method, path, status):
    answer = api(method, path)
    assert answer.status == status
    if status != 200:
        assert answer.json["status"] == "error" and answer.json["exceptionId"].startswith("keboola-connection-")


def test_a_path_outside_of_the_api_is_not_found(emulator):
    assert send(emulator.url, "GET", "/v1/other").status == 404


def test_token_errors(emulator, api):
    missing = Api(emulator, None)("GET", "/buckets")
    assert missing.error == (401, "") and missing.json["error"] == "Access token must be set"
    wrong = Api(emulator, "4321-1-x")("GET", "/buckets")
    assert wrong.error == (401, "storage.tokenInvalid") and wrong.json["error"] == "Invalid access token"
    assert Api(emulator, None)("GET", "/buckets", headers={"Authorization": "Bearer " + TOKEN}).status == 200
    for change in ("isExpired", "isDisabled"):
        emulator.settings(token={change: True})
        assert api.get("/tokens/verify")[change] is True
        assert api("GET", "/buckets").error == (401, "storage.tokenInvalid")
        emulator.settings(token={change: False})
    emulator.settings(token={"revoked": True})
    assert api("GET", "/tokens/verify").error == (401, "storage.tokenInvalid")


def test_verify(emulator, api):
    body = api.get("/tokens/verify")
    assert body == api.get("/branch/default/tokens/verify") == api.get("/branch/1011/tokens/verify")
    assert body["id"] == "98765" and body["canManageBuckets"] is True and body["isExpired"] is False and body["expires"] is None
    assert body["bucketPermissions"] == [] and body["componentAccess"] == []
    assert body["owner"]["id"] == 4321 and body["owner"]["fileStorageProvider"] == "aws" and body["owner"]["defaultBackend"] == "snowflake"
    assert body["owner"]["limits"]["storage.jobsParallelism"]["value"] == 10
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", body["created"])
    emulator.settings(token={"canManageBuckets": False, "bucketPermissions": {"in.c-sales": "manage"}}, provider="gcp", backend="bigquery")
    body = api.get("/tokens/verify")
    assert body["bucketPermissions"] == {"in.c-sales": "manage"} and body["canManageBuckets"] is False
    assert body["owner"]["fileStorageProvider"] == "gcp" and body["owner"]["hasBigquery"] is True


def test_branches_and_tickets(api):
    assert api.get("/dev-branches")[0]["isDefault"] is True
    assert api.get("/dev-branches/default")["id"] == 1011
    assert api.get("/branch/default/metadata") == []
    assert isinstance(api("POST", "/tickets").json["id"], int)


def test_slashes_are_escaped_as_php_does(api):
    assert b"http:\\/\\/127.0.0.1" in api("GET", "/tokens/verify").body


def test_answers_are_gzipped_when_asked_for(emulator, api):
    emulator.settings(gzip_answers=True)
    answer = api("GET", "/tokens/verify", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip" and json.loads(gzip.decompress(answer.body))["id"] == "98765"
    assert api("GET", "/tokens/verify").json["id"] == "98765"


# ---- buckets ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["body", "form"])
def test_a_bucket_is_created(api, way):
    answer = api("POST", "/buckets", **{way: {"name": "sales", "stage": "in", "description": "d"}})
    assert answer.status == 201
    body = answer.json
    assert (body["id"], body["name"], body["displayName"], body["stage"], body["description"]) == ("in.c-sales", "c-sales", "sales", "in", "d")
    assert body["tables"].endswith("/v2/storage/buckets/in.c-sales/tables") and body["backend"] == "snowflake" and body["rowsCount"] == 0
    detail = api.get("/buckets/in.c-sales")
    assert detail["tables"] == [] and detail["attributes"] == [] and detail["uri"] == body["uri"]
    assert [one["id"] for one in api.get("/buckets")] == ["in.c-sales"] == [one["id"] for one in api.get("/branch/default/buckets?include=metadata")]


def test_the_prefix_of_buckets_can_be_off(emulator, api):
    emulator.settings(features=["disable-legacy-bucket-prefix"])
    assert api.bucket("sales") == "in.sales"
    assert "disable-legacy-bucket-prefix" in api.get("")["features"]


def test_a_bucket_that_exists(api):
    assert api.bucket("sales") == "in.c-sales"
    again = api("POST", "/buckets", {"name": "sales"})
    assert again.error == (400, "storage.buckets.alreadyExists") and again.json["error"] == "The bucket sales already exists."
    assert api.bucket("sales", stage="out") == "out.c-sales"
    api.bucket("other", displayName="shown")
    clash = api("POST", "/buckets", {"name": "shown"})
    assert clash.error == (400, "storage.buckets.alreadyExists")
    assert clash.json["error"] == 'The display name "shown" already exists in project.'
    assert api("GET", "/buckets/in.c-shown").error == (404, "storage.buckets.notFound")
    assert api.bucket("c-sales") == "in.c-c-sales"


@pytest.mark.parametrize("fields", [{}, {"name": ""}, {"name": "a b"}, {"name": "a.b"}, {"name": "č"}, {"name": "a", "stage": "x"},
                                    {"name": "a", "displayName": "$$$$$"}, {"name": "a", "displayName": "_a"}, {"name": 5}])
def test_a_bucket_that_cannot_be(api, fields):
    assert api("POST", "/buckets", fields).error == (400, "storage.buckets.validation")
    assert api.get("/buckets") == []


def test_what_is_wrong_with_a_display_name_is_said(api):
    assert api("POST", "/buckets", {"name": "a", "displayName": "$$$$$"}).json["error"] == (
        "Invalid data - displayName: '$$$$$' contains not allowed characters. Only alphanumeric characters dash and underscores are allowed.")
    assert "Cannot start with underscore." in api("POST", "/buckets", {"name": "a", "displayName": "_a"}).json["error"]


def test_a_bucket_is_not_found(api):
    answer = api("GET", "/buckets/in.c-sales")
    assert answer.error == (404, "storage.buckets.notFound")
    assert answer.json["error"] == 'The bucket "in.c-sales" was not found in the project "4321"'
    for path in ("/buckets/in.c-sales/tables", "/tables/in.c-sales.x"):
        assert api("GET", path).error == (404, "storage.buckets.notFound")


def test_a_bucket_is_changed(api):
    api.bucket("one")
    api.bucket("two")
    assert api("PUT", "/buckets/in.c-one", {"displayName": "new", "color": "red"}).json["displayName"] == "new"
    assert api("PUT", "/buckets/in.c-two", {"displayName": "new"}).error == (400, "storage.buckets.alreadyExists")
    assert api.job(api("PUT", "/buckets/in.c-two?async=1", {"displayName": "newer"}))["status"] == "success"
    assert api.get("/buckets/in.c-two")["displayName"] == "newer"


def test_a_bucket_is_deleted(api, bucket):
    api.create(bucket, "t", "a\n1\n")
    for path in ("/buckets/in.c-b", "/buckets/in.c-b?async=1", "/buckets/in.c-b?force=False&async=True"):
        refused = api("DELETE", path)
        assert refused.error == (400, "buckets.deleteNotEmpty")
        assert refused.json["error"] == "Only empty buckets can be deleted. There are 1 tables in the bucket."
    job = api.job(api("DELETE", "/buckets/in.c-b?force=True&async=True"))
    assert job["operationName"] == "bucketDelete" and job["status"] == "success"
    assert api("DELETE", "/buckets/in.c-b").status == 404
    api.bucket("b")
    gone = api("DELETE", "/buckets/in.c-b")
    assert gone.status == 204 and gone.body == b""


def test_permissions_on_buckets(emulator, api):
    for name in ("read", "write", "manage", "none"):
        api.bucket(name)
        api.create("in.c-" + name, "t", "a\n1\n")
    rights = {"in.c-read": "read", "in.c-write": "write", "in.c-manage": "manage"}
    emulator.settings(tokens={"limited": {"canManageBuckets": False, "bucketPermissions": rights, "canReadAllFileUploads": True}})
    limited = Api(emulator, "limited")
    denied = (403, "accessDenied")
    assert limited("POST", "/buckets", {"name": "x"}).error == denied
    assert limited("POST", "/buckets", {"name": "x"}).json["error"] == "You don't have access to the resource."
    assert {one["id"] for one in limited.get("/buckets")} == set(rights) == {one["id"].rpartition(".")[0] for one in limited.get("/tables")}
    assert limited("GET", "/buckets/in.c-none").error == denied and limited("GET", "/tables/in.c-none.t").error == denied
    assert limited("GET", "/tables/in.c-read.t").status == 200
    file = limited.upload("a\n1\n")
    assert limited("POST", "/tables/in.c-read.t/import-async", {"dataFileId": file}).error == denied
    assert limited("POST", "/buckets/in.c-read/tables-async", {"name": "n", "dataFileId": file}).error == denied
    assert limited("POST", "/tables/in.c-write.t/import-async", {"dataFileId": file}).status == 202
    assert limited("DELETE", "/tables/in.c-write.t").error == denied
    assert limited("DELETE", "/tables/in.c-manage.t").status == 204


# ---- names --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("raw,clean", [
    ("test-vn-đá cuội", "test_vn_da_cuoi"), ("_~dlažební  %_kostky_~", "dlazebni__kostky"), ("user-id#123", "user_id_123"), ("jp日本語", "jp"),
    ("_", ""), ("with spaces", "with_spaces"), ("ščřščž", "scrscz"), ("_with_underscore", "with_underscore"), ("language-id", "language_id"),
    ("oid", "oid_"), ("XMax", "XMax_"), ("straße", "strasse")])
def test_columns_are_cleaned(raw, clean):
    assert names.clean_column(raw) == clean


def test_webalize_and_validate(api):
    def display(text):
        return api("POST", "/webalize/display-name", {"displayName": text})
    assert display("Prodej Čechy 2026").json == {"displayName": "Prodej-Cechy-2026"}
    assert display("Môj 1$ obľúbený bucket $").json == {"displayName": "Moj-1-oblubeny-bucket"}
    assert display("-----").error == (422, "storage.webalize.displayName.invalid")
    columns = api("POST", "/webalize/column-names", {"columnNames": ["cena €", "_Bod", "oid", "a\x01", "x" * 70]}).json["columnNames"]
    assert columns == ["cena_EUR", "Bod", "oid", "", "x" * 64]
    assert api("POST", "/webalize/column-names", {"columnNames": ["a", None]}).error == (400, "validation.failed")
    assert api("POST", "/validate/column-names", {"columnNames": ["ab", "a-b"]}).status == 204
    wrong = api("POST", "/validate/column-names", {"columnNames": ["ab", "a b", "_x", "y" * 65]})
    assert wrong.status == 422 and [one["key"] for one in wrong.json["errors"]] == ["columnNames[1]", "columnNames[2]", "columnNames[3]"]


# ---- jobs ---------------------------------------------------------------------------------------------------------------
def test_a_job_waits_works_and_ends(emulator, api, bucket):
    def begin(name):
        return "/jobs/%d" % api("POST", "/buckets/in.c-b/tables-async", {"name": name, "dataFileId": api.upload("a\n1\n")}).json["id"]
    emulator.settings(job_seconds=3600)
    slow = begin("slow")
    emulator.settings(job_seconds=0.3)
    emulator.fault(job_hang=True)
    job = begin("t")
    wait_until(lambda: api.get(job)["status"] == "processing", "the job to run")
    assert api.get(job)["startTime"] and api.get(job)["endTime"] is None and emulator.rows("in.c-b.t") is None
    emulator.clear_faults()
    wait_until(lambda: api.get(job)["status"] == "success", "the job to end")
    assert emulator.rows("in.c-b.t") == [["1"]]
    assert api.get(slow)["status"] == "waiting" and api.get(slow)["startTime"] is None


def test_loads_into_one_table_run_one_after_the_other(emulator, api, table):
    emulator.fault("import-async", job_hang=True)
    jobs = [api("POST", "/tables/%s/import-async" % table, {"dataFileId": api.upload("id,name,population\n%d,x,y\n" % i)}).json["id"] for i in range(4)]
    wait_until(lambda: api.get("/jobs/%d" % jobs[0])["status"] == "processing", "the first job to run")
    time.sleep(0.3)  # time in which another could begin, if they were not kept back
    assert [api.get("/jobs/%d" % job)["status"] for job in jobs] == ["processing", "waiting", "waiting", "waiting"]
    emulator.clear_faults()
    wait_until(lambda: emulator.loads(table)["finished"] == 5, "all jobs to end")
    assert emulator.rows(table) == [["3", "x", "y"]]
    assert [job["id"] for job in api.get("/jobs?limit=4")] == jobs[::-1]


def test_loads_into_several_tables_run_at_once(emulator, api, bucket):
    emulator.fault(job_hang=True, times=None)
    for i in range(5):
        api("POST", "/buckets/in.c-b/tables-async", {"name": "t%d" % i, "dataFileId": api.upload("a\n")})
    wait_until(lambda: [job["status"] for job in emulator.state()["jobs"]].count("processing") == 5, "five jobs that run", pause=0.01)


def test_jobs_are_listed_and_found(api, table):
    jobs = api.get("/jobs")
    assert jobs[0]["operationName"] == "tableCreate" and len(jobs) > 2  # a project has a past
    assert api.get("/jobs/%d" % jobs[-1]["id"])["status"] == "success"
    assert api.get("/jobs?limit=1&offset=1")[0]["id"] == jobs[1]["id"]
    for job in ("5", "x"):
        assert api("GET", "/jobs/" + job).status == 404


# ---- settings -----------------------------------------------------------------------------------------------------------
def test_ids_as_strings_and_columns_as_object(emulator, api, table):
    emulator.settings(ids_as_strings=True, importedColumns_as_object=True)
    job = api.load(table, "id,name,population\n")
    assert isinstance(job["id"], str) and job["results"]["importedColumns"] == {"0": "id", "1": "name", "2": "population"}
    assert isinstance(api.get("/files")[0]["id"], str)


def test_maintenance(emulator, api):
    emulator.settings(maintenance={"until": "2026-03-01T12:00:00+01:00", "reason": "Backend upgrade", "retry_after": 7})
    answer = api("POST", "/files/prepare", {"name": "x"})
    assert answer.status == 503 and answer.headers["Retry-After"] == "7"
    assert answer.json == {"status": "maintenance", "estimatedEndTime": "2026-03-01T12:00:00+01:00", "reason": "Backend upgrade"}
    emulator.settings(maintenance=None)
    assert api("GET", "/buckets").status == 200


def test_latency(emulator, api):
    emulator.settings(latency_ms=300)
    before = time.monotonic()
    api.get("/buckets")
    assert time.monotonic() - before >= 0.3
    assert emulator.requests()[-1]["duration"] >= 0.3


def test_wrong_settings_are_refused(emulator):
    for wrong in ({"nonsense": 1}, {"provider": "floppy"}, {"token": {"nonsense": 1}}):
        with pytest.raises(AssertionError, match="nonsense|floppy"):
            emulator.settings(**wrong)


def test_counting_instead_of_parsing(emulator, api, bucket):
    emulator.settings(count_only=True)
    job = api.create(bucket, "t", gzip.compress(b"a,b\n" + b"1,2\n" * 1000 + b"3,4"), file="f.csv.gz")
    assert job["results"]["rowsCount"] == 1001 and job["results"]["columns"] == ["a", "b"]
    assert emulator.state()["files"][0]["uploaded"] is None  # forgotten
    assert api.load("in.c-b.t", "a,b\n1,2\n", incremental=1)["results"]["totalRowsCount"] == 1002


# ---- control ------------------------------------------------------------------------------------------------------------
def test_requests_are_recorded(emulator, api, bucket):
    data = b"a\n1\n"
    api.job(api("POST", "/buckets/in.c-b/tables-async", form={"name": "t", "dataFileId": api.upload(data)}))
    records = emulator.requests()
    assert [one["n"] for one in records] == list(range(records[0]["n"], records[0]["n"] + len(records)))
    upload = emulator.requests("PUT", "/_s3/")[0]
    assert (upload["size"], upload["sha256"], upload["status"], upload["outcome"]) == (4, hashlib.sha256(data).hexdigest(), 200, "answered")
    assert upload["headers"]["x-amz-acl"] == "private"
    prepared = emulator.requests("POST", "files/prepare")[0]
    assert prepared["json"]["name"] == "f.csv" and prepared["status"] == 201 and prepared["duration"] >= 0
    created = emulator.requests("POST", "tables-async")[0]
    assert created["json"]["name"] == "t" and created["headers"]["content-type"] == "application/x-www-form-urlencoded"
    assert [one["n"] for one in emulator.requests(since=created["n"])] == [one["n"] for one in records if one["n"] > created["n"]]
    api.get("/files?limit=3&tags[]=x")
    assert emulator.requests()[-1]["query"] == {"limit": "3", "tags[]": "x"}
    emulator.forget_requests()
    assert emulator.requests() == []


def test_reset_forgets_everything(emulator, api, table):
    emulator.settings(latency_ms=1, provider="gcp")
    emulator.fault("x", status=500)
    emulator.reset()
    state = emulator.state()
    assert (state["buckets"], state["tables"], state["jobs"], state["files"], state["loads"]) == ([], {}, [], [], {})
    assert state["settings"]["latency_ms"] == 0 and state["settings"]["provider"] == "aws"
    assert emulator.faults() == [] and emulator.requests() == [] and emulator.rows(table) is None


def test_reset_while_a_job_runs(emulator, api, bucket):
    emulator.fault(job_hang=True)
    answer = api("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": api.upload("a\n1\n")})
    wait_until(lambda: api.get("/jobs/%d" % answer.json["id"])["status"] == "processing")
    emulator.reset()
    assert api("GET", "/jobs/%d" % answer.json["id"]).status == 404
    api.bucket("b")
    assert api.create("in.c-b", "t", "a\n2\n")["status"] == "success" and emulator.rows("in.c-b.t") == [["2"]]


# ---- faults -------------------------------------------------------------------------------------------------------------
BROKEN = (ConnectionError, http.client.HTTPException)


def test_a_status_with_headers_and_body(emulator, api):
    emulator.fault("files/prepare$", "POST", skip=1, times=2, status=503, headers={"Retry-After": 2}, body="<html>busy</html>")
    api.prepare()
    for _ in range(2):
        answer = api("POST", "/files/prepare", {"name": "a", "federationToken": 1})
        assert answer.status == 503 and answer.headers["Retry-After"] == "2" and answer.body == b"<html>busy</html>"
    api.prepare()
    assert len(emulator.state()["files"]) == 2
    assert [(one["seen"], one["done"]) for one in emulator.faults()] == [(4, 2)]
    assert [one["status"] for one in emulator.requests("POST", "prepare")] == [201, 503, 503, 201]


def test_a_fault_for_ever_until_it_is_cleared(emulator, api):
    emulator.fault("buckets", times=None, status=500, body={"error": "Application error"})
    for _ in range(3):
        assert api("GET", "/buckets").json == {"error": "Application error"}
    emulator.clear_faults()
    assert api.get("/buckets") == []


@pytest.mark.parametrize("do,there", [(dict(cut="before"), False), (dict(cut="mid_body"), False), (dict(reset=True), False),
                                      (dict(cut="after_effect"), True), (dict(reset=True, after_effect=True), True), (dict(cut="mid_answer"), True)])
def test_cuts(emulator, api, do, there):
    emulator.fault("buckets$", "POST", **do)
    with pytest.raises(BROKEN):
        api("POST", "/buckets", {"name": "sales"})
    assert [one["id"] for one in api.get("/buckets")] == (["in.c-sales"] if there else [])
    assert emulator.requests("POST")[0]["outcome"] == "cut"


def test_a_reset_is_one(emulator, api):
    for do, ends in ((dict(reset=True), ConnectionResetError), (dict(cut="before"), None)):
        emulator.fault("buckets", **do)
        with socket.create_connection(urllib.parse.urlsplit(emulator.url).netloc.split(":"), timeout=30) as sock:
            sock.sendall(b"GET /v2/storage/buckets HTTP/1.1\r\nHost: x\r\n\r\n")
            if ends is None:
                assert sock.recv(100) == b""
            else:
                with pytest.raises(ends):
                    sock.recv(100)


def test_a_cut_in_the_middle_of_an_upload(emulator, api):
    file = api.prepare()
    emulator.fault("^/_s3/", "PUT", cut="mid_body")
    with pytest.raises(BROKEN):
        Signer(file).put(emulator, bytes(3 * MIB))
    assert uploaded(emulator, file) is None and emulator.requests("PUT")[0]["size"] == 3 * MIB // 2
    assert Signer(file).put(emulator, bytes(3 * MIB)).status == 200


def test_a_500_after_the_effect(emulator, api):
    emulator.fault("buckets$", "POST", status=500, after_effect=True, body="oops")
    answer = api("POST", "/buckets", {"name": "sales"})
    assert answer.status == 500 and answer.body == b"oops"
    assert api("POST", "/buckets", {"name": "sales"}).error == (400, "storage.buckets.alreadyExists")


def test_answers_are_replaced_changed_and_shortened(emulator, api):
    emulator.fault("verify", json={"id": 1})
    assert api.get("/tokens/verify") == {"id": 1}
    emulator.fault("verify", merge={"owner": {"id": "4321"}, "isExpired": True})
    body = api.get("/tokens/verify")
    assert body["owner"]["id"] == "4321" and body["owner"]["name"] == "Emulator" and body["isExpired"] is True
    emulator.fault("verify", truncate=20)
    assert len(api("GET", "/tokens/verify").body) == 20
    emulator.fault("verify", headers={"X-Odd": "1"})
    assert api("GET", "/tokens/verify").headers["X-Odd"] == "1"


def test_a_delay(emulator, api):
    emulator.fault("verify", delay=0.3)
    before = time.monotonic()
    api.get("/tokens/verify")
    assert time.monotonic() - before >= 0.3


def test_connections_are_refused_for_a_while(emulator, api):
    emulator.fault("verify", refuse=4)
    with pytest.raises(BROKEN):
        api.get("/tokens/verify")
    with pytest.raises(ConnectionRefusedError):
        api.get("/tokens/verify")

    def back():
        try:
            return api("GET", "/tokens/verify").status == 200
        except ConnectionRefusedError:
            return False
    wait_until(back, "the emulator to come back")


def test_credentials_expire_midway(emulator, api):
    file = api.prepare()
    signer = Signer(file)
    upload = signer.begin(emulator)
    emulator.fault("partNumber", skip=1, expire_credentials=True)
    assert signer.part(emulator, upload, 1, b"a").status == 200
    assert signer.part(emulator, upload, 2, b"b").error == (400, "ExpiredToken")
    assert signer.part(emulator, upload, 2, b"b").error == (400, "ExpiredToken")
    emulator.fault("files/prepare", expire_credentials=True)
    for provider, expected in (("aws", (400, "ExpiredToken")), ("azure", (403, "AuthenticationFailed")), ("gcp", (401, "AuthenticationRequired"))):
        emulator.settings(provider=provider)
        emulator.clear_faults()
        emulator.fault("files/prepare", expire_credentials=True)
        assert put(emulator, api.prepare(), b"x").error == expected
        emulator.fault(r"/_s3/|/_azure/|exp-15", expire_credentials=True)
        assert put(emulator, api.prepare(), b"x").error == expected
        assert put(emulator, api.prepare(), b"x").status in (200, 201)


def test_a_complete_that_fails_with_200(emulator, api):
    signer = Signer(api.prepare())
    upload = signer.begin(emulator)
    etag = signer.part(emulator, upload, 1, b"a").headers["ETag"]
    emulator.fault("uploadId=[^&]+$", "POST", status=200, body="<Error><Code>InternalError</Code><Message>m</Message></Error>")
    assert signer.complete(emulator, upload, [(1, etag)]).error == (200, "InternalError")
    emulator.fault("uploadId=[^&]+$", "POST", cut="after_effect")
    with pytest.raises(BROKEN):
        signer.complete(emulator, upload, [(1, etag)])
    assert signer.complete(emulator, upload, [(1, etag)]).error == (404, "NoSuchUpload")


def test_job_errors_and_jobs_that_hang(emulator, api, bucket):
    emulator.fault(job_error={"code": "invalidData", "message": "scripted", "results": {"a": 1}}, times=2)
    for _ in range(2):
        job = api.create(bucket, "t", "a\n1\n")
        assert (job["status"], job["error"]["code"], job["error"]["message"], job["results"]) == ("error", "invalidData", "scripted", {"a": 1})
    assert api.create(bucket, "t", "a\n1\n")["status"] == "success"
    emulator.fault("import-async", job_hang=True)
    answer = api("POST", "/tables/in.c-b.t/import-async", {"dataFileId": api.upload("a\n2\n")})
    job = "/jobs/%d" % answer.json["id"]
    wait_until(lambda: api.get(job)["status"] == "processing")
    emulator.clear_faults()
    wait_until(lambda: api.get(job)["status"] == "success")
    assert emulator.rows("in.c-b.t") == [["2"]]
    emulator.fault(job_error={"code": "", "message": "Internal Server Error"}, path="import-async")
    assert api.load("in.c-b.t", "a\n3\n")["error"]["code"] == ""
    assert emulator.loads("in.c-b.t") == {"accepted": 5, "finished": 5, "succeeded": 2, "failed": 3}


def test_wrong_faults_are_refused(emulator):
    for wrong in ({"cut": "nowhere"}, {"nonsense": 1}):
        with pytest.raises(AssertionError, match="cut is one of|nonsense"):
            emulator.fault("x", **wrong)
    with pytest.raises(AssertionError):
        emulator.fault("(", status=500)


def test_faults_of_several_threads_happen_as_often_as_told(emulator, api):
    emulator.fault("verify", times=10, status=503)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: api("GET", "/tokens/verify").status, range(40)))
    assert statuses.count(503) == 10 and statuses.count(200) == 30
