"""One Keboola emulator under test: its process, its control API."""
import json
import os
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
PROGRAM = TOP / "tests/emulator/keboola"
TOKEN = "4321-98765-emulatorTokenForTests"
PATIENCE = 60


class Emulator:
    """Emulator(provider="azure", job_seconds=0.5, tls_cert=PATH, ...): words of its command line with underscores.

    start() waits until it answers; stop() ends it. It ends by itself with the process that started it.
    """

    def __init__(self, token=TOKEN, **options):
        self.token = token
        self.options = options
        self.process = None
        self.url = None

    def start(self):
        words = []
        for name, value in {"port": 0, "token": self.token, **self.options}.items():
            option = "--" + name.replace("_", "-")
            if value is True:
                words.append(option)
            elif value is not None and value is not False:
                words += [option, str(value)]
        self.process = subprocess.Popen([sys.executable, str(PROGRAM), "--until-eof", *words], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, start_new_session=True)
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        assert line.startswith("keboola emulator ready on "), "the emulator did not start: %r" % line
        self.url = line.split(" ")[4]
        return self

    def stop(self):
        """Ask it to end; its exit code."""
        if self.process is None:
            return None
        self.process.terminate()
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None
        return code

    __enter__ = start

    def __exit__(self, *_):
        self.stop()

    # ---- control ----
    def control(self, method, what, body=None):
        """Its JSON answer, None for an empty one. Raises AssertionError with the emulator's words when it refuses."""
        request = urllib.request.Request("%s/_control/%s" % (self.url, what), method=method,
                                         data=None if body is None else json.dumps(body).encode(),
                                         headers={"Content-Type": "application/json"})
        context = ssl._create_unverified_context() if self.url.startswith("https") else None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        try:
            with opener.open(request, timeout=PATIENCE) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError("%s %s: %s" % (method, what, error.read().decode(errors="replace"))) from None
        return json.loads(text) if text else None

    def requests(self, method=None, path=None, since=0):
        """Requests received so far in order: dicts; only those of METHOD whose path contains PATH."""
        return [one for one in self.control("GET", "requests?since=%d" % since)
                if method in (None, one["method"]) and (path is None or path in one["path"])]

    def forget_requests(self):
        self.control("DELETE", "requests")

    def fault(self, path=None, method=None, skip=0, times=1, **do):
        """Script a fault: fault("files/prepare", status=503, headers={"Retry-After": 2}, times=2). Its id."""
        match = {"method": method, "skip": skip, "times": times}
        if path is not None:
            match["path"] = path
        return self.control("POST", "faults", {"match": match, "do": do})["id"]

    def faults(self):
        return self.control("GET", "faults")

    def clear_faults(self):
        self.control("DELETE", "faults")

    def settings(self, **changes):
        return self.control("POST", "settings", changes) if changes else self.control("GET", "settings")

    def state(self, *only):
        """url, settings, buckets, tables, loads, jobs, files and the number of requests; or ONLY those."""
        return self.control("GET", "state?only=" + ",".join(only))

    def tables(self):
        """Table id -> what there is to know but its rows."""
        return self.state("tables")["tables"]

    def rows(self, table):
        """All rows of a table as lists of text, or None while there is no such table."""
        try:
            found = self.control("GET", "rows/" + table)
        except AssertionError as error:
            if "no table" in str(error):
                return None
            raise
        assert found["kept"], "the emulator has not kept the rows of %s" % table
        return found["rows"]

    def columns(self, table):
        return self.control("GET", "rows/" + table)["columns"]

    def loads(self, table):
        """{"accepted", "finished", "succeeded", "failed"}: create and import jobs of a table since the start."""
        return self.state("loads")["loads"].get(table, {"accepted": 0, "finished": 0, "succeeded": 0, "failed": 0})

    def expire(self, file_id=None):
        """End the upload credentials of one file, or of all so far."""
        return self.control("POST", "expire", {"file": file_id})["expired"]

    def reset(self):
        self.control("POST", "reset")


assert os.access(PROGRAM, os.X_OK), "%s is not executable" % PROGRAM
