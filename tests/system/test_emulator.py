"""The Keboola emulator: what it must answer so that a client cannot tell it from the service."""
import base64
import concurrent.futures
import gzip
import hashlib
import hmac
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import zlib

import pytest
from chute import TOP, wait_until
from keboola import PROGRAM, TOKEN, Emulator
from servers import Azurite, S3rver

sys.path.insert(0, str(TOP / "tests/emulator"))
import blobs  # noqa: E402
import names  # noqa: E402
import sigv4  # noqa: E402

MIB = 1024 * 1024


# ---- a client ---------------------------------------------------------------------------------------------------------
class Response:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        """(HTTP status, code of the API or of XML)."""
        if self.body.startswith(b"<"):
            return self.status, re.search(rb"<Code>(\w+)</Code>", self.body).group(1).decode()
        return self.status, self.json.get("code")


def send(url, method, path, body=None, headers=None, context=None):
    """PATH is sent as it is. HEADERS: a dict; those of http.client only where they are missing."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(parts.netloc, timeout=30, context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request(method, parts.path + path, body, headers or {})
        answer = connection.getresponse()
        return Response(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


class Api:
    """The API of one emulator, with its token."""

    def __init__(self, emulator, token=TOKEN):
        self.emulator = emulator
        self.token = token

    def __call__(self, method, path, body=None, form=None, headers=None):
        headers = dict(headers or {})
        if self.token is not None:
            headers.setdefault("X-StorageApi-Token", self.token)
        if form is not None:
            body = urllib.parse.urlencode(form)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif body is not None and not isinstance(body, (str, bytes)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        return send(self.emulator.url, method, "/v2/storage" + path, body, headers)

    def get(self, path):
        answer = self("GET", path)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer.json

    def bucket(self, name="b", **fields):
        answer = self("POST", "/buckets", {"name": name, **fields})
        assert answer.status == 201, answer.body
        return answer.json["id"]

    def prepare(self, name="f.csv", **fields):
        answer = self("POST", "/files/prepare", {"name": name, "federationToken": True, "isEncrypted": True, **fields})
        assert answer.status == 201, answer.body
        return answer.json

    def upload(self, data, name="f.csv", **fields):
        """A file with DATA (text or bytes) in it; its id."""
        data = data.encode() if isinstance(data, str) else data
        file = self.prepare(name, sizeBytes=len(data), **fields)
        answer = put(self.emulator, file, data)
        assert answer.status in (200, 201), answer.body
        return file["id"]

    def job(self, answer):
        """The finished job that ANSWER (202) began."""
        assert answer.status == 202, (answer.status, answer.body)
        return wait_until(lambda: (lambda job: job if job["status"] in ("success", "error") else None)(self.get("/jobs/%s" % answer.json["id"])),
                          "a job")

    def create(self, bucket, name, data, file="f.csv", **fields):
        return self.job(self("POST", "/buckets/%s/tables-async" % bucket, {"name": name, "dataFileId": self.upload(data, file), **fields}))

    def load(self, table, data, file="f.csv", **fields):
        return self.job(self("POST", "/tables/%s/import-async" % table, {"dataFileId": self.upload(data, file), **fields}))


class Signer:
    """Signature Version 4, written apart from the emulator's, from the recipe of AWS."""

    def __init__(self, file, credentials=None, style="/_s3"):
        self.params = file.get("uploadParams") or {"bucket": file["s3Path"]["bucket"], "key": file["s3Path"]["key"]}
        self.credentials = credentials or file["credentials" if "s3Path" in file else "uploadParams"]
        if "credentials" in self.credentials:
            self.credentials = self.credentials["credentials"]
        self.region = file["region"]
        self.style = style

    @staticmethod
    def text_to_sign(method, path, query, headers, signed, payload, date, region):
        canonical = "\n".join([method, path, query, *("%s:%s" % (name, headers[name].strip()) for name in signed), "", ";".join(signed), payload])
        return canonical, "\n".join(["AWS4-HMAC-SHA256", date, "%s/%s/s3/aws4_request" % (date[:8], region),
                                     hashlib.sha256(canonical.encode()).hexdigest()])

    @staticmethod
    def key(secret, date, region):
        key = ("AWS4" + secret).encode()
        for part in (date[:8], region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key

    def send(self, emulator, method, data=b"", query="", key=None, extra=None, payload=None, drop=(), unsigned=None, change=None, url=None,
             body=None, host=None, path=None, clock=0):
        """One signed request. DROP: headers left out before signing; UNSIGNED: added after it; CHANGE(headers): after it too;
        CLOCK: seconds by which ours is ahead."""
        url = url or emulator.url
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + clock))
        if path is None:
            path = "%s/%s/%s" % (self.style, self.params["bucket"], key or self.params["key"])
        headers = {"host": host or urllib.parse.urlsplit(url).netloc, "x-amz-date": date,
                   "x-amz-content-sha256": payload or hashlib.sha256(data).hexdigest(),
                   "x-amz-security-token": self.credentials["SessionToken"], **(extra or {})}
        if method in ("PUT", "POST") and ("uploadId" not in query) and "acl" in self.params:
            headers.setdefault("x-amz-acl", self.params["acl"])
            if "x-amz-server-side-encryption" in self.params:
                headers.setdefault("x-amz-server-side-encryption", self.params["x-amz-server-side-encryption"])
        for name in drop:
            headers.pop(name, None)
        signed = sorted(headers)
        canonical_query = "&".join(sorted(piece if "=" in piece else piece + "=" for piece in query.split("&") if piece))
        _, text = self.text_to_sign(method, path, canonical_query, headers, signed, headers.get("x-amz-content-sha256", ""), date, self.region)
        signature = hmac.new(self.key(self.credentials["SecretAccessKey"], date, self.region), text.encode(), "sha256").hexdigest()
        headers["authorization"] = "AWS4-HMAC-SHA256 Credential=%s/%s/%s/s3/aws4_request, SignedHeaders=%s, Signature=%s" % (
            self.credentials["AccessKeyId"], date[:8], self.region, ";".join(signed), signature)
        headers.update(unsigned or {})
        if change:
            change(headers)
        return send(url, method, path + ("?" + query if query else ""), body if body is not None else data or None, headers)

    def put(self, emulator, data, **more):
        return self.send(emulator, "PUT", data, **more)

    # ---- multipart ----
    def begin(self, emulator, **more):
        answer = self.send(emulator, "POST", query="uploads", **more)
        assert answer.status == 200, answer.body
        return re.search(rb"<UploadId>(.*?)</UploadId>", answer.body).group(1).decode()

    def part(self, emulator, upload, number, data, **more):
        return self.send(emulator, "PUT", data, query="partNumber=%d&uploadId=%s" % (number, upload), **more)

    def complete(self, emulator, upload, parts, **more):
        body = "<CompleteMultipartUpload>%s</CompleteMultipartUpload>" % "".join(
            "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>" % part for part in parts)
        return self.send(emulator, "POST", body.encode(), query="uploadId=" + upload, **more)


def sas_url(file, suffix=""):
    """(base of the blob, SAS text) of a file prepared on Azure."""
    params = file["absUploadParams"]
    pieces = dict(piece.split("=", 1) for piece in params["absCredentials"]["SASConnectionString"].split(";"))
    return "%s/%s/%s" % (pieces["BlobEndpoint"], params["container"], urllib.parse.quote(params["blobName"] + suffix)), pieces["SharedAccessSignature"]


def put_azure(file, data, suffix="", headers=None, query="", sas=None, method="PUT"):
    base, text = sas_url(file, suffix)
    kind = {} if query else {"x-ms-blob-type": "BlockBlob"}
    return send(base, method, "?" + (query + "&" if query else "") + (text if sas is None else sas), data, {**kind, **(headers or {})})


def put_gcs(emulator, file, data, suffix="", headers=None, token=None, method="PUT", key=None, prefix=""):
    params = file.get("gcsUploadParams") or {**file["gcsPath"], **file["gcsCredentials"]}
    return send(emulator.url, method, "%s/%s/%s" % (prefix, params["bucket"], key or params["key"] + suffix), data,
                {"Authorization": "Bearer " + (params["access_token"] if token is None else token), **(headers or {})})


def put(emulator, file, data, suffix=""):
    """Upload DATA for FILE the simple way of its provider."""
    if file["provider"] == "aws":
        return Signer(file).put(emulator, data, key=file["uploadParams"]["key"] + suffix)
    if file["provider"] == "azure":
        return put_azure(file, data, suffix)
    return put_gcs(emulator, file, data, suffix)


# ---- fixtures ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def running():
    with Emulator() as one:
        yield one


@pytest.fixture
def emulator(running):
    running.reset()
    return running


@pytest.fixture
def api(emulator):
    return Api(emulator)


@pytest.fixture
def bucket(api):
    return api.bucket("b")


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


