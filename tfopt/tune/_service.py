"""Chief and workers: one process asks the oracle, others train; a trial is lent, not given.

A worker sends a heartbeat every few seconds. If it falls silent, its lease runs out and the trial goes to the next
worker that asks, which goes on from the checkpoint. A worker whose chief has been silent for a lease stops by itself,
so that two never train one trial. KerasTuner's own service knows neither leases nor why a trial failed; its environment
variables are kept: KERASTUNER_TUNER_ID (chief, or the worker's name), KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT.

Who may call: the chief makes a random token, which its workers find in the environment (TFOPT_TUNE_TOKEN) or in a file
of the study's directory that only its owner can read. A call without it, of an unknown method, or with arguments that
do not fit is refused to its caller and changes nothing. Calls are not encrypted: use a trusted network.
"""

import collections
import concurrent.futures
import contextlib
import hmac
import json
import os
import pathlib
import secrets
import threading
import time

import grpc

from .. import _files
from .._check import require
from . import _oracles
from ._study import RESULT, STATUSES
from ._trial import LostError, StorageError

LEASE = 15.                 # seconds of silence after which a trial is another's
PATIENCE = 60.              # seconds without any worker after which the chief gives up
START = 600.                # seconds for the first worker, or for the chief, to appear
METHOD = "/tfopt.tune/call"
METHODS = {"ask": (), "beat": ("number",), "tell": ("number", "result"), "halt": ("reason",)}
TOKEN = "TFOPT_TUNE_TOKEN"
WRONG_TOKEN = "the token is not the one this chief made"


class RefusedError(Exception):
    """A call that is refused with its reason and changes nothing."""


def role():
    """("chief" or the worker's name, address), or None outside of a distributed search."""
    names = "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
    given = {name: os.environ.get(name) for name in names}
    if not any(given.values()):
        return None
    given["KERASTUNER_ORACLE_IP"] = given["KERASTUNER_ORACLE_IP"] or "127.0.0.1"
    require(all(given.values()), "a distributed search needs KERASTUNER_TUNER_ID and KERASTUNER_ORACLE_PORT", **given,
            do="Set both, or start it with `python -m tfopt.distribute --search N script.py`.")
    identity, host, port = given.values()
    return identity, f"{host}:{port}"


def token_in(directory):
    """The token for the study in a directory: of the environment, or of the file that the chief made."""
    with contextlib.suppress(OSError):
        return os.environ.get(TOKEN) or pathlib.Path(directory, "token").read_text()
    return ""


@contextlib.contextmanager
def token_file(directory):
    """Makes the token, and puts it where workers on machines that share the directory find it."""
    token, path = os.environ.get(TOKEN) or secrets.token_urlsafe(32), pathlib.Path(directory, "token")
    with _files.whole(path) as part:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        part.write_text(token)
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


