"""The source of a program that runs jobs on several ranks."""

# Runs jobs one after the other, with forked ranks, which don't have to import anything.
RANKS = """
import json, os, sys
from pathlib import Path
import hydra, lightning, torchmetrics
from torch.distributed import TCPStore
import evaluate, train
from vitlab.cli import checks, register
from vitlab.jobs import resume
from vitlab.jobs.compose import CONF, compose, resolve_config
from vitlab.jobs.run import run_here
from vitlab.runs import folder, plots, wandb
from vitlab.training import build, checkpoints, out_of_memory

register.register()
programs = {"train": train.main, "evaluate": evaluate.main}
for program, name, world, *overrides in json.loads(sys.argv[1]):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(program, [*overrides, f"trainer.devices={world}"])
    config = resolve_config(cfg, str(Path(name).resolve()))
    assert checks.problems(programs[program], config) == []
    folder.write_config(Path(name), config)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = []
    for rank in range(world):
        ranks.append(os.fork())
        if not ranks[-1]:
            if world > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
                os.environ |= {"LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": name}
                os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
            try:
                run_here(program, programs[program].function, Path(name), config)
            except BaseException as error:
                os._exit(1)
            os._exit(0)
    assert all(os.waitpid(rank, 0)[1] == 0 for rank in ranks), name
"""
