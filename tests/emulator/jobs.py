"""Jobs that take time: waiting, processing, then success or error; one at a time for each table."""
import heapq
import itertools
import threading
import time


class JobError(Exception):
    """The job ends in error with this CODE and MESSAGE; RESULTS as the service puts them beside."""

    def __init__(self, code, message, results=None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.results = results


class Job:
    def __init__(self, job_id, operation, key, table_id, params, token, run_id, created):
        self.id = job_id
        self.operation = operation
        self.key = key  # jobs of one key run one after the other
        self.table_id = table_id  # as the API shows it: None for a create
        self.target = table_id  # the table it is about
        self.params = params  # operationParams
        self.token = token
        self.run_id = run_id
        self.created = created
        self.status = "waiting"
        self.started = None
        self.ended = None
        self.results = None
        self.error = None
        self.in_bytes = 0
        self.work = None  # work(job) -> results; raises JobError
        self.seconds = 0.0
        self.forced_error = None  # scripted: {"code", "message", "results"}
        self.hang = False  # scripted: never ends

    @property
    def is_load(self):
        return self.operation in ("tableCreate", "tableImport")


class JobRunner:
    """Threads that run jobs. A job waits until its time has come and no other of its key runs."""

    def __init__(self, project):
        self.project = project
        self.changed = threading.Condition()
        self.due = []  # heap of (time, number, job)
        self.parked = {}  # key -> jobs that wait for the one of their key that runs
        self.busy = set()
        self.numbers = itertools.count()
        self.stopping = False
        self.generation = 0
        self.threads = 0
        self.wanted = 10

    def set_parallelism(self, wanted):
        with self.changed:
            self.wanted = max(1, wanted)
            self.changed.notify_all()

    def submit(self, job):
        with self.changed:
            heapq.heappush(self.due, (time.monotonic() + job.seconds / 3, next(self.numbers), job))
            if self.threads < self.wanted:
                self.threads += 1
                threading.Thread(target=self._run, name="jobs", daemon=True).start()
            self.changed.notify()

    def cancel(self):
        """Forget what waits; what runs ends without effect on anything new."""
        with self.changed:
            self.generation += 1
            self.due, self.parked, self.busy = [], {}, set()
            self.changed.notify_all()

    def stop(self):
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    def release(self):
        """Let jobs go on that a fault let hang."""
        with self.changed:
            self.changed.notify_all()

    def idle(self):
        with self.changed:
            return not self.due and not self.parked and not self.busy

    def _next(self):
        """The next job to run, or None when this thread should end. Called with the lock held."""
        while not self.stopping and self.threads <= self.wanted:
            if not self.due:
                self.changed.wait()
                continue
            wait = self.due[0][0] - time.monotonic()
            if wait > 0:
                self.changed.wait(wait)
                continue
            job = heapq.heappop(self.due)[2]
            if job.key in self.busy:
                self.parked.setdefault(job.key, []).append(job)
                continue
            self.busy.add(job.key)
            return job
        return None

    def _sleep(self, job, generation):
        """The time that JOB takes; False when it is forgotten meanwhile. Called with the lock held."""
        end = time.monotonic() + job.seconds * 2 / 3
        while not self.stopping and generation == self.generation:
            left = end - time.monotonic()
            if job.hang:
                self.changed.wait()
            elif left <= 0:
                return True
            else:
                self.changed.wait(left)
        return False

    def _run(self):
        while True:
            with self.changed:
                job = self._next()
                if job is None:
                    self.threads -= 1
                    return
                generation = self.generation
            self._perform(job, generation)
            with self.changed:
                if generation == self.generation:
                    self.busy.discard(job.key)
                    waiting = self.parked.get(job.key)
                    if waiting:
                        heapq.heappush(self.due, (time.monotonic(), next(self.numbers), waiting.pop(0)))
                        if not waiting:
                            del self.parked[job.key]
                    self.changed.notify()

    def _perform(self, job, generation):
        project = self.project
        with project.lock:
            job.status = "processing"
            job.started = project.now()
        if job.seconds > 0 or job.hang:
            with self.changed:
                if not self._sleep(job, generation):
                    return
        results, error = None, None
        try:
            if job.forced_error is not None:
                raise JobError(job.forced_error.get("code"), job.forced_error.get("message"), job.forced_error.get("results"))
            results = job.work(job)
        except JobError as failed:
            results, error = failed.results, {"code": failed.code, "message": failed.message}
        except Exception as bug:  # whoever waits for the job must get an end, and must see that it is our fault
            import traceback
            traceback.print_exc()
            error = {"code": "", "message": "Internal Server Error: the emulator failed: %r" % bug}
        with project.lock:
            if generation != self.generation:
                return
            job.results = results
            job.ended = project.now()
            if error is not None:
                job.error = {**error, "exceptionId": project.exception_id(), "contextParams": None, "uuid": None}
            if job.is_load:
                project.count_load(job.target, "finished")
                project.count_load(job.target, "failed" if error else "succeeded")
            job.work = None
            job.status = "error" if error else "success"  # last: who sees a final status sees the rest
