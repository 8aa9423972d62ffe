"""Idle means idle (promise 8). How much memory that takes is for the benchmark; that it does not wake is for here."""
import os
import time

from chute import wait_until, write_file


def switches(pid):
    """Context switches of all threads: every wake-up makes one."""
    total = 0
    for thread in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/status" % (pid, thread)) as status:
            total += sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
    return total


def descriptors(pid):
    return len(os.listdir("/proc/%d/fd" % pid))


def test_nothing_happens_while_nothing_happens(chute):
    for i in range(200):
        write_file(chute.inbox / ("d%d/f.csv" % (i % 20)), "x\n%d\n" % i)
    chute.configure({"table": "all", "load": "append", "on_changed": "again"}, http={"listen": "127.0.0.1:0"})
    chute.start()
    chute.wait_state("d19/f.csv", "loaded")
    last = switches(chute.process.pid)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # let what follows a load (checkpoints) come to its end
        time.sleep(3)
        now, last = last, switches(chute.process.pid)
        if now == last:
            break
    before = switches(chute.process.pid)
    time.sleep(10)
    assert switches(chute.process.pid) == before
    assert descriptors(chute.process.pid) < 40


def test_folders_take_no_descriptors(chute):
    for i in range(300):
        write_file(chute.inbox / ("d%03d/f.csv" % i), "x\n1\n")
    chute.configure({"table": "all", "load": "append"})
    chute.start()
    chute.wait_rows("all", [(1,)] * 300)
    # files under way have one each; once they are done, neither files nor folders have any
    wait_until(lambda: descriptors(chute.process.pid) < 40, lambda: "%d descriptors to be closed" % descriptors(chute.process.pid))


def test_polling_is_the_only_thing_that_wakes_a_polling_daemon(chute):
    chute.configure({"types": "infer"}, source={"mode": "poll", "poll_interval": "5s"})
    write_file(chute.inbox / "f.csv", "x\n1\n")
    chute.start()
    chute.wait_rows("f", [(1,)])
    time.sleep(3)
    before = switches(chute.process.pid)
    time.sleep(10)
    assert 0 < switches(chute.process.pid) - before < 200
