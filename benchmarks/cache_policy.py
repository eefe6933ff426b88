"""Hit ratios of the cache's policy and of others, on synthetic traces: which to choose, and that it is not worse than LRU.

Sizes are those of templates and ISOs, from 10 MB to 20 GB; a cache holds a share of all bytes that a trace touches. Everything
is drawn from a seed, so that the figures are exact and the same everywhere. `benchmarks.cache_policy` runs in half a minute.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from benchmarks.harness import WIDTH, Verdict, at_least, conclude
from stores.cache import policy
from stores.cache.policy import Candidate, Comparison, Ghost, PoolState, Queue

REQUESTS = 20_000
SHARES = (0.01, 0.03, 0.1, 0.3)
SMALLEST = 20_000  # MB: a cache holds at least the largest object
Trace = list[int]  # objects, in the order of their requests


# ------------------------------------------------------------------------------------------------------- traces


def popular(rng: random.Random, count: int, objects: int, exponent: float = 0.9) -> Trace:
    """A fixed popularity by Zipf's law, in no order."""
    names = rng.sample(range(objects), objects)
    return rng.choices(
        names, cum_weights=list(accumulate(1 / (rank + 1) ** exponent for rank in range(objects))), k=count
    )


def zipf(rng: random.Random) -> Trace:
    """Templates that are deployed again and again."""
    return popular(rng, REQUESTS, 2000)


def scan_heavy(rng: random.Random) -> Trace:
    """Every other stretch is a scan of objects that nobody wants again: a migration, a round of restores."""
    daily, found, fresh = iter(popular(rng, REQUESTS, 2000)), list[int](), 2000
    while len(found) < REQUESTS:
        found += [next(daily) for _ in range(400)]
        found += range(fresh, fresh + 400)
        fresh += 400
    return found[:REQUESTS]


