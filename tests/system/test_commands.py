"""Every command, beside a running daemon and without one; exit codes; documents and binary agree."""
import json
import os
import re
import signal
import sqlite3
import subprocess
import time

import pytest
from chute import TOP, put_file, sample, tool, wait_until, write_file

COMMANDS = ["run", "load", "check", "init", "status", "receipts", "explain", "retry", "reset", "version", "help", "completion"]


@pytest.mark.core
def test_version_names_the_libraries(chute):
    done = chute.command("version")
    assert done.returncode == 0
    for word in ("chute", "libuv", "SQLite", "libyaml", "json-c", "xxHash", "libcurl", "libpq"):
        assert word.lower() in done.stdout.lower(), done.stdout
    assert chute.command("--version").stdout == done.stdout


@pytest.mark.core
@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_on_standard_output(chute, name):
    done = chute.command("help", name)
    assert done.returncode == 0 and "chute %s" % name in done.stdout and not done.stderr
    assert done.stdout == chute.command(name, "--help").stdout


def test_help_lists_every_command(chute):
    for arguments in (["help"], ["--help"]):
        done = chute.command(*arguments)
        assert done.returncode == 0
        for name in COMMANDS:
            assert re.search(r"\b%s\b" % name, done.stdout), name


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["run", "--nonsense"], ["load"], ["load", "x.csv"], ["explain"], ["init"],
                                       ["init", "nonsense"], ["reset"], ["retry"], ["help", "nonsense"], ["run", "--to", "sqlite:x"],
                                       ["run", "--watch", "."], ["run", "--watch", ".", "--to", "nonsense:x"]])
def test_wrong_usage_exits_2_and_says_what_is_right(chute, arguments):
    done = chute.command(*arguments)
    assert done.returncode == 2, (arguments, done)
    assert done.stderr.strip() and not done.stdout, done


