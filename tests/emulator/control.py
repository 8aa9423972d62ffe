"""What tests do to the emulator: scripted faults, settings, and what they learn from it: requests, state, rows."""
import json
import re
import threading
import time
from urllib.parse import parse_qsl

from plumbing import Answer, Cut, json_answer

LOADS = r"(tables-async|import-async)$"
ACTIONS = {
    "status", "headers", "body", "delay", "cut", "at", "after_effect", "reset", "refuse", "json", "merge", "truncate", "expire_credentials",
    "job_error", "job_hang", "seconds",
}
CUTS = ("before", "mid_body", "after_effect", "mid_answer")


class Fault:
    """Something that shall go wrong with requests that match."""

    def __init__(self, fault_id, spec):
        match, self.do = dict(spec.get("match") or {}), dict(spec["do"])
        unknown = set(self.do) - ACTIONS | set(match) - {"method", "path", "skip", "times"} | set(spec) - {"match", "do"}
        if unknown:
            raise ValueError("unknown: %s" % ", ".join(sorted(unknown)))
        if self.do.get("cut") not in (None, *CUTS):
            raise ValueError("cut is one of %s" % ", ".join(CUTS))
        self.id = fault_id
        self.method = match.get("method")
        default = LOADS if {"job_error", "job_hang"} & set(self.do) else ""
        self.path = re.compile(match.get("path", default))
        self.skip = match.get("skip", 0)
        self.times = match.get("times", 1)  # None: for ever
        self.seen = 0  # requests that matched
        self.done = 0  # of them, those that it happened to

    def applies(self, request):
        if self.method not in (None, request.method) or not self.path.search(request.target):
            return False
        self.seen += 1
        if self.seen <= self.skip or self.times is not None and self.done >= self.times:
            return False
        self.done += 1
        return True

    def as_json(self):
        return {"id": self.id, "match": {"method": self.method, "path": self.path.pattern, "skip": self.skip, "times": self.times},
                "do": self.do, "seen": self.seen, "done": self.done}


class Faults:
    def __init__(self):
        self.lock = threading.Lock()
        self.faults = []
        self.last_id = 0

    def add(self, spec):
        with self.lock:
            self.last_id += 1
            fault = Fault(self.last_id, spec)
            self.faults.append(fault)
            return fault

    def clear(self):
        with self.lock:
            self.faults = []

    def match(self, request):
        """The first fault that applies to REQUEST, or None."""
        if not self.faults:
            return None
        with self.lock:
            return next((fault for fault in self.faults if fault.applies(request)), None)

    def as_json(self):
        with self.lock:
            return [fault.as_json() for fault in self.faults]


def _merge(into, changes):
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _scripted_answer(do):
    body = do.get("body", "")
    kind = "application/json"
    if isinstance(body, str):
        kind = "application/xml" if body.startswith("<?xml") or body.startswith("<Error") else "text/html" if body.startswith("<") else kind
        body = body.encode()
    else:
        body = json.dumps(body).encode()
    headers = [(name, str(value)) for name, value in (do.get("headers") or {}).items()]
    if body and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", kind))
    return Answer(do.get("status", 200), body, headers)