# ---- files --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["body", "form"])
def test_a_file_is_prepared(api, way):
    fields = {"name": "cities.csv.gz", "sizeBytes": 2048, "federationToken": 1, "isEncrypted": 1, "isPublic": 0}
    if way == "form":
        answer = api("POST", "/files/prepare", form=[*fields.items(), ("tags[]", "file-import"), ("tags[]", "x"), ("tags[]", "x")])
    else:
        answer = api("POST", "/files/prepare", {**fields, "tags": ["file-import", "x", "x"], "isSliced": False}, headers={"X-KBC-RunId": "1.2"})
    body = answer.json
    assert answer.status == 201 and body["tags"] == ["file-import", "x"] and body["sizeBytes"] == 2048 and body["isEncrypted"] is True
    assert body["provider"] == "aws" and body["region"] == "eu-central-1" and body["maxAgeDays"] == 15 and isinstance(body["id"], int)
    params = body["uploadParams"]
    assert params["acl"] == "private" and params["x-amz-server-side-encryption"] == "AES256"
    assert re.fullmatch(r"exp-15/4321/files/\d{4}/\d\d/\d\d/%d\.cities\.csv\.gz" % (body["id"] - 1), params["key"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", params["credentials"]["Expiration"])
    detail = api.get("/files/%d" % body["id"])
    assert "uploadParams" not in detail and "credentials" not in detail and detail["runId"] == ("1.2" if way == "body" else None)


def test_without_encryption_there_is_no_such_obligation(emulator, api):
    file = api.prepare(isEncrypted=False)
    assert "x-amz-server-side-encryption" not in file["uploadParams"]
    assert Signer(file).put(emulator, b"x").status == 200


@pytest.mark.parametrize("fields", [{}, {"name": ""}, {"name": "a", "tags": "x"}, {"name": "a", "sizeBytes": "many"}, {"name": "a", "sizeBytes": -1},
                                    {"name": "a", "isSliced": True, "federationToken": False}, {"name": "a", "federationToken": False}])
def test_a_file_that_cannot_be_prepared(api, fields):
    assert api("POST", "/files/prepare", {"federationToken": True, **fields}).error == (400, "storage.files.validation")
    assert api.get("/files") == []


def test_a_body_that_is_no_json(api):
    assert api("POST", "/files/prepare", "{", headers={"Content-Type": "application/json"}).error == (400, "validation.failed")
    assert api("POST", "/files/prepare", "x", headers={"Content-Type": "text/plain"}).status == 415


def test_files_are_listed(emulator, api):
    ids = [api.prepare("%d.csv" % i, tags=["odd" if i % 2 else "even", "all"])["id"] for i in range(6)]
    listed = [one["id"] for one in api.get("/files")]
    assert listed == ids[::-1]
    assert [one["id"] for one in api.get("/files?tags[]=odd&limit=2&offset=1")] == [ids[3], ids[1]]
    assert [one["id"] for one in api.get("/files?sinceId=%d&maxId=%d" % (ids[1], ids[4]))] == [ids[3], ids[2]]
    assert [one["id"] for one in api.get("/files?q=tags:even")] == ids[4::-2]
    assert api("GET", "/files?tags=odd").error == (400, "storage.files.validation")
    emulator.settings(tokens={"other": {}})
    assert Api(emulator, "other").get("/files") == []
    assert Api(emulator, "other")("GET", "/files/%d" % ids[0]).status == 403


def test_files_are_deleted(api):
    one, two = api.upload("a\n1\n"), api.upload("a\n1\n")
    assert api("DELETE", "/files/%d" % one).status == 204
    assert api.job(api("DELETE", "/files/%d?async=1" % two))["status"] == "success"
    for file in (one, two, "x"):
        answer = api("GET", "/files/%s" % file)
        assert answer.error == (404, "storage.files.notFound") and answer.json["error"] == "File not found"


def test_tags_and_content_of_files(api):
    file = api.upload("a\n1\n")
    assert api("POST", "/files/%d/tags" % file, {"tag": "new"}).status == 204
    assert api.get("/files/%d" % file)["tags"] == ["new"]
    assert api("DELETE", "/files/%d/tags/new" % file).status == 204
    assert api.get("/files/%d" % file)["tags"] == []
    assert api("GET", "/files/%d/content" % file).body == b"a\n1\n"


@pytest.mark.parametrize("provider", ["aws", "azure", "gcp"])
def test_files_are_read_back(emulator, api, provider):
    emulator.settings(provider=provider)
    data = os.urandom(100000)
    file = api.upload(data, "č d.csv")
    detail = api.get("/files/%d?federationToken=true" % file)
    assert detail["provider"] == provider and detail["sizeBytes"] == 100000
    assert send(detail["url"], "GET", "?" + urllib.parse.urlsplit(detail["url"]).query).body == data
    assert send(detail["url"], "GET", "?" + urllib.parse.urlsplit(detail["url"]).query, headers={"Range": "bytes=10-19"}).body == data[10:20]
    tampered = urllib.parse.urlsplit(detail["url"])
    assert send(emulator.url, "GET", tampered.path + "x?" + tampered.query).status in (403, 404)
    if provider == "aws":
        reader = Signer(detail)
        assert reader.send(emulator, "GET").body == data
        assert reader.send(emulator, "HEAD").headers["Content-Length"] == "100000"
        assert reader.send(emulator, "PUT", b"x").error == (403, "AccessDenied")
        assert reader.send(emulator, "GET", extra={"range": "bytes=99990-"}).body == data[-10:]
        assert reader.send(emulator, "GET", extra={"range": "bytes=100000-"}).error == (416, "InvalidRange")
    elif provider == "azure":
        path = detail["absPath"]
        pieces = dict(piece.split("=", 1) for piece in detail["absCredentials"]["SASConnectionString"].split(";"))
        url = "%s/%s/%s" % (pieces["BlobEndpoint"], path["container"], urllib.parse.quote(path["name"]))
        part = send(url, "GET", "?" + pieces["SharedAccessSignature"], headers={"x-ms-range": "bytes=0-9"})
        assert part.status == 206 and part.body == data[:10] and part.headers["Content-Range"] == "bytes 0-9/100000"
        assert send(url, "PUT", "?" + pieces["SharedAccessSignature"], b"x", {"x-ms-blob-type": "BlockBlob"}).error == (403, "AuthorizationPermissionMismatch")
    else:
        assert put_gcs(emulator, detail, None, method="GET").body == data
        assert put_gcs(emulator, detail, b"x").error == (403, "AccessDenied")


# ---- S3 -----------------------------------------------------------------------------------------------------------------
VECTOR = {
    "host": "kbc-files-test.s3.eu-central-1.amazonaws.com", "x-amz-acl": "private", "x-amz-date": "20260301T101530Z",
    "x-amz-security-token": "FwoGZXIvYXdzEXAMPLE//token==", "x-amz-server-side-encryption": "AES256"}


@pytest.mark.parametrize("payload,signature", [
    ("628190ecc12ec8a68b5dedac62f29d1b14b4a6ffc42e601ca42aea1444a49848", "67b1d5b5a4c0e52f12ea63b1172efa228857bf704255062a5180e5817b8c5165"),
    ("UNSIGNED-PAYLOAD", "c759f7c35e2e90f964d189b615f4256a88b3cf70f7fdb44d75ba2115dfbfb1f2")])
def test_known_signatures(payload, signature):
    headers = {**VECTOR, "x-amz-content-sha256": payload}
    path = "/exp-15/4321/files/2026/03/01/1234567.cities.csv"
    canonical = sigv4.canonical_request("PUT", path, sigv4.canonical_query(""), headers, sorted(headers), payload)
    if payload != "UNSIGNED-PAYLOAD":
        assert hashlib.sha256(b'"id","name"\n"1","Praha"\n').hexdigest() == payload
        assert hashlib.sha256(canonical.encode()).hexdigest() == "c0400f9ff61837fbe51a183b6e4315900cb43679df31015fa8bf3e13b422307a"
    key = sigv4.signing_key("exampleSecret/Key+0000000000000000000001", "20260301", "eu-central-1")
    text = sigv4.string_to_sign("20260301T101530Z", "20260301/eu-central-1/s3/aws4_request", canonical)
    assert sigv4.sign(key, text) == signature
    # and the client of these tests, which is written apart from it
    mine, text = Signer.text_to_sign("PUT", path, "", headers, sorted(headers), payload, "20260301T101530Z", "eu-central-1")
    assert mine == canonical
    assert hmac.new(Signer.key("exampleSecret/Key+0000000000000000000001", "20260301T", "eu-central-1"), text.encode(), "sha256").hexdigest() == signature


def test_the_example_of_aws():
    headers = {"date": "Fri, 24 May 2013 00:00:00 GMT", "host": "examplebucket.s3.amazonaws.com", "x-amz-date": "20130524T000000Z",
               "x-amz-content-sha256": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072", "x-amz-storage-class": "REDUCED_REDUNDANCY"}
    canonical = sigv4.canonical_request("PUT", "/test$file.text", "", headers, sorted(headers), headers["x-amz-content-sha256"])
    key = sigv4.signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524", "us-east-1")
    assert sigv4.sign(key, sigv4.string_to_sign("20130524T000000Z", "20130524/us-east-1/s3/aws4_request", canonical)) == (
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd")


def uploaded(emulator, file):
    return next(one["uploaded"] for one in emulator.state()["files"] if one["id"] == file["id"])


@pytest.mark.parametrize("style", ["/_s3", "", "host"])
def test_an_object_is_put(emulator, api, style):
    file = api.prepare("a b č.csv")
    signer = Signer(file, style="/_s3" if style == "host" else style)
    more = {}
    if style == "host":
        more = {"host": file["uploadParams"]["bucket"] + ".localhost:1", "path": "/" + file["uploadParams"]["key"]}
    answer = signer.put(emulator, b"abc", **more)
    assert (answer.status, answer.body, answer.headers["ETag"]) == (200, b"", '"%s"' % hashlib.md5(b"abc").hexdigest())
    assert answer.headers["x-amz-server-side-encryption"] == "AES256" and answer.headers["x-amz-request-id"]
    assert signer.put(emulator, b"", payload="UNSIGNED-PAYLOAD", **more).status == 200
    assert uploaded(emulator, file) == 0
    assert signer.put(emulator, b"again", payload="UNSIGNED-PAYLOAD", extra={"content-disposition": "attachment; filename=x;"}, **more).status == 200
    assert uploaded(emulator, file) == 5


def tampered(name, value):
    return lambda headers: headers.__setitem__(name, value)


REFUSED = {
    "other key": (dict(key="exp-15/4321/files/other"), (403, "AccessDenied")),
    "suffix of a file that is not sliced": (dict(key="SUFFIX"), (403, "AccessDenied")),
    "no encryption": (dict(drop=["x-amz-server-side-encryption"]), (403, "AccessDenied")),
    "other encryption": (dict(extra={"x-amz-server-side-encryption": "aws:kms"}), (403, "AccessDenied")),
    "public": (dict(extra={"x-amz-acl": "public-read"}), (403, "AccessDenied")),
    "no session token": (dict(drop=["x-amz-security-token"]), (403, "InvalidAccessKeyId")),
    "wrong session token": (dict(extra={"x-amz-security-token": "x"}), (400, "InvalidToken")),
    "unsigned header": (dict(unsigned={"x-amz-meta-a": "b"}), (403, "AccessDenied")),
    "changed header": (dict(change=tampered("x-amz-acl", "public-read")), (403, "SignatureDoesNotMatch")),
    "changed body": (dict(body=b"abd"), (400, "XAmzContentSHA256Mismatch")),
    "no payload hash": (dict(drop=["x-amz-content-sha256"]), (400, "InvalidRequest")),
    "clock": (dict(clock=-1000), (403, "RequestTimeTooSkewed")),
    "clock ahead": (dict(clock=1000), (403, "RequestTimeTooSkewed")),
    "malformed": (dict(change=tampered("authorization", "AWS4-HMAC-SHA256 nonsense")), (400, "AuthorizationHeaderMalformed")),
    "anonymous": (dict(change=lambda headers: headers.pop("authorization")), (403, "AccessDenied")),
    "content-md5 wrong": (dict(extra={"content-md5": base64.b64encode(b"0" * 16).decode()}), (400, "BadDigest")),
    "content-md5 no digest": (dict(extra={"content-md5": "abc"}), (400, "InvalidDigest")),
    "crc32c wrong": (dict(extra={"x-amz-checksum-crc32c": "AAAAAA=="}), (400, "BadDigest")),
    "sha256 wrong": (dict(extra={"x-amz-checksum-sha256": base64.b64encode(bytes(32)).decode()}), (400, "BadDigest")),
    "checksum of a wrong size": (dict(extra={"x-amz-checksum-crc32c": "AAAA"}), (400, "InvalidRequest")),
    "other bucket": (dict(path="/_s3/other/key"), (404, "NoSuchBucket")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_object_is_refused(emulator, api, case):
    arguments, expected = REFUSED[case]
    file = api.prepare()
    arguments = dict(arguments)
    if arguments.get("key") == "SUFFIX":
        arguments["key"] = file["uploadParams"]["key"] + "x"
    assert Signer(file).put(emulator, b"abc", **arguments).error == expected
    assert uploaded(emulator, file) is None


def test_keys_are_checked(emulator, api):
    file = api.prepare()
    credentials = file["uploadParams"]["credentials"]
    assert Signer(file, {**credentials, "SecretAccessKey": "x"}).put(emulator, b"").error == (403, "SignatureDoesNotMatch")
    assert Signer(file, {**credentials, "AccessKeyId": "ASIAX"}).put(emulator, b"").error == (403, "InvalidAccessKeyId")
    assert Signer({**file, "region": "us-east-1"}).put(emulator, b"").error == (400, "AuthorizationHeaderMalformed")
    emulator.expire(file["id"])
    assert Signer(file).put(emulator, b"").error == (400, "ExpiredToken")
    emulator.settings(expired_token_status=403, credentials_seconds=0)
    assert Signer(api.prepare()).put(emulator, b"").error == (403, "ExpiredToken")


@pytest.mark.parametrize("kind,value", [
    ("content-md5", hashlib.md5(b"abc").digest()), ("x-amz-checksum-crc32c", (0x364B3FB7).to_bytes(4, "big")),
    ("x-amz-checksum-crc32", zlib.crc32(b"abc").to_bytes(4, "big")), ("x-amz-checksum-sha1", hashlib.sha1(b"abc").digest()),
    ("x-amz-checksum-sha256", hashlib.sha256(b"abc").digest()), ("x-amz-checksum-crc64nvme", blobs.crc64(b"abc").to_bytes(8, "big"))])
def test_checksums_that_are_right(emulator, api, kind, value):
    text = base64.b64encode(value).decode()
    answer = Signer(api.prepare()).put(emulator, b"abc", extra={kind: text})
    assert answer.status == 200 and (kind == "content-md5" or answer.headers[kind] == text)


def test_checksum_functions():
    assert blobs.crc32c(b"123456789") == blobs.crc32c_by_table(b"123456789") == 0xE3069283
    assert blobs.crc32c(b"56789", blobs.crc32c(b"1234")) == 0xE3069283
    assert blobs.crc64(b"123456789") == 0xAE8B14860A799888


@pytest.mark.parametrize("method,query", [("HEAD", ""), ("GET", ""), ("DELETE", ""), ("DELETE", "uploadId=x"), ("GET", "uploadId=x"), ("GET", "uploads")])
def test_upload_credentials_can_only_upload(emulator, api, method, query):
    file = api.prepare()
    Signer(file).put(emulator, b"abc")
    answer = Signer(file).send(emulator, method, query=query)
    assert answer.status == 403 and (method == "HEAD" or answer.error == (403, "AccessDenied"))
    assert uploaded(emulator, file) == 3


def test_multipart(emulator, api):
    file = api.prepare()
    signer = Signer(file)
    upload = signer.begin(emulator)
    parts = [os.urandom(5 * MIB), os.urandom(5 * MIB + 1), b"end"]
    etags = []
    for number, data in reversed(list(enumerate(parts, 1))):
        answer = signer.part(emulator, upload, number, data, payload="UNSIGNED-PAYLOAD")
        assert answer.status == 200
        etags.insert(0, (number, answer.headers["ETag"]))
    assert uploaded(emulator, file) is None
    again = signer.part(emulator, upload, 3, b"the end")
    etags[2] = (3, again.headers["ETag"])
    done = signer.complete(emulator, upload, etags)
    assert done.status == 200 and b"<CompleteMultipartUploadResult" in done.body
    whole = parts[0] + parts[1] + b"the end"
    digest = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in (parts[0], parts[1], b"the end"))).hexdigest()
    assert ("&quot;%s-3&quot;" % digest).encode() in done.body
    detail = api.get("/files/%d?federationToken=1" % file["id"])
    assert Signer(detail).send(emulator, "GET").body == whole
    assert signer.complete(emulator, upload, etags).error == (404, "NoSuchUpload")


def test_multipart_is_refused(emulator, api):
    file = api.prepare()
    signer = Signer(file)
    assert signer.send(emulator, "POST", query="uploads", drop=["x-amz-server-side-encryption"]).error == (403, "AccessDenied")
    upload = signer.begin(emulator)
    small = [(n, signer.part(emulator, upload, n, b"small%d" % n).headers["ETag"]) for n in (1, 2)]
    assert signer.complete(emulator, upload, small).error == (400, "EntityTooSmall")
    assert signer.complete(emulator, upload, small[::-1]).error == (400, "InvalidPartOrder")
    assert signer.complete(emulator, upload, [(1, '"x"')]).error == (400, "InvalidPart")
    assert signer.complete(emulator, upload, [(3, small[0][1])]).error == (400, "InvalidPart")
    assert signer.complete(emulator, upload, []).error == (400, "MalformedXML")
    assert signer.part(emulator, "nosuch", 1, b"x").error == (404, "NoSuchUpload")
    assert signer.part(emulator, upload, 10001, b"x").error == (400, "InvalidArgument")
    assert signer.part(emulator, upload, 1, b"x", extra={"x-amz-server-side-encryption": "AES256"}).error == (400, "InvalidArgument")
    assert signer.part(emulator, upload, 1, b"x", extra={"content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="}).error == (400, "BadDigest")
    assert uploaded(emulator, file) is None
    assert signer.complete(emulator, upload, small[:1]).status == 200  # the only part may be small
    assert uploaded(emulator, file) == 6


def test_expect_100_continue(emulator, api):
    file = api.prepare()
    host = urllib.parse.urlsplit(emulator.url).netloc
    path = "/_s3/%s/%s" % (file["uploadParams"]["bucket"], file["uploadParams"]["key"])
    credentials = file["uploadParams"]["credentials"]
    for secret, first in ((credentials["SecretAccessKey"], b"HTTP/1.1 100 Continue\r\n\r\n"), ("wrong", b"HTTP/1.1 403 Forbidden\r\n")):
        headers = sigv4.signed_headers("PUT", host, path, "", "UNSIGNED-PAYLOAD", credentials["AccessKeyId"], secret, file["region"],
                                       credentials["SessionToken"], [("x-amz-acl", "private"), ("x-amz-server-side-encryption", "AES256")])
        with socket.create_connection(host.split(":"), timeout=30) as sock:
            head = "PUT %s HTTP/1.1\r\n%s\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n" % (
                path, "\r\n".join("%s: %s" % pair for pair in headers.items()))
            sock.sendall(head.encode())
            stream = sock.makefile("rb")
            assert stream.read(len(first)) == first
            if b"100" in first:
                sock.sendall(b"abc")
                assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
            else:
                assert b"SignatureDoesNotMatch" in stream.read()  # and it closes: the body was not wanted
    assert uploaded(emulator, file) == 3


def test_bodies_without_a_length_are_refused(emulator, api):
    assert Signer(api.prepare()).put(emulator, b"", payload="UNSIGNED-PAYLOAD", body=iter([b"abc"])).error == (411, "MissingContentLength")


def aws_chunked(signer, data, signature=None, date=None, trailer=b""):
    """DATA in chunks of 100 KB, signed when SIGNATURE is given."""
    out, previous = b"", signature
    pieces = [data[i:i + 100000] for i in range(0, len(data), 100000)] + [b""]
    for piece in pieces:
        extension = ""
        if signature:
            text = "\n".join(["AWS4-HMAC-SHA256-PAYLOAD", date, "%s/%s/s3/aws4_request" % (date[:8], signer.region), previous,
                              hashlib.sha256(b"").hexdigest(), hashlib.sha256(piece).hexdigest()])
            previous = hmac.new(Signer.key(signer.credentials["SecretAccessKey"], date, signer.region), text.encode(), "sha256").hexdigest()
            extension = ";chunk-signature=" + previous
        out += ("%x%s\r\n" % (len(piece), extension)).encode() + piece + (b"\r\n" if piece else b"")
    return out + trailer + b"\r\n"


@pytest.mark.parametrize("wrong", [False, True])
def test_the_chunked_encoding_of_aws_with_a_checksum_behind(emulator, api, wrong):
    file = api.prepare()
    data = os.urandom(250000)
    crc = blobs.crc32c(data) ^ wrong
    trailer = b"x-amz-checksum-crc32c:%s\r\n" % base64.b64encode(crc.to_bytes(4, "big"))
    signer = Signer(file)
    answer = signer.put(emulator, b"", payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER", body=aws_chunked(signer, data, trailer=trailer), extra={
        "content-encoding": "aws-chunked", "x-amz-decoded-content-length": "250000", "x-amz-trailer": "x-amz-checksum-crc32c"})
    if wrong:
        assert answer.error == (400, "BadDigest") and uploaded(emulator, file) is None
    else:
        assert answer.status == 200 and answer.headers["ETag"] == '"%s"' % hashlib.md5(data).hexdigest()


@pytest.mark.parametrize("wrong", [False, True])
def test_the_signed_chunks_of_aws(emulator, api, wrong):
    file = api.prepare()
    data = os.urandom(250000)
    signer = Signer(file)
    seen = {}

    class Later:  # the body needs the signature of the head
        def __iter__(self):
            body = aws_chunked(signer, data, seen["signature"], seen["date"])
            yield body.replace(data[200000:200010], b"0123456789") if wrong else body
    length = len(aws_chunked(signer, data, "0" * 64, "20260101T000000Z"))

    def look(headers):
        seen["signature"] = headers["authorization"].rpartition("Signature=")[2]
        seen["date"] = headers["x-amz-date"]
        headers["content-length"] = str(length)
    answer = signer.put(emulator, b"", payload="STREAMING-AWS4-HMAC-SHA256-PAYLOAD", body=Later(), change=look, extra={
        "content-encoding": "aws-chunked", "x-amz-decoded-content-length": "250000"})
    if wrong:
        assert answer.error == (403, "SignatureDoesNotMatch") and uploaded(emulator, file) is None
    else:
        assert answer.status == 200 and uploaded(emulator, file) == 250000


# ---- Azure --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def azure(emulator, api):
    emulator.settings(provider="azure")
    return api


def test_a_blob_is_put(emulator, azure):
    file = azure.prepare("a b.csv")
    params = file["absUploadParams"]
    assert file["provider"] == "azure" and "uploadParams" not in file and params["container"].startswith("exp-15-files-4321-%d-" % file["id"])
    text = params["absCredentials"]["SASConnectionString"]
    assert re.fullmatch(r"BlobEndpoint=http://127\.0\.0\.1:\d+/_azure/kbcemulator;SharedAccessSignature=sv=2017-11-09&sr=c&st=\S+&se=\S+&sp=rwl&sig=\S+",
                        text)
    md5 = base64.b64encode(hashlib.md5(b"abc").digest()).decode()
    answer = put_azure(file, b"abc", headers={"Content-MD5": md5, "x-ms-version": "2017-11-09", "x-ms-date": "x", "If-None-Match": "*"})
    assert answer.status == 201 and answer.headers["Content-MD5"] == md5 and answer.headers["ETag"] and answer.body == b""
    assert put_azure(file, b"abcd").status == 201  # again
    assert uploaded(emulator, file) == 4
    assert put_azure(file, b"x", headers={"If-None-Match": "*"}).error == (409, "BlobAlreadyExists")


def test_the_signature_is_compared_decoded(azure):
    file = azure.prepare()
    pairs = urllib.parse.parse_qsl(sas_url(file)[1])
    assert put_azure(file, b"", sas=urllib.parse.urlencode(pairs)).status == 201  # colons as %3A
    for name, value in (("se", "2030-01-01T00:00:00Z"), ("sp", "rwdl"), ("sig", "x"), ("sr", "b")):
        changed = urllib.parse.urlencode([(key, value if key == name else old) for key, old in pairs])
        answer = put_azure(file, b"", sas=changed)
        assert answer.error == (403, "AuthenticationFailed") and answer.headers["x-ms-error-code"] == "AuthenticationFailed"
    assert put_azure(file, b"", sas="a=b").error == (403, "AuthenticationFailed")
    other = azure.prepare()
    assert put_azure(file, b"", sas=sas_url(other)[1]).error == (403, "AuthenticationFailed")


def test_what_azure_refuses(emulator, azure):
    file = azure.prepare()
    base, text = sas_url(file)
    assert send(base, "PUT", "?" + text, b"x").error == (400, "MissingRequiredHeader")
    assert send(base, "PUT", "?" + text, b"x", {"x-ms-blob-type": "PageBlob"}).error == (400, "InvalidHeaderValue")
    assert send(base, "DELETE", "?" + text).error == (403, "AuthorizationPermissionMismatch")
    assert send(base, "PUT", "?" + text, iter([b"x"]), {"x-ms-blob-type": "BlockBlob"}).error == (411, "MissingContentLengthHeader")
    assert put_azure(file, b"abc", headers={"Content-MD5": base64.b64encode(bytes(16)).decode()}).error == (400, "Md5Mismatch")
    assert put_azure(file, b"abc", headers={"Content-MD5": "AAAA"}).error == (400, "InvalidMd5")
    assert put_azure(file, b"abc", headers={"x-ms-content-crc64": "AAAAAAAAAAA="}).error == (400, "Crc64Mismatch")
    crc = base64.b64encode(blobs.crc64(b"abc").to_bytes(8, "little")).decode()
    assert send(base, "GET", "?" + text).error == (404, "BlobNotFound")
    assert put_azure(file, b"abc", headers={"x-ms-content-crc64": crc}).status == 201
    emulator.expire(file["id"])
    assert put_azure(file, b"abc").error == (403, "AuthenticationFailed")


@pytest.mark.parametrize("version,block,blob", [(None, 100, 256), ("2015-12-11", 4, 64), ("2019-07-07", 100, 256), ("2019-12-12", 4000, 5000)])
def test_limits_of_azure(azure, version, block, blob):
    """The length decides before the body is there."""
    file = azure.prepare()
    base, text = sas_url(file)
    parts = urllib.parse.urlsplit(base)
    for query, limit in (("comp=block&blockid=MDAwMDA=&", block), ("", blob)):
        for size, wanted in ((limit * MIB, b"100 Continue"), (limit * MIB + 1, b"413 Request Entity Too Large")):
            with socket.create_connection(parts.netloc.split(":"), timeout=30) as sock:
                sock.sendall(("PUT %s?%s%s HTTP/1.1\r\nHost: %s\r\nx-ms-blob-type: BlockBlob\r\nContent-Length: %d\r\nExpect: 100-continue\r\n%s\r\n" % (
                    parts.path, query, text, parts.netloc, size, "x-ms-version: %s\r\n" % version if version else "")).encode())
                assert sock.makefile("rb").readline() == b"HTTP/1.1 %s\r\n" % wanted


def block_list(ids, kind="Latest"):
    return ('<?xml version="1.0" encoding="utf-8"?><BlockList>%s</BlockList>' % "".join("<%s>%s</%s>" % (kind, one, kind) for one in ids)).encode()


def test_a_blob_of_blocks(emulator, azure):
    file = azure.prepare()
    ids = [base64.b64encode(b"%05d" % i).decode() for i in range(3)]
    parts = [os.urandom(300000), b"", b"end"]
    for one, data in list(zip(ids, parts))[::-1]:
        assert put_azure(file, data, query="comp=block&blockid=" + urllib.parse.quote(one, safe="")).status == 201
    assert uploaded(emulator, file) is None
    assert put_azure(file, block_list([*ids, "MDAwMDk="]), query="comp=blocklist").error == (400, "InvalidBlockList")
    assert put_azure(file, b"x", query="comp=block&blockid=MDA=").error == (400, "InvalidBlobOrBlock")  # of another length
    assert put_azure(file, b"x", query="comp=block&blockid=" + "A" * 100).error == (400, "InvalidQueryParameterValue")
    assert put_azure(file, b"nonsense", query="comp=blocklist").error == (400, "InvalidXmlDocument")
    done = put_azure(file, block_list(ids), query="comp=blocklist")
    assert done.status == 201 and done.headers["ETag"]
    assert send(*sas_url(file)[:1], "GET", "?" + sas_url(file)[1]).body == b"".join(parts)
    assert put_azure(file, block_list(ids), query="comp=blocklist").status == 201  # idempotent: Latest finds the committed ones
    assert put_azure(file, block_list(ids, "Uncommitted"), query="comp=blocklist").error == (400, "InvalidBlockList")
    base, text = sas_url(file)
    listed = send(base.rpartition("/")[0], "GET", "?restype=container&comp=list&" + text)
    assert b"<Name>f.csv</Name>" in listed.body


# ---- Google -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def gcp(emulator, api):
    emulator.settings(provider="gcp")
    return api


def gcs_upload(emulator, file, kind, body=None, headers=None, name=None, query="", prefix=""):
    params = file["gcsUploadParams"]
    return send(emulator.url, "POST", "%s/upload/storage/v1/b/%s/o?uploadType=%s&name=%s%s" % (
        prefix, params["bucket"], kind, urllib.parse.quote(name or params["key"], safe=""), query), body,
        {"Authorization": "Bearer " + params["access_token"], **(headers or {})})


def goog_hash(data, wrong=0):
    return "crc32c=" + base64.b64encode((blobs.crc32c(data) ^ wrong).to_bytes(4, "big")).decode()


def test_an_object_is_put_by_xml(emulator, gcp):
    file = gcp.prepare()
    params = file["gcsUploadParams"]
    assert params["token_type"] == "Bearer" and 3500 < params["expires_in"] <= 3600 and params["key"].startswith("exp-15/4321/files/")
    answer = put_gcs(emulator, file, b"abc", headers={"x-goog-hash": goog_hash(b"abc")})
    assert answer.status == 200 and answer.body == b"" and goog_hash(b"abc") in answer.headers["x-goog-hash"]
    assert put_gcs(emulator, file, iter([b"ab", b"cd"]), prefix="/_gcs").status == 200  # chunked is allowed
    assert uploaded(emulator, file) == 4
    assert put_gcs(emulator, file, b"abc", headers={"x-goog-hash": goog_hash(b"abc", 1)}).error == (400, "BadDigest")
    assert put_gcs(emulator, file, b"abc", headers={"Content-MD5": base64.b64encode(bytes(16)).decode()}).error == (400, "BadDigest")
    assert put_gcs(emulator, file, b"abc", token="x").error == (401, "AuthenticationRequired")
    assert put_gcs(emulator, file, b"abc", key="other").error == (403, "AccessDenied")
    assert put_gcs(emulator, file, None, method="DELETE").error == (403, "AccessDenied")
    assert put_gcs(emulator, file, None, method="GET").body == b"abcd"  # this token may read what it wrote


def test_an_object_is_posted_as_media(emulator, gcp):
    file = gcp.prepare()
    answer = gcs_upload(emulator, file, "media", b"abc", {"Content-Type": "text/csv"})
    body = answer.json
    assert answer.status == 200 and body["name"] == file["gcsUploadParams"]["key"] and body["size"] == "3" and body["contentType"] == "text/csv"
    assert body["md5Hash"] == base64.b64encode(hashlib.md5(b"abc").digest()).decode() and "crc32c=" + body["crc32c"] == goog_hash(b"abc")
    assert gcs_upload(emulator, file, "media", b"abc", {"x-goog-hash": goog_hash(b"abc", 1)}).json["error"]["code"] == 400
    assert gcs_upload(emulator, file, "media", b"", prefix="/_gcs").json["size"] == "0"
    assert gcs_upload(emulator, file, "media", b"abc", name="other").status == 403
    assert gcs_upload(emulator, file, "media", b"abc", query="&ifGenerationMatch=0").status == 412
    assert gcs_upload(emulator, file, "nonsense", b"abc").status == 400
    refused = gcs_upload(emulator, file, "media", b"abc", {"Authorization": "Bearer x"})
    assert refused.status == 401 and refused.json["error"]["errors"][0]["reason"] == "authError" and "WWW-Authenticate" in refused.headers
    params = file["gcsUploadParams"]
    quoted = urllib.parse.quote(params["key"], safe="")
    token = {"Authorization": "Bearer " + params["access_token"]}
    assert send(emulator.url, "GET", "/storage/v1/b/%s/o/%s" % (params["bucket"], quoted), headers=token).json["size"] == "0"
    assert send(emulator.url, "GET", "/download/storage/v1/b/%s/o/%s?alt=media" % (params["bucket"], quoted), headers=token).body == b""


def test_an_object_is_posted_in_two_parts(emulator, gcp):
    file = gcp.prepare()
    params = file["gcsUploadParams"]

    def post(crc):
        body = b"\r\n".join([b"--B", b"Content-Type: application/json", b"", json.dumps({"name": params["key"], "crc32c": crc}).encode(), b"--B",
                             b"Content-Type: text/csv", b"", b"--x\r\nabc", b"--B--", b""])
        return send(emulator.url, "POST", "/upload/storage/v1/b/%s/o?uploadType=multipart" % params["bucket"], body, {
            "Authorization": "Bearer " + params["access_token"], "Content-Type": 'multipart/related; boundary="B"'})
    answer = post(goog_hash(b"--x\r\nabc")[7:])
    assert answer.json["size"] == "8" and answer.json["contentType"] == "text/csv"
    assert post(goog_hash(b"")[7:]).status == 400


class Resumable:
    QUANTUM = 256 * 1024

    def __init__(self, emulator, file, headers=None, body=None):
        answer = gcs_upload(emulator, file, "resumable", body or b"", headers)
        assert answer.status == 200, answer.body
        self.location = answer.headers["Location"]
        self.token = {"Authorization": "Bearer " + file["gcsUploadParams"]["access_token"]}

    def put(self, data, content_range=None, headers=None, method="PUT"):
        parts = urllib.parse.urlsplit(self.location)
        return send(parts.scheme + "://" + parts.netloc, method, parts.path + "?" + parts.query, data,
                    {**({"Content-Range": content_range} if content_range else {}), **self.token, **(headers or {})})


def test_a_resumable_upload(emulator, gcp):
    file = gcp.prepare()
    session = Resumable(emulator, file, {"X-Upload-Content-Length": "600000", "X-Upload-Content-Type": "text/csv"})
    assert session.location.startswith(emulator.url + "/upload/storage/v1/b/")
    data = os.urandom(600000)
    quantum = session.QUANTUM
    empty = session.put(None, "bytes */600000")
    assert empty.status == 308 and empty.headers["Range"] is None
    first = session.put(data[:quantum], "bytes 0-%d/600000" % (quantum - 1))
    assert first.status == 308 and first.headers["Range"] == "bytes=0-%d" % (quantum - 1)
    assert session.put(data[:100], "bytes %d-%d/600000" % (quantum, quantum + 99)).status == 400  # no multiple of 256 KiB
    assert session.put(data[:quantum], "bytes %d-%d/600000" % (quantum + 1, 2 * quantum)).status == 416  # a gap
    assert session.put(data[:quantum], "bytes %d-%d/700000" % (quantum, 2 * quantum - 1)).status == 400  # another total
    assert session.put(data[:quantum], "nonsense").status == 400
    again = session.put(data[:2 * quantum], "bytes 0-%d/600000" % (2 * quantum - 1))  # overlaps
    assert again.status == 308 and again.headers["Range"] == "bytes=0-%d" % (2 * quantum - 1)
    assert session.put(None, "bytes */600000").headers["Range"] == "bytes=0-%d" % (2 * quantum - 1)
    assert uploaded(emulator, file) is None
    last = session.put(data[2 * quantum:], "bytes %d-599999/600000" % (2 * quantum), {"x-goog-hash": goog_hash(data)})
    assert last.status == 200 and last.json["size"] == "600000" and "crc32c=" + last.json["crc32c"] == goog_hash(data)
    assert session.put(None, "bytes */600000").status == 200
    assert put_gcs(emulator, file, None, method="GET").body == data


def test_a_resumable_upload_of_unknown_size_and_in_one_piece(emulator, gcp):
    file = gcp.prepare()
    session = Resumable(emulator, file)
    data = os.urandom(Resumable.QUANTUM)
    assert session.put(data, "bytes 0-%d/*" % (len(data) - 1)).status == 308
    assert session.put(b"end", "bytes %d-%d/%d" % (len(data), len(data) + 2, len(data) + 3)).json["size"] == str(len(data) + 3)
    assert Resumable(emulator, file).put(b"abc").json["size"] == "3"
    assert Resumable(emulator, file).put(b"", "bytes */0").json["size"] == "0"
    wrong = Resumable(emulator, file, {"Content-Type": "application/json"}, json.dumps({"crc32c": goog_hash(b"x")[7:]}))
    assert wrong.put(b"abc").status == 400
    cancelled = Resumable(emulator, file)
    assert cancelled.put(None, method="DELETE").status == 499
    assert cancelled.put(b"abc").status == 404


def test_what_arrived_before_a_cut_stays(emulator, gcp):
    file = gcp.prepare()
    session = Resumable(emulator, file)
    data = os.urandom(4 * Resumable.QUANTUM)
    emulator.fault(r"upload_id", cut="mid_body", at=2 * Resumable.QUANTUM + 1000)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        session.put(data, "bytes 0-%d/%d" % (len(data) - 1, len(data)))
    status = session.put(None, "bytes */%d" % len(data))
    assert status.status == 308 and status.headers["Range"] == "bytes=0-%d" % (2 * Resumable.QUANTUM - 1)
    rest = data[2 * Resumable.QUANTUM:]
    assert session.put(rest, "bytes %d-%d/%d" % (2 * Resumable.QUANTUM, len(data) - 1, len(data))).status == 200
    assert put_gcs(emulator, file, None, method="GET").body == data


def test_tokens_of_google_are_refreshed(emulator, gcp):
    file = gcp.prepare()
    emulator.expire(file["id"])
    assert put_gcs(emulator, file, b"abc").status == 401
    assert gcs_upload(emulator, file, "media", b"abc").status == 401
    fresh = gcp("PUT", "/files/%d/refresh" % file["id"])
    assert fresh.status == 200 and fresh.json["gcsUploadParams"]["key"] == file["gcsUploadParams"]["key"]
    assert put_gcs(emulator, fresh.json, b"abc").status == 200
    emulator.settings(provider="aws")
    assert gcp("PUT", "/files/%d/refresh" % gcp.prepare()["id"]).status == 400


# ---- tables: create -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["body", "form"])
@pytest.mark.parametrize("provider", ["aws", "azure", "gcp"])
def test_a_table_is_created(emulator, api, bucket, provider, way):
    emulator.settings(provider=provider)
    file = api.upload("id,name\n1,Praha\n2,\"Brno, Líšeň\"\n")
    fields = {"name": "cities", "dataFileId": str(file) if way == "form" else file, "delimiter": ",", "enclosure": '"', "escapedBy": ""}
    if way == "body":
        fields.update({"primaryKey": None, "columns": None, "distributionKey": None, "transactional": False})
    answer = api("POST", "/buckets/in.c-b/tables-async", **{way: fields})
    begun = answer.json
    assert answer.status == 202 and begun["status"] == "waiting" and begun["tableId"] is None and begun["operationName"] == "tableCreate"
    assert begun["results"] is None and "error" not in begun and begun["operationParams"]["source"] == {"fileId": file, "type": "file"}
    job = api.job(answer)
    assert job["status"] == "success" and job["results"]["id"] == "in.c-b.cities" and job["results"]["columns"] == ["id", "name"]
    table = api.get("/tables/in.c-b.cities")
    assert table["rowsCount"] == 2 and table["lastImportDate"] and table["isTyped"] is False and table["primaryKey"] == []
    assert table["columnMetadata"] == [] and table["bucket"]["id"] == "in.c-b" and table["bucket"]["backend"] == "snowflake"
    assert emulator.rows("in.c-b.cities") == [["1", "Praha"], ["2", "Brno, Líšeň"]]
    assert emulator.loads("in.c-b.cities") == {"accepted": 1, "finished": 1, "succeeded": 1, "failed": 0}
    assert "columns" not in api.get("/buckets/in.c-b/tables")[0]
    assert api.get("/buckets/in.c-b/tables?include=columns,metadata,columnMetadata")[0]["columns"] == ["id", "name"]
    assert api.get("/buckets/in.c-b")["tables"][0]["id"] == "in.c-b.cities" == api.get("/tables?include=buckets,columns")[0]["id"]
    assert api("GET", "/buckets/in.c-b/tables?include=nonsense").status == 400
    assert api.get("/buckets/in.c-b")["rowsCount"] == 2


NO_TABLE = {
    "array as key": ({"primaryKey": ["id"]}, (400, "storage.validation.primaryKey")),
    "no name": ({"name": None}, (400, "storage.tables.validation")),
    "empty name": ({"name": ""}, (400, "storage.tables.validation")),
    "dot in the name": ({"name": "a.b"}, (400, "storage.tables.validation")),
    "two delimiters": ({"delimiter": ",,"}, (400, "invalidCsv")),
    "slash t": ({"delimiter": "/t"}, (400, "invalidCsv")),
    "two enclosures": ({"enclosure": "''"}, (400, "invalidCsv")),
    "both": ({"escapedBy": "\\"}, (400, "csvImport.invalidCsvParams")),
    "delimiter is enclosure": ({"delimiter": '"'}, (400, "csvImport.invalidCsvParams")),
    "no file": ({"dataFileId": None}, (400, "storage.validation.dataFileId")),
    "file is no number": ({"dataFileId": "x"}, (400, "storage.validation.dataFileId")),
    "no such file": ({"dataFileId": 5}, (404, "storage.files.notFound")),
    "two values as null": ({"treatValuesAsNull": ["a", "b"]}, (400, "storage.tables.validation")),
}


@pytest.mark.parametrize("case", NO_TABLE)
def test_a_create_is_refused_at_once(emulator, api, bucket, case):
    fields, expected = NO_TABLE[case]
    assert api("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": api.upload("id\n1\n"), **fields}).error == expected
    assert emulator.state()["jobs"] == [] and emulator.loads("in.c-b.t")["accepted"] == 0


def test_a_create_is_refused_for_what_is_there(api, bucket):
    file = api.upload("id\n1\n")
    assert api("POST", "/buckets/in.c-x/tables-async", {"name": "t", "dataFileId": file}).error == (404, "storage.buckets.notFound")
    message = api("POST", "/buckets/in.c-b/tables-async", {"dataFileId": file}).json["error"]
    assert message == 'Table create option "name" is required and cannot be empty.'
    api.create(bucket, "t", "id\n1\n")
    again = api("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": file})
    assert again.error == (400, "storage.buckets.tableAlreadyExists")
    assert again.json["error"] == 'The table "t" in the bucket already has the same display name "t".'


JOB_ERRORS = {
    "empty file": (dict(data=""), "storage.tables.validation.noColumns"),
    "only a bom": (dict(data="\ufeff"), "storage.tables.validation.noColumns"),
    "column without a name": (dict(data="id,,x\n1,2,3\n"), "storage.tables.validation.invalidColumnName"),
    "column that cleans to nothing": (dict(data="id,--\n1,2\n"), "storage.tables.validation.invalidColumnName"),
    "long column": (dict(data="x" * 65 + "\n1\n"), "storage.tables.validation.invalidColumnName"),
    "no such key": (dict(data="id\n1\n", primaryKey="nope"), "storage.tables.validation.invalidPrimaryKeyColumns"),
    "key in another case": (dict(data="id\n1\n", primaryKey="ID"), "storage.tables.validation.invalidPrimaryKeyColumns"),
    "twice the same column": (dict(data="a,a\n1,2\n"), "csvImport.columnsNotMatch"),
    "twice but for case": (dict(data="a,A\n1,2\n"), "csvImport.columnsNotMatch"),
    "too many fields": (dict(data="a,b\n1,2,3,4\n"), "invalidData"),
    "too few fields": (dict(data="a,b\n1\n"), "invalidData"),
    "no utf-8": (dict(data=b"n\nJos\xe9\n"), "invalidData"),
    "quote not closed": (dict(data='a,b\n1,"x,2\n'), "invalidData"),
    "gzip under a plain name": (dict(data=gzip.compress(b"a\n1\n")), "invalidCsv"),
    "plain under a gzip name": (dict(data=b"a\n1\n", file="f.csv.gz"), "invalidCsv"),
    "gzip that ends too early": (dict(data=gzip.compress(os.urandom(1000))[:-20], file="f.csv.gz"), "invalidData"),
    "zip": (dict(data=b"PK", file="f.csv.zip"), "invalidCsv"),
    "10,000 columns": (dict(data=",".join("c%d" % i for i in range(10000)) + "\n"), "tooManyColumns"),
}


@pytest.mark.parametrize("case", JOB_ERRORS)
def test_a_create_job_fails(emulator, api, bucket, case):
    arguments, code = JOB_ERRORS[case]
    job = api.create(bucket, "t", **arguments)
    assert (job["status"], job["error"]["code"]) == ("error", code) and job["error"]["message"]
    assert job["error"]["exceptionId"].startswith("keboola-connection-")
    assert api("GET", "/tables/in.c-b.t").error == (404, "storage.tables.notFound")
    assert emulator.loads("in.c-b.t") == {"accepted": 1, "finished": 1, "succeeded": 0, "failed": 1}


def test_the_message_about_too_many_fields(api, bucket):
    assert api.create(bucket, "t", "a,b\n1,2,3,4\n")["error"]["message"].startswith(
        "Load error: An exception occurred while executing a query: Number of columns in file (4) does not match that of the corresponding table (2)")


@pytest.mark.parametrize("provider", ["aws", "azure", "gcp"])
def test_nothing_was_uploaded(emulator, api, bucket, provider):
    emulator.settings(provider=provider)
    file = api.prepare()["id"]
    job = api.job(api("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": file}))
    assert job["error"]["code"] == "storage.fileNotUploaded"