class Chief:
    """Who trains what: the leases over a study. All times come from `clock`."""

    def __init__(self, study, token, lease=None, clock=time.monotonic):
        self.study, self.token, self.lease, self.clock = study, token, lease or LEASE, clock
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

    def halt(self, worker, reason):
        """A worker met what is no fault of its trial: the search stops."""
        self.error = StorageError(f"{worker}: {reason}")
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

    def reply(self, request, context=None):
        """One call, as bytes in and bytes out."""
        try:
            what, worker, arguments = self._checked(request)
        except RefusedError as error:
            return json.dumps({"refused": str(error)}).encode()
        with self.lock:
            if self.error:
                return json.dumps({"refused": f"the search has stopped: {self.error}"}).encode()
            self.seen[worker] = self.clock()
            try:
                return json.dumps(getattr(self, what)(worker, **arguments)).encode()
            except Exception as error:                               # the record or the oracle: the chief must know
                self.error = error
                return json.dumps({"refused": f"the search has stopped: {error}"}).encode()

    def _checked(self, request):
        """(method, worker, arguments) of a call that may be made."""
        try:
            call = json.loads(request, parse_constant=_refuse_constant)
            token, study, what, worker = (call.pop(key) for key in ("token", "study", "what", "worker"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise RefusedError("a call is a JSON object with token, study, what, worker and arguments") from None
        if not isinstance(token, str) or not hmac.compare_digest(token.encode(), self.token.encode()):
            raise RefusedError(WRONG_TOKEN)
        if study != self.study.oracle.study_seed:
            raise RefusedError("the worker's search has another seed than the chief's")
        if not isinstance(what, str) or what not in METHODS or set(call) != set(METHODS[what]):
            raise RefusedError(f"there is no method {what!r} with the arguments {sorted(call)}")
        if not isinstance(worker, str) or not 0 < len(worker) <= 200:
            raise RefusedError("a worker's name is a text of 1 to 200 characters")
        if "number" in call and (type(call["number"]) is not int or call["number"] not in self.study.trials):
            raise RefusedError(f"there is no trial {call['number']!r}")
        if "result" in call:
            self._require_result(call["result"])
        if not isinstance(call.get("reason", ""), str):
            raise RefusedError("a reason is a text")
        return what, worker, call

    def _require_result(self, result):
        """Refuses a result that the record could not hold or the oracle not be told."""
        if not isinstance(result, dict) or not all(name in RESULT and isinstance(value, RESULT[name])
                                                   for name, value in result.items()):
            raise RefusedError("a result has other fields than a trial's")
        if result.get("status") not in STATUSES:
            raise RefusedError(f"a status is one of {', '.join(STATUSES)}")
        scores = result.get("scores", {})
        if result["status"] in ("completed", "stopped") and set(scores) != set(self.study.objectives):
            raise RefusedError(f"scores are those of {', '.join(self.study.objectives)}")
        numbers = [*scores.values(), *result.get("spread", {}).values(), *result.get("curve", ())]
        if not all(type(number) in (int, float) for number in numbers):
            raise RefusedError("scores are numbers")
        try:
            _oracles.space_from(result.get("space", []))
        except Exception:                                            # of KerasTuner, on what is no hyper-parameter
            raise RefusedError("a space is a list of hyper-parameters") from None


def _refuse_constant(name):
    raise ValueError(f"{name} is no JSON")


def job_of(study, number):
    """What a trial needs to know, as JSON."""
    return {"number": number, "values": study.trials[number].values, "best_folds": study.best_folds(),
            "curves": study.curves(),
            "space": _oracles.space_config(study.oracle.hyperparameters)}


@contextlib.contextmanager
def serving(chief, address):
    """Serves calls at `address` ("host:0" chooses a port); gives the port."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(chief.reply)
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
    """A worker's line to the chief.

    Args:
      address: "host:port".
      worker: its name.
      seed: of the study.
      token: `() -> text`, asked again when it is refused: the chief may have been started anew.
    """

    def __init__(self, address, worker, seed, token):
        self.worker, self.seed, self.token = worker, seed, token
        self.call_bytes = grpc.insecure_channel(address).unary_unary(METHOD)

    def call(self, what, *, timeout, **arguments):
        token = self.token()
        reply = self._send(timeout, what=what, token=token, **arguments)
        if reply.get("refused") == WRONG_TOKEN and (newer := self.token()) != token:
            reply = self._send(timeout, what=what, token=newer, **arguments)
        if "refused" in reply:
            raise ConnectionError(f"The chief of the search refuses {self.worker}: {reply['refused']}.")
        return reply

    def _send(self, timeout, **request):
        request = json.dumps({"worker": self.worker, "study": self.seed, **request}).encode()
        try:
            return json.loads(self.call_bytes(request, timeout=timeout, wait_for_ready=True))
        except grpc.RpcError as error:
            raise ConnectionError(f"The chief of the search cannot be reached ({error.code().name}).") from error


class Heartbeat:
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
        reply = client.call("ask", timeout=patience)
        patience = PATIENCE
        if "stop" in reply:
            return
        if "wait" in reply:
            time.sleep(0.2)
            continue
        number = reply["job"]["number"]
        try:
            with Heartbeat(client, number, reply["lease"]) as heart:
                result = run(reply["job"], heart.check)
            client.call("tell", number=number, result=result, timeout=PATIENCE)
        except LostError:
            continue
        except StorageError as error:
            client.call("halt", reason=str(error), timeout=PATIENCE)
            raise
        if only_one:
            return

