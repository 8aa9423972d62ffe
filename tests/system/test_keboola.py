"""Keboola Storage, scenarios B1 to B12, counted at the far end."""
import gzip
import json
import re
import signal
import subprocess
import time

import pytest
from chute import BINARY, Chute, wait_until, write_file
from keboola import TOKEN, Emulator
from keboola_side import LOADS, SAMPLES, STORES, Loader
from servers import Azurite

BASIC = [["0", "name_0", "17"], ["1", "name_1", "942"], ["2", "name_2", "5"]]
PROVIDERS = ["aws", "azure", "gcp"]


@pytest.fixture(scope="module")
def running():
    with Emulator() as one:
        yield one


@pytest.fixture
def emulator(running):
    running.reset()
    return running


@pytest.fixture
def kbc(tmp_path, emulator):
    made = Loader(tmp_path, emulator)
    yield made
    made.clean_up()


def sha(data):
    import hashlib
    return hashlib.sha256(data).hexdigest()


def quarantined(kbc, path, *words):
    """PATH is quarantined, and its reason has WORDS; the reason."""
    file = next(f for f in kbc.files("quarantined") if f["path"] == path)
    for word in words:
        assert word in file["reason"], file["reason"]
    return file["reason"]


# ---- B1: folders and buckets ------------------------------------------------------------------------------------------
@pytest.mark.core
def test_a_new_folder_makes_its_bucket_once(kbc):
    kbc.set_up().start()
    (kbc.inbox / "sales").mkdir()
    wait_until(lambda: [b["id"] for b in kbc.emulator.state()["buckets"]] == ["in.c-sales"], "the bucket")
    assert [r["json"] for r in kbc.emulator.requests("POST", "/buckets")] == [{"name": "sales", "stage": "in"}]
    kbc.stop()
    kbc.start()
    wait_until(lambda: len(kbc.emulator.requests("GET", "/buckets/in.c-sales")) == 2, "the bucket to be looked for again")
    kbc.stop()
    assert kbc.sequence().count("POST buckets") == 1


def test_a_folder_that_comes_while_the_daemon_runs_and_one_that_was_there_before(kbc):
    (kbc.inbox / "before").mkdir()
    kbc.set_up().start()
    wait_until(lambda: len(kbc.emulator.state()["buckets"]) == 1, "the first bucket")
    (kbc.inbox / "after").mkdir()
    (kbc.inbox / "after" / "deeper").mkdir()
    wait_until(lambda: len(kbc.emulator.state()["buckets"]) == 2, "the second bucket")
    kbc.place("after/x.csv", "a\n1\n")
    kbc.wait_remote("in.c-after.x", [["1"]])
    assert sorted(b["id"] for b in kbc.emulator.state()["buckets"]) == ["in.c-after", "in.c-before"]
    assert kbc.sequence().count("POST buckets") == 2


def test_a_bucket_that_exists_is_used(kbc):
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    assert kbc.emulator.tables()["in.c-sales.basic"]["rowsCount"] == 3
    other = Loader(kbc.home / "other", kbc.emulator).set_up()
    other.place("sales/second.csv", "a\n1\n")
    other.once()
    assert other.emulator.rows("in.c-sales.second") == [["1"]]
    assert kbc.sequence().count("POST buckets") == 1


def test_buckets_without_the_old_prefix_are_found_by_their_name(kbc):
    kbc.emulator.settings(features=["disable-legacy-bucket-prefix"])
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    assert list(kbc.emulator.tables()) == ["in.sales.basic"]
    kbc.place("sales/second.csv", "a\n1\n")
    kbc.once()  # a process that does not know the id yet
    assert sorted(kbc.emulator.tables()) == ["in.sales.basic", "in.sales.second"]


def test_a_bucket_displayed_under_the_name_is_an_error_that_says_so(kbc):
    api = kbc.emulator
    send(api, "POST", "buckets", {"name": "other", "stage": "in", "displayName": "sales"})
    kbc.set_up().place("sales/basic.csv")
    kbc.once(expect=1)
    quarantined(kbc, "sales/basic.csv", "bucket sales", "displayed under that name")
    assert api.tables() == {}


@pytest.mark.parametrize("stage, branch", [("out", ""), ("in", "default")])
def test_stage_and_branch(kbc, stage, branch):
    kbc.set_up(dest={"stage": stage, "branch": branch}).place("sales/basic.csv")
    kbc.once()
    assert sorted(kbc.emulator.rows(stage + ".c-sales.basic")) == BASIC
    if branch:
        assert all("/branch/default/" in r["path"] for r in kbc.emulator.requests(path="/v2/storage/")
                   if "/jobs" not in r["path"] and "tokens" not in r["path"])


