"""What the house style asks of the source: rooms stay behind their walls, headers stand alone."""
import re
import subprocess

import pytest
from chute import TOP, tool

FACTS = {"include", "base"}
ROOMS = {"source", "settle", "inspect", "load", "finish"}
# Who may see whose headers, besides include/ and their own. The two comments name what the house style does not have.
MAY_SEE = {
    "base": set(),
    "loop": FACTS,
    # the option table of `csv:` belongs to the room that obeys it, and so do the limits of an archive
    "config": FACTS | {"inspect", "unpack"},
    "unpack": FACTS,
    "ledger": FACTS | {"loop"},
    "pipeline": FACTS | {"ledger", "loop"},
    **{room: FACTS | {"loop"} for room in ROOMS},
    "job": FACTS | ROOMS | {"loop", "ledger", "pipeline", "config", "unpack"},
    "admin": FACTS | {"loop", "job", "ledger", "pipeline", "config"},  # commands read the configuration that job runs with
}
INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')


def headers():
    return sorted([*TOP.glob("include/*.h"), *TOP.glob("src/*/*.h")])


def room_of(path):
    return path.parent.name


def seen_by(path):
    return [found.group(1) for found in map(INCLUDE.match, path.read_text().splitlines()) if found]


def test_rooms_stay_behind_their_walls():
    owner = {header.name: room_of(header) for header in headers()}
    assert len(owner) == len(headers()), "two headers of one name"
    wrong = []
    for path in sorted(TOP.glob("src/*/*.[ch]")):
        room = room_of(path)
        for name in seen_by(path):
            theirs = owner.get(name)  # None: a library's
            if theirs in (None, room, "include"):
                continue
            if name.endswith("_internal.h") or (room != "app" and theirs not in MAY_SEE[room]):
                wrong.append("%s includes %s of %s" % (path.relative_to(TOP), name, theirs))
    assert not wrong
    assert set(MAY_SEE) | {"app"} == {path.name for path in TOP.glob("src/*/")}, "a room without walls"
    assert seen_by(TOP / "src/main.c") == ["app.h"]


def test_the_facts_know_no_room():
    names = {path.name for path in TOP.glob("include/*.h")}
    for path in TOP.glob("include/*.h"):
        assert set(seen_by(path)) <= names, path


def test_only_the_ledger_and_the_sqlite_destination_speak_sqlite():
    using = {room_of(path) for path in TOP.glob("src/*/*.[ch]") if "<sqlite3.h>" in path.read_text()}
    assert using <= {"ledger", "load", "app"}  # app: the version that `chute version` tells


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_every_header_compiles_alone(compiler):
    # the only library whose headers lie in a folder of their own
    postgres = subprocess.run([tool("pkg-config"), "--cflags", "libpq"], capture_output=True, text=True, check=True).stdout.split()
    for path in headers():
        room = room_of(path)
        sees = {"include", room} | MAY_SEE.get(room, set(MAY_SEE))
        sees |= MAY_SEE["config"] if "config" in sees else set()  # config.h brings inspect.h and unpack.h
        folders = [TOP / name if name == "include" else TOP / "src" / name for name in sorted(sees)]
        done = subprocess.run([tool(compiler), "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *postgres,
                               *("-I%s" % folder for folder in folders), "-include", str(path), "-x", "c", "/dev/null"],
                              capture_output=True, text=True)
        assert done.returncode == 0, "%s: %s" % (path.relative_to(TOP), done.stderr)


def test_the_layout_is_what_clang_format_makes_of_it():
    files = sorted(path for folder in ("src", "include", "tests") for path in (TOP / folder).rglob("*.[ch]"))
    done = subprocess.run([tool("clang-format"), "--dry-run", "-Werror", *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, "run clang-format -i on:\n" + done.stderr[:3000]
