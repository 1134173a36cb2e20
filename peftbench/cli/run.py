"""`peftbench run` and `peftbench plan`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftbench.errors import ConfigError, StoreError
from peftbench.untrusted import printable
from peftbench.waiting import share_cores

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from peftbench.run.experiment import RunOptions
    from peftbench.spec import DatasetSpec, RunSpec
from peftbench.cli import again
from peftbench.cli.exit import FAILED, OK, UNSUPPORTED, USAGE
from peftbench.cli.hydra import run_with_hydra

RUN_HELP = """\
usage: peftbench run [-m] [OVERRIDES...]

Run one method on one backbone and data set; with -m the product of all comma lists.

  peftbench run method=vpt_deep dataset=mini/clipart12 seed=0
  peftbench run -m method=linear,lora dataset=mini/digits,mini/sprites_location seed=0,1
  peftbench run method=lora method.rank=4 recipe.lr=3e-3 backbone=vit_b16
  peftbench run method=lora dataset=folder dataset.root=PATH

choices:
  method=NAME backbone=NAME dataset=NAME recipe=NAME protocol=NAME experiments=NAME
                      `peftbench list methods|backbones|datasets|experiments`
  logger=none|wandb|tensorboard|csv
                      a mirror of the run; whatever happens to it, the record stays the same
keys:
  seed=N phase=final|tune precision=auto|float32|bfloat16 device=auto|cpu|cuda
  results_dir=PATH data_dir=PATH force=true quiet=true threads=N processes=N
  checkpoint.minutes=N cache=auto|off cache_gigabytes=N latency=auto|off
  method.KEY backbone.KEY dataset.KEY recipe.KEY preprocessing.KEY logger.KEY
  selection.metric=top1|mean_per_class|f1_macro|auroc   what chooses trials, and what tables show
  recipe.class_weights=balanced, or recipe.sampling=balanced   for classes of unequal size
options:
  -m, --multirun      a sweep: each job in a process of its own, finished jobs are skipped
  tuner=grid|optuna   with -m: choose hyper-parameters on val first, same budget for every method
  --cfg job           print the composed configuration and stop; with -p recipe, only that part
  --config-dir PATH   one more folder with method/, backbone/, dataset/ configurations
  hydra.launcher.KEY=VALUE   gpus gpus_per_job jobs_per_gpu jobs jobs_per_process timeout stagger
                      retry_out_of_memory on_failure=continue|stop stop_after
  hydra/launcher=slurm|ray   the same jobs on many machines; see docs/many-machines.md
                      retry_lost_machine=N   times that a job whose machine fails goes to another

exit status: 0 done, 1 a run failed, is held by another launch or found the disk full, 2 bad command
line, 3 the pair makes no sense, 130 interrupted by Ctrl-C, 143 by SIGTERM
"""
PLAN_HELP = """\
usage: peftbench plan OVERRIDES...

What `peftbench run -m OVERRIDES...` would do: jobs, done, unsupported, time. Runs nothing.

  peftbench plan method=linear,lora,vpt_deep dataset='glob(mini/*)' seed=0,1,2
"""


def run(arguments: list[str]) -> int:
    """Compose and run; the exit status says whether everything ended well."""
    if "-h" in arguments or "--help" in arguments:
        print(RUN_HELP, end="")
        return OK
    share_cores(os.environ)
    known = again.composed(arguments)
    if known is not None:
        return _run_one(known, arguments)

    def run_composed(cfg: DictConfig) -> int:
        again.remember(arguments, cfg)
        return _run_one(cfg, arguments)

    with tempfile.TemporaryDirectory() as scratch:  # Hydra notes down every multirun
        composing = [*arguments, f"hydra.sweep.dir={scratch}"]
        return run_with_hydra(run_composed, composing)


def plan(arguments: list[str]) -> int:
    """Print what a sweep would do."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(PLAN_HELP, end="")
        return OK if arguments else USAGE
    sweep = [a for a in arguments if a not in ("-m", "--multirun")]
    with tempfile.TemporaryDirectory() as scratch:  # Hydra notes down every multirun
        composing = ["--multirun", *sweep, f"hydra.sweep.dir={scratch}"]
        return run_with_hydra(_refuse, composing, plans=True)