def send(emulator, method, path, body=None):
    """A request of somebody else with the same token."""
    import urllib.request
    request = urllib.request.Request("%s/v2/storage/%s" % (emulator.url, path), method=method, data=json.dumps(body).encode() if body else None,
                                     headers={"X-StorageApi-Token": TOKEN, "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
        return json.loads(text) if text else None


# ---- B2, B3: one file -------------------------------------------------------------------------------------------------
@pytest.mark.core
def test_one_file_is_one_prepare_one_upload_one_table(kbc):
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    data = (SAMPLES / "basic.csv").read_bytes()
    sequence = kbc.sequence()
    assert sequence.count("POST files/prepare") == 1 and kbc.bodies() == [sha(data)]
    assert sequence.count("POST buckets/in.c-sales/tables-async") == 1 and "import-async" not in " ".join(sequence)
    file, = kbc.emulator.state()["files"]
    assert {k: kbc.orders()[0][k] for k in ("name", "dataFileId", "delimiter", "enclosure")} == {
        "name": "basic", "dataFileId": file["id"], "delimiter": ",", "enclosure": '"'}
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC and kbc.emulator.columns("in.c-sales.basic") == ["id", "name", "value"]
    assert kbc.emulator.loads("in.c-sales.basic") == {"accepted": 1, "finished": 1, "succeeded": 1, "failed": 0}
    receipt, = kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    job, = kbc.jobs()
    assert receipt["parsed"] == receipt["inserted"] == 3 and receipt["bytes"] == len(data) and str(job["id"]) in json.dumps(receipt)
    line = next(line for line in kbc.log_text().splitlines() if "sales/basic.csv" in line and "loaded" in line)
    assert "3 rows" in line and re.search(r"\b50 ?(B|bytes)", line) and re.search(r"\d+ ?m?s", line), line


@pytest.mark.core
def test_a_replaced_file_is_one_full_import(kbc):
    kbc.set_up().start()
    kbc.place("sales/basic.csv")
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    kbc.place("sales/basic.csv", "id,name,value\n7,x,1\n8,y,2\n")
    kbc.wait_receipts("sales/basic.csv", "loaded", 2)
    assert kbc.emulator.rows("in.c-sales.basic") == [["7", "x", "1"], ["8", "y", "2"]]
    assert [o.get("incremental") for o in kbc.orders()] == [None, False]
    kbc.place("sales/basic.csv", "id,name,value\n7,x,1\n8,y,2\n")  # the same again
    kbc.wait_state("sales/basic.csv", "skipped")
    kbc.place("sales/basic.csv")  # back to the first version, which is not what the table holds now
    kbc.wait_receipts("sales/basic.csv", "loaded", 3)
    kbc.wait_remote("in.c-sales.basic", BASIC)
    assert len(kbc.jobs("in.c-sales.basic")) == 3


def test_nothing_is_asked_for_files_that_were_loaded_before_a_restart(kbc):
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    kbc.emulator.forget_requests()
    kbc.once()
    assert set(kbc.sequence()) <= {"GET tokens/verify", "GET buckets/in.c-sales"}


def test_with_a_lost_ledger_the_same_file_gives_the_same_table(kbc):
    import shutil
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    shutil.rmtree(kbc.state)
    kbc.once()
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC


# ---- B4: another header -----------------------------------------------------------------------------------------------
@pytest.mark.core
@pytest.mark.parametrize("keeps_ledger", [True, False], ids=["known", "ledger deleted"])
def test_another_header_uploads_nothing(kbc, keeps_ledger):
    import shutil
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    kbc.emulator.forget_requests()
    if not keeps_ledger:
        shutil.rmtree(kbc.state)
    kbc.place("sales/basic.csv", (SAMPLES / "basic_header_changed.csv").read_bytes())
    kbc.start()
    kbc.wait_state("sales/basic.csv", "quarantined")
    quarantined(kbc, "sales/basic.csv", "expected id, name, value", "found id, name, value, extra")
    assert not [s for s in kbc.sequence() if s.startswith(("POST", "PUT"))]
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC
    kbc.place("sales/basic.csv", "id,name,value\n9,z,3\n")  # corrected, without a restart
    kbc.wait_remote("in.c-sales.basic", [["9", "z", "3"]])


@pytest.mark.parametrize("header, words", [("id,name", "value"), ("id,value,name", "order"), ("id,name,price", "price")])
def test_a_missing_a_moved_and_a_renamed_column_are_named(kbc, header, words):
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    kbc.place("sales/basic.csv", header + "\n" + ",".join("1" * len(header.split(","))) + "\n")
    kbc.once(expect=1)
    quarantined(kbc, "sales/basic.csv", words, "nothing was sent")
    assert len(kbc.bodies()) == 1


def test_add_columns_lets_new_ones_in(kbc):
    kbc.set_up({"on_schema_change": "add_columns"}).place("sales/basic.csv")
    kbc.once()
    kbc.place("sales/basic.csv", (SAMPLES / "basic_header_changed.csv").read_bytes())
    kbc.once()
    assert kbc.emulator.columns("in.c-sales.basic") == ["id", "name", "value", "extra"]
    assert kbc.emulator.rows("in.c-sales.basic") == [["3", "x", "1", "9"]]
    kbc.place("sales/basic.csv", "id,name\n1,a\n")  # but none may be missing
    kbc.once(expect=1)
    quarantined(kbc, "sales/basic.csv", "extra")


# ---- B5, B6: what is in the file --------------------------------------------------------------------------------------
@pytest.mark.core
def test_delimiters_are_told_to_the_service_and_bytes_go_up_as_they_are(kbc):
    kbc.set_up()
    for name in ("semicolon", "tab", "crlf_multiline", "utf8"):
        kbc.place("b/%s.csv" % name)
    kbc.once()
    order = {o["name"]: o for o in kbc.orders()}
    assert [order[n]["delimiter"] for n in ("semicolon", "tab", "crlf_multiline", "utf8")] == [";", "\t", ",", ","]
    assert kbc.emulator.rows("in.c-b.semicolon")[0] == ["0", "a,b", "17"] and kbc.emulator.rows("in.c-b.tab")[0] == ["0", "a,b;c", "17"]
    assert kbc.emulator.rows("in.c-b.crlf_multiline")[0] == ["1", 'multi\r\nline, with "quotes"']
    assert sorted(kbc.bodies()) == sorted(sha((SAMPLES / (n + ".csv")).read_bytes()) for n in order)


@pytest.mark.core
def test_the_sample_files_end_as_they_should(kbc):
    kbc.set_up({"csv": {}, "incomplete_after": "200ms"})
    for name in ("utf8_bom", "latin1_invalid", "short_header", "unclosed_quote", "ragged", "empty", "header_only", "all_text_with_header"):
        kbc.place("b/%s.csv" % name)
    kbc.once(expect=1)
    assert kbc.emulator.columns("in.c-b.utf8_bom") == ["id", "name", "description"]
    assert kbc.emulator.rows("in.c-b.short_header") == [["1"]]
    assert kbc.emulator.rows("in.c-b.header_only") == [] and kbc.emulator.columns("in.c-b.header_only") == ["id", "name", "value"]
    assert kbc.emulator.rows("in.c-b.all_text_with_header") == [["Praha", "Czechia"], ["Brno", "Czechia"]]
    assert sorted(kbc.emulator.tables()) == ["in.c-b." + n for n in ("all_text_with_header", "header_only", "short_header", "utf8_bom")]
    assert kbc.state_of("b/empty.csv") == "skipped"
    quarantined(kbc, "b/latin1_invalid.csv", "byte offset 5")
    quarantined(kbc, "b/unclosed_quote.csv", "line 2")
    quarantined(kbc, "b/ragged.csv", "line 2")
    assert len(kbc.bodies()) == 4


def test_what_the_service_would_read_otherwise_is_written_anew(kbc):
    """windows-1250, lone CR, zstd, short rows, blank lines, rows left out: the table has what chute read."""
    kbc.set_up(flows=None, flow={"csv": {"short_rows": "pad"}, "bad_rows": {"skip": 2}})
    kbc.place("b/cr.csv", "id,name\r1,a\r2,b\r")
    kbc.place("b/short.csv", "id,name,x\n1,a\n2,b,c\n")
    kbc.place("b/blank.csv", "id,name\n\n1,a\n\n2,b\n")
    kbc.place("b/bad.csv", "id,name\n1,a\n2,b,c,d\n3,\"x\"\"y\"\n")
    kbc.place("b/zst.csv.zst", subprocess.run(["zstd", "-q", "-c"], input=b"id,name\n1,\xc4\x8d\n", capture_output=True, check=True).stdout)
    gz = gzip.compress(b"id,name\n1,gz\n")
    kbc.place("b/gz.csv.gz", gz)
    kbc.once()
    rows = {t: kbc.emulator.rows("in.c-b." + t) for t in ("cr", "short", "blank", "bad", "zst", "gz")}
    assert rows == {"cr": [["1", "a"], ["2", "b"]], "short": [["1", "a", ""], ["2", "b", "c"]], "blank": [["1", "a"], ["2", "b"]],
                    "bad": [["1", "a"], ["3", 'x"y']], "zst": [["1", "č"]], "gz": [["1", "gz"]]}
    assert sha(gz) in kbc.bodies()  # that one as it was
    receipt, = kbc.receipts_of("b/bad.csv")
    assert (receipt["parsed"], receipt["inserted"], receipt["rejected"]) == (3, 2, 1)
    assert list((kbc.state / "quarantine").rglob("*bad.csv*"))


def test_another_encoding_is_written_anew(kbc):
    kbc.set_up({"csv": {"encoding": "windows-1250"}}).place("b/cz.csv", "id;jméno\n1;Žofie Šťastná\n".encode("windows-1250"))
    kbc.once()
    assert kbc.emulator.rows("in.c-b.cz") == [["1", "Žofie Šťastná"]] and kbc.emulator.columns("in.c-b.cz") == ["id", "jmeno"]


@pytest.mark.parametrize("header, words", [("id,,x", "blank"), ("id,a,a", "column 3"), ("id,Name,name", "Name"), ("id,a b,a-b", "a_b"),
                                           ("id," + "x" * 65, "64"), ("id,日本", "日本")])
def test_headers_that_the_service_can_not_take_are_refused_before_anything_is_sent(kbc, header, words):
    kbc.set_up().place("b/x.csv", header + "\n" + "1,2,3"[:2 * header.count(",") + 1] + "\n")
    kbc.once(expect=1)
    quarantined(kbc, "b/x.csv", words)
    assert kbc.bodies() == [] and kbc.emulator.tables() == {}


# ---- B7: compression and slices ---------------------------------------------------------------------------------------
def rows_text(count, width=60):
    return "id,name\n" + "".join("%d,%s\n" % (i, ("name %d " % i * 20)[:width]) for i in range(count))


@pytest.mark.core
@pytest.mark.parametrize("above, is_gzip", [("0", True), ("1KiB", True), ("1GiB", False)])
def test_larger_files_are_compressed_on_the_way(kbc, above, is_gzip):
    text = rows_text(3000).encode()
    kbc.set_up(dest={"gzip_above": above}).place("b/x.csv", text)
    kbc.once()
    file, = kbc.emulator.state()["files"]
    assert file["name"] == ("x.csv.gz" if is_gzip else "x.csv")
    assert kbc.emulator.tables()["in.c-b.x"]["sha256"] == sha(text)
    sent = sum(r["size"] for r in kbc.emulator.requests("PUT"))
    assert sent < len(text) / 3 if is_gzip else sent == len(text)
    largest = max(p.stat().st_size for p in kbc.state.rglob("*") if p.is_file() and not p.name.startswith("ledger.db"))
    assert largest < len(text) / 2


def test_a_file_that_is_compressed_already_is_not_compressed_again(kbc):
    gz = gzip.compress(rows_text(3000).encode())
    kbc.set_up(dest={"gzip_above": "1KiB"}).place("b/x.csv.gz", gz)
    kbc.once()
    assert kbc.bodies() == [sha(gz)] and kbc.emulator.tables()["in.c-b.x"]["rowsCount"] == 3000


@pytest.mark.core
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("gzip_above", ["1GiB", "0"], ids=["plain", "gzip"])
def test_very_large_files_go_up_in_slices(kbc, provider, gzip_above):
    kbc.emulator.settings(provider=provider)
    text = rows_text(4000)
    kbc.set_up(dest={"slice_above": "64KiB", "gzip_above": gzip_above}).place("b/x.csv", text)
    kbc.once()
    rows = kbc.emulator.rows("in.c-b.x")
    assert len(rows) == 4000 and sorted(rows, key=lambda r: int(r[0])) == [l.split(",") for l in text.splitlines()[1:]]
    assert len(kbc.bodies()) >= 5
    kbc.place("b/x.csv", rows_text(2000))
    kbc.once()
    assert kbc.emulator.tables()["in.c-b.x"]["rowsCount"] == 2000


# ---- load modes, keys, types ------------------------------------------------------------------------------------------
@pytest.mark.core
def test_append(kbc):
    kbc.set_up({"load": "append", "table": "all"}).start()
    kbc.place("b/one.csv", "id,x\n1,a\n")
    kbc.wait_receipts("b/one.csv", "loaded", 1)
    kbc.place("b/two.csv", "id,x\n1,a\n2,b\n")
    kbc.wait_receipts("b/two.csv", "loaded", 1)
    assert sorted(kbc.emulator.rows("in.c-b.all")) == [["1", "a"], ["1", "a"], ["2", "b"]]
    kbc.place("b/one.csv", "id,x\n1,a\n3,c\n")
    kbc.wait_state("b/one.csv", "quarantined")
    assert len(kbc.jobs()) == 2 and kbc.orders()[1]["incremental"] is True


def test_append_of_the_tail_only(kbc):
    kbc.set_up({"load": "append", "table": "all", "on_changed": "tail"}).place("b/one.csv", "id,x\n1,a\n")
    kbc.once()
    kbc.place("b/one.csv", "id,x\n1,a\n2,b\n3,c\n")
    kbc.once()
    assert sorted(kbc.emulator.rows("in.c-b.all")) == [["1", "a"], ["2", "b"], ["3", "c"]]


@pytest.mark.core
def test_upsert_by_key(kbc):
    kbc.set_up({"load": "upsert", "key": ["id"], "table": "all"}).place("b/one.csv", "id,x\n1,a\n2,b\n")
    kbc.once()
    assert kbc.emulator.tables()["in.c-b.all"]["primaryKey"] == ["id"]
    kbc.place("b/two.csv", "id,x\n2,B\n3,c\n")
    kbc.once()
    assert sorted(kbc.emulator.rows("in.c-b.all")) == [["1", "a"], ["2", "B"], ["3", "c"]]
    receipt, = kbc.receipts_of("b/two.csv")
    assert (receipt["parsed"], receipt["inserted"], receipt["updated"]) == (2, 1, 1)


def test_replace_with_a_key_lets_the_service_remove_duplicates(kbc):
    kbc.set_up({"key": ["id"]}).place("b/x.csv", "id,x\n1,a\n1,b\n2,c\n")
    kbc.once()
    assert kbc.emulator.tables()["in.c-b.x"]["rowsCount"] == 2
    kbc.place("b/x.csv", "id,x\n5,a\n5,b\n")
    kbc.once()
    assert kbc.emulator.tables()["in.c-b.x"]["rowsCount"] == 1


def test_a_table_with_another_key_is_refused(kbc):
    kbc.set_up().place("b/x.csv", "id,x\n1,a\n")
    kbc.once()
    kbc.set_up({"key": ["x"]})
    kbc.place("b/x.csv", "id,x\n1,b\n")
    kbc.once(expect=1)
    quarantined(kbc, "b/x.csv", "primary key")


@pytest.mark.core
def test_inferred_types_make_a_typed_table(kbc):
    kbc.set_up({"types": "infer"}).place("b/x.csv", "id,price,when,ok,code\n1,1.5,2026-01-02,true,007\n2,2.25,2026-01-03,false,08\n")
    kbc.once()
    table = kbc.emulator.tables()["in.c-b.x"]
    assert table["isTyped"] and table["columns"] == ["id", "price", "when", "ok", "code"]
    definition, = [r["json"] for r in kbc.emulator.requests("POST", "tables-definition")]
    assert [c["basetype"] for c in definition["columns"]] == ["INTEGER", "NUMERIC", "DATE", "BOOLEAN", "STRING"]
    assert len(kbc.emulator.rows("in.c-b.x")) == 2
    kbc.place("b/x.csv", "id,price,when,ok,code\nx,1.5,2026-01-02,true,007\n")
    kbc.once(expect=1)
    quarantined(kbc, "b/x.csv", "id", "INTEGER")
    assert len(kbc.emulator.rows("in.c-b.x")) == 2


def test_types_by_column(kbc):
    kbc.set_up({"types": {"id": "bigint"}, "key": ["id"]}).place("b/x.csv", "id,x\n1,5\n")
    kbc.once()
    definition, = [r["json"] for r in kbc.emulator.requests("POST", "tables-definition")]
    assert definition["primaryKeysNames"] == ["id"] and definition["columns"][0]["basetype"] == "INTEGER"
    kbc.place("b/y.csv", "x\n5\n")
    kbc.once(expect=1)
    quarantined(kbc, "b/y.csv", "id")


def test_other_words_for_null(kbc):
    kbc.set_up({"csv": {"null_values": ["NA"]}}).place("b/one.csv", "id,x\n1,NA\n2,b\n")
    kbc.once()
    assert kbc.orders()[0]["treatValuesAsNull"] == ["NA"]
    kbc.set_up({"csv": {"null_values": ["", "NA", "-"]}})
    kbc.place("b/two.csv", "id,x\n1,NA\n2,-\n3,c\n")
    kbc.once()
    assert kbc.emulator.rows("in.c-b.two") == [["1", ""], ["2", ""], ["3", "c"]]


# ---- deletes, reset ---------------------------------------------------------------------------------------------------
@pytest.mark.core
@pytest.mark.parametrize("on_delete, left", [("drop", None), ("empty", []), ("ignore", BASIC)])
def test_a_removed_file(kbc, on_delete, left):
    kbc.set_up({"on_delete": on_delete}).start()
    path = kbc.place("sales/basic.csv")
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    path.unlink()
    kbc.wait_state("sales/basic.csv", "gone")
    if left is None:
        wait_until(lambda: kbc.emulator.tables() == {}, "the table to go")
    else:
        wait_until(lambda: sorted(kbc.emulator.rows("in.c-sales.basic")) == left, "the rows")
    kbc.place("sales/basic.csv")
    kbc.wait_remote("in.c-sales.basic", BASIC)


def test_a_table_of_somebody_else_is_not_dropped(kbc):
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    other = Loader(kbc.home / "other", kbc.emulator).set_up({"on_delete": "drop"})
    path = other.place("sales/basic.csv", "id,name,value\n1,a,2\n")
    other.start()
    other.wait_receipts("sales/basic.csv", "loaded", 1)
    path.unlink()
    wait_until(lambda: "kept" in other.log_text() or "drop" in other.log_text(), "the drop to be decided")
    other.wait_state("sales/basic.csv", "gone")
    other.stop()
    assert kbc.emulator.rows("in.c-sales.basic") == [["1", "a", "2"]]
    other.clean_up()


def test_a_renamed_file_takes_its_table_along(kbc):
    kbc.set_up({"on_delete": "drop"}).start()
    path = kbc.place("sales/basic.csv")
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    path.rename(kbc.inbox / "sales" / "other.csv")
    wait_until(lambda: list(kbc.emulator.tables()) == ["in.c-sales.other"], "the table under its new name")
    assert sorted(kbc.emulator.rows("in.c-sales.other")) == BASIC


@pytest.mark.core
def test_reset_drops_what_the_flow_made_and_nothing_else(kbc):
    send(kbc.emulator, "POST", "buckets", {"name": "sales", "stage": "in"})
    kbc.set_up().start()
    kbc.place("sales/basic.csv")
    kbc.place("sales/utf8.csv")
    for name in ("basic", "utf8"):
        kbc.wait_receipts("sales/%s.csv" % name, "loaded", 1)
    other = Loader(kbc.home / "other", kbc.emulator).set_up()
    other.place("sales/theirs.csv", "a\n1\n")
    other.once()
    kbc.stop()
    said = kbc.command("reset", "main", "--yes", "-c", kbc.config)
    assert said.returncode == 0, said.stderr
    assert "in.c-sales" in said.stdout + said.stderr or "sales.basic" in said.stdout + said.stderr
    assert list(kbc.emulator.tables()) == ["in.c-sales.theirs"]


# ---- commands ---------------------------------------------------------------------------------------------------------
@pytest.mark.core
def test_run_by_profile_without_a_configuration(kbc):
    kbc.place("sales/basic.csv")
    process = kbc.spawn(["run", "--profile", "keboola", "--watch", str(kbc.inbox), "--to", "keboola+" + kbc.emulator.url,
                         "--state", str(kbc.state)], env={"KBC_TOKEN": TOKEN})
    kbc.process = process
    kbc.wait_ready()
    # uploads to Amazon's real address can't be tried here: Azure's come with their address
    kbc.stop()


def test_run_by_profile_to_azure(kbc):
    kbc.emulator.settings(provider="azure")
    kbc.place("sales/basic.csv")
    done = kbc.spawn(["run", "--once", "--profile", "keboola", "--watch", str(kbc.inbox), "--to", "keboola+" + kbc.emulator.url,
                      "--state", str(kbc.state)], env={"KBC_TOKEN": TOKEN}).wait(60)
    assert done == 0, kbc.log_text()
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC


def test_load_command(kbc):
    kbc.emulator.settings(provider="azure")
    path = kbc.place("somewhere/basic.csv")
    done = kbc.command("load", path, "--to", "keboola+" + kbc.emulator.url, "--table", "sales.orders", env={"KBC_TOKEN": TOKEN})
    assert done.returncode == 0, done.stderr
    assert sorted(kbc.emulator.rows("in.c-sales.orders")) == BASIC
    done = kbc.command("load", path, SAMPLES / "utf8.csv", "--to", "keboola+" + kbc.emulator.url, "--table", "sales.{stem}",
                       env={"KBC_TOKEN": TOKEN})
    assert done.returncode == 0, done.stderr
    assert sorted(kbc.emulator.tables()) == ["in.c-sales.basic", "in.c-sales.orders", "in.c-sales.utf8"]


@pytest.mark.parametrize("arguments, env, words", [
    (["--table", "sales.orders"], {"KBC_TOKEN": ""}, "KBC_TOKEN is not set"),
    (["--table", "orders"], {"KBC_TOKEN": TOKEN}, "needs bucket and table"),
    ([], {"KBC_TOKEN": TOKEN}, "needs bucket and table"),
    (["--table", "sales.orders"], {"KBC_TOKEN": "4321-1-wrongTokenCanary"}, "not accepted")])
def test_load_command_with_less_than_it_needs(kbc, arguments, env, words):
    path = kbc.place("somewhere/basic.csv")
    done = kbc.command("load", path, "--to", "keboola+" + kbc.emulator.url, *arguments, env=env)
    assert done.returncode != 0 and words in done.stderr, done.stderr
    assert kbc.emulator.tables() == {} and "wrongTokenCanary" not in done.stderr + done.stdout


@pytest.mark.core
@pytest.mark.parametrize("rights, token, words", [
    ({}, TOKEN, "fine"),
    ({}, "4321-1-wrongTokenCanary", "not accepted"),
    ({"canManageBuckets": False}, TOKEN, "may neither manage buckets nor write"),
    ({"canManageBuckets": False, "bucketPermissions": {"in.c-sales": "read"}}, TOKEN, "may neither"),
    ({"canManageBuckets": False, "bucketPermissions": {"in.c-sales": "write"}}, TOKEN, "fine"),
    ({"isExpired": True}, TOKEN, "expired"),
    ({"isDisabled": True}, TOKEN, "disabled")])
def test_check_connect(kbc, rights, token, words):
    kbc.emulator.settings(token=rights)
    kbc.set_up(token=token)
    done = kbc.command("check", "--connect", "-c", kbc.config)
    assert (done.returncode == 0) == (words == "fine"), done.stdout + done.stderr
    assert words in done.stdout + done.stderr
    assert token not in done.stdout + done.stderr


@pytest.mark.parametrize("right", [{}, {"in.c-theirs": "read"}], ids=["none", "read"])
def test_a_token_for_some_buckets_loads_into_those_only(kbc, right):
    for name in ("mine", "theirs"):
        send(kbc.emulator, "POST", "buckets", {"name": name, "stage": "in"})
    kbc.emulator.settings(token={"canManageBuckets": False, "bucketPermissions": {"in.c-mine": "write", **right}})
    kbc.set_up().start()
    kbc.place("mine/basic.csv")
    kbc.place("theirs/basic.csv")
    kbc.place("new/basic.csv")
    kbc.wait_remote("in.c-mine.basic", BASIC)
    wait_until(lambda: re.search("theirs/basic.csv.*try.*may not write to bucket (in.c-)?theirs", kbc.log_text()), "the one reason")
    wait_until(lambda: re.search("new/basic.csv.*try.*may not make one", kbc.log_text()), "the other reason")
    assert kbc.status()["destinations"][0]["state"] == "ok"
    kbc.emulator.settings(token={"bucketPermissions": {"in.c-mine": "write", "in.c-theirs": "write"}})
    kbc.wait_remote("in.c-theirs.basic", BASIC)


# ---- B8: errors -------------------------------------------------------------------------------------------------------
@pytest.mark.core
def test_503_twice_is_two_warnings_and_one_table(kbc):
    kbc.set_up(retry={"first": "50ms", "max": "400ms"}).place("sales/basic.csv")
    kbc.emulator.fault(r"tables/in.c-sales.basic$", "GET", status=503, body={"error": "Application error"}, times=2)
    kbc.once()
    warnings = [line for line in kbc.log_text().splitlines() if "sales/basic.csv" in line and ": 503" in line]
    assert len(warnings) == 2, warnings
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC and len(kbc.jobs()) == 1
    assert kbc.receipts_of("sales/basic.csv")[0]["tries"] == 3


@pytest.mark.parametrize("path, method", [(r"buckets/in.c-sales$", "GET"), (r"buckets$", "POST"), (r"tables/in.c-sales.basic$", "GET"), (r"files/prepare", "POST"), (STORES, "PUT"),
                                          (LOADS, "POST"), (r"jobs/\d+$", "GET")])
def test_429_waits_at_least_as_long_as_it_is_told(kbc, path, method):
    kbc.set_up().place("sales/basic.csv")
    kbc.emulator.fault(path, method, status=429, headers={"Retry-After": 2}, body={"error": "Too many requests"})
    kbc.once()
    times = [r["time"] for r in kbc.emulator.requests(method) if re.search(path, r["path"])]
    assert times[1] - times[0] >= 2
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC and len(kbc.jobs()) == 1


@pytest.mark.core
def test_401_stops_the_destination_and_a_reload_with_another_token_goes_on(kbc):
    kbc.set_up(http={"listen": "127.0.0.1:0"}).start()
    kbc.place("sales/basic.csv")
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    kbc.emulator.settings(token={"revoked": True})
    kbc.place("sales/utf8.csv")
    wait_until(lambda: kbc.status()["destinations"][0]["state"] == "blocked", "the destination to be blocked")
    kbc.wait_state("sales/utf8.csv", "queued")
    assert "98765 (emulator)" in json.dumps(kbc.status()["destinations"][0])
    done = kbc.command("check", "--connect", "-c", kbc.config)
    assert done.returncode != 0 and "token" in done.stderr
    kbc.emulator.settings(tokens={"4321-2-anotherTokenForTests": {}})
    kbc.set_up(token="4321-2-anotherTokenForTests", http={"listen": "127.0.0.1:0"})
    kbc.process.send_signal(signal.SIGHUP)
    wait_until(lambda: kbc.state_of("sales/utf8.csv") == "loaded", "the file with the new token")
    refused = [r["path"] for r in kbc.emulator.requests() if r["status"] == 401]
    assert len(refused) <= 4, refused  # the load, the folder, check, and what was under way
    kbc.assert_no_secret()
    assert "anotherTokenForTests" not in kbc.log_text()


def test_a_reload_with_another_token_in_the_middle_of_a_load_orders_it_once(kbc):
    kbc.emulator.fault(job_hang=True)
    kbc.set_up().start()
    kbc.place("sales/basic.csv")
    wait_until(lambda: kbc.emulator.loads("in.c-sales.basic")["accepted"] == 1, "the order")
    kbc.emulator.settings(tokens={"4321-2-anotherTokenForTests": {}})
    kbc.set_up(token="4321-2-anotherTokenForTests")
    kbc.process.send_signal(signal.SIGHUP)
    wait_until(lambda: kbc.emulator.requests("GET", "tokens/verify")[-1]["headers"]["x-storageapi-token"] == "4321-2-anotherTokenForTests",
               "the new token")
    kbc.emulator.clear_faults()
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    assert len(kbc.jobs()) == 1 and sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC


@pytest.mark.core
def test_a_job_that_refuses_the_data_quarantines_with_what_the_service_said(kbc):
    kbc.emulator.fault(job_error={"code": "invalidData", "message": "Load error: Numeric value 'x' is not recognized"})
    kbc.set_up().place("sales/basic.csv")
    kbc.once(expect=1)
    quarantined(kbc, "sales/basic.csv", "Load error: Numeric value 'x' is not recognized", "invalidData", "exception keboola-connection-")
    assert len(kbc.jobs()) == 1
    kbc.emulator.clear_faults()
    kbc.ask("retry", "--all")
    kbc.once()
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC


@pytest.mark.parametrize("error", [{"code": "", "message": "Internal Server Error"}, {"code": None, "message": None},
                                   {"code": "internalError", "message": "x"}, {"code": "storage.fileNotUploaded", "message": "File not uploaded"}])
def test_a_job_that_failed_for_the_platform_is_repeated(kbc, error):
    kbc.emulator.fault(job_error=error)
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC
    assert kbc.emulator.loads("in.c-sales.basic")["succeeded"] == 1 and len(kbc.jobs()) == 2


@pytest.mark.core
def test_maintenance_is_waited_for_and_its_end_is_in_status(kbc):
    kbc.set_up().start()
    kbc.emulator.settings(maintenance={"until": "2026-12-01T12:00:00+0100", "reason": "Backend upgrade", "retry_after": 3})
    kbc.place("sales/basic.csv")
    kbc.place("sales/utf8.csv")
    wait_until(lambda: kbc.status()["destinations"][0]["state"] == "down", "the breaker")
    assert "2026-12-01T12:00:00+0100" in kbc.ask("status") and "Backend upgrade" in kbc.ask("status", "--json")
    wait_until(lambda: len(kbc.emulator.requests()) > 0, "a request")
    kbc.emulator.settings(maintenance=None)
    for name in ("basic", "utf8"):
        kbc.wait_receipts("sales/%s.csv" % name, "loaded", 1)
    times = [r["time"] for r in kbc.emulator.requests() if r["status"] == 503]
    assert len(times) <= 6 and all(b - a < 1 or b - a >= 3 for a, b in zip(times, times[1:])), times
    assert kbc.receipts_of("sales/basic.csv")[0]["tries"] == 1  # no failure of the file's


def test_a_drop_waits_as_long_as_it_is_told(kbc):
    kbc.set_up({"on_delete": "drop"}).start()
    path = kbc.place("sales/basic.csv")
    kbc.wait_receipts("sales/basic.csv", "loaded", 1)
    kbc.emulator.fault("tables/", "DELETE", status=503, headers={"Retry-After": 2}, body={"error": "Busy"})
    path.unlink()
    wait_until(lambda: kbc.emulator.tables() == {}, "the table to go")
    times = [r["time"] for r in kbc.emulator.requests("DELETE")]
    assert len(times) == 2 and times[1] - times[0] >= 2


# ---- B9: what is not for it -------------------------------------------------------------------------------------------
def test_other_files_make_no_request(kbc):
    kbc.set_up().start()
    kbc.place("sales/notes.txt", "x")
    kbc.place("top.csv", "a\n1\n")
    kbc.place("a/b/deep.csv", "a\n1\n")
    kbc.place("sales/last.csv", "a\n1\n")
    kbc.wait_receipts("sales/last.csv", "loaded", 1)
    assert list(kbc.emulator.tables()) == ["in.c-sales.last"]
    assert kbc.sequence().count("POST files/prepare") == 1
    assert {f["path"] for f in kbc.files()} == {"sales/last.csv"}


# ---- B11: stores ------------------------------------------------------------------------------------------------------
def large_rows(size):
    row = "x" * 100000
    return "id,x\n" + "".join("%d,%s\n" % (i, row) for i in range(size // 100000))


@pytest.mark.core
@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_store_with_one_part(kbc, provider):
    kbc.emulator.settings(provider=provider)
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC and len(kbc.bodies()) == 1
    assert kbc.emulator.state()["files"][0]["provider"] == provider


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("expires", [False, True], ids=["", "credentials end midway"])
def test_every_store_with_several_parts(kbc, provider, expires):
    kbc.emulator.settings(provider=provider)
    text = large_rows(35 << 20).encode()
    kbc.set_up(dest={"gzip_above": "1GiB"}).place("sales/large.csv", text)
    if expires:
        kbc.emulator.fault(STORES, "PUT", skip=1, expire_credentials=True)
    kbc.once()
    assert len([r for r in kbc.emulator.requests("PUT") if re.match(STORES, r["path"])]) >= 3
    assert kbc.emulator.tables()["in.c-sales.large"]["sha256"] == sha(text)
    assert kbc.emulator.loads("in.c-sales.large")["accepted"] == 1
    prepares = kbc.sequence().count("POST files/prepare")
    if not expires:
        assert prepares == 1
    elif provider == "gcp":
        assert prepares == 1 and len(kbc.emulator.requests("PUT", "/refresh")) == 1
    else:
        assert prepares == 2


@pytest.mark.parametrize("provider", PROVIDERS)
def test_credentials_that_have_ended_before_the_first_byte(kbc, provider):
    kbc.emulator.settings(provider=provider)
    kbc.emulator.fault("files/prepare", "POST", expire_credentials=True)
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC and len(kbc.jobs()) == 1


def test_credentials_that_always_end_give_up_for_now(kbc):
    kbc.emulator.fault("files/prepare", "POST", expire_credentials=True, times=6)
    kbc.set_up().place("sales/basic.csv")
    kbc.once()
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC and len(kbc.jobs()) == 1
    assert kbc.receipts_of("sales/basic.csv")[0]["tries"] > 1


def test_azure_by_azurite(tmp_path):
    with Azurite() as azurite, Emulator(provider="azure", azurite=azurite.account_url) as emulator:
        kbc = Loader(tmp_path, emulator)
        kbc.set_up(dest={"slice_above": "64KiB"}).place("sales/basic.csv")
        kbc.place("sales/sliced.csv", rows_text(4000))
        kbc.set_up().place("sales/large.csv", large_rows(35 << 20))
        kbc.once(timeout=300)
        assert sorted(emulator.rows("in.c-sales.basic")) == BASIC
        assert emulator.tables()["in.c-sales.large"]["rowsCount"] == (35 << 20) // 100000
        assert emulator.tables()["in.c-sales.sliced"]["rowsCount"] == 4000
        kbc.clean_up()


# ---- B12: names -------------------------------------------------------------------------------------------------------
@pytest.mark.core
@pytest.mark.parametrize("folder, stem, bucket, table", [
    ("daily.sales 2026", "Žluťoučký kůň", "daily_sales_2026", "Zlutoucky_kun"),
    ("ß-ø", "a.b.c", "ss_o", "a_b_c"),
    ("_x_", "group", "x", "group"),
    ("jp日本語", "2024-01", "jp", "2024_01")])
def test_names_become_legal(kbc, folder, stem, bucket, table):
    kbc.set_up().place("%s/%s.csv" % (folder, stem), "a\n1\n")
    kbc.once()
    assert list(kbc.emulator.tables()) == ["in.c-%s.%s" % (bucket, table)]


def test_150_letters_are_cut_and_stay_different(kbc):
    kbc.set_up().place("b/%s.csv" % ("n" * 149 + "1"), "a\n1\n")
    kbc.place("b/%s.csv" % ("n" * 149 + "2"), "a\n2\n")
    kbc.place("%s/x.csv" % ("f" * 150), "a\n3\n")
    kbc.once()
    names = list(kbc.emulator.tables())
    assert len(set(names)) == 3 and all(len(part) <= 92 for name in names for part in name.split(".")[1:])
    assert sorted(kbc.emulator.rows(name)[0][0] for name in names) == ["1", "2", "3"]
    kbc.emulator.forget_requests()
    kbc.once()
    assert kbc.bodies() == []


def test_a_name_of_which_nothing_is_left(kbc):
    kbc.set_up().place("b/日本.csv", "a\n1\n")
    kbc.place("日本/x.csv", "a\n1\n")
    kbc.once(expect=1)
    assert len(kbc.files("quarantined")) == 2 and "日本" in json.dumps(kbc.files("quarantined"), ensure_ascii=False)
    assert kbc.emulator.tables() == {} and kbc.bodies() == []


@pytest.mark.core
def test_two_files_with_one_clean_name_are_an_error_that_names_both(kbc):
    kbc.set_up().start()
    kbc.place("b/a b.csv", "a\n1\n")
    kbc.wait_receipts("b/a b.csv", "loaded", 1)
    kbc.place("b/a.b.csv", "a\n2\n")
    kbc.wait_state("b/a.b.csv", "quarantined")
    quarantined(kbc, "b/a.b.csv", "b/a b.csv", "b/a.b.csv")
    assert kbc.emulator.rows("in.c-b.a_b") == [["1"]]


def test_two_folders_with_one_clean_name_are_an_error_that_names_both(kbc):
    kbc.set_up().start()
    kbc.place("x y/one.csv", "a\n1\n")
    kbc.wait_receipts("x y/one.csv", "loaded", 1)
    kbc.place("x.y/two.csv", "a\n2\n")
    kbc.wait_state("x.y/two.csv", "quarantined")
    quarantined(kbc, "x.y/two.csv", "x y", "x.y")
    kbc.wait_log("folders x y and x.y")
    assert list(kbc.emulator.tables()) == ["in.c-x_y.one"]


def test_names_that_differ_in_case_only_are_two_owners(kbc):
    kbc.set_up().start()
    kbc.place("b/Orders.csv", "a\n1\n")
    kbc.wait_receipts("b/Orders.csv", "loaded", 1)
    kbc.place("b/orders.csv", "a\n2\n")
    kbc.wait_state("b/orders.csv", "quarantined")
    assert list(kbc.emulator.tables()) == ["in.c-b.Orders"]


# ---- B10: stops, at every stage ---------------------------------------------------------------------------------------
STAGES = {"prepare": ("files/prepare", "POST"), "upload": (STORES, "PUT"), "import": (LOADS, "POST"), "poll": (r"jobs/\d+$", "GET")}


@pytest.mark.core
@pytest.mark.parametrize("how", ["TERM", "KILL"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("is_new", [True, False], ids=["create", "import"])
def test_a_stop_at_every_stage_is_one_table_version_and_one_job(kbc, stage, how, is_new):
    kbc.set_up(shutdown_grace="1s")
    if not is_new:
        kbc.place("sales/basic.csv", "id,name,value\n9,z,9\n")
        kbc.once()
    path, method = STAGES[stage]
    held = kbc.emulator.fault(path, method, delay=600, status=503)
    if stage == "poll":
        kbc.emulator.fault(job_hang=True)
    kbc.start()
    kbc.place("sales/basic.csv")
    wait_until(lambda: [f for f in kbc.emulator.faults() if f["id"] == held][0]["done"] == 1, "the request that is held")
    if how == "KILL":
        kbc.kill9()
    else:
        assert kbc.stop() == 0
    kbc.emulator.clear_faults()
    kbc.start()
    kbc.wait_receipts("sales/basic.csv", "loaded", 1 if is_new else 2)
    kbc.stop()
    assert sorted(kbc.emulator.rows("in.c-sales.basic")) == BASIC
    assert len(kbc.jobs("in.c-sales.basic")) == (1 if is_new else 2)
