"""Part E: FTP and SFTP servers into Azure Blob, on real servers, Azurite as the service."""
import os
import socket
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
from chute import BINARY, wait_until
from ftp_servers import PASSWORD, USER, OpenSSH, Proftpd, Vsftpd
from remote_side import Fetcher, agent, fill, md5
from scripted_ftp import ScriptedFtp
from servers import Azurite

RULE = {"blob": "{host}_{port}/{ext}/{name}", "names": "blob", "archives": "extract", "nested": 0}


@pytest.fixture(scope="module")
def azurite():
    with Azurite() as one:
        yield one


@pytest.fixture
def container(request):
    return "c" + md5(request.node.nodeid.encode()).hex()[:20]


@pytest.fixture
def lake(chute, azurite, container):
    """lake(SERVER): a fetcher into a container of its own."""
    return lambda server: Fetcher(chute, server, azurite, container)


def place(server):
    return "127.0.0.1_%d/" % server.port


@pytest.mark.core
def test_01_02_03_a_file_arrives_verified_is_not_fetched_again_and_keeps_its_old_bytes(lake):
    with Proftpd() as server:
        (server.root / "plain.txt").write_text("plain\n")
        os.utime(server.root / "plain.txt", (1700000000, 1700000000))
        f = lake(server).configure(flow=RULE)
        f.chute.once()
        name = place(server) + "txt/plain.txt"
        assert f.names() == [name] and f.read(name) == b"plain\n"
        found = f.properties(name)
        assert bytes(found.content_settings.content_md5) == md5(b"plain\n")
        assert found.metadata["original_size"] == "6" and found.metadata["modified_seconds"] == "1700000000"
        assert found.metadata["modified"] == "2023-11-14T22:13:20Z" and found.metadata["original_name"] == "plain.txt"
        assert f.spool == []
        modified = found.last_modified
        f.said()
        f.chute.once()
        assert "fetching" not in f.said() and f.properties(name).last_modified == modified
        with open(server.root / "plain.txt", "a") as more:
            more.write("more\n")
        f.chute.once()
        assert f.read(name) == b"plain\nmore\n"
        assert [f.read(name, s) for s in f.snapshots(name)] == [b"plain\n"]
        assert PASSWORD not in f.chute.log_text()


@pytest.mark.parametrize("make", [Vsftpd, Proftpd, OpenSSH], ids=["vsftpd", "proftpd", "openssh"])
def test_04_06_07_10_the_sample_tree(lake, make):
    with make() as server:
        fill(server.root)
        os.unlink(server.root / "b/same.csv")
        f = lake(server).configure(flow=RULE)
        f.chute.once(expect=1)
        here = place(server)
        assert [n[len(here):] for n in f.names()] == [
            "csv/dir/one.csv", "csv/dir/two.csv", "csv/one.csv", "csv/same.csv", "csv/two.csv", "hidden/dot.hidden", "none/noext", "txt/-and--.txt",
            "txt/empty.txt", "txt/hash-1.txt", "txt/in.txt", "txt/per-cent.txt", "txt/plain.txt", "txt/sp ace.txt", "txt/sp-cial n-m-.txt", "zip/inner.zip"]
        for name, path in [("txt/sp ace.txt", "sp ace.txt"), ("txt/per-cent.txt", "per%cent.txt"), ("txt/hash-1.txt", "hash#1.txt"),
                           ("txt/-and--.txt", "ñandú😀.txt"), ("none/noext", "noext"), ("txt/empty.txt", "empty.txt")]:
            assert f.read(here + name) == (server.root / path).read_bytes()
        with zipfile.ZipFile(server.root / "multi.zip") as archive:
            for info in archive.infolist():
                if info.filename in ("one.csv", "dir/one.csv", "two.csv"):
                    assert f.read(here + "csv/" + info.filename) == archive.read(info)
                    assert f.properties(here + "csv/" + info.filename).metadata["modified"] == "%04d-%02d-%02dT%02d:%02d:%02dZ" % info.date_time
        states = {r["path"]: r["state"] for r in f.chute.receipts()}
        assert states["bad.zip"] == states["evil.zip"] == "quarantined" and states["multi.zip"] == "loaded"
        kept = f.chute.state / "quarantine/main"
        assert (kept / "bad.zip.kept").read_bytes() == (server.root / "bad.zip").read_bytes()
        assert (kept / "evil.zip.kept").read_bytes() == (server.root / "evil.zip").read_bytes()
        assert "../evil.txt" in f.chute.log_text() and not list(f.chute.home.rglob("evil.txt"))
        assert f.spool == []
        f.chute.once()  # nothing new: the failures were those of the run before