def _refuse(cfg: DictConfig) -> int:
    """What a launcher that is none of peftbench does with each job, instead of planning it."""
    raise ConfigError(
        "hydra/launcher is none that can tell what it would do. Leave it out, or use pool, slurm "
        "or ray."
    )


def _options(cfg: DictConfig, spec: RunSpec) -> RunOptions:
    """How the run of a configuration is computed."""
    from omegaconf import OmegaConf

    from peftbench.config.limits import activation_bytes, is_timed
    from peftbench.run import shown
    from peftbench.run.experiment import RunOptions
    from peftbench.sweep.beside import runs_beside
    from peftbench.training.saving import CheckpointPolicy

    saving = OmegaConf.to_object(cfg.checkpoint)
    assert isinstance(saving, CheckpointPolicy)
    return RunOptions(
        device=cfg.device,
        threads=cfg.threads,
        micro_batch=cfg.micro_batch,
        saving=saving,
        show=shown.here(),
        activations=activation_bytes(cfg.cache, cfg.cache_gigabytes),
        beside=runs_beside(spec, cfg.one_pass),
        compile=cfg.compile,
        timed=is_timed(cfg.latency),
    )


def _run_one(cfg: DictConfig, arguments: Sequence[str]) -> int:
    """The exit status of the run that `arguments` of the command were composed into."""

    from peftbench import data, loggers
    from peftbench.backbones.preprocessing import image_size
    from peftbench.cli.libraries import load_libraries
    from peftbench.cli.processes import check_count, run_together
    from peftbench.config.build import build, logger_settings
    from peftbench.config.limits import check_micro_batch
    from peftbench.results.record import Status
    from peftbench.results.store import ResultsStore
    from peftbench.run import experiment
    from peftbench.sweep.jobs import outcome
    from peftbench.training.world import from_environment

    if cfg.tuner.name != "none":
        raise ConfigError(
            f"tuner={cfg.tuner.name} is for sweeps, which train many times. Use `peftbench run "
            "-m`, or tuner=none for this one run."
        )
    lines: list[str] = []

    def identify(dataset: DatasetSpec) -> DatasetSpec:
        return data.identify(dataset, listed)

    def listed(listing: data.Listing) -> None:
        lines.extend(data.describe(listing))
        sides.append(data.typical_side(listing))

    sides: list[int | None] = []
    spec = build(cfg, identify)
    lines.extend(data.shown(sides[0], image_size(spec.backbone)) if sides else ())
    check_micro_batch(cfg.micro_batch)
    world = from_environment()
    options = _options(cfg, spec)
    if world.is_single and cfg.processes != 1:
        experiment.check(spec, cfg.device, cfg.threads)
        check_count(cfg.processes, cfg.device)
        return run_together(arguments, cfg.processes)
    if not world.is_main:
        experiment.run_worker(spec, ResultsStore(cfg.results_dir), options)
        return OK
    logger = loggers.make(logger_settings(cfg), cfg.results_dir)
    store = ResultsStore(cfg.results_dir)
    if not cfg.quiet:  # a sweep does that once
        with contextlib.suppress(StoreError):  # where nothing is to be written
            store.tidy()
    if not cfg.force and experiment.finished_record(spec, store) is not None:
        print(printable(f"{spec}: already done (force=true runs it again)"), flush=True)
    else:
        for line in lines if not cfg.quiet else ():
            print(printable(line), file=sys.stderr, flush=True)
        load_libraries()
    record = experiment.run(
        spec,
        store,
        options,
        force=cfg.force,
        logger=logger,
        tuning=json.loads(cfg.tuning) if cfg.tuning else None,
    )
    good = record.status is Status.OK
    print(
        f"{printable(f'{spec}: {outcome(record)}')}\n"
        f"  {printable(str(store.path(spec.method.name, spec.run_id)))}",
        file=sys.stdout if good else sys.stderr,
        flush=True,
    )
    if record.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    if record.status is Status.UNSUPPORTED:
        return UNSUPPORTED
    return OK if good else FAILED
