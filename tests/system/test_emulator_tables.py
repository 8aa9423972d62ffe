"""The Keboola emulator: files prepared, tables made, filled and read, and all of it once more as the official Python client does it."""
import gzip
import json
import os
import re
import urllib.parse

import pytest
from chute import wait_until
from emulator_client import api, Api, bucket, emulator, MIB, put, put_gcs, running, send, Signer, table  # noqa: F401: fixtures


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
