"""Requests that wait, and the one thread that answers them in batches.

A batch holds requests that ask for the same settings, in the order in which they came, and is as large as what waits
when the model is free. Within it, `FlexModel.generate` groups rows by what their images were shortened to.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tokenflex.serving.server.asking import Ask
from tokenflex.serving.server.refusals import refusal_of

Run = Callable[[Sequence["Job"]], None]


class Job:
    """A request on its way.

    Attributes:
        gone: nobody waits for the answer any more.
        begun: something of the answer has been given out.
    """

    def __init__(self, ask: Ask) -> None:
        self.ask, self.gone, self.begun = ask, False, False
        self._loop, self._pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def tell(self, piece: Any) -> None:
        """Hand a piece of the answer, or the error it ends with, to who waits; from any thread."""
        self.begun = True
        with suppress(RuntimeError):  # the loop was closed: the server ends
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def piece(self) -> Any:
        """The next one.

        Raises:
            Exception: what the answer ended with.
        """
        piece = await self._pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        return piece


class Batcher:
    """Answers requests in batches, one batch at a time.

    Args:
        run: answers a batch in the worker's thread, telling every job its pieces.
        size: requests of a batch at most.
        wait: seconds to wait for more requests before a batch that isn't full.
        seen: called with the size of every batch.
    """

    def __init__(self, run: Run, size: int, wait: float, seen: Callable[[int], None] = lambda rows: None) -> None:
        self.run, self.size, self.wait, self.seen = run, size, wait, seen
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._arrived = asyncio.Condition()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenflex-serve")

    async def pieces(self, ask: Ask) -> AsyncIterator[Any]:
        """What the model tells of one request, until its reader stops."""
        job = Job(ask)
        try:
            async with self._arrived:
                self._waiting.append(job)
                self._arrived.notify_all()
            while True:
                yield await job.piece()
        finally:
            job.gone = True

    async def serve(self) -> None:
        """Answer requests, batch by batch, until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._running = await self._next()
                if self._running:
                    self.seen(len(self._running))
                    await loop.run_in_executor(self._pool, answer, self.run, self._running)
        finally:
            for job in (*self._running, *self._waiting):
                job.gone = True  # so that the worker's thread ends soon
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _next(self) -> list[Job]:
        async with self._arrived:
            await self._arrived.wait_for(lambda: self._waiting)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.wait):
                    await self._arrived.wait_for(lambda: len(self._fitting()) >= self.size)
            batch = self._fitting()
            self._waiting = deque(job for job in self._waiting if job not in batch and not job.gone)
            return batch

    def _fitting(self) -> list[Job]:
        """The first that waits, and others that go with it."""
        there = [job for job in self._waiting if not job.gone]
        return [job for job in there if job.ask.key == there[0].ask.key][: self.size]


def answer(run: Run, batch: Sequence[Job]) -> None:
    """Answer a batch; where it fails, one request after the other, so that only those fail that can't be answered."""
    try:
        run(batch)
    except Exception as error:  # of whatever kind: the server lives on
        if len(batch) > 1 and not any(job.begun for job in batch):
            for job in batch:
                answer(run, [job])
            return
        refusal = refusal_of(error)
        for job in batch:
            job.tell(refusal)