def perform(fault, request, server, effect, expire):
    """Answer REQUEST as FAULT wants it. EFFECT() does what the request asks for; EXPIRE(request, answer) ends credentials."""
    do = fault.do
    if "delay" in do:
        time.sleep(do["delay"])
    if "refuse" in do:
        server.refuse(float(do["refuse"]))
        raise Cut
    cut = do.get("cut")
    reset = bool(do.get("reset"))
    after = bool(do.get("after_effect")) or cut in ("after_effect", "mid_answer") or "json" in do or "merge" in do or "truncate" in do
    if cut == "before" or reset and cut is None and not after:
        raise Cut(reset)
    if cut == "mid_body":
        if request.at_end:
            raise Cut(reset)
        request.stop_after = do["at"] if "at" in do else max(1, (request.length or 2) // 2)
        request.reset_on_stop = reset
        effect()
        request.drain()
        raise Cut(reset)
    if "job_error" in do or "job_hang" in do or "seconds" in do:
        request.job_fault = {name: do[name] for name in ("job_error", "job_hang", "seconds") if name in do}
    replaced = "status" in do or "body" in do
    if replaced and not after:
        request.drain()
        return _scripted_answer(do)
    if do.get("expire_credentials"):
        expire(request, None)
    answer = effect()
    if do.get("expire_credentials"):
        expire(request, answer)
    if "json" in do:
        answer = _scripted_answer({"status": do.get("status", answer.status), "body": do["json"], "headers": do.get("headers")})
    elif "merge" in do:
        value = json.loads(answer.bytes())
        _merge(value, do["merge"])
        answer = json_answer(do.get("status", answer.status), value)
    elif replaced:
        answer = _scripted_answer(do)
    elif "headers" in do:
        answer.headers += [(name, str(value)) for name, value in do["headers"].items()]
    if "truncate" in do:
        answer.body = answer.bytes()[:do["truncate"]]
        answer.length = len(answer.body)
    if cut == "mid_answer":
        answer.cut_at = do["at"] if "at" in do else len(answer.bytes()) // 2
        answer.reset = reset
    elif cut == "after_effect" or reset:
        raise Cut(reset)
    return answer


class RequestLog:
    """Every request, in the order in which their heads came."""

    def __init__(self, limit):
        self.lock = threading.Lock()
        self.limit = limit
        self.records = []
        self.count = 0

    def begin(self, request):
        with self.lock:
            self.count += 1
            record = {"n": self.count, "time": time.time(), "method": request.method, "path": request.path, "query_text": request.query_text,
                      "headers": request.headers, "json": None, "size": 0, "sha256": None, "status": None, "outcome": None, "duration": None}
            if len(self.records) < self.limit:
                self.records.append(record)
        request.record = record
        return record

    @staticmethod
    def end(request, answer, text):
        record = request.record
        record["json"] = request.body_json
        record["size"] = request.received
        record["sha256"] = request.sha256
        record["status"] = None if answer is None else answer.status
        record["outcome"] = text or "answered"
        record["duration"] = time.time() - record["time"]

    def clear(self):
        with self.lock:
            self.records = []

    def as_json(self, since):
        with self.lock:
            records = [record for record in self.records if record["n"] > since]
        shown = []
        for record in records:
            one = dict(record)
            one["query"] = dict(parse_qsl(one.pop("query_text"), keep_blank_values=True))
            shown.append(one)
        return shown


class Control:
    """The API below /_control/."""

    def __init__(self, project, faults, log, state):
        self.project = project
        self.faults = faults
        self.log = log
        self.state = state

    def handle(self, request):
        raw = request.read()
        try:
            body = json.loads(raw) if raw.strip() else {}
            return self._handle(request, request.path[len("/_control/"):], body)
        except (ValueError, TypeError, KeyError, re.error) as error:
            return json_answer(400, {"error": str(error)})

    def _handle(self, request, what, body):
        method = request.method
        if (method, what) == ("GET", "requests"):
            return json_answer(200, self.log.as_json(int(request.query.get("since", 0))))
        if (method, what) == ("DELETE", "requests"):
            self.log.clear()
            return Answer(204)
        if (method, what) == ("GET", "faults"):
            return json_answer(200, self.faults.as_json())
        if (method, what) == ("POST", "faults"):
            return json_answer(201, self.faults.add(body).as_json())
        if (method, what) == ("DELETE", "faults"):
            self.faults.clear()
            self._release()
            return Answer(204)
        if (method, what) == ("POST", "settings"):
            self.project.change_settings(body)
        if what == "settings" and method in ("GET", "POST"):
            return json_answer(200, self.project.settings)
        if (method, what) == ("GET", "state"):
            return json_answer(200, self.state({part for part in request.query.get("only", "").split(",") if part}))
        if method == "GET" and what.startswith("rows/"):
            return self._rows(request.segments()[-1])
        if (method, what) == ("POST", "reset"):
            self.faults.clear()
            self.project.reset()
            self.log.clear()
            return Answer(204)
        if (method, what) == ("POST", "expire"):
            return json_answer(200, {"expired": self._expire(body.get("file"))})
        return json_answer(404, {"error": "no such control: %s %s" % (method, what)})

    def _release(self):
        with self.project.lock:
            for job in self.project.jobs.values():
                job.hang = False
        self.project.runner.release()

    def _expire(self, file_id):
        """End the upload credentials of one file, or of all that were handed out so far."""
        count = 0
        with self.project.lock:
            for file in self.project.files.values():
                if file_id is None or file.id == int(file_id):
                    for credentials in file.write_credentials:
                        credentials.expires = 0
                        count += 1
        return count

    def _rows(self, table_id):
        with self.project.lock:
            table = self.project.find_table(table_id)
            if table is None:
                return json_answer(404, {"error": "no table %s" % table_id})
            return json_answer(200, {"columns": list(table.columns), "rows": table.row_list(), "rowsCount": table.rows_count,
                                     "kept": table.rows_kept, "sha256": table.sha256})
