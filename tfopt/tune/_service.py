"""Chief and workers: one process asks the oracle, others train; a trial is lent, not given.

A worker says every few seconds that it lives. If it falls silent, its lease runs out and the trial goes to the next
worker that asks, which goes on from the checkpoint. A worker whose chief has not answered for a lease stops by itself,
so that two never train one trial. KerasTuner's own service knows neither leases nor why a trial failed; its environment
variables are kept: KERASTUNER_TUNER_ID (chief, or the worker's name), KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT.
"""

import collections
import concurrent.futures
import contextlib
import json
import os
import threading
import time

import grpc

from .._check import require
from ._oracles import space_config
from ._trial import LostError

LEASE = 15.                 # seconds of silence after which a trial is another's
PATIENCE = 60.              # seconds without any worker after which the chief gives up
START = 600.                # seconds for the first worker, or for the chief, to appear
METHOD = "/tfopt.tune/call"


def role():
    """("chief" or the worker's name, address), or None outside of a distributed search."""
    names = "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
    given = {name: os.environ.get(name) for name in names}
    if not any(given.values()):
        return None
    require(all(given.values()), "a distributed search needs three environment variables", **given,
            do="Set all of them, or start it with `python -m tfopt.distribute --search N script.py`.")
    identity, host, port = given.values()
    return identity, f"{host}:{port}"


class Chief:
    """Who trains what: the leases over a study. All times come from `clock`."""

    def __init__(self, study, lease=None, clock=time.monotonic):
        self.study, self.lease, self.clock = study, lease or LEASE, clock
        self.lent, self.losses, self.seen, self.lock = {}, collections.Counter(), {}, threading.RLock()
        self.began, self.told_to_stop, self.error = clock(), set(), None

    def ask(self, worker):
        """{"job": ...}, {"wait": True} or {"stop": True}."""
        trial = next((n for n, (who, _) in self.lent.items() if who == worker), None)
        if trial is None:
            trial = next(iter(self.expired()), None)
        if trial is None:
            found = self.study.next()
            if found is None and not self.lent:
                self.told_to_stop.add(worker)
                return {"stop": True}
            if found is None or found == "wait":
                return {"wait": True}
            trial = found.number
        self.lent[trial] = worker, self.clock() + self.lease
        return {"job": job_of(self.study, trial), "lease": self.lease}

    def beat(self, worker, number):
        """Prolongs a lease; False if it is another's."""
        if self.lent.get(number, (None,))[0] != worker:
            return {"yours": False}
        self.lent[number] = worker, self.clock() + self.lease
        return {"yours": True}

    def tell(self, worker, number, result):
        """The result of a trial, from whoever holds it."""
        if self.lent.get(number, (None,))[0] == worker:
            del self.lent[number]
            self.study.end(number, result)
        return {}

    def expired(self):
        """Trials whose workers fell silent. One that took three workers with it has failed."""
        late = [number for number, (_, until) in self.lent.items() if until < self.clock()]
        for number in late:
            self.losses[number] += 1
            if self.losses[number] == 3:
                self.drop(number, "three workers fell silent on it (out of memory?)")
        return [number for number in late if number in self.lent]

    def drop(self, number, message):
        """A trial fails because its process died."""
        del self.lent[number]
        self.study.end(number, {"status": "failed", "message": message})

    def held_by(self, worker):
        return [number for number, (who, _) in self.lent.items() if who == worker]

    def over(self):
        """Has everybody who may still ask been told to stop. Raises if nobody is left to do the work."""
        now = self.clock()
        quiet = now - max(self.seen.values(), default=self.began)
        if self.study.exhausted and not self.study.running:
            return all(worker in self.told_to_stop or now - last > self.lease for worker, last in self.seen.items())
        require(quiet < (PATIENCE if self.seen else START), "a search needs a worker, and none has been heard of",
                seconds=round(quiet), trials=f"{self.study.counted} of {self.study.max_trials}",
                do="Start chief and workers again: the study goes on where it is.", error=RuntimeError)
        return False

    def answer(self, request, context=None):
        """One call, as bytes in and bytes out."""
        call = json.loads(request)
        with self.lock:
            if call.pop("study") != self.study.oracle.study_seed:
                return json.dumps({"refused": "the worker's search has another seed than the chief's"}).encode()
            self.seen[call["worker"]] = self.clock()
            try:
                return json.dumps(getattr(self, call.pop("what"))(**call)).encode()
            except Exception as error:                               # the record or the oracle: the chief must know
                self.error = error
                raise


def job_of(study, number):
    """What a trial needs to know, as JSON."""
    return {"number": number, "values": study.trials[number].values, "best_folds": study.best_folds(),
            "space": space_config(study.oracle.hyperparameters)}


@contextlib.contextmanager
def serving(chief, address):
    """Answers calls at `address` ("host:0" chooses a port); gives the port."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(chief.answer)
    service, method = METHOD.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    require(port, "the chief needs a free port", address=address, do="Set KERASTUNER_ORACLE_PORT to another one.",
            error=RuntimeError)
    server.start()
    try:
        yield port
    finally:
        server.stop(1).wait()


def wait_for_workers(chief):
    """Returns when the study is done and the workers know it."""
    while True:
        with chief.lock:
            if chief.error:
                raise chief.error
            if chief.over():
                return
        time.sleep(0.1)


class Client:
    """A worker's line to the chief."""

    def __init__(self, address, worker, seed):
        self.worker, self.seed = worker, seed
        self.call_bytes = grpc.insecure_channel(address).unary_unary(METHOD)

    def call(self, what, *, timeout, **arguments):
        request = {"what": what, "worker": self.worker, "study": self.seed, **arguments}
        try:
            answer = json.loads(self.call_bytes(json.dumps(request).encode(), timeout=timeout, wait_for_ready=True))
        except grpc.RpcError as error:
            raise ConnectionError(f"The chief of the search does not answer ({error.code().name}).") from error
        require("refused" not in answer, "a worker must belong to its chief's study", reason=answer.get("refused"))
        return answer


class Heart:
    """Beats while a trial runs, in a thread of its own; `check` raises `LostError` when the lease is gone."""

    def __init__(self, client, number, lease, clock=time.monotonic):
        self.client, self.number, self.lease, self.clock = client, number, lease, clock
        self.last, self.yours, self.stop = clock(), True, threading.Event()

    def check(self):
        if not self.yours or self.clock() - self.last > self.lease:
            raise LostError

    def beat(self):
        asked = self.clock()
        with contextlib.suppress(ConnectionError):
            self.yours = self.client.call("beat", number=self.number, timeout=self.lease / 3)["yours"]
            self.last = asked

    def __enter__(self):
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def _run(self):
        while not self.stop.wait(self.lease / 5) and self.yours:
            self.beat()


def work(client, run, only_one=False):
    """Trains what the chief lends until it says stop. `run(job, alive) -> result`."""
    patience = START
    while True:
        answer = client.call("ask", timeout=patience)
        patience = PATIENCE
        if "stop" in answer:
            return
        if "wait" in answer:
            time.sleep(0.2)
            continue
        number = answer["job"]["number"]
        try:
            with Heart(client, number, answer["lease"]) as heart:
                result = run(answer["job"], heart.check)
            client.call("tell", number=number, result=result, timeout=PATIENCE)
        except LostError:
            continue
        if only_one:
            return