@pytest.mark.parametrize("arguments", [["help"], ["version"]])
def test_a_full_disk_under_standard_output_is_an_error(chute, arguments):
    with open("/dev/full", "w") as full:
        from chute import BINARY
        done = subprocess.run([BINARY, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr


# ---- check ----

@pytest.mark.core
def test_check_says_where_and_did_you_mean(chute):
    chute.configure()
    assert chute.command("check", "-c", chute.config).returncode == 0
    chute.config.write_text("sources:\n  inbox: {type: directory, path: in}\ndestinations:\n  lite: {type: sqlite, path: o.db}\n"
                            "flows:\n  - name: a\n    from: inbox\n    to: lite\n    inclde: ['*.csv']\n")
    done = chute.command("check", "-c", chute.config)
    assert done.returncode == 78
    assert "chute.yaml:9:5" in done.stderr and "did you mean" in done.stderr and "include" in done.stderr


@pytest.mark.parametrize("line,words", [
    ("http: {listen: 12}", []), ("limits: {jobs: many}", ["jobs"]), ("shutdown_grace: 5 parsecs", ["shutdown_grace"]),
    ("retry: {first: -1s}", ["first"]), ("log: [{to: stderr, level: loud}]", ["loud", "info"]),
    ("state: ${UNSET_VARIABLE}", ["UNSET_VARIABLE"]), ("unknown: 1", ["unknown"]), ("state: [", []),
])
def test_check_refuses(chute, line, words):
    chute.config.write_text("sources:\n  inbox: {type: directory, path: in}\ndestinations:\n  lite: {type: sqlite, path: o.db}\n"
                            "flows:\n  - {name: a, from: inbox, to: lite}\n" + line + "\n")
    done = chute.command("check", "-c", chute.config)
    if line.startswith("http"):
        assert done.returncode in (0, 78)
        return
    assert done.returncode == 78, done
    assert re.search(r"chute\.yaml:\d+:\d+", done.stderr), done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("kind", ["s3"])
def test_parts_that_do_not_exist_yet_are_refused_as_unknown(chute, kind):
    chute.configure(source={"type": kind})
    done = chute.command("check", "-c", chute.config)
    assert done.returncode == 78 and kind in done.stderr and "directory" in done.stderr


def test_variables_defaults_and_secret_files(chute):
    text = "state: ${MY_STATE:-%s}\n" % chute.state
    text += "sources:\n  inbox: {type: directory, path: '${IN}'}\ndestinations:\n  lite: {type: sqlite, path: out.db}\nflows:\n  - {name: a, from: inbox, to: lite}\n"
    chute.config.write_text(text)
    put_file(chute.inbox / "t.csv", "a\n1\n")
    chute.once(env={"IN": "in"})  # relative to the configuration's folder, not to where we are
    assert chute.rows("t") == [(1,)]


def test_check_connect_tries_everything(chute):
    chute.configure()
    assert chute.command("check", "--connect", "-c", chute.config).returncode == 0
    chute.configure(dest={"path": str(chute.home / "no/such/folder/x.db")})
    done = chute.command("check", "--connect", "-c", chute.config)
    assert done.returncode == 1 and "lite" in done.stderr


@pytest.mark.core
def test_run_refuses_an_invalid_configuration_with_78(chute):
    chute.config.write_text("nonsense: true\n")
    done = chute.command("run", "-c", chute.config)
    assert done.returncode == 78 and "nonsense" in done.stderr
    assert chute.command("run", "-c", chute.home / "missing.yaml").returncode == 78


# ---- init ----

@pytest.mark.core
def test_init_writes_a_configuration_that_works(chute):
    target = chute.home / "made"
    done = chute.command("init", "file2sql", target)
    assert done.returncode == 0, done
    files = [p for p in target.rglob("*") if p.is_file()]
    assert len(files) >= 1
    config = [p for p in files if p.suffix == ".yaml"][0]
    assert chute.command("check", "-c", config).returncode == 0
    assert "#" in config.read_text()
    again = chute.command("init", "file2sql", target)
    assert again.returncode == 1 and "exists" in again.stderr  # never overwrites


# ---- load ----

@pytest.mark.core
def test_load_loads_now_and_counts(chute):
    put_file(chute.home / "t.csv", "a,b\n1,2\n3,4\n")
    done = chute.command("load", "t.csv", "--to", "sqlite:out.db", "--state", chute.state)
    assert done.returncode == 0, done
    assert chute.rows("t") == [(1, 2), (3, 4)]
    done = chute.command("load", "t.csv", "--to", "sqlite:out.db", "--table", "other", "--state", chute.state)
    assert done.returncode == 0 and chute.rows("other") == [(1, 2), (3, 4)]


def test_load_says_which_file_failed_and_loads_the_others(chute):
    put_file(chute.home / "good.csv", "a\n1\n")
    put_file(chute.home / "bad.csv", "a\n1,2\n")
    done = chute.command("load", "bad.csv", "good.csv", "missing.csv", "--to", "sqlite:out.db", "--state", chute.state)
    assert done.returncode == 1
    assert "bad.csv" in done.stderr and "line 2" in done.stderr and "missing.csv" in done.stderr
    assert chute.rows("good") == [(1,)]
    assert (chute.home / "bad.csv").exists()


# ---- run --once ----

@pytest.mark.core
def test_run_once_ends_when_all_is_done(chute):
    for i in range(20):
        put_file(chute.inbox / ("t%d.csv" % i), "a\n%d\n" % i)
    chute.once()
    assert len(chute.tables()) == 20
    chute.once()
    assert len([r for r in chute.receipts() if r["state"] == "loaded"]) == 20


def test_run_once_exits_1_when_a_file_failed(chute):
    put_file(chute.inbox / "bad.csv", "a\n1,2\n")
    put_file(chute.inbox / "good.csv", "a\n1\n")
    chute.once(expect=1)
    assert chute.tables() == {"good"}


def test_run_once_ends_at_its_deadline_with_an_open_writer(chute):
    with open(chute.inbox / "open.csv", "w") as f:
        f.write("a\n1\n")
        f.flush()
        put_file(chute.inbox / "good.csv", "a\n1\n")
        chute.once("--deadline", "2s", expect=1)
        assert chute.tables() == {"good"}
    os.utime(chute.inbox / "open.csv", (1700000000, 1700000000))
    chute.once()
    assert chute.tables() == {"good", "open"}


# ---- status, receipts, explain ----

@pytest.mark.core
def test_status_with_and_without_the_daemon(chute):
    chute.start()
    put_file(chute.inbox / "t.csv", "a\n1\n")
    put_file(chute.inbox / "bad.csv", "a\n1,2\n")
    chute.wait_rows("t", [(0, 1)])
    chute.wait_state("t.csv", "loaded")
    chute.wait_state("bad.csv", "quarantined")
    with_daemon = chute.ask("status")
    assert "loaded" in with_daemon and "quarantined" in with_daemon and "events" in with_daemon
    assert "bad.csv" in chute.ask("status", "--state", "quarantined")
    assert json.loads(chute.ask("status", "--json"))
    assert chute.command("status", "--live", "--state", chute.state).returncode == 0
    assert chute.stop() == 0
    without = chute.ask("status")
    assert "loaded" in without and "quarantined" in without
    assert chute.command("status", "--live", "--state", chute.state).returncode == 1
    assert "bad.csv" in chute.ask("status", "--state", "quarantined")
    assert chute.command("status", "--state", chute.home / "nothing").returncode == 1


@pytest.mark.core
def test_receipts_add_up(chute):
    chute.start()
    text = sample("types.csv")
    put_file(chute.inbox / "t.csv", text)
    chute.wait_rows("t", [(0, 1, 2.5, "2024-01-02", 1, "a,b"), (1, 2, None, "2024-01-03", 0, None)])
    chute.wait_receipts("t.csv", "loaded", 1)
    for _ in range(2):
        (r,) = chute.receipts()
        assert r["path"] == "t.csv" and r["table"] == "t" and r["state"] == "loaded"
        assert r["bytes"] == len(text) and r["parsed"] == 2 and r["inserted"] == 2 and r["rejected"] == 0
        assert len(r["hash"]) == 32 and r["dialect"].startswith("comma")
        assert "t.csv" in chute.ask("receipts")
        if chute.process.poll() is None:
            assert chute.stop() == 0
    assert chute.receipts("--since", "2100-01-01") == []
    assert len(chute.receipts("--since", "1h")) == 1


@pytest.mark.core
def test_explain_has_one_paragraph_for_every_fate(chute):
    chute.start()
    fates = {"good.csv": ("a\n1\n", "loaded"), "bad.csv": ("a\n1,2\n", "quarantined"), "empty.csv": ("", "skipped")}
    for name, (text, state) in fates.items():
        put_file(chute.inbox / name, text)
        chute.wait_state(name, state)
    for running in (True, False):
        for name, (_, state) in fates.items():
            paragraph = chute.explain(chute.inbox / name)
            assert state in paragraph and name in paragraph, paragraph
            assert "\n\n" not in paragraph.strip()
        if running:
            assert chute.stop() == 0
    write_file(chute.inbox / "notes.txt", "x")
    for name, word in (("notes.txt", "include"), ("missing.csv", "")):
        done = chute.command("explain", chute.inbox / name, "--state", chute.state)
        assert word in (done.stdout + done.stderr) and name in done.stdout + done.stderr


def test_explain_of_a_file_whose_writer_is_open(chute):
    chute.start()
    with open(chute.inbox / "open.csv", "w") as f:
        f.write("a\n")
        f.flush()
        wait_until(lambda: "open" in chute.command("explain", chute.inbox / "open.csv", "--state", chute.state).stdout.lower(),
                   "explain to name the writer", pause=0.1)
        text = chute.explain(chute.inbox / "open.csv")
        assert "settling" in text and "writ" in text, text


# ---- retry, reset ----

@pytest.mark.core
def test_retry_acts_at_once_in_a_running_daemon_and_at_the_next_start_without(chute):
    chute.configure({"types": "infer"})
    chute.start()
    with sqlite3.connect(chute.db, timeout=30) as db:
        db.execute("CREATE TABLE IF NOT EXISTS x(theirs)")
    put_file(chute.inbox / "X.csv", "a\n1\n")
    put_file(chute.inbox / "bad.csv", "a\n1,2\n")
    chute.wait_state("bad.csv", "quarantined")
    receipts = len(chute.receipts_of("bad.csv"))
    chute.ask("retry", chute.inbox / "bad.csv")
    wait_until(lambda: len(chute.receipts_of("bad.csv")) > receipts, "another try", pause=0.1)
    chute.wait_state("bad.csv", "quarantined")
    assert chute.stop() == 0
    chute.ask("retry", "--all")
    assert chute.state_of("bad.csv") == "queued"
    receipts = len(chute.receipts_of("bad.csv"))
    chute.start()
    wait_until(lambda: len(chute.receipts_of("bad.csv")) > receipts, "another try", pause=0.1)
    assert chute.command("retry", chute.inbox / "no-such.csv", "--state", chute.state).returncode == 1


@pytest.mark.core
@pytest.mark.parametrize("running", [True, False])
def test_retry_leaves_alone_what_was_moved_away_and_says_where_it_is(chute, running):
    invalid = chute.home / "invalid"
    chute.configure({"types": "infer", "after_failure": {"move": str(invalid)}})
    put_file(chute.inbox / "bad.csv", "a\n1,2\n")
    chute.start()
    chute.wait_state("bad.csv", "quarantined")
    chute.wait_inbox()
    if not running:
        assert chute.stop() == 0
    done = chute.command("retry", "--all", "--state", chute.state)
    assert done.returncode == 0 and "0 files queued again" in done.stderr and "1 file is in the after_failure folder" in done.stderr, done
    done = chute.command("retry", chute.inbox / "bad.csv", "--state", chute.state)
    assert done.returncode == 1 and "move it back" in done.stderr, done
    assert chute.state_of("bad.csv") == "quarantined"
    if running:
        assert chute.stop() == 0
    chute.once(expect=0)  # nothing waits for a file that is not there
    assert chute.state_of("bad.csv") == "quarantined"
    (invalid / "bad.csv").rename(chute.inbox / "bad.csv")
    chute.once(expect=1)
    chute.wait_receipts("bad.csv", "quarantined", 2)


@pytest.mark.core
@pytest.mark.parametrize("running", [True, False])
def test_a_file_deleted_after_its_retry_is_gone(chute, running):
    chute.configure({"types": "infer"})
    put_file(chute.inbox / "bad.csv", "a\n1,2\n")
    chute.start()
    chute.wait_state("bad.csv", "quarantined")
    assert chute.stop() == 0
    chute.ask("retry", "--all")
    assert chute.state_of("bad.csv") == "queued"
    (chute.inbox / "bad.csv").unlink()
    if running:
        chute.start()
        chute.wait_state("bad.csv", "gone")
    else:
        chute.once(expect=0)
        assert chute.state_of("bad.csv") == "gone"


@pytest.mark.core
@pytest.mark.parametrize("running", [True, False])
def test_reset_drops_what_chute_made_and_says_so(chute, running):
    chute.configure({"types": "infer"})
    chute.start()
    put_file(chute.inbox / "a.csv", "x\n1\n")
    put_file(chute.inbox / "b.csv", "x\n1\n")
    chute.wait_tables("a", "b")
    with sqlite3.connect(chute.db, timeout=30) as db:
        db.execute("CREATE TABLE theirs(x)")
    db.close()
    assert chute.command("reset", "main", "--state", chute.state).returncode == 2  # without --yes: nothing
    assert chute.tables() == {"a", "b", "theirs"}
    if not running:
        assert chute.stop() == 0
    done = chute.command("reset", "main", "--yes", "-c", chute.config)
    assert done.returncode == 0, done
    assert "a" in done.stdout and "b" in done.stdout and "theirs" not in done.stdout
    assert chute.tables() == {"theirs"}
    if running:
        put_file(chute.inbox / "c.csv", "x\n1\n")  # the flow is paused until the next start or retry
        time.sleep(1.5)
        assert chute.tables() == {"theirs"}
        assert chute.stop() == 0
    chute.start()
    wait_until(lambda: {"a", "b"} <= chute.tables(), "everything again")


# ---- the daemon ----

@pytest.mark.core
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0(chute, sig):
    chute.start()
    assert chute.stop(sig) == 0
    assert not (chute.state / "chute.sock").exists()


def test_term_in_the_middle_of_a_load_leaves_nothing_half(chute):
    chute.configure({"types": "infer"}, shutdown_grace="10ms")
    chute.start()
    put_file(chute.inbox / "big.csv", "a,b\n" + "1,x\n" * 800000)
    wait_until(lambda: chute.state_of("big.csv") in ("loading", "loaded"), "the load", pause=0.005)
    assert chute.stop() == 0
    assert chute.rows("big") is None or len(chute.rows("big")) == 800000
    assert not [t for t in chute.tables() if t != "big"]
    chute.start()
    wait_until(lambda: "big" in chute.tables() and chute.query("SELECT count(*) FROM big") == [(800000,)], "the whole file")


@pytest.mark.core
def test_one_daemon_per_state_folder(chute):
    chute.start()
    second = chute.command(*chute.run_arguments())
    assert second.returncode == 1 and str(chute.process.pid) in second.stderr, second


@pytest.mark.core
def test_hup_takes_a_new_configuration_and_keeps_the_old_if_it_is_invalid(chute):
    chute.configure({"types": "text"})
    chute.start()
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_rows("a", [("1",)])
    good = chute.config.read_text()
    chute.config.write_text(good + "nonsense")
    chute.process.send_signal(signal.SIGHUP)
    chute.wait_log("chute.yaml:", "the old one goes on")
    put_file(chute.inbox / "b.csv", "x\n1\n")
    chute.wait_rows("b", [("1",)])
    chute.configure({"types": "infer"})
    chute.process.send_signal(signal.SIGHUP)
    chute.wait_log("is in force now")
    put_file(chute.inbox / "c.csv", "x\n1\n")
    chute.wait_rows("c", [(1,)])
    assert chute.columns("c") == [("x", "BIGINT")]
    assert chute.rows("a") == [("1",)]  # what was loaded is not loaded again


def test_a_corrected_flow_takes_its_quarantined_files_again(chute):
    chute.configure({"csv": {"short_rows": "reject"}})
    chute.start()
    put_file(chute.inbox / "t.csv", "a,b\n1\n")
    chute.wait_state("t.csv", "quarantined")
    chute.configure({"csv": {"short_rows": "pad"}})
    chute.process.send_signal(signal.SIGHUP)
    wait_until(lambda: chute.rows("t") == [(1, None)], "the file to be loaded")


def test_usr1_logs_the_state(chute):
    chute.start()
    put_file(chute.inbox / "t.csv", "x\n1\n")
    chute.wait_log("loaded 1 rows")  # what the load itself says is no answer to the signal
    before = len(chute.log_text())
    chute.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: "loaded" in chute.log_text()[before:], "the state in the log")


def test_logs_go_where_told_in_json_and_rotate(chute):
    log = chute.home / "logs/chute.json"
    log.parent.mkdir()
    chute.configure(log=[{"to": str(log), "level": "debug", "format": "json", "rotate_size": "4KiB", "rotate_keep": 2}])
    chute.start()
    for i in range(60):
        put_file(chute.inbox / ("t%d.csv" % i), "x\n1\n")
    wait_until(lambda: len(chute.tables()) == 60, "the tables")
    assert chute.stop() == 0
    files = sorted(p.name for p in log.parent.iterdir())
    assert files == ["chute.json", "chute.json.1", "chute.json.2"]
    for p in log.parent.iterdir():
        for line in p.read_text().splitlines():
            assert json.loads(line)["level"] in ("debug", "info", "warn", "error")


# ---- documents ----

def test_the_reference_is_what_the_binary_says(chute):
    assert (TOP / "docs/configuration.md").read_text() == chute.command("help", "--markdown").stdout


@pytest.mark.core
def test_the_man_page_is_well_formed(chute):
    done = chute.command("help", "--man")
    assert done.returncode == 0 and done.stdout.startswith(".TH")
    page = chute.home / "chute.1"
    page.write_text(done.stdout)
    checked = subprocess.run([tool("man"), "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page)], capture_output=True, text=True,
                             env={**os.environ, "MANROFFSEQ": "", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"})
    assert checked.returncode == 0 and not checked.stderr.strip(), checked.stderr
    for name in COMMANDS:
        assert name in done.stdout


@pytest.mark.core
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command(chute, shell):
    done = chute.command("completion", shell)
    assert done.returncode == 0, done
    for name in COMMANDS:
        assert name in done.stdout
    if shell == "bash":
        script = done.stdout + '\nCOMP_WORDS=(chute sta); COMP_CWORD=1; ' \
            '$(complete -p chute | sed "s/.*-F \\([^ ]*\\).*/\\1/"); echo "${COMPREPLY[@]}"'
        asked = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
        assert asked.stdout.split() == ["status"], asked


def test_a_file_that_looks_like_an_option_gets_a_way_out(chute):
    write_file(chute.home / "-x.csv", "a\n1\n")
    done = chute.command("load", "-x.csv", "--to", "sqlite:out.db")
    assert done.returncode == 2 and "write ./-x.csv" in done.stderr, done
    assert "write ./" not in chute.command("load", "--ot=./x.csv", "--to", "sqlite:out.db").stderr
    assert chute.command("load", "./-x.csv", "--to", "sqlite:out.db").returncode == 0


@pytest.mark.parametrize("line, some", [
    ("help re", {"receipts", "retry", "reset", "reload"}),
    ("help ", set(COMMANDS)),
    ("-c x.yaml sta", {"status"}),
    ("--config = x.yaml sta", {"status"}),
    ("-c x.yaml status --l", {"--live"}),
    ("status -c x.yaml --l", {"--live"}),
    ("status --state = quar", {"quarantined"}),
    ("init fi", {"file2sql"}),
    ("--ver", {"--version"}),
])
def test_bash_completes_what_may_come_next(chute, line, some):
    """LINE as readline takes it apart: = is a word of its own."""
    words = line.split(" ")
    script = chute.command("completion", "bash").stdout + '\nCOMP_WORDS=(chute %s); COMP_CWORD=%d; _chute; echo "${COMPREPLY[@]}"' % (
        " ".join("'%s'" % w for w in words), len(words))
    asked = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=chute.home)
    assert not asked.stderr
    assert set(asked.stdout.split()) >= some, asked
    if not line.endswith(" "):
        assert set(asked.stdout.split()) == some, asked


def test_help_knows_every_option(chute):
    reference = (TOP / "docs/configuration.md").read_text()
    names = set(re.findall(r"^\|\s*`([a-z_]+)`", reference, re.M))
    assert {"debounce", "settle", "on_delete", "row_number", "rotate_size"} <= names
    for name in sorted(names):
        assert chute.command("help", name).returncode == 0, name


@pytest.mark.core
def test_a_file_is_in_exactly_one_state_also_while_a_new_version_settles(chute):
    def counts():
        return {state: count for state, count in chute.status()["files"].items() if count}

    def listed(state):
        return [f["path"] for f in chute.files(state)]

    chute.start()
    put_file(chute.inbox / "a.csv", "x\n1\n")
    chute.wait_state("a.csv", "loaded")
    with open(chute.inbox / "a.csv", "a") as slow:  # a writer that takes its time
        slow.write("2\n")
        slow.flush()
        wait_until(lambda: counts() == {"settling": 1}, "the new version to settle, and the old one not to count")
        assert listed("settling") == ["a.csv"] and listed("loaded") == []
    wait_until(lambda: counts() == {"loaded": 1}, "the new version to be loaded")
    assert listed("settling") == [] and listed("loaded") == ["a.csv"]