GOOD = {
    "header is cleaned": (dict(data="with spaces,ščřščž,_with_underscore,language-id,oid\n1,2,3,4,5\n"),
                          ["with_spaces", "scrscz", "with_underscore", "language_id", "oid_"], [["1", "2", "3", "4", "5"]]),
    "semicolon": (dict(data="a;b\n1;2,5\n", delimiter=";"), ["a", "b"], [["1", "2,5"]]),
    "tab": (dict(data="a\tb\n1\t2\n", delimiter="\t"), ["a", "b"], [["1", "2"]]),
    "tab in two characters": (dict(data="a\tb\n1\t2\n", delimiter="\\t"), ["a", "b"], [["1", "2"]]),
    "enclosure": (dict(data="a,b\n'1,1','it''s'\n", enclosure="'"), ["a", "b"], [["1,1", "it's"]]),
    "escaped": (dict(data='a,b\n1\\,1,"q"\n', enclosure="", escapedBy="\\"), ["a", "b"], [["1,1", '"q"']]),
    "bom": (dict(data="\ufeffid,name\n1,x\n"), ["id", "name"], [["1", "x"]]),
    "crlf and multiline": (dict(data='id,note\r\n1,"multi\r\nline, with ""quotes"""\r\n2,plain\r\n'), ["id", "note"],
                           [["1", 'multi\r\nline, with "quotes"'], ["2", "plain"]]),
    "no newline at the end": (dict(data="a,b\n1,2"), ["a", "b"], [["1", "2"]]),
    "header only": (dict(data="a,b\n"), ["a", "b"], []),
    "empty values": (dict(data='a,b\n,""\n'), ["a", "b"], [["", ""]]),
    "one column with an empty row": (dict(data="a\n1\n\n2\n"), ["a"], [["1"], [""], ["2"]]),
    "gzip": (dict(data=gzip.compress("a\nč\n".encode()), file="f.csv.gz"), ["a"], [["č"]]),
    "gzip of two members": (dict(data=gzip.compress(b"a\n1\n") + gzip.compress(b"2\n"), file="f.csv.gz"), ["a"], [["1"], ["2"]]),
    "create takes no columns": (dict(data="a,b\n1,2\n", columns=["x", "y"], withoutHeaders=1), ["a", "b"], [["1", "2"]]),
    "key": (dict(data="a,b\n1,x\n2,y\n1,z\n", primaryKey="a"), ["a", "b"], [["1", "z"], ["2", "y"]]),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_can_be_created(emulator, api, bucket, case):
    arguments, columns, rows = GOOD[case]
    job = api.create(bucket, "t", **arguments)
    assert job["status"] == "success", job
    assert job["results"]["columns"] == columns == emulator.columns("in.c-b.t")
    assert emulator.rows("in.c-b.t") == rows and job["results"]["rowsCount"] == len(rows)


# ---- tables: import -----------------------------------------------------------------------------------------------------
@pytest.fixture
def table(api, bucket):
    assert api.create(bucket, "t", "id,name,population\n1,Praha,1300000\n2,Brno,400000\n")["status"] == "success"
    return "in.c-b.t"


def test_a_full_load_replaces_the_rows(emulator, api, table):
    answer = api("POST", "/tables/in.c-b.t/import-async", {"dataFileId": api.upload("id,name,population\n3,Plzeň,180000\n"), "incremental": False})
    assert answer.json["tableId"] == "in.c-b.t" and answer.json["operationName"] == "tableImport"
    job = api.job(answer)
    assert job["status"] == "success" and job["results"]["totalRowsCount"] == 1 and job["results"]["warnings"] == []
    assert job["results"]["importedColumns"] == ["id", "name", "population"] and job["results"]["transaction"] is None
    assert job["startTime"] and job["endTime"] and job["creatorToken"] == {"id": "98765", "description": "emulator"}
    assert emulator.rows(table) == [["3", "Plzeň", "180000"]]


@pytest.mark.parametrize("incremental", [True, 1, "1", "true"])
def test_an_incremental_load_appends(emulator, api, table, incremental):
    job = api.load(table, "population,id,name\n5,3,x\n", incremental=incremental)  # in another order
    assert job["results"]["totalRowsCount"] == 3 and emulator.rows(table)[2] == ["3", "x", "5"]


def test_an_incremental_load_with_a_key_updates(emulator, api, bucket):
    api.create(bucket, "k", "a,b,c\n1,1,x\n1,2,y\n", primaryKey="a,b")
    job = api.load("in.c-b.k", "a,b,c\n1,2,new\n1,3,z\n", incremental=1)
    assert job["results"]["totalRowsCount"] == 3
    assert emulator.rows("in.c-b.k") == [["1", "1", "x"], ["1", "2", "new"], ["1", "3", "z"]]


def test_missing_columns(emulator, api, table):
    for data in ("id\n1\n", "name;population;id\n1;2;3\n"):
        job = api.load(table, data)
        assert job["error"]["code"] == "csvImport.columnsNotMatch"
    job = api.load(table, "id,Name,population\n1,2,3\n")  # names are case-sensitive
    assert job["error"]["message"] == ('Some columns are missing in the csv file. Missing columns: name. Expected columns: id,name,population. '
                                       'Please check if the expected delimiter "," is used in the csv file.')
    assert job["results"] == {"missingColumns": ["name"], "expectedColumns": ["id", "name", "population"]}
    assert emulator.rows(table)[0] == ["1", "Praha", "1300000"]
    assert api.load(table, "")["error"]["code"] == "csvImport.columnsNotMatch"


def test_extra_columns_are_added(emulator, api, table):
    job = api.load(table, "id,secret key,name,population\n9,s,n,p\n", incremental=1)
    assert job["results"]["importedColumns"] == ["id", "secret_key", "name", "population"]
    assert emulator.columns(table) == ["id", "name", "population", "secret_key"]
    assert emulator.rows(table) == [["1", "Praha", "1300000", ""], ["2", "Brno", "400000", ""], ["9", "n", "p", "s"]]
    assert api.load(table, "id,name,Name,population,secret_key\n1,2,3,4,5\n")["error"]["code"] == "csvImport.columnsNotMatch"
    emulator.settings(backend="bigquery")
    assert api.load(table, "id,name,population,secret_key,more\n1,2,3,4,5\n")["error"]["code"] == "csvImport.columnsNotMatch"


def test_files_without_a_header(emulator, api, table):
    assert api.load(table, "9,n,p\n", withoutHeaders=1)["status"] == "success"
    assert emulator.rows(table) == [["9", "n", "p"]]
    assert api.load(table, "p,9,n\n", columns=["population", "id", "name"])["status"] == "success"
    assert emulator.rows(table) == [["9", "n", "p"]]
    assert api.load(table, "junk,a,b\njunk,c,d\n8,n,p\n", ignoredLinesCount=2)["status"] == "success"
    assert emulator.rows(table) == [["8", "n", "p"]]
    form = {"dataFileId": api.upload("p,9,n\n"), "columns[]": "population"}
    job = api.job(api("POST", "/tables/%s/import-async" % table, form=form))
    assert job["error"]["code"] == "csvImport.columnsNotMatch" and job["results"]["missingColumns"] == ["id", "name"]


def test_a_file_that_cannot_be_read_leaves_the_old_rows(emulator, api, table):
    before = emulator.rows(table)
    for data in ("id,name,population\n1,2,3\n1,2,3,4\n", b"id,name,population\n1,2,\xff\n"):
        assert api.load(table, data)["status"] == "error"
        assert emulator.rows(table) == before


def test_an_import_is_refused_at_once(api, table):
    file = api.upload("id,name,population\n")
    assert api("POST", "/tables/in.c-b.x/import-async", {"dataFileId": file}).error == (404, "storage.tables.notFound")
    assert api("POST", "/tables/in.c-x.x/import-async", {"dataFileId": file}).error == (404, "storage.buckets.notFound")
    assert api("POST", "/tables/x/import-async", {"dataFileId": file}).error == (404, "storage.tables.notFound")
    assert api("POST", "/tables/in.c-b.t/import-async", {"dataFileId": file + 1000}).error == (404, "storage.files.notFound")
    assert api("POST", "/tables/in.c-b.t/import-async", {"dataFileId": file, "columns": "id"}).error == (400, "storage.validation.columns")


@pytest.mark.parametrize("provider", ["aws", "azure", "gcp"])
def test_sliced_files(emulator, api, table, provider):
    emulator.settings(provider=provider)

    def upload(slices, manifest=None, compress=False):
        file = api.prepare("s.csv.gz" if compress else "s.csv", isSliced=True)
        params = file.get("uploadParams") or file.get("gcsUploadParams") or file["absUploadParams"]
        start = {"aws": "s3://%(bucket)s/%(key)s", "gcp": "gs://%(bucket)s/%(key)s",
                 "azure": "azure://%(accountName)s.blob.core.windows.net/%(container)s/%(blobName)s"}[provider] % params
        for i, text in enumerate(slices):
            data = gzip.compress(text.encode()) if compress else text.encode()
            assert put(emulator, file, data, "part%04d" % i).status in (200, 201)
        entries = [{"url": start + "part%04d" % i, "mandatory": True} for i in range(len(slices))] if manifest is None else manifest(start)
        if entries is not False:
            assert put(emulator, file, json.dumps({"entries": entries}).encode(), "manifest").status in (200, 201)
        return file["id"]

    def load(file, **fields):
        return api.job(api("POST", "/tables/%s/import-async" % table, {"dataFileId": file, **fields}))
    for compress in (False, True):
        assert load(upload(["1,a,2\n", "2,b,3\n3,c,4\n"], compress=compress), withoutHeaders=True)["status"] == "success"
        assert emulator.rows(table) == [["1", "a", "2"], ["2", "b", "3"], ["3", "c", "4"]]
    assert load(upload(["1,a,2\n"]))["error"]["code"] == "csvImport.columnsNotMatch"
    assert load(upload([], lambda start: False), withoutHeaders=True)["error"]["code"] == "storage.manifestFileMissing"
    assert load(upload(["1,a,2\n"], lambda start: [{"url": start + "part9"}]), withoutHeaders=True)["error"]["code"] == "storage.importFileMissing"
    foreign = upload(["1,a,2\n"], lambda start: [{"url": start[:-3] + "x"}])
    assert load(foreign, withoutHeaders=True)["error"]["code"] == "storage.unauthorizedAccess"
    job = api.job(api("POST", "/buckets/in.c-b/tables-async", {"name": "s", "dataFileId": upload(["1,,2\n"])}))
    assert job["error"]["code"] == "storage.tables.validation.invalidColumnName"


def test_typed_tables(emulator, api, bucket):
    definition = {"name": "typed", "primaryKeysNames": ["id"], "columns": [
        {"name": "id", "definition": {"type": "INT", "nullable": False}}, {"name": "sex", "basetype": "STRING"},
        {"name": "day", "definition": {"type": "DATE"}}]}
    job = api.job(api("POST", "/buckets/in.c-b/tables-definition", definition))
    assert job["operationName"] == "tableDefinitionCreate" and job["status"] == "success"
    table = api.get("/tables/in.c-b.typed")
    assert table["isTyped"] is True and table["definition"]["primaryKeysNames"] == ["id"] and table["rowsCount"] == 0
    assert table["definition"]["columns"][0] == {"name": "id", "definition": {"type": "INT", "nullable": False}, "basetype": "INTEGER", "canBeFiltered": True}
    assert api.load("in.c-b.typed", "id,sex,day\n1,m,2026-01-01\n2,,\n")["status"] == "success"
    assert "Numeric value 'male' is not recognized" in api.load("in.c-b.typed", "id,sex,day\nmale,m,\n")["error"]["message"]
    assert "Date 'x' is not recognized" in api.load("in.c-b.typed", "id,sex,day\n1,m,x\n")["error"]["message"]
    assert "NULL result" in api.load("in.c-b.typed", "id,sex,day\n,m,\n")["error"]["message"]
    extra = api.load("in.c-b.typed", "id,sex,day,secret\n1,m,,x\n")["error"]
    assert extra["code"] == "csvImport.columnsNotMatch"
    assert extra["message"] == "During the import of typed tables new columns can't be added. Extra columns found: \"secret\"."
    assert emulator.rows("in.c-b.typed") == [["1", "m", "2026-01-01"], ["2", "", ""]]
    assert api.job(api("POST", "/buckets/in.c-b/tables-definition", {"name": "untyped", "columns": [{"name": "a"}, {"name": "b"}]}))["status"] == "success"
    assert api.get("/tables/in.c-b.untyped")["isTyped"] is False and api.get("/tables/in.c-b.untyped")["definition"] == []
    assert api("POST", "/buckets/in.c-b/tables-definition", {"name": "x", "columns": []}).status == 400
    assert api("POST", "/buckets/in.c-b/tables-definition", definition).error == (400, "storage.buckets.tableAlreadyExists")


# ---- tables: the rest -----------------------------------------------------------------------------------------------------
def test_a_table_is_deleted(api, table):
    job = api.job(api("DELETE", "/tables/%s?async=1&force=1" % table))
    assert job["operationName"] == "tableDrop" and job["results"] in (None, [])
    assert api("DELETE", "/tables/" + table).error == (404, "storage.tables.notFound")
    api.create("in.c-b", "t", "a\n1\n")
    assert api("DELETE", "/tables/" + table).status == 204


def test_rows_are_deleted(emulator, api, table):
    assert api("DELETE", "/tables/%s/rows" % table).error == (400, "storage.tables.validation.unintendedTruncation")
    assert api("DELETE", "/tables/%s/rows?async=true&allowTruncate=1" % table).status == 400
    job = api.job(api("DELETE", "/tables/%s/rows?whereColumn=id&whereValues[]=2" % table))
    assert job["operationName"] == "tableRowsDelete" and emulator.rows(table) == [["1", "Praha", "1300000"]]
    api.job(api("DELETE", "/tables/%s/rows" % table, {"allowTruncate": 1}))
    assert emulator.rows(table) == []


def test_columns_and_keys(emulator, api, table):
    assert api.job(api("POST", "/tables/%s/columns" % table, {"name": "x"}))["status"] == "success"
    assert emulator.rows(table)[0] == ["1", "Praha", "1300000", ""]
    assert api("POST", "/tables/%s/columns" % table, {"name": "X"}).error == (400, "storage.tables.columnAlreadyExists")
    assert api("POST", "/tables/%s/columns" % table, {"name": "_y"}).error == (400, "storage.tables.invalidColumnName")
    assert api.job(api("POST", "/tables/%s/primary-key" % table, {"columns": ["x"]}))["status"] == "error"  # not unique
    assert api.job(api("POST", "/tables/%s/primary-key" % table, {"columns": ["id"]}))["status"] == "success"
    assert api.get("/tables/" + table)["primaryKey"] == ["id"]
    api.load(table, "id,name,population,x\n2,B,0,0\n", incremental=1)
    assert len(emulator.rows(table)) == 2
    assert api.job(api("DELETE", "/tables/%s/primary-key" % table))["status"] == "success"
    assert api.get("/tables/" + table)["primaryKey"] == []


def test_previews(api, table):
    answer = api("GET", "/tables/%s/data-preview" % table)
    assert answer.body.decode() == '"id","name","population"\n"1","Praha","1300000"\n"2","Brno","400000"\n'
    assert answer.headers["Content-Type"].startswith("text/csv")
    assert api("GET", "/tables/%s/data-preview?limit=1&columns=name" % table).body == b'"name"\n"Praha"\n'
    assert api("GET", "/tables/%s/data-preview?whereColumn=id&whereValues[]=2&whereOperator=eq&columns=name" % table).body == b'"name"\n"Brno"\n'
    assert api("GET", "/tables/%s/data-preview?limit=1001" % table).status == 400
    api.create("in.c-b", "wide", ",".join("c%d" % i for i in range(130)) + "\n")
    assert api("GET", "/tables/in.c-b.wide/data-preview").error == (400, "storage.maxNumberOfColumnsExceed")


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


# ---- what the official Python client does -------------------------------------------------------------------------------
class PythonClient:
    """The requests of the official Python client, in its order and encoding; uploads with the SDK that it uses."""

    AGENT = {"Accept-Encoding": "gzip", "User-Agent": "Keboola Storage API Python Client"}

    def __init__(self, emulator):
        import boto3
        self.boto3 = boto3
        self.emulator = emulator
        self.api = Api(emulator)

    def call(self, method, path, form=None, ok=(200, 201, 202, 204), **more):
        answer = self.api(method, path, form=form, headers=self.AGENT, **more)
        if answer.headers.get("Content-Encoding") == "gzip":
            answer.body = gzip.decompress(answer.body)
        assert answer.status in ok, (method, path, answer.status, answer.body)
        if answer.headers.get("Content-Type") == "application/json":
            return answer.json
        return answer.body or None

    def wait(self, job):
        return wait_until(lambda: (lambda one: one if one["status"] in ("success", "error") else None)(self.call("GET", "/jobs/%s" % job["id"])))

    def delete_bucket(self, bucket):
        job = self.call("DELETE", "/buckets/%s?force=True&async=True" % bucket, ok=(202, 404))
        if "operationName" in job:
            assert self.wait(job)["status"] == "success"

    def s3(self, file, credentials):
        return self.boto3.resource("s3", aws_access_key_id=credentials["AccessKeyId"], aws_secret_access_key=credentials["SecretAccessKey"],
                                   aws_session_token=credentials["SessionToken"], region_name=file["region"], endpoint_url=self.emulator.url)

    def upload(self, path, tags):
        file = self.call("POST", "/files/prepare", form=[
            ("isPublic", 0), ("isPermanent", 0), ("isEncrypted", 1), ("isSliced", 0), ("notify", 0), ("name", path.name),
            *(("tags[]", tag) for tag in tags), ("sizeBytes", path.stat().st_size), ("federationToken", 1)])
        params = file["uploadParams"]
        with open(path, "rb") as body:
            self.s3(file, params["credentials"]).Object(bucket_name=params["bucket"], key=params["key"]).put(
                ACL=params["acl"], Body=body, ContentDisposition="attachment; filename=%s;" % file["name"],
                ServerSideEncryption=params["x-amz-server-side-encryption"])
        return file["id"]

    def download(self, file_id, folder):
        file = self.call("GET", "/files/%s?federationToken=true" % file_id)
        s3 = self.s3(file, file["credentials"])
        target = folder / file["name"]
        if not file["isSliced"]:
            s3.Bucket(file["s3Path"]["bucket"]).download_file(file["s3Path"]["key"], str(target))
            return target
        parts = urllib.parse.urlsplit(file["url"])
        manifest = send("http://" + parts.netloc, "GET", parts.path + "?" + parts.query).json
        with open(target, "wb") as whole:
            for entry in manifest["entries"]:
                s3.Bucket(file["s3Path"]["bucket"]).download_file("/".join(entry["url"].split("/")[3:]), str(folder / "slice"))
                whole.write((folder / "slice").read_bytes())
        return target

    def create(self, bucket, name, path, primary_key=None):
        form = {"name": name, "delimiter": ",", "enclosure": '"', "escapedBy": "", "dataFileId": self.upload(path, ["file-import"])}
        if primary_key:
            form["primaryKey"] = ",".join(primary_key)
        job = self.wait(self.call("POST", "/buckets/%s/tables-async" % bucket, form=form))
        assert job["status"] == "success"
        return job["results"]["id"]

    def load(self, table, path, incremental):
        job = self.wait(self.call("POST", "/tables/%s/import-async" % table, form={
            "delimiter": ",", "enclosure": '"', "escapedBy": "", "incremental": int(incremental), "withoutHeaders": 0,
            "dataFileId": self.upload(path, ["file-import"])}))
        assert job["status"] == "success"
        return job["results"]

    def export(self, table, folder, compress, columns=None):
        form = {"gzip": int(compress)}
        if columns:
            form["columns"] = ",".join(columns)
        job = self.wait(self.call("POST", "/tables/%s/export-async" % table, form=form))
        data = self.download(job["results"]["file"]["id"], folder).read_bytes()
        return sorted((gzip.decompress(data) if compress else data).decode().splitlines())


@pytest.fixture
def client(emulator):
    emulator.settings(gzip_answers=True)
    return PythonClient(emulator)


def csv_file(folder, text, name="sapi-test"):
    path = folder / name
    path.write_text(text)
    return path


def test_python_client_buckets(client, tmp_path):
    client.delete_bucket("in.c-py-test-buckets")
    created = client.call("POST", "/buckets", form={"name": "py-test-buckets", "stage": "in", "description": "Test bucket"})
    detail = client.call("GET", "/buckets/" + created["id"])
    assert detail["id"] == created["id"] and detail["name"] == "c-py-test-buckets" and detail["description"] == "Test bucket"
    assert detail["uri"] and detail["created"] and detail["tables"] == [] and detail["attributes"] == []
    client.create(created["id"], "some-table", csv_file(tmp_path, "col1,col2\nping,pong\n"))
    tables = client.call("GET", "/buckets/%s/tables" % created["id"])
    assert [one["id"] for one in tables] == ["in.c-py-test-buckets.some-table"]
    client.call("GET", "/buckets/some-totally-non-existent-bucket", ok=(404,))
    client.delete_bucket("in.c-py-test-buckets")
    assert client.call("GET", "/buckets") == []


def test_python_client_tables(client, tmp_path):
    bucket = client.call("POST", "/buckets", form={"name": "py-test-tables", "stage": "in", "description": ""})["id"]
    table = client.create(bucket, "some-table", csv_file(tmp_path, "col1,col2\nping,pong\n"), ["col1", "col2"])
    detail = client.call("GET", "/tables/" + table)
    assert detail["id"] == table == "in.c-py-test-tables.some-table" and detail["name"] == "some-table" and table in detail["uri"]
    assert detail["primaryKey"] == ["col1", "col2"] and detail["columns"] == ["col1", "col2"] and detail["rowsCount"] == 1
    assert {"created", "lastImportDate", "lastChangeDate", "rowsCount", "metadata", "bucket", "columnMetadata"} <= set(detail)
    client.load(table, csv_file(tmp_path, "col1,col2\nfoo,bar\n"), True)
    assert client.call("GET", "/tables/" + table)["rowsCount"] == 2
    assert sorted(client.call("GET", "/tables/%s/data-preview" % table).decode().split("\n")) == [
        "", '"col1","col2"', '"foo","bar"', '"ping","pong"']
    for compress in (False, True):
        assert client.export(table, tmp_path, compress) == ['"foo","bar"', '"ping","pong"']
    assert client.export(table, tmp_path, False, ["col2"]) == ['"bar"', '"pong"']
    client.load(table, csv_file(tmp_path, "col1,col2\nfoo,bar\n"), False)
    assert client.call("GET", "/tables/" + table)["rowsCount"] == 1
    client.call("DELETE", "/tables/" + table)
    client.call("GET", "/tables/some-totally-non-existent-table", ok=(404,))
    client.call("GET", "/tables/" + table, ok=(404,))


def test_python_client_metadata(client, tmp_path):
    bucket = client.call("POST", "/buckets", form={"name": "py-test-tables", "stage": "in", "description": ""})["id"]
    table = client.create(bucket, "some-table", csv_file(tmp_path, "col1,col2\nping,pong\n"))
    entry = {"key": "test_table_with_metadata", "value": "success"}
    for columns in ([[{"key": "test_column_with_metadata", "value": "success", "columnName": "col1"}]], None,
                    {"col1": [{"key": "test_column_with_metadata", "value": "success", "columnName": "col1"}]}):
        body = {"provider": "test", "metadata": [entry], **({"columnsMetadata": columns} if columns else {})}
        assert Api(client.emulator)("POST", "/tables/%s/metadata" % table, body).status == 201
    client.call("POST", "/tables/%s/metadata" % table, form={
        "provider": "test", "metadata[0][key]": entry["key"], "metadata[0][value]": "success",
        "columnsMetadata[col1][0][key]": "test_column_with_metadata", "columnsMetadata[col1][0][value]": "success"})
    detail = client.call("GET", "/tables/" + table)
    assert len(detail["metadata"]) == 1 and detail["metadata"][0]["provider"] == "test" and {"id", "timestamp"} <= set(detail["metadata"][0])
    assert [(one["key"], one["value"]) for one in detail["columnMetadata"]["col1"]] == [("test_column_with_metadata", "success")]
    listed = client.call("GET", "/tables/%s/metadata" % table)
    client.call("DELETE", "/tables/%s/metadata/%s" % (table, listed[0]["id"]))
    assert client.call("GET", "/tables/%s/metadata" % table) == []


def test_python_client_files(client, tmp_path):
    assert client.call("GET", "/files?limit=100&offset=0&tags%5B%5D=py-test") == []
    path = csv_file(tmp_path, "fooBar")
    file = client.upload(path, ["py-test", "file1"])
    detail = client.call("GET", "/files/%s" % file)
    assert detail["id"] == file and detail["sizeBytes"] == 6 and not detail["isPublic"] and not detail["isSliced"] and detail["isEncrypted"]
    assert {"name", "created", "url", "region", "creatorToken", "tags"} <= set(detail) and "credentials" not in detail
    assert {"py-test", "file1"} <= set(detail["tags"])
    assert {"AccessKeyId", "SecretAccessKey", "SessionToken"} <= set(client.call("GET", "/files/%s?federationToken=true" % file)["credentials"])
    folder = tmp_path / "down"
    folder.mkdir()
    assert client.download(file, folder).read_bytes() == b"fooBar"
    for one in client.call("GET", "/files?limit=100&offset=0&tags%5B%5D=py-test"):
        client.call("DELETE", "/files/%s" % one["id"])
    client.call("GET", "/files/%s" % file, ok=(404,))


def test_python_client_base_tokens_branches_jobs(client):
    assert {"api", "version", "components", "services"} <= set(client.call("GET", "/"))
    for method, path in (("GET", "/not-a-url"), ("GET", "//not-a-url"), ("POST", "//not-a-url"), ("DELETE", "/delete/not-a-url")):
        client.call(method, path, ok=(404,))
    assert {"id", "description", "canManageBuckets", "owner"} <= set(client.call("GET", "/tokens/verify"))
    assert isinstance(client.call("GET", "/branch/default/metadata"), list)
    assert len(client.call("GET", "/jobs")) > 2


def test_python_client_definition(client):
    bucket = client.call("POST", "/buckets", form={"name": "py-test-tables", "stage": "in", "description": ""})["id"]
    definition = {"name": "test_from_definition", "primaryKeysNames": ["id"], "columns": [
        {"name": "id", "definition": {"type": "INT", "nullable": True}},
        {"name": "name", "definition": {"type": "NVARCHAR", "length": "200", "nullable": False, "default": "'unnamed'"}}],
        "distribution": {"type": "HASH", "distributionColumnsNames": ["id"]}, "index": {"type": "CLUSTERED INDEX", "indexColumnsNames": ["id"]}}
    job = Api(client.emulator)("POST", "/buckets/%s/tables-definition" % bucket, definition).json
    assert job["operationParams"] == {**definition, "queue": "main"} and job["operationName"] == "tableDefinitionCreate"


def test_the_sdk_of_aws_uploads_in_parts(client, tmp_path):
    from boto3.s3.transfer import TransferConfig
    path = tmp_path / "big.csv"
    path.write_bytes(b"a\n" + os.urandom(6 * MIB).hex().encode() + b"\n")
    file = client.api.prepare("big.csv")
    params = file["uploadParams"]
    target = client.s3(file, params["credentials"]).Object(params["bucket"], params["key"])
    target.upload_file(str(path), ExtraArgs={"ServerSideEncryption": "AES256", "ACL": "private"},
                       Config=TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB))
    assert len(client.emulator.requests("PUT", params["key"])) == 3
    assert client.download(file["id"], tmp_path).read_bytes() == path.read_bytes()


