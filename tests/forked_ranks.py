"""A program that runs jobs on several ranks."""

# Runs jobs one after the other, each on so many ranks: forked from one process, since importing takes them the longest.
RANKS = """
import json, os, sys
from pathlib import Path
import hydra, lightning, torchmetrics
from torch.distributed import TCPStore
import evaluate, train
from vitlab import build, checkpoints, command, figures, jobs, memory, resume, runs, signatures, tracking

signatures.register()
functions = {"train": train.main.__wrapped__, "evaluate": evaluate.main.__wrapped__}
for program, name, world, *overrides in json.loads(sys.argv[1]):
    with hydra.initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = command.compose(program, [*overrides, f"trainer.devices={world}"])
    config = command.plain(cfg, str(Path(name).resolve()))
    assert command.check(functions[program], config) == []
    runs.write_config(Path(name), config)
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
                jobs.run_recorded(program, functions[program], Path(name), config)
            except BaseException as error:
                os._exit(1)
            os._exit(0)
    assert all(os.waitpid(rank, 0)[1] == 0 for rank in ranks), name
"""
