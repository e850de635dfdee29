"""Starts the processes of one training or one search, shows what they print, and ends them together.

    python -m tfopt.distribute --workers 2 train.py --epochs 5     two processes of one training, on this machine
    python -m tfopt.distribute --hosts a,b:3000 train.py           prints what to run on each machine
    python -m tfopt.distribute --search 2 search.py                KerasTuner's chief and two workers

Loads no TensorFlow: this process only watches.
"""

import argparse
import contextlib
import ipaddress
import json
import os
import queue
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading

SEARCH_GRACE = 60                                          # seconds for the workers of a search whose chief has ended
ERROR = re.compile(r"[\w.]*(Error|Exception|Exit|Interrupt)\b")     # the last line of a traceback, or its first if more
LOOPBACK = "127.0.0.1"
PORTS = 20_000, 32_000                                     # below those that systems hand out by themselves


def main(arguments=None):
    """Runs the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    command = [options.script, *options.arguments]
    if options.hosts:
        _write(sys.stdout, _commands(options.hosts, options.port, command))
        return 0
    if options.workers and (reached := _addresses()):
        _say(f"TensorFlow's servers listen on all interfaces, here also {', '.join(reached)}. Whoever reaches their "
             "ports reads and writes files as you: block them by a firewall, run in a network namespace, or use a "
             "trusted network only (docs/distribute.md, Security).")
    signal.signal(signal.SIGTERM, _terminated)
    run = _search if options.search else _train
    try:
        return run(options.search or options.workers, [sys.executable, *command])
    except KeyboardInterrupt:
        _say("Interrupted. All processes were ended.")
        return 128 + signal.SIGINT


def _parser():
    parser = argparse.ArgumentParser("python -m tfopt.distribute", allow_abbrev=False,
                                     description=__doc__.split("\n")[0], epilog=__doc__[__doc__.index("\n"):],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--workers", type=_count, metavar="N", help="train with N processes on this machine")
    kind.add_argument("--hosts", type=_hosts, metavar="A,B", help="print what to run on each machine, chief first")
    kind.add_argument("--search", type=_count, metavar="N", help="search with KerasTuner: a chief and N workers")
    parser.add_argument("--port", type=int, default=2222, help="of hosts that name none (%(default)s)")
    parser.add_argument("script", help="Python file that each process runs")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the script gets")
    return parser


def _count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1. Received: {text!r}.")
    return int(text)


def _hosts(text):
    hosts = [host.strip() for host in text.split(",")]
    if not all(hosts) or len(set(hosts)) < len(hosts):
        raise argparse.ArgumentTypeError(f"must be different names, separated by commas. Received: {text!r}.")
    return hosts


def _terminated(number, frame):
    raise SystemExit(128 + number)


def cluster(addresses, index):
    """The TF_CONFIG of one worker."""
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})


def _commands(hosts, port, command):
    addresses = [host if ":" in host else f"{host}:{port}" for host in hosts]
    return "".join(f"# on {host}\nTF_CONFIG={shlex.quote(cluster(addresses, index))} "
                   f"python {shlex.join(command)}\n" for index, host in enumerate(hosts))


def _addresses():
    """This machine's addresses that others may reach, as far as they can be told without a packet."""
    found = set()
    with contextlib.suppress(OSError):
        found |= {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):      # for documentation
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))                  # only chooses the interface
            found.add(probe.getsockname()[0])
    return sorted(address for address in found if not ipaddress.ip_address(address.split("%")[0]).is_loopback)


def _ports(count):
    """Free ports, from a range where no connection takes them in between."""
    with contextlib.ExitStack() as stack:
        found = []
        while len(found) < count:
            one, port = stack.enter_context(socket.socket()), random.randrange(*PORTS)
            with contextlib.suppress(OSError):
                one.bind((LOOPBACK, port))
                found.append(port)
    return found


def _train(count, command):
    """One training: all workers end well, or the first that does not ends them all."""
    addresses = [f"{LOOPBACK}:{port}" for port in _ports(count)]
    with _Processes() as processes:
        for index in range(count):
            processes.start(f"worker {index}", command, TF_CONFIG=cluster(addresses, index))
        for _ in range(count):
            ended = processes.next()
            if ended.code:
                _say(f"{ended}. The other workers were ended with it.")
                return ended.code
    return 0


def _search(count, command):
    """One search: it lasts as long as its chief, and goes on while a worker is left."""
    shared = {"KERASTUNER_ORACLE_IP": LOOPBACK, "KERASTUNER_ORACLE_PORT": str(_ports(1)[0])}
    with _Processes() as processes:
        chief = processes.start("chief", command, KERASTUNER_TUNER_ID="chief", **shared)
        for index in range(count):
            processes.start(f"tuner{index}", command, KERASTUNER_TUNER_ID=f"tuner{index}", **shared)
        well, left = 0, count
        while (ended := processes.next()) is not chief:
            left, well = left - 1, well + (not ended.code)
            if ended.code:
                _say(f"{ended}. {left} of {count} workers go on.")
            if not left and not well:
                _say("No worker is left to finish the search, so the chief was ended too.")
                return ended.code
        if chief.code:
            _say(f"{chief}. The workers were ended with it.")
        else:
            processes.wait(SEARCH_GRACE)
    return chief.code


class _Processes:
    """Processes in groups of their own; on leaving, none of them is left.

    They are ended with SIGKILL: TensorFlow's servers swallow SIGTERM.
    """

    def __enter__(self):
        self.all, self.ended = [], queue.SimpleQueue()
        return self

    def __exit__(self, *_):
        for process in self.all:
            process.kill()

    def start(self, name, command, **environment):
        process = _Process(name, command, environment, self.ended)
        self.all.append(process)
        return process

    def next(self):
        """Waits for the next process that ends."""
        return self.ended.get()

    def wait(self, seconds):
        """Waits for all that are left, or so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in self.all:
                process.popen.wait(seconds)


class _Process:
    """One process whose lines come out with its name in front."""

    def __init__(self, name, command, environment, ended):
        self.name, self.error = name, None
        own = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
        self.popen = subprocess.Popen(
            command, env={**own, "PYTHONUNBUFFERED": "1", **environment}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True)
        pairs = (self.popen.stdout, sys.stdout), (self.popen.stderr, sys.stderr)
        self.readers = [threading.Thread(target=self._pass_on, args=pair, daemon=True) for pair in pairs]
        self.watcher = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        for thread in (*self.readers, self.watcher):
            thread.start()

    def _pass_on(self, source, target):
        for line in source:
            if target is sys.stderr and ERROR.match(line):
                self.error = line.strip()
            _write(target, f"[{self.name}] {line.rstrip()}\n")

    def _watch(self, ended):
        self.popen.wait()
        for reader in self.readers:
            reader.join(timeout=5)                         # a process it left behind may hold the pipe
        ended.put(self)

    @property
    def code(self):
        """Its exit code as a shell gives it: 128 + the number of a signal."""
        code = self.popen.returncode
        return 128 - code if code < 0 else code

    def __str__(self):
        if self.popen.returncode < 0:
            return f"{self.name} was ended by {signal.Signals(-self.popen.returncode).name}"
        told = f": {self.error}" if self.error else ""
        return f"{self.name} ended with exit code {self.code}{told}".rstrip(".")

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.watcher.join()


_writing = threading.Lock()


def _write(target, text):
    with _writing, contextlib.suppress(BrokenPipeError):
        target.write(text)
        target.flush()


def _say(text):
    _write(sys.stderr, f"tfopt.distribute: {text}\n")
