"""Decoding, network and drawing beside each other, in order."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor


_BATCHES_AHEAD = 2


def in_stages(items, decode, compute, finish, batch_size, workers):
    """
    At most a few batches are decoded ahead of the network, and finished behind it.

    Args:
        items (iterable): what is decoded, one after the other.
        decode (callable): an item to what the network computes on, or to an error as `str`; in threads.
        compute (callable): a list of what is decoded to as many answers; in the caller's thread.
        finish (callable): an item, what was decoded and the answer to a function without arguments. It is called in
            order, in the caller's thread, and what it returns in threads.
        batch_size (`int`): items per call of `compute`.
        workers (`int`): threads.

    Yields:
        `tuple`: an item, its error or `None`, and what its function returned, in the order of the items.
    """
    with ThreadPoolExecutor(workers) as pool:
        ahead, behind = deque(), deque()

        def compute_next(count):
            waiting = [ahead.popleft() for _ in range(count)]
            decoded = [future.result() for _, future in waiting]
            good = [each for each in decoded if not isinstance(each, str)]
            answers = iter(compute(good) if good else [])
            for (item, _), each in zip(waiting, decoded):
                if isinstance(each, str):
                    behind.append((item, each, pool.submit(lambda: None)))
                else:
                    behind.append((item, None, pool.submit(finish(item, each, next(answers)))))

        def finished():
            item, error, future = behind.popleft()
            return item, error, future.result()

        for item in items:
            ahead.append((item, pool.submit(decode, item)))
            if len(ahead) == batch_size * _BATCHES_AHEAD:
                compute_next(batch_size)
            while len(behind) > batch_size * _BATCHES_AHEAD:
                yield finished()
        while ahead:
            compute_next(min(batch_size, len(ahead)))
        while behind:
            yield finished()