def drifting(rng: random.Random) -> Trace:
    """New versions replace old ones: the popular ones are others every hour."""
    return [turn * 3000 // REQUESTS + rank for turn, rank in enumerate(sorted_ranks(rng, 400))]


def sorted_ranks(rng: random.Random, objects: int) -> Trace:
    weights = list(accumulate(1 / (rank + 1) ** 0.9 for rank in range(objects)))
    return rng.choices(range(objects), cum_weights=weights, k=REQUESTS)


def phases(rng: random.Random) -> Trace:
    """All at once, others are popular: ten times."""
    return [name for _ in range(10) for name in popular(rng, REQUESTS // 10, 1000)]


def loop(rng: random.Random) -> Trace:
    """Round and round through more than the cache holds, between requests for what is popular."""
    daily = popular(rng, REQUESTS, 500)
    return [name if turn % 2 else 500 + turn // 2 % 600 for turn, name in enumerate(daily)]


def recency(rng: random.Random) -> Trace:
    """What was used last is wanted next, whatever it is: LRU's own model, by stack distances of a power law."""
    stack, found = list(range(3000)), []
    for _ in range(REQUESTS):
        name = stack.pop(min(2999, int(rng.paretovariate(0.6)) - 1))
        stack.insert(0, name)
        found.append(name)
    return found


def recency_of_new(rng: random.Random) -> Trace:
    """The same with short distances, and a new object in ten."""
    stack, found = list[int](), list[int]()
    for _ in range(REQUESTS):
        known = bool(stack) and rng.random() >= 0.1
        chosen = stack.pop(min(len(stack) - 1, int(rng.expovariate(1 / 60)))) if known else len(found)
        stack.insert(0, chosen)
        del stack[2000:]
        found.append(chosen)
    return found


def mixed(rng: random.Random) -> Trace:
    """A host's day: templates, ISOs that are attached a few times in a row, and restores that are read once."""
    templates, found, fresh = iter(popular(rng, REQUESTS, 300, 1.0)), list[int](), 300
    again: list[tuple[int, int]] = []
    while len(found) < REQUESTS:
        while again and again[0][0] <= len(found):
            found.append(heappop(again)[1])
        kind = rng.random()
        if kind < 0.7:
            found.append(next(templates))
            continue
        found.append(fresh)
        if kind < 0.85:
            for _ in range(rng.randint(0, 3)):
                heappush(again, (len(found) + rng.randint(5, 200), fresh))
        fresh += 1
    return found[:REQUESTS]


def boot_storms(rng: random.Random) -> Trace:
    """Many guests of one template start together, several times a day."""
    names, found = iter(popular(rng, 4 * REQUESTS, 1000, 0.8)), list[int]()
    while len(found) < REQUESTS:
        name = next(names)
        if rng.random() >= 0.15:
            found.append(name)
            continue
        guests = rng.randint(10, 60)
        storm = [name] * guests + [next(names) for _ in range(guests // 4)]
        rng.shuffle(storm)
        found += storm
    return found[:REQUESTS]


def used_twice(rng: random.Random) -> Trace:
    """Half of all objects are used exactly twice, soon after each other: the worst for "used again is worth keeping"."""
    daily, found, fresh = iter(popular(rng, REQUESTS, 500)), list[int](), 500
    again: deque[tuple[int, int]] = deque()
    while len(found) < REQUESTS:
        if again and again[0][0] <= len(found):
            found.append(again.popleft()[1])
        elif rng.random() < 0.5:
            found.append(next(daily))
        else:
            found.append(fresh)
            again.append((len(found) + 100, fresh))
            fresh += 1
    return found


TRACES: Sequence[Callable[[random.Random], Trace]] = (
    zipf,
    scan_heavy,
    drifting,
    phases,
    loop,
    recency,
    recency_of_new,
    mixed,
    boot_storms,
    used_twice,
)


def sizes_of(rng: random.Random, trace: Trace) -> Mapping[int, int]:
    """MB of each object: log-normal around 700."""
    return {name: max(10, min(SMALLEST, int(rng.lognormvariate(math.log(700), 1.0)))) for name in sorted(set(trace))}


# ----------------------------------------------------------------------------------------------------- policies


class Cache(Protocol):
    def use(self, name: int, size: int) -> bool:
        """Whether it was there; it is afterwards."""
        ...


class Lru:
    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.kept = limit, 0, OrderedDict[int, int]()

    def use(self, name: int, size: int) -> bool:
        if name in self.kept:
            self.kept.move_to_end(name)
            return True
        while self.used + size > self.limit:
            self.used -= self.kept.popitem(last=False)[1]
        self.kept[name] = size
        self.used += size
        return False


class Fifo(Lru):
    def use(self, name: int, size: int) -> bool:
        return name in self.kept or super().use(name, size)


class Sieve:
    """Zhang et al., NSDI 2024. The hand goes from the oldest to the newest."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.kept: dict[int, int] = {}
        self.order: deque[int] = deque()  # the hand is between its ends: passed over on the right
        self.passed: deque[int] = deque()
        self.visited: set[int] = set()

    def use(self, name: int, size: int) -> bool:
        if name in self.kept:
            self.visited.add(name)
            return True
        while self.used + size > self.limit:
            if not self.order:
                self.order, self.passed = self.passed, deque()
            oldest = self.order.popleft()
            if oldest in self.visited:
                self.visited.discard(oldest)
                self.passed.append(oldest)
            else:
                self.used -= self.kept.pop(oldest)
        self.order.append(name)
        self.kept[name] = size
        self.used += size
        return False


class TwoQueues:
    """Johnson and Shasha, VLDB 1994: a quarter for what is new, ghosts for half of the cache."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.new, self.main, self.ghosts = (OrderedDict[int, int]() for _ in range(3))
        self.new_bytes = self.main_bytes = self.ghost_bytes = 0

    def use(self, name: int, size: int) -> bool:
        if name in self.main:
            self.main.move_to_end(name)
            return True
        if name in self.new:
            return True
        known = name in self.ghosts
        if known:
            self.ghost_bytes -= self.ghosts.pop(name)
        while self.new_bytes + self.main_bytes + size > self.limit:
            if self.new and (self.new_bytes > self.limit / 4 or not self.main):
                gone, its_size = self.new.popitem(last=False)
                self.new_bytes -= its_size
                self.ghosts[gone] = its_size
                self.ghost_bytes += its_size
                while self.ghost_bytes > self.limit / 2:
                    self.ghost_bytes -= self.ghosts.popitem(last=False)[1]
            else:
                self.main_bytes -= self.main.popitem(last=False)[1]
        if known:
            self.main[name] = size
            self.main_bytes += size
        else:
            self.new[name] = size
            self.new_bytes += size
        return False


class S3Fifo:
    """Yang et al., SOSP 2023: a tenth for what is new, two bits of frequency."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.small, self.main = (OrderedDict[int, list[int]]() for _ in range(2))
        self.ghosts = OrderedDict[int, int]()
        self.small_bytes = self.main_bytes = self.ghost_bytes = 0

    def use(self, name: int, size: int) -> bool:
        found = self.small.get(name) or self.main.get(name)
        if found is not None:
            found[1] = min(3, found[1] + 1)
            return True
        while self.small_bytes + self.main_bytes + size > self.limit:
            self._evict()
        if name in self.ghosts:
            self.ghost_bytes -= self.ghosts.pop(name)
            self.main[name] = [size, 0]
            self.main_bytes += size
        else:
            self.small[name] = [size, 0]
            self.small_bytes += size
        return False

    def _evict(self) -> None:
        if self.small_bytes > self.limit / 10 or not self.main:
            name, (size, frequency) = self.small.popitem(last=False)
            self.small_bytes -= size
            if frequency > 1:
                self.main[name] = [size, 0]
                self.main_bytes += size
                return
            self.ghosts[name] = size
            self.ghost_bytes += size
            while self.ghost_bytes > self.limit:
                self.ghost_bytes -= self.ghosts.popitem(last=False)[1]
            return
        name, (size, frequency) = self.main.popitem(last=False)
        if frequency:
            self.main[name] = [size, frequency - 1]
        else:
            self.main_bytes -= size


class Arc:
    """Megiddo and Modha, FAST 2003, in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.target = limit, 0.0
        self.lists = [OrderedDict[int, int]() for _ in range(4)]  # once, again, and their ghosts
        self.bytes = [0, 0, 0, 0]

    def use(self, name: int, size: int) -> bool:
        once, again, gone_once, gone_again = self.lists
        if name in again:
            again.move_to_end(name)
            return True
        if name in once:
            self._put(1, name, self._take(0, name))
            return True
        place = 0
        if name in gone_once:
            self.target = min(self.limit, self.target + size * max(1, self.bytes[3] / self.bytes[2]))
            self._take(2, name)
            place = 1
        elif name in gone_again:
            self.target = max(0, self.target - size * max(1, self.bytes[2] / self.bytes[3]))
            self._take(3, name)
            place = 1
        while self.bytes[0] + self.bytes[1] + size > self.limit:
            source = 0 if once and (self.bytes[0] > self.target or not again) else 1
            victim = next(iter(self.lists[source]))
            self._put(source + 2, victim, self._take(source, victim))
        self._put(place, name, size)
        while gone_once and self.bytes[0] + self.bytes[2] > self.limit:
            self._take(2, next(iter(gone_once)))
        while gone_again and sum(self.bytes) > 2 * self.limit:
            self._take(3, next(iter(gone_again)))
        return False

    def _take(self, place: int, name: int) -> int:
        size = self.lists[place].pop(name)
        self.bytes[place] -= size
        return size

    def _put(self, place: int, name: int, size: int) -> None:
        self.lists[place][name] = size
        self.bytes[place] += size


class Ours:
    """`stores.cache.policy`, with dictionaries for the ledger's tables."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.turn, self.seen = limit, 0, 0, Comparison()
        self.queues = {queue: OrderedDict[int, Candidate]() for queue in Queue}
        self.ghosts: dict[int, Ghost] = {}
        self.oldest_ghosts: list[tuple[int, int]] = []
        self.ghost_bytes = 0
        self.recent = OrderedDict[int, tuple[int, int]]()  # all names beyond the horizon: turn and size

    def use(self, name: int, size: int) -> bool:
        self.turn += 1
        queue = next((queue for queue in Queue if name in self.queues[queue]), None)
        if queue is not None:
            entry = self.queues[queue].pop(name)
            self.seen = policy.hit(self.seen, turn=entry.turn, charge=size, limit=self.limit)
            self._add(Queue.MAIN, name, size)
            return True
        missing = self.used + size - self.limit
        if missing > 0:
            self._evict(missing)
        ghost = self.ghosts.pop(name, None)
        if ghost is not None:
            self.ghost_bytes -= ghost.charge
        place, self.seen = policy.missed(self.seen, ghost, charge=size, limit=self.limit)
        self.used += size
        self._add(place, name, size)
        return False

    def _add(self, queue: Queue, name: int, size: int) -> None:
        self.queues[queue][name] = Candidate(name, size, self.turn)
        self.recent.pop(name, None)
        self.recent[name] = (self.turn, size)
        while self.seen.recent > self.limit:
            _, (turn, charge) = self.recent.popitem(last=False)
            self.seen = policy.beyond(self.seen, turn=turn, charge=charge)

    def _evict(self, need: int) -> None:
        state = PoolState(self.limit, self.used, 0, 0, turn=self.turn, bias=self.seen.bias)
        small, main = (self.queues[queue] for queue in (Queue.SMALL, Queue.MAIN))
        for gone in policy.victims(state, small.values(), main.values(), need).evict:
            queue = Queue.SMALL if gone.id in small else Queue.MAIN
            del self.queues[queue][gone.id]
            self.used -= gone.charge
            self.ghosts[gone.id] = Ghost(queue, gone.turn, gone.charge)
            self.ghost_bytes += gone.charge
            heappush(self.oldest_ghosts, (gone.turn, gone.id))
        while self.ghost_bytes > self.limit:
            turn, name = heappop(self.oldest_ghosts)
            ghost = self.ghosts.get(name)
            if ghost is None or ghost.turn != turn:
                continue  # it came back meanwhile
            del self.ghosts[name]
            self.ghost_bytes -= ghost.charge
            self.seen = policy.forgotten(self.seen, turn=turn, charge=ghost.charge)
            if turn > self.seen.horizon:
                del self.recent[name]


POLICIES: Mapping[str, Callable[[int], Cache]] = {
    "ours": Ours,
    "LRU": Lru,
    "FIFO": Fifo,
    "SIEVE": Sieve,
    "2Q": TwoQueues,
    "S3-FIFO": S3Fifo,
    "ARC": Arc,
}


# -------------------------------------------------------------------------------------------------- the comparison


@dataclass(frozen=True)
class Ratio:
    """Hits of one policy on one trace: as a share of requests, and of their bytes."""

    objects: float
    bytes: float


@dataclass(frozen=True)
class Result:
    trace: str
    share: float
    ratios: Mapping[str, Ratio]


def replay(cache: Cache, trace: Trace, sizes: Mapping[int, int]) -> Ratio:
    hits = [name for name in trace if cache.use(name, sizes[name])]
    return Ratio(len(hits) / len(trace), sum(map(sizes.__getitem__, hits)) / sum(map(sizes.__getitem__, trace)))


def results(seed: int, policies: Mapping[str, Callable[[int], Cache]] = POLICIES) -> Iterator[Result]:
    for make in TRACES:
        rng = random.Random(seed)
        trace = make(rng)
        sizes = sizes_of(rng, trace)
        for share in SHARES:
            limit = int(sum(sizes.values()) * share)
            if limit >= SMALLEST:
                ratios = {name: replay(policy(limit), trace, sizes) for name, policy in policies.items()}
                yield Result(make.__name__, share, ratios)


def of_lru(found: Sequence[Result], of: Callable[[Ratio], float]) -> float:
    """Our hits as a share of LRU's, over all cache sizes, to three digits: more is chance with this many requests."""
    ours, lru = (sum(of(result.ratios[name]) for result in found) for name in ("ours", "LRU"))
    return round(ours / lru, 3) if lru else 1.0


def judge(found: Sequence[Result]) -> list[Verdict]:
    def objects(ratio: Ratio) -> float:
        return ratio.objects

    def volume(ratio: Ratio) -> float:
        return ratio.bytes

    verdicts = []
    for trace in dict.fromkeys(result.trace for result in found):
        of_trace = [result for result in found if result.trace == trace]
        verdicts.append(at_least(f"{trace}: hits, of LRU's", of_lru(of_trace, objects), 1.0))
        verdicts.append(at_least(f"{trace}: bytes hit, of LRU's", of_lru(of_trace, volume), 1.0))
    worst = min(of_lru([result], objects) for result in found)
    scans = [result for result in found if result.trace == scan_heavy.__name__]
    verdicts.append(at_least("any trace, any cache size: hits, of LRU's", worst, 0.995))
    verdicts.append(at_least("scan_heavy: hits, of LRU's, clearly more", of_lru(scans, objects), 1.05))
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = list(results(arguments.seed))
    table = Table(title="hit ratios in percent: of requests / of bytes", title_justify="left")
    for column in ("trace", "cache", *POLICIES):
        table.add_column(column, justify="left" if column == "trace" else "right")
    for result in found:
        cells = [f"{100 * ratio.objects:.1f}/{100 * ratio.bytes:.1f}" for ratio in result.ratios.values()]
        table.add_row(result.trace, f"{100 * result.share:g} %", *cells)
    Console(width=WIDTH).print(table)
    conclude(judge(found), {}, arguments.json)


if __name__ == "__main__":
    main()
