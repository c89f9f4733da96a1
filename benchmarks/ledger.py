"""What it costs a healthy shard that nothing can be lost: attempts noted, a watchdog, stages timed."""

from __future__ import annotations

from benchmarks.measuring import Figure, children, in_turn, ratio


def measure(archive: str, n_rounds: int) -> list[Figure]:
    """Return what whole shards cost, against the same work bare."""
    with children(("shards", archive), ("unguarded", archive)) as processes:
        blocks = [("extract", [number % 2, 2 + number % 2]) for number in range(n_rounds)]
        # Once to warm up.
        in_turn(processes, blocks[:2])
        guarded, bare = in_turn(processes, blocks)
    return [
        ratio(
            "shards with all that guards them",
            "read, extracted and written, and no more",
            [one[which] * 1e3 for one in guarded],
            [one[which] * 1e3 for one in bare],
            "<= 1.03",
            unit,
        )
        for which, unit in ((0, "ms CPU"), (1, "ms"))
    ]