# ---- servers of others ----------------------------------------------------------------------------------------------------
def test_files_on_azurite(tmp_path):
    with Azurite() as azurite, Emulator(provider="azure", azurite=azurite.account_url) as one:
        api = Api(one)
        api.bucket("b")
        file = api.prepare("a b.csv")
        assert file["absUploadParams"]["absCredentials"]["SASConnectionString"].startswith("BlobEndpoint=%s;" % azurite.account_url)
        assert api.job(api("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": file["id"]}))["error"]["code"] == "storage.fileNotUploaded"
        assert put_azure(file, b"a,b\n1,2\n", headers={"x-ms-version": "2017-11-09"}).status == 201
        assert put_azure(file, b"", sas=sas_url(file)[1].replace("sp=rwl", "sp=rwdl")).status == 403
        assert api.job(api("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": file["id"]}))["status"] == "success"
        assert one.rows("in.c-b.t") == [["1", "2"]] and len(one.state("jobs")["jobs"]) == 2
        # in blocks, gzipped
        text = b"a,b\n" + b"".join(b"%d,%s\n" % (i, os.urandom(50).hex().encode()) for i in range(20000))
        data = gzip.compress(text)
        blocks = api.prepare("a.csv.gz")
        ids = []
        for number, at in enumerate(range(0, len(data), 300000)):
            ids.append(base64.b64encode(b"%05d" % number).decode())
            assert put_azure(blocks, data[at:at + 300000], query="comp=block&blockid=" + urllib.parse.quote(ids[-1], safe="")).status == 201
        assert put_azure(blocks, block_list(ids), query="comp=blocklist").status == 201
        job = api.job(api("POST", "/tables/in.c-b.t/import-async", {"dataFileId": blocks["id"]}))
        assert job["results"]["totalRowsCount"] == 20000 and one.tables()["in.c-b.t"]["sha256"] == hashlib.sha256(text).hexdigest()
        detail = api.get("/files/%d?federationToken=1" % blocks["id"])
        assert send(detail["url"], "GET", "?" + urllib.parse.urlsplit(detail["url"]).query).body == data
        job = api.job(api("POST", "/tables/in.c-b.t/export-async", {"columns": "a"}))
        exported = api.get("/files/%d" % job["results"]["file"]["id"])
        assert len(send(exported["url"], "GET", "?" + urllib.parse.urlsplit(exported["url"]).query).json["entries"]) == 1