def test_05_two_files_of_one_blob_are_told_and_paths_keep_them_apart(lake, make_chute, azurite, container):
    with Proftpd() as server:
        for folder in "ab":
            (server.root / folder).mkdir()
            (server.root / folder / "same.csv").write_text("%s\n" % folder)
        f = lake(server).configure(flow=RULE)
        f.chute.once(expect=1)
        assert f.names() == [place(server) + "csv/same.csv"]
        (failed,) = [r for r in f.chute.receipts() if r["state"] == "quarantined"]
        assert failed["reason"].startswith("blob already belongs to") and "a/same.csv" in failed["reason"] and "b/same.csv" in failed["reason"]
        other = Fetcher(make_chute("other"), server, azurite, container + "p")
        other.configure(top={"limits": {"jobs": 4}})  # the default of a blob is {host}_{port}/{path}
        other.chute.once()
        assert [(n, other.read(n)) for n in other.names()] == [(place(server) + "a/same.csv", b"a\n"), (place(server) + "b/same.csv", b"b\n")]


@pytest.mark.core
def test_06_with_both_the_archive_arrives_too(lake):
    with Proftpd() as server:
        with zipfile.ZipFile(server.root / "x.zip", "w") as archive:
            archive.writestr("in/y.txt", "y")
        f = lake(server).configure(flow={**RULE, "archives": "both"})
        f.chute.once()
        assert f.names() == [place(server) + "txt/in/y.txt", place(server) + "zip/x.zip"]
        assert f.read(place(server) + "zip/x.zip") == (server.root / "x.zip").read_bytes()


def test_07_a_bomb_is_refused(lake):
    with Proftpd() as server:
        with zipfile.ZipFile(server.root / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(30 << 20))
        f = lake(server).configure(flow=RULE)
        f.chute.once(expect=1)
        assert f.names() == [] and "archive_limits.ratio" in f.chute.receipts_of("bomb.zip")[-1]["reason"]


@pytest.mark.parametrize("make", [Vsftpd, Proftpd, OpenSSH], ids=["vsftpd", "proftpd", "openssh"])
def test_08_a_path_that_does_not_exist_is_one_error(lake, make):
    with make() as server:
        (server.root / "there.txt").write_text("x")
        f = lake(server).configure(source={"paths": ["/there.txt", "/missing/file.zip"] if make is not OpenSSH else ["/there.txt", "/missing.zip"]}, flow=RULE)
        f.chute.once(expect=1)
        assert f.names() == [place(server) + "txt/there.txt"]
        errors = [line for line in f.chute.log_text().splitlines() if " error " in line]
        assert len(errors) == 1 and "missing" in errors[0] and str(server.port) in errors[0] and PASSWORD not in f.chute.log_text()
        assert "once: 1 loaded, 0 skipped, 0 quarantined; 1 source could not be read whole" in f.chute.log_text()


