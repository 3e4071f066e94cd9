"""Random models with planted duplicates, given to the default method: none may be lost.

    python tools/robustness/duplicates.py --cases 500 --seed 0 [--only flattened] [--keep FOLDER]

Half of every width is superfluous (`planted` and its like). Each model is shrunk to that half
on few samples or many (enough for every neuron to fire that fires at all), by `--width` or by the budget that the half
costs, and has to answer other samples as the original does, to `LIMIT`. A case depends on its number and seed alone.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from threadpoolctl import threadpool_limits

from pcns_onnx import shrink
from pcns_onnx.errors import PcnsError

# A script sees its own folder only; what it shares with others is named from `tools`.
sys.path.insert(0, str(Path(__file__).parents[1]))

from robustness.planted import KINDS, Array, Planted
from robustness.planted_attention import attention
from robustness.planted_cells import recurrent
from robustness.planted_sequences import SEQUENCES

LIMIT = 1e-3
"""Relative error of the outputs, root mean square, that rounding may leave."""
RARE = 6
"""One in so many turns of the slowest kind is taken."""
BUILDERS = {**KINDS, "attention": attention, "recurrent": recurrent, **SEQUENCES}
FEW, MANY = (12, 16, 24, 40), (120, 400)


@dataclass(frozen=True)
class Case:
    """One model, the samples it is shrunk on, others that it is judged by, and the choices made for the run."""

    number: int
    kind: str
    model: onnx.ModelProto
    data: Array
    fresh: Array
    by_budget: bool
    refine: int

    @property
    def error(self) -> float:
        """Relative error at half of every width, or at the multiply-adds that this takes."""
        return self.error_at(0.5)

    def error_at(self, width: float) -> float:
        """The same at another share of every width."""
        choices: dict[str, Any] = {"threads": 1, "multiple": 1, "refine": self.refine, "eval": self.fresh, "batch": 16}
        result = shrink(self.model, self.data, width=width, **choices)
        if self.by_budget:
            share = result.report.after.macs / result.report.before.macs
            result = shrink(self.model, self.data, budget=f"macs={share * 1.0001 + 1e-6:.6f}", **choices)
        return result.report.agreement.error


def cases(count: int, seed: int, kinds: tuple[str, ...] = tuple(BUILDERS)) -> Iterator[Case]:
    """`count` random models, one after the other; the same for the same seed."""
    for number in range(count):
        kind = kinds[number % len(kinds)]
        yield case(number, seed, "dense" if kind == "wide" and number // len(kinds) % RARE else kind)


def case(number: int, seed: int, kind: str) -> Case:
    """Case `number` of a seed."""
    rng = np.random.default_rng([seed, number, zlib.crc32(kind.encode())])
    net = Planted(rng, kind)
    model = net.model(BUILDERS[kind](net))
    # Combinations, unlike copies, take more rows than their rank to be told from chance.
    samples = int(rng.choice(MANY if net.combined or rng.random() < 0.4 else FEW))
    pool, fresh = (rng.standard_normal((n, *net.shape)).astype(np.float32) for n in (1600, 64))
    while samples < len(pool) and not net.all_vary(model, pool[:samples], np.concatenate([pool, fresh])):
        samples *= 2
    data = pool[:samples]
    return Case(number, kind, model, data, fresh, bool(rng.random() < 0.25), int(rng.choice((0, 0, 0, 50))))


def main() -> int:
    """Run the cases; prints those that lose something, and how many there were of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=BUILDERS, action="append")
    parser.add_argument("--keep", type=Path, help="Store the models and samples of failing cases there.")
    asked = parser.parse_args()
    lost, worst, started = Counter[str](), dict.fromkeys(BUILDERS, 0.0), time.perf_counter()
    tried = Counter[str]()
    with threadpool_limits(1):
        for one in cases(asked.cases, asked.seed, tuple(asked.only or BUILDERS)):
            tried[one.kind] += 1
            try:
                error = one.error
            except PcnsError as found:
                error, said = float("inf"), str(found)
            except Exception:
                error, said = float("inf"), traceback.format_exc()
            else:
                said = ""
            worst[one.kind] = max(worst[one.kind], error)
            if error > LIMIT:
                lost[one.kind] += 1
                way = "budget" if one.by_budget else "width"
                print(f"{one.number} {one.kind}: {error:.2g} by {way}, {len(one.data)} samples, "
                      f"--refine {one.refine} {said}", flush=True)  # fmt: skip
                if asked.keep is not None:
                    asked.keep.mkdir(parents=True, exist_ok=True)
                    onnx.save(one.model, asked.keep / f"{one.number}.onnx")
                    np.savez(asked.keep / f"{one.number}.npz", x=one.data)
    for kind, count in sorted(tried.items()):
        print(f"{kind:14} {count:4} models, {lost[kind]} lost something, worst error {worst[kind]:.2g}")
    print(f"{asked.cases} models, {sum(lost.values())} lost something, {time.perf_counter() - started:.0f} s")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
