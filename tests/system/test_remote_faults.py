"""What can go wrong between a server, the spool and the destination: at the end every file once, nothing left over."""
import os
import zipfile

import pytest
from chute import wait_until
from ftp_servers import OpenSSH, Proftpd, Vsftpd
from remote_side import Fetcher, md5
from scripted_ftp import ScriptedFtp
from servers import Azurite

FLOW = {"blob": "{path}"}


@pytest.fixture(scope="module")
def azurite():
    with Azurite() as one:
        yield one


@pytest.fixture
def container(request):
    return "c" + md5(request.node.nodeid.encode()).hex()[:20]


@pytest.fixture
def scripted(tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    with ScriptedFtp(root) as server:
        yield server


def put(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (1700000000, 1700000000))
    return data


def csv(server, name, rows):
    from pathlib import Path
    put(Path(server.root), name, ("a,b\n" + "".join("%d,x\n" % r for r in rows)).encode())


@pytest.mark.core
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("command", ["USER", "PASS", "PWD", "CWD", "EPSV", "TYPE", "MLSD", "MDTM", "SIZE", "RETR"])
def test_the_connection_is_cut_at_every_command(chute, scripted, command, times):
    csv(scripted, "in/a.csv", [1, 2])
    csv(scripted, "in/b.csv", [3])
    scripted.script.cut_command = (command, times)
    Fetcher(chute, scripted).configure()
    for _ in range(3):  # a listing that failed is made again by the next run
        if chute.once(expect=None) == 0:
            break
    assert chute.rows("in_a") == [(1, "x"), (2, "x")] and chute.rows("in_b") == [(3, "x")]
    assert len(chute.receipts_of("in/a.csv", "loaded")) == 1


@pytest.mark.core
@pytest.mark.parametrize("is_silent", [False, True], ids=["told", "silent"])
def test_half_a_listing_deletes_and_loads_nothing_wrong(chute, scripted, is_silent):
    for i in range(6):
        csv(scripted, "in/%d.csv" % i, [i])
    f = Fetcher(chute, scripted).configure(flow={"on_delete": "drop"})
    chute.once()
    assert len(chute.tables()) == 6
    scripted.script.cut_listing, scripted.script.is_cut_silent = 40, is_silent
    chute.once(expect=None if is_silent else 1)
    scripted.script.cut_listing = 0
    # what was cut where nobody could tell cuts a line: that is seen
    assert len(chute.tables()) == 6 and f.spool == []


def test_a_server_that_lies_about_the_size_is_not_believed(chute, scripted):
    csv(scripted, "a.csv", [1])
    scripted.script.size_lies = 5
    Fetcher(chute, scripted).configure()
    chute.once("--deadline", "2s", expect=1)
    assert not chute.tables() and "try 1 failed" in chute.log_text()
    scripted.script.size_lies = 0
    chute.once()
    assert chute.rows("a") == [(1, "x")]


def test_a_file_that_is_listed_and_not_given_is_quarantined(chute, scripted):
    csv(scripted, "a.csv", [1])
    csv(scripted, "b.csv", [2])
    scripted.script.refuse_retr = {"a.csv"}
    Fetcher(chute, scripted).configure()
    chute.once(expect=1)
    (r,) = chute.receipts_of("a.csv")
    assert r["state"] == "quarantined" and "lists it and does not give it" in r["reason"] and str(scripted.port) in r["reason"]
    assert chute.rows("b") == [(2, "x")]
    scripted.script.refuse_retr = set()
    chute.command("retry", "-c", chute.config, "--all")
    chute.once()
    assert chute.rows("a") == [(1, "x")]


def test_a_server_that_stalls_is_left_and_asked_again(chute, scripted):
    put_rows = list(range(2000))
    csv(scripted, "a.csv", put_rows)
    scripted.script.piece, scripted.script.pause = 4000, 4
    f = Fetcher(chute, scripted).configure(source={"stall_timeout": "1s"})
    chute.start()
    wait_until(lambda: "timed out" in chute.log_text(), "the end of its patience")
    scripted.script.pause = 0
    wait_until(lambda: chute.tables() == {"a"}, "the file")
    assert len(chute.rows("a")) == 2000
    chute.stop()
    assert f.spool == []


def test_a_slow_server_above_the_stall_limit_is_waited_for(chute, scripted):
    csv(scripted, "a.csv", range(2000))
    scripted.script.piece, scripted.script.pause = 1500, 0.4
    Fetcher(chute, scripted).configure(source={"stall_timeout": "2s"})
    chute.once()
    assert len(chute.rows("a")) == 2000 and scripted.script.transfers == ["/a.csv"]


def test_a_listing_that_nobody_understands_takes_nothing_for_gone(chute, scripted):
    csv(scripted, "a.csv", [1])
    Fetcher(chute, scripted).configure(flow={"on_delete": "drop"})
    chute.once()
    scripted.script.listing = b"?? no idea ??\r\n"
    chute.once(expect=1)
    assert chute.rows("a") == [(1, "x")] and "no idea" in chute.log_text()


def test_all_times_shift_by_an_hour_and_nothing_is_fetched(chute, scripted):
    for i in range(12):
        csv(scripted, "%d.csv" % i, [i])
    Fetcher(chute, scripted).configure()
    chute.once()
    count = len(scripted.script.transfers)
    for shift in (3600, -7200, 0):
        scripted.script.shift = shift
        chute.once()
        assert len(scripted.script.transfers) == count == 12
    csv(scripted, "3.csv", [7])  # of the same size: its time tells
    os.utime(os.path.join(scripted.root, "3.csv"), (1700009999, 1700009999))
    scripted.script.shift = 3600
    chute.once()
    assert scripted.script.transfers[count:] == ["/3.csv"] and chute.rows("3") == [(7, "x")]


def test_another_time_of_one_file_is_a_transfer_and_no_load(chute, scripted):
    for i in range(3):
        csv(scripted, "%d.csv" % i, [i])
    Fetcher(chute, scripted).configure()
    chute.once()
    os.utime(os.path.join(scripted.root, "1.csv"), (1700005555, 1700005555))
    chute.once()
    assert scripted.script.transfers[3:] == ["/1.csv"]
    assert [r["state"] for r in chute.receipts_of("1.csv")] == ["loaded", "skipped"]


def test_a_file_that_still_grows_is_waited_for(chute, scripted):
    path = os.path.join(scripted.root, "a.csv")
    csv(scripted, "a.csv", [1])
    Fetcher(chute, scripted).configure(source={"settle": "700ms"})
    process = chute.spawn([*chute.run_arguments(), "--once"])
    wait_until(lambda: "scanned 1 files" in chute.log_text(), "the first listing")
    with open(path, "a") as more:
        more.write("2,x\n")
    assert process.wait(60) == 0
    assert scripted.script.transfers == ["/a.csv"] and chute.rows("a") == [(1, "x"), (2, "x")]


def test_a_marker_is_waited_for(chute, scripted):
    csv(scripted, "a.csv", [1])
    csv(scripted, "b.csv", [2])
    put_done = os.path.join(scripted.root, "b.csv.done")
    open(put_done, "w").close()
    Fetcher(chute, scripted).configure(source={"ready_marker": "{name}.done"}, flow={"include": ["**/*.csv"]})
    chute.once("--deadline", "3s", expect=None)
    assert chute.tables() == {"b"}


@pytest.mark.core
@pytest.mark.parametrize("make", [Vsftpd, Proftpd, OpenSSH], ids=["vsftpd", "proftpd", "openssh"])
@pytest.mark.parametrize("action", ["delete", {"move": "done/old"}], ids=["delete", "move"])
def test_after_success_acts_on_the_server(chute, make, action):
    with make() as server:
        (server.root / "in").mkdir()
        (server.root / "in").chmod(0o777)
        for i in range(3):
            put(server.root, "in/%d.csv" % i, b"a,b\n%d,x\n" % i)
        (server.root / "done").mkdir()
        (server.root / "done").chmod(0o777)
        (server.root / "done/old").mkdir()
        (server.root / "done/old").chmod(0o777)
        put(server.root, "done/old/1.csv", b"of before")
        Fetcher(chute, server).configure(source={"paths": ["/in/**"]}, flow={"after_success": action, "on_delete": "drop"})
        chute.once()
        assert len(chute.tables()) == 3 and list((server.root / "in").iterdir()) == []
        found = sorted(p.name for p in (server.root / "done/old").iterdir())
        assert found == (["1.csv"] if action == "delete" else ["0.csv", "1.csv", "1.csv.1", "2.csv"])
        assert (server.root / "done/old/1.csv").read_bytes() == b"of before"
        chute.once()
        assert len(chute.tables()) == 3  # that they are gone is no delete


def test_a_file_that_changed_while_it_was_loaded_stays_on_the_server(chute, scripted):
    csv(scripted, "a.csv", [1])
    Fetcher(chute, scripted).configure(flow={"after_success": "delete"})
    scripted.script.piece, scripted.script.pause = 4, 0.3
    process = chute.spawn([*chute.run_arguments(), "--once"])
    wait_until(lambda: scripted.script.transfers, "the transfer")
    csv(scripted, "a.csv", [5])
    os.utime(os.path.join(scripted.root, "a.csv"), (1700007777, 1700007777))
    assert process.wait(60) == 0  # what has changed is a version of its own, and is loaded as well
    assert chute.rows("a") == [(5, "x")] and len(chute.receipts_of("a.csv", "loaded")) == 2
    assert "stays: a newer version has taken its place" in chute.log_text()
    assert not os.path.exists(os.path.join(scripted.root, "a.csv"))


def test_the_spool_is_full(chute, small_disk, scripted):
    put(__import__("pathlib").Path(scripted.root), "big.csv", b"a\n" + b"123456789\n" * 400000)
    csv(scripted, "small.csv", [1])
    f = Fetcher(chute, scripted).configure()
    small_disk(chute.state, "3m")
    chute.start(ready=False)
    wait_until(lambda: "No space left" in chute.log_text(), "an error")
    wait_until(lambda: "small" in chute.tables(), "its neighbour")
    __import__("subprocess").run(["mount", "-o", "remount,size=40m", str(chute.state)], check=True)
    wait_until(lambda: "big" in chute.tables(), "the file")
    assert len(chute.rows("big")) == 400000 and chute.stop() == 0
    assert f.spool == []


@pytest.mark.parametrize("names", ["fdatasync,fsync", "rename,renameat,renameat2", "unlink,unlinkat", "openat", "pwrite64"])
def test_killed_at_every_step(chute, names, azurite, container):
    step = {"openat": 7, "pwrite64": 5}.get(names, 1)
    with Proftpd() as server:
        put(server.root, "a.txt", b"abc")
        put(server.root, "bad.zip", b"no zip")
        with zipfile.ZipFile(server.root / "x.zip", "w") as archive:
            for i in range(3):
                archive.writestr("in/%d.txt" % i, "y" * i)
        f = Fetcher(chute, server, azurite, container)
        killed = 0
        for when in range(1, 400, step):
            f.container = "%s%d" % (container, when)
            chute.state = chute.home / ("state%d" % when)
            f.configure(flow={**FLOW, "archives": "extract"})
            f.kill_at(names, when)
            ended = "once: " in f.said()  # past the last call there is nothing to be killed at
            chute.once(expect=None)
            assert f.names() == ["a.txt"] + ["x.zip/in/%d.txt" % i for i in range(3)], when
            ends = {}
            for r in chute.receipts():
                ends.setdefault(r["path"], []).append(r["state"])
            assert all(states.count("loaded") == 1 for path, states in ends.items() if path != "bad.zip"), (when, ends)
            assert ends["bad.zip"] == ["quarantined"] and f.spool == [], (when, ends)
            assert (chute.state / "quarantine/main/bad.zip.kept").read_bytes() == b"no zip"
            killed += not ended
            if ended:
                break
        assert killed > 0


def test_azurite_restarts_in_the_middle(chute, container):
    with Azurite() as own, Proftpd() as server:
        data = put(server.root, "big.bin", os.urandom(20 << 20))
        f = Fetcher(chute, server, own, container).configure(flow=FLOW, top={"limits": {"jobs": 2, "upload_rate": "2MiB"}})
        chute.start()
        wait_until(lambda: chute.state_of("big.bin") == "loading", "the upload")
        wait_until(lambda: (chute.state / "spool").exists() and [n for n in f.spool if n.endswith(".whole")], "the file here")
        port = int(own.url.rsplit(":", 1)[1])
        own.process.kill()
        own.process.wait()
        folder = own.folder
        own.arguments = lambda: ["--blobPort", str(port), "--location", folder, "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
        own.start()
        # Azurite writes its own index every few seconds: what it knew just before may be gone, the container too
        wait_until(lambda: chute.receipts_of("big.bin", "loaded"), "its receipt", timeout=90)
        assert f.read("big.bin") == data and f.uncommitted() == [] and chute.stop() == 0 and f.spool == []


def test_two_flows_and_another_destination_from_one_server(chute):
    with OpenSSH() as server:
        put(server.root, "in/a.csv", b"a,b\n1,x\n")
        sources = {"remote": {**server.source(), "settle": "100ms", "every": "1h"}}
        chute.configure(sources=sources, flows=[{"name": "one", "from": "remote", "include": ["in/*.csv"], "table": "one_{stem}"},
                                                {"name": "two", "from": "remote", "include": ["**/a.csv"], "table": "two_{stem}"}])
        chute.once()
        assert chute.rows("one_a") == chute.rows("two_a") == [(1, "x")]


@pytest.mark.core
def test_a_change_of_an_archive_takes_out_what_changed(chute):
    with Proftpd() as server:
        def pack(**members):
            with zipfile.ZipFile(server.root / "x.zip", "w") as archive:
                for name, text in members.items():
                    archive.writestr(name + ".csv", text)
        pack(a="k\n1\n", b="k\n2\n", c="k\n3\n")
        f = Fetcher(chute, server).configure(flow={"include": ["**"], "archives": "extract", "on_delete": "drop", "table": "{stem}"})
        chute.once()
        assert chute.tables() == {"a", "b", "c"}
        pack(a="k\n1\n", b="k\n9\n")
        chute.once()
        assert chute.tables() == {"a", "b"} and chute.rows("b") == [(9,)]
        assert [r["state"] for r in chute.receipts_of("x.zip//a.csv")] == ["loaded", "skipped"]
        os.unlink(server.root / "x.zip")
        chute.once()
        assert not chute.tables() and f.spool == []


def test_a_listing_that_failed_is_made_again_soon(chute, scripted):
    csv(scripted, "a.csv", [1])
    scripted.script.cut_command = ("MLSD", 3)  # as often as one run tries a folder
    Fetcher(chute, scripted).configure(source={"every": "1h"})
    chute.start(ready=False)
    wait_until(lambda: chute.tables() == {"a"}, "the next try")
    assert chute.stop() == 0


def test_a_quarantined_member_is_tried_again_from_its_kept_bytes(chute):
    with Proftpd() as server:
        with zipfile.ZipFile(server.root / "x.zip", "w") as archive:
            archive.writestr("a.csv", "k,v\n1,2\n1,2,3\n")
            archive.writestr("b.csv", "k,v\n5,6\n")
        flow = {"include": ["**"], "archives": "extract", "table": "{stem}"}
        f = Fetcher(chute, server).configure(flow=flow)
        chute.once(expect=1)
        assert chute.tables() == {"b"} and f.spool == []
        assert "a.csv.kept" in [p.name for p in (chute.state / "quarantine/main").rglob("*")]
        os.unlink(server.root / "x.zip")  # not needed any more
        f.configure(flow={**flow, "bad_rows": {"skip": 5}})
        chute.command("retry", "-c", chute.config, "--all")
        chute.once()
        assert chute.rows("a") == [(1, 2)] and f.spool == []
        assert [p.name for p in (chute.state / "quarantine").rglob("*.kept")] == []


def test_names_of_any_bytes(chute, azurite, container):
    with Proftpd() as server:
        names = [b"caf\xe9.txt", b"two  blanks .txt", b"-dash.txt", b"semi;colon=x.txt", b"star*[1].txt", b"quote\"'.txt", b"back\\slash.txt"]
        for i, name in enumerate(names):
            with open(os.fsencode(server.root) + b"/" + name, "wb") as f:
                f.write(b"%d" % i)
        f = Fetcher(chute, server, azurite, container).configure(flow={"blob": "{path}", "names": "blob"})
        chute.once(expect=None)
        got = {f.read(n) for n in f.names()}
        assert got == {b"%d" % i for i in range(len(names))}, f.names()
        chute.once()
        assert "once: 0 loaded, 0 skipped, 0 quarantined" in f.chute.log_text()


def test_a_stop_in_the_middle_goes_on_where_it_was(chute, scripted):
    csv(scripted, "a.csv", range(20000))
    scripted.script.piece, scripted.script.pause = 10000, 0.5
    f = Fetcher(chute, scripted).configure(top={"shutdown_grace": "1s"})
    chute.start()
    wait_until(lambda: f.spool and scripted.script.sent > 40000, "some of the file")
    assert chute.stop() == 0
    (part,) = f.spool
    assert part.endswith(".part")
    scripted.script.pause = 0
    chute.once()
    assert len(chute.rows("a")) == 20000 and "REST" in scripted.script.commands and f.spool == []


def test_a_limit_of_bytes_per_second_is_kept(chute, scripted):
    csv(scripted, "a.csv", range(200000))
    size = os.path.getsize(os.path.join(scripted.root, "a.csv"))
    Fetcher(chute, scripted).configure(top={"limits": {"download_rate": "512KiB"}})
    begun = __import__("time").monotonic()
    chute.once()
    assert __import__("time").monotonic() - begun >= (size / (512 * 1024)) * 0.8  # never faster; how much slower is the machine's
    assert len(chute.rows("a")) == 200000


def test_the_configuration_is_read_again_while_a_file_comes(chute, scripted):
    csv(scripted, "a.csv", range(20000))
    scripted.script.piece, scripted.script.pause = 10000, 0.1
    f = Fetcher(chute, scripted).configure()
    chute.start()
    wait_until(lambda: scripted.script.sent > 30000, "some of the file")
    f.configure(source={"every": "2h"}, flow={"table": "other"})
    chute.process.send_signal(1)
    wait_until(lambda: chute.tables(), "the file")
    wait_until(lambda: not f.spool, "an empty spool")
    assert chute.stop() == 0 and len(chute.receipts_of("a.csv", "loaded")) == 1