def test_files_on_s3rver():
    with S3rver() as s3rver, Emulator(s3=s3rver.url) as one:
        api = Api(one)
        api.bucket("b")
        file = api.prepare()
        signer = Signer(file, style="")
        assert signer.credentials["AccessKeyId"] == "S3RVER"
        create = ("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": file["id"]})
        assert api.job(api(*create))["error"]["code"] == "storage.fileNotUploaded"
        assert signer.put(one, b"a,b\n1,2\n", url=s3rver.url).status == 200
        assert api.job(api(*create))["status"] == "success"
        assert one.rows("in.c-b.t") == [["1", "2"]]
        upload = signer.begin(one, url=s3rver.url)
        parts = [b"a,b\n" + b"1234567,12345678\n" * 320000, b"x,y\n"]
        etags = [(n, signer.part(one, upload, n, data, url=s3rver.url).headers["ETag"]) for n, data in enumerate(parts, 1)]
        assert signer.complete(one, upload, etags, url=s3rver.url).status == 200
        one.settings(keep_rows=10)
        job = api.job(api("POST", "/tables/in.c-b.t/import-async", {"dataFileId": file["id"]}))
        assert job["results"]["totalRowsCount"] == 320001
        assert one.tables()["in.c-b.t"]["sha256"] == hashlib.sha256(b"".join(parts)).hexdigest()


def test_many_clients_at_once(emulator, api):
    """Buckets, files and jobs of 16 threads do not mix."""
    api.bucket("b")
    began = threading.Barrier(16)

    def one(number):
        began.wait()
        for turn in range(5):
            name = "t%d" % number
            data = "n,turn\n%d,%d\n" % (number, turn)
            job = api.create("in.c-b", name, data) if turn == 0 else api.load("in.c-b." + name, data)
            assert job["status"] == "success", job
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(16)))
    for number in range(16):
        assert emulator.rows("in.c-b.t%d" % number) == [[str(number), "4"]]
        assert emulator.loads("in.c-b.t%d" % number)["succeeded"] == 5


def test_a_server_behind_it_that_is_gone_is_a_500():
    azurite = Azurite().start()
    try:
        with Emulator(provider="azure", azurite=azurite.account_url) as one:
            api = Api(one)
            file = api.prepare()
            api.bucket("b")
            azurite.stop()
            assert api("POST", "/files/prepare", {"name": "x", "federationToken": True}).status == 500
            job = api.job(api("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": file["id"]}))
            assert job["status"] == "error" and job["error"]["message"].startswith("Internal Server Error")
            assert api("GET", "/buckets").status == 200
    finally:
        azurite.stop()
