"""Other processes that prepare rows: each is a plain Python that reads batches from a pipe and writes chunks into another.

In: a `Preparer` and batches. Out: chunks, in the order of the batches, at most a few of them at a time in memory. A worker
imports no torch and runs nothing of the caller's own script. What goes wrong names a row: what a worker reports, it
reports with the place, and a worker that dies (the system ran out of memory, say) has its rows tried again one by one.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

import orjson

from sapwood.chat import Chat
from sapwood.data.columns import Text
from sapwood.data.packed import PARTS, Chunk
from sapwood.data.preparing import Batch, Preparer
from sapwood.errors import DataError

ROWS_A_WORKER = 1500
"""Fewer rows are prepared faster than another process starts."""
MOST_WORKERS = 16
COMMAND = "from sapwood.data.workers import serve; serve()"
_LENGTH = struct.Struct(">Q")


def workers_for(rows: int) -> int:
    """Number of processes worth starting: 0 where this one does it as fast."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = min(cores, MOST_WORKERS, rows // ROWS_A_WORKER)
    return wanted if wanted > 1 else 0


def prepared_chunks(preparer: Preparer, batches: Iterable[Batch], workers: int) -> Iterator[Chunk]:
    """The chunks of all batches, in order. Raises `DataError` naming the row that a process failed at."""
    plan = preparer.chat.plan() if workers else None
    if plan is None:
        yield from map(preparer.chunk, batches)
        return
    columns = {field: [value.template] if isinstance(value, Text) else value for field, value in preparer.columns.items()}
    setting = orjson.dumps([plan.decode(), columns, preparer.cluster, preparer.chat.fingerprint])
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    started = [_Worker(setting) for _ in range(workers)]
    for worker in started:
        idle.put(worker)

    def work(batch: Batch) -> Chunk:
        worker = idle.get()
        try:
            return worker.chunk(batch)
        finally:
            idle.put(worker)

    waiting: deque[Future[Chunk]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="preparing")
    try:
        for batch in batches:
            waiting.append(pool.submit(work, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for worker in started:
            worker.stop()
        pool.shutdown()


class _Worker:
    """One process, and what to tell it when it is started again."""

    def __init__(self, setting: bytes) -> None:
        self._setting = setting
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def chunk(self, batch: Batch) -> Chunk:
        """A batch prepared over there. Raises `DataError` naming the row."""
        try:
            return self._ask(batch)
        except (BrokenPipeError, EOFError):
            died = self._end()
        _, file, number, _ = orjson.loads(batch[0])
        if self._stopped or len(batch) == 1:
            raise DataError(
                f"{file}:{number}: the process that prepared this row ended ({died}). A row too large for the memory does this: "
                "leave it out or shorten it, or free some memory."
            )
        for line in batch:  # the row that is to blame raises
            self.chunk([line])
        try:
            return self._ask(batch)  # none was: a passing want of memory
        except (BrokenPipeError, EOFError):
            raise DataError(
                f"{file}:{number}: the process that prepared this row and the {len(batch) - 1} behind it ended ({self._end()}), twice. "
                "Free some memory, and try again."
            ) from None

    def _ask(self, batch: Batch) -> Chunk:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        _send(process.stdin, b"\n".join(batch))  # JSON holds no line end
        head = orjson.loads(_receive(process.stdout))
        if "error" in head:
            raise DataError(head["error"])
        parts = {part: _exactly(process.stdout, head["sizes"][part]) for part in PARTS}
        return Chunk(parts, head["files"], head["examples"], head["refused"])

    def _start(self) -> subprocess.Popen[bytes]:
        if self._stopped:
            raise EOFError
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", COMMAND]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdin is not None
        _send(self._process.stdin, self._setting)
        return self._process

    def _end(self) -> str:
        """Wait for the process that broke off; how it ended, in words."""
        process, self._process = self._process, None
        if process is None:
            return "it could not be started"
        _close(process)
        code = process.wait()
        return f"by signal {-code}" if code < 0 else f"with exit status {code}"

    def stop(self) -> None:
        """End the process, in the middle of its work if it has any."""
        self._stopped = True
        process = self._process
        if process is not None:
            process.kill()
            process.wait()
            _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe is not None:
                pipe.close()
        except BrokenPipeError:  # what was not yet sent has nobody to read it
            pass


def serve() -> None:
    """The worker: settings, then batches from standard input, chunks to standard output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the process that started this one
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not end up among the chunks
    plan, columns, cluster, fingerprint = orjson.loads(_receive(source))
    chat = Chat.planned(plan.encode())
    assert chat.fingerprint == fingerprint, "a worker's chat is not the one that was planned"
    named = {field: Text(value[0]) if isinstance(value, list) else value for field, value in columns.items()}
    gc.freeze()
    gc.set_threshold(200_000)  # rows are lists of numbers: looking through them for cycles finds none
    preparer = Preparer(chat, named, cluster)
    while True:
        try:
            batch = _receive(source)
        except EOFError:
            return
        try:
            chunk = preparer.chunk(batch.split(b"\n"))
        except DataError as error:
            _send(sink, orjson.dumps({"error": str(error)}))
            continue
        sizes = {part: len(data) for part, data in chunk.parts.items()}
        _send(sink, orjson.dumps({"sizes": sizes, "files": chunk.files, "examples": chunk.examples, "refused": chunk.refused}))
        for part in PARTS:
            sink.write(chunk.parts[part])
        sink.flush()


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return _exactly(pipe, length)


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data
