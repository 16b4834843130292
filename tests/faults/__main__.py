"""`make faults`: disturb runs, resume them, and count the trials that lost something. Exits with status 1 if any did.

    python tests/faults                              all kinds, at most 40 minutes on two cores
    python tests/faults --seed 7 --only SIGKILL      another seed; kinds with this text in their names
    python tests/faults --scale 0.1                  a tenth of the trials
    python tests/faults --seed 7 --only NAME --trial 3   one trial again, as its report says

A trial survives if the resumed run ends bit for bit as an undisturbed one (weights, optimizer, metrics file, best
checkpoint). If it can't be resumed, it must end with the documented error and an intact last checkpoint. Programs run
in forked processes, which skip only the imports; kinds named "real processes" run as a user starts them. A trial draws
from the seed, its kind and its number; moments that the clock decides differ between two runs of a trial.
"""

import argparse
import collections
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from faults import kinds, runs
from faults.trials import FAULTS, run_trial, table

assert kinds  # it fills FAULTS


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for programs in the background
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=None, help="of all random choices; printed, to repeat the trials")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the trials, at least one of each kind")
    parser.add_argument("--only", default="", help="a kind, or those with this text in their names")
    parser.add_argument("--trial", type=int, default=None, help="only the trial of this number")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="trials at a time")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    chosen = {name: max(1, round(times * arguments.scale)) for name, (times, _) in FAULTS.items()}
    exact = {arguments.only} & chosen.keys()
    chosen = {k: n for k, n in chosen.items() if k in exact or (not exact and arguments.only.lower() in k.lower())}
    trials = [(name, number) for name, times in chosen.items() for number in range(times)]
    if arguments.trial is not None:
        chosen, trials = dict.fromkeys(chosen, 1), [(name, arguments.trial) for name in chosen]
    print(f"seed {seed}: {len(trials)} trials of {len(chosen)} kinds", flush=True)
    begin, lost = time.monotonic(), {name: list[str]() for name in chosen}
    work = Path(tempfile.mkdtemp(prefix="vitlab-faults-"))
    random.Random(seed).shuffle(trials)
    done: collections.Counter[str] = collections.Counter()
    runs.warm_up(work)
    pool = ProcessPoolExecutor(arguments.processes)
    futures = [pool.submit(run_trial, name, seed, number, work) for name, number in trials]
    try:
        for future in as_completed(futures):
            name, number, problem, seconds = future.result()
            done[name] += 1
            if problem:
                lost[name].append(problem)
            passed = time.monotonic() - begin
            left = passed / sum(done.values()) * (len(trials) - sum(done.values()))
            state = "LOST" if problem else "survived"
            count = f"{sum(done.values()):4d}/{len(trials)}"
            print(f"{count}  {state:8s} {seconds:5.1f} s  {name}  ({left:.0f} s left)", flush=True)
            if problem:
                again = f"python tests/faults --seed {seed} --only {name!r} --trial {number}"
                print(f"{problem}\nagain: {again}", flush=True)
    except KeyboardInterrupt:
        print("stopped: the table has the trials that were made", flush=True)
    pool.shutdown(cancel_futures=True)
    print()
    print(table({name: done[name] for name in chosen}, lost))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    load = os.getloadavg()[2]  # of the last 15 minutes
    cost = f"{time.monotonic() - begin:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU"
    print(f"\nseed {seed}, {cost}, {arguments.processes} trials at a time, load {load:.1f}")
    if any(lost.values()):
        print(f"folders of the lost trials: {work / 'lost'}")
        return 1
    if sum(done.values()) < len(trials):
        return 1
    shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