@pytest.mark.core
def test_09_a_transfer_cut_twice_goes_on_where_it_stopped(chute, azurite, container, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    data = os.urandom(3 << 20)
    (root / "big.bin").write_bytes(data)
    with ScriptedFtp(root) as server:
        server.script.cut_data = 2
        f = Fetcher(chute, server, azurite, container).configure(flow={"blob": "{name}"})
        chute.once()
        assert f.read("big.bin") == data
        assert "REST" in server.script.commands and server.script.sent == len(data)  # nothing came twice
    assert f.spool == []


def test_09_without_size_and_mdtm_it_is_loaded_and_marked(chute, azurite, container, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a.txt").write_text("abc")
    with ScriptedFtp(tmp_path / "root") as server:
        server.script.without = {"SIZE", "MDTM", "MLSD"}
        f = Fetcher(chute, server, azurite, container).configure(flow={"blob": "{name}"})
        chute.once()
        assert f.read("a.txt") == b"abc"
        assert chute.receipts_of("a.txt")[-1]["reason"].startswith("unverified")


def test_10_the_service_is_down_and_comes_back(lake):
    with Proftpd() as server, Azurite() as own:
        (server.root / "a.txt").write_text("abc")
        f = lake(server)
        f.azurite = own
        f.configure(flow={"blob": "{name}"})
        port = int(own.url.rsplit(":", 1)[1])
        own.process.kill()
        own.process.wait()
        f.chute.start(ready=False)
        wait_until(lambda: "is down" in f.chute.log_text(), "an error")
        own.arguments = lambda: ["--blobPort", str(port), "--location", own.folder, "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
        folder = own.folder
        own.start()
        assert folder
        wait_until(lambda: f.names() == ["a.txt"], "the file")
        assert f.chute.stop() == 0


@pytest.mark.core
@pytest.mark.parametrize("make", [lambda: Proftpd(tls="explicit"), lambda: Proftpd(tls="implicit"), lambda: Proftpd(sftp=True), OpenSSH],
                         ids=["ftps-explicit", "ftps-implicit", "sftp-password", "sftp-key"])
def test_11_every_way_in(lake, make):
    with make() as server:
        (server.root / "sub").mkdir()
        for i in range(5):
            (server.root / ("sub/%d.txt" % i)).write_text("x" * i)
        f = lake(server).configure(flow={"blob": "{path}"})
        f.chute.once()
        assert f.names() == ["sub/%d.txt" % i for i in range(5)] and f.read("sub/4.txt") == b"xxxx"
        assert PASSWORD not in f.chute.log_text()


def test_11_a_key_from_an_agent(lake, tmp_path):
    with OpenSSH() as server:
        (server.root / "a.txt").write_text("abc")
        process, env = agent(tmp_path, server.private_key)
        try:
            wait_until(lambda: subprocess.run(["ssh-add", "-q", str(server.private_key)], env={**os.environ, **env}, stderr=subprocess.DEVNULL).returncode == 0, "the agent")
            f = lake(server).configure(source={"private_key_file": None}, flow={"blob": "{name}"})
            f.chute.once(env=env)
            assert f.read("a.txt") == b"abc"
        finally:
            process.kill()
            process.wait()


@pytest.mark.core
@pytest.mark.parametrize("is_changed", [False, True], ids=["unknown", "changed"])
def test_11_an_unknown_or_changed_host_key_is_refused(lake, is_changed):
    with OpenSSH() as server:
        (server.root / "a.txt").write_text("abc")
        real = subprocess.run(["ssh-keygen", "-l", "-f", str(server.folder / "host.pub")], capture_output=True, text=True, check=True).stdout.split()[1]
        if is_changed:
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(server.folder / "other")], check=True)
            key = (server.folder / "other.pub").read_text().split()[1]
            server.known_hosts.write_text("[127.0.0.1]:%d ssh-ed25519 %s\n" % (server.port, key))
        else:
            server.known_hosts.write_text("")
        f = lake(server).configure(flow={"blob": "{name}"})
        f.chute.once(expect=1)
        assert f.names() == [] and real in f.chute.log_text() and "ssh-keyscan" in f.chute.log_text()
        shown = f.chute.command("check", "-c", f.chute.config, "--connect")
        assert shown.returncode == 1 and real in shown.stderr


def test_11_a_wrong_password_blocks_the_source_and_is_not_told(lake):
    with Proftpd() as server:
        (server.root / "a.txt").write_text("abc")
        f = lake(server).configure(source={"password": "wrong-Secret9"}, flow={"blob": "{name}"})
        f.chute.once(expect=1)
        assert "login of the user was refused" in f.chute.log_text() and "wrong-Secret9" not in f.chute.log_text()


def test_12_every_and_cron_start_a_fetch_and_two_never_overlap(lake):
    with ScriptedFtp(lake(None).chute.home) as server:
        root = Path(server.root) / "served"
        root.mkdir()
        server.root = str(root)
        (root / "a.txt").write_text("x" * 30)
        server.script.piece, server.script.pause = 10, 1.0  # longer than `every`
        f = lake(server).configure(source={"every": "1s"}, flow={"blob": "{name}"})
        f.chute.start()
        wait_until(lambda: f.names() == ["a.txt"], "the file")
        wait_until(lambda: "its next run is due and the last one is not over" in f.chute.log_text(), "a run that waits")
        assert server.script.transfers == ["/a.txt"]
        (root / "b.txt").write_text("y")
        wait_until(lambda: f.names() == ["a.txt", "b.txt"], "the next run")
        assert "next run at" in f.chute.command("status", "-c", f.chute.config).stdout
        assert f.chute.stop() == 0


def test_12_a_run_that_was_missed_is_made_up_for_once(lake):
    with ScriptedFtp(lake(None).chute.home) as server:
        root = Path(server.root) / "served"
        root.mkdir()
        server.root = str(root)
        f = lake(server).configure(source={"every": "1h"}, flow={"blob": "{name}"})
        f.chute.start()
        wait_until(lambda: "MLSD" in server.script.commands, "the first run")
        f.chute.stop()
        f.chute.start()  # not due for an hour
        time.sleep(1)
        assert server.script.commands.count("MLSD") == 1
        f.chute.stop()
        f.configure(source={"every": "1s"}, flow={"blob": "{name}"})
        f.chute.start()
        wait_until(lambda: server.script.commands.count("MLSD") >= 2, "the run that was missed")
        f.chute.stop()


def test_init_ftp_blob_runs_as_it_is(tmp_path, azurite):
    from remote_side import KEY
    with Proftpd() as server:
        (server.root / "x.zip").write_bytes(b"")
        with zipfile.ZipFile(server.root / "x.zip", "w") as archive:
            archive.writestr("in/y.txt", "y")
        env = {**os.environ, "FTP_URL": "ftp://%s@127.0.0.1:%d/" % (USER, server.port), "FTP_PASSWORD": PASSWORD,
               "AZURE_STORAGE_CONNECTION_STRING": "AccountName=devstoreaccount1;AccountKey=%s;BlobEndpoint=%s;" % (KEY, azurite.account_url)}
        subprocess.run([BINARY, "init", "ftp-blob", str(tmp_path)], check=True, capture_output=True)
        config = tmp_path / "chute.yaml"
        config.write_text(config.read_text().replace("container: ingest", "container: profile"))
        done = subprocess.run([BINARY, "run", "--once", "-c", str(config)], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "loaded 1 B into 127.0.0.1_%d/txt/in/y.txt" % server.port in (tmp_path / "monitor.log").read_text()
        assert (tmp_path / "error.log").read_text() == ""
        shown = done.stderr + (tmp_path / "monitor.log").read_text() + (tmp_path / ".chute/ledger.db").read_bytes().decode("latin-1")
        assert PASSWORD not in shown and KEY not in shown


def test_nothing_listens_there(lake):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]

        class Nobody:
            @staticmethod
            def source():
                return {"type": "ftp", "url": "ftp://127.0.0.1:%d/" % port}
        f = lake(Nobody).configure(flow={"blob": "{name}"})
        f.chute.once(expect=1)
        assert "ftp://127.0.0.1:%d" % port in f.chute.log_text()
