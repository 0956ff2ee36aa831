"""Benchmarks against the plain expressions and the memory limit; `bench/report.py` draws figures from their data.

One run, and its report:

    pytest bench --benchmark-only --benchmark-max-time=0.5 --benchmark-min-rounds=9 --benchmark-json=raw.json
    python bench/report.py raw.json --output bench/results/NAME.json

The time is for each contender of each comparison, the rounds are the fewest; see `bench/race.py`. On a GPU,
`bench/gpu_check.py` runs all; `docs/performance.md` has the other commands: `bench.compare`, `bench.tune`,
`bench.scaling`.
"""

import os

# PyTorch's threads would go on spinning when their work is done, and take the cores from whoever is timed next.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
