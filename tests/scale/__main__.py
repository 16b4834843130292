"""`make scale`: measure how the cost around training grows with files, labels, jobs, runs and rows.

python tests/scale                                   all subjects, a few minutes on one core
python tests/scale --only listing headers --size 10  these, at ten times the sizes
python tests/scale --out FOLDER                      where benchmark.csv, benchmark.md and scale.png are written
"""

import argparse
import logging
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from benchmark import results, run
from benchmark.case import Case
from benchmark.timing import Clock
from scale.costs import PART, subject_cases
from scale.subjects import SUBJECTS


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), help="subjects")
    parser.add_argument("--size", type=float, default=1.0, help="factor of all sizes; 100 is near the real scale")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contender, in turns")
    parser.add_argument("--out", type=Path, default=Path("runs/scale"), help="folder of the results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("timm").setLevel(logging.WARNING)  # its reader of archives reports each
    torch.set_num_threads(1)  # a forked process has none of the others
    clock, cases = Clock(rounds=arguments.rounds, seconds=0.0), list[Case]()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        print(f"{PART}: {name} ...", flush=True)
        for case in subject_cases(name, SUBJECTS[name], arguments.size, clock):
            cases.append(case)
            print(run.line(case), flush=True)
        results.write(cases, arguments.out, title=run.description(clock))
    print(arguments.out / "benchmark.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
