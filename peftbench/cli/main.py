"""The command line: compose, build a run, hand it over, choose an exit status."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from peftbench import __version__
from peftbench.cli import bundles as results_cli
from peftbench.cli import data as data_cli
from peftbench.errors import ConfigError, DiskFull, PeftbenchError, StoreError
from peftbench.results.disk import explained, full_number
from peftbench.results.store import Busy
from peftbench.untrusted import printable, printable_lines

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from peftbench.spec import DatasetSpec

OK, FAILED, USAGE, UNSUPPORTED, INTERRUPTED = 0, 1, 2, 3, 130
NOTHING = 3  # of `reproduce`: no cell could be judged
# options of Hydra that take a value; `--info` takes one too, but may stand alone
VALUED_OPTIONS = ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i")
GROUPS = (
    "method",
    "backbone",
    "dataset",
    "recipe",
    "protocol",
    "tuner",
    "logger",
    "experiments",
)

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
  checkpoint.minutes=N
  method.KEY backbone.KEY dataset.KEY recipe.KEY preprocessing.KEY logger.KEY
options:
  -m, --multirun      a sweep: each job in a process of its own, finished jobs are skipped
  tuner=grid|optuna   with -m: choose hyper-parameters on val first, same budget for every method
  --cfg job           print the composed configuration and stop; with -p recipe, only that part
  --config-dir PATH   one more folder with method/, backbone/, dataset/ configurations
  hydra.launcher.KEY=VALUE   gpus gpus_per_job jobs_per_gpu jobs jobs_per_process timeout stagger
                      retry_out_of_memory on_failure=continue|stop stop_after
  hydra/launcher=slurm|ray   the same jobs on many machines; see README, "Many machines"
                      retry_lost_machine=N   times that a job whose machine fails goes to another

exit status: 0 done, 1 a run failed, is held by another launch or found the disk full, 2 bad command
line, 3 the pair makes no sense, 130 interrupted
"""

PLAN_HELP = """\
usage: peftbench plan OVERRIDES...

What `peftbench run -m OVERRIDES...` would do: jobs, done, unsupported, time. Runs nothing.

  peftbench plan method=linear,lora,vpt_deep dataset='glob(mini/*)' seed=0,1,2
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `peftbench` and `python -m peftbench`; always exits."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that it cannot encode ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _dispatch(arguments)
    except (Busy, DiskFull) as e:
        _tell(str(e))
        status = FAILED
    except PeftbenchError as e:
        _tell(str(e))
        status = USAGE
    except KeyboardInterrupt:
        _tell("interrupted; the same command continues")
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `peftbench ... | head`
        status = OK
    except Exception as e:
        if full_number(e) is None:
            raise
        _tell(str(explained(e)))
        status = FAILED
    sys.exit(status)


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # stderr may be a file on the disk that is full
        print(f"peftbench: {printable(line)}", file=sys.stderr, flush=True)


def _interrupt(signum: int, frame: object) -> NoReturn:
    # a second one, say of a cluster after that of the launcher, must not cut the record short
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if "=" in first or first in ("-m", "--multirun"):
        return run(arguments)
    if first == "run":
        return run(arguments[1:])
    if first == "plan":
        return plan(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments or ["--help"])
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peftbench",
        description="Compare every way of tuning a pretrained vision backbone.",
    )
    parser.add_argument("--version", action="version", version=f"peftbench {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    # listed here for --help; both hand their arguments to Hydra before this parser sees them
    commands.add_parser("run", help="one run, or with -m a sweep", add_help=False)
    commands.add_parser("plan", help="what a sweep would do, without doing it", add_help=False)

    data_cli.add_commands(commands)
    listing = commands.add_parser("list", help="what there is to choose from, and what has run")
    listing.add_argument(
        "what",
        choices=(
            *("methods", "backbones", "datasets", "protocols", "experiments", "tables", "runs"),
        ),
    )
    listing.add_argument("--status", help="runs of this status only; 'failed' for all failures")
    _add_results(listing)
    listing.add_argument("--data-dir", help="datasets: where to look; else PEFTBENCH_DATA, or data")
    listing.add_argument("--long", action="store_true", help="methods: formula, cost and source")
    listing.add_argument("--format", choices=("text", "markdown"), help="of --long")
    listing.set_defaults(command=_list)

    report = commands.add_parser("report", help="tables, figures and a page from the recorded runs")
    _add_results(report)
    _add_rows(report)
    report.add_argument(
        "experiment",
        nargs="?",
        metavar="EXPERIMENT",
        help="write the tables of its paper as well, as .md, .tex, .csv and .html",
    )
    report.add_argument(
        "--published", action="store_true", help="what the paper prints, below each row"
    )
    report.add_argument(
        "--published-only",
        action="store_true",
        help="the tables of EXPERIMENT from published numbers alone; nothing in them is measured",
    )
    report.add_argument(
        "--incomplete",
        action="store_true",
        help="averages of paper tables over rows with holes, marked",
    )
    report.add_argument("--format", choices=("text", "markdown", "csv"), default="text")
    report.add_argument(
        "--best-on-test",
        action="store_true",
        help="rows of their own for runs that selected the epoch on test, as some papers did",
    )
    report.add_argument(
        "--limited",
        action="store_true",
        help="also runs on a part of the images (dataset.limit), in rows of their own",
    )
    report.add_argument("--no-figures", action="store_true")
    report.add_argument(
        "--only",
        choices=("tables", "figures", "page"),
        action="append",
        help="one part; may be given several times; all three unless given",
    )
    report.set_defaults(command=_report)

    advise = commands.add_parser("advise", help="methods to take under a budget, from the records")
    advise.add_argument("--max-params", metavar="N", help="tuned parameters, as 1M or 300k")
    advise.add_argument("--max-latency", metavar="TIME", help="of one image, as 5ms")
    advise.add_argument("--max-memory", metavar="SIZE", help="peak of training, as 8GB or 8GiB")
    for name in ("dataset", "backbone"):
        advise.add_argument(
            f"--{name}", action="append", default=[], metavar="NAME[,NAME]", help="these only"
        )
    advise.add_argument("--results-dir", default="results", help="or a table.csv or table.parquet")
    advise.set_defaults(command=_advise)

    reproduce = commands.add_parser(
        "reproduce",
        help="measured - published, cell by cell",
        description="Compare what was measured with what a paper prints, cell by cell.",
        epilog="exit status: 0 every cell under the protocol of the paper is within its tolerance, "
        "1 one is not, 2 bad command line, 3 nothing could be judged",
    )
    reproduce.add_argument("table", metavar="TABLE", help="see `peftbench list tables`")
    _add_results(reproduce)
    _add_rows(reproduce)
    reproduce.set_defaults(command=_reproduce)
    for reader in (report, advise, reproduce):
        reader.add_argument(
            "--dirty", action="store_true", help="also runs whose code differed from its commit"
        )

    export = commands.add_parser("export", help="the tuned task of a run as a folder to keep")
    export.add_argument("run_id", metavar="RUN_ID", help="or its first digits; see `list runs`")
    export.add_argument(
        "--merged", action="store_true", help="the whole model, as timm builds it, in one file"
    )
    export.add_argument("--out", metavar="DIR", help="a new folder; exports/METHOD-RUN_ID if left")
    export.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="with --merged, the local weights of the run where they lie now",
    )
    _add_results(export)
    export.set_defaults(command=_export)

    push = commands.add_parser("push", help="upload finished runs and their report to W&B")
    _add_results(push)
    _add_rows(push)
    _add_destination(push)
    push.add_argument("--group", help="sweep of these runs; else the one that logged them")
    push.add_argument("--mode", choices=("online", "offline"), default="online")
    push.add_argument("--timeout", type=float, default=60.0, help="seconds for each run")
    push.add_argument("--force", action="store_true", help="send again what has arrived")
    push.set_defaults(command=_push)

    dashboard = commands.add_parser("dashboard", help="a W&B workspace that compares methods")
    _add_destination(dashboard)
    dashboard.add_argument("--name", default="peftbench")
    dashboard.add_argument("--dry-run", action="store_true", help="print what would be made")
    dashboard.set_defaults(command=_dashboard)
    results_cli.add_commands(commands, _add_results, _add_rows)
    return parser


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results-dir", default="results")


def _add_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE[,VALUE]",
        help="rows with these values only; may be given several times",
    )


def _add_destination(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", default="peftbench")
    parser.add_argument("--entity", help="user or team; else the default of the account")


def run(arguments: list[str]) -> int:
    """Compose and run; the exit status says whether everything ended well."""
    if "-h" in arguments or "--help" in arguments:
        print(RUN_HELP, end="")
        return OK
    task = Task()
    with tempfile.TemporaryDirectory() as scratch:  # Hydra notes down every multirun
        _hydra(task, [*arguments, f"hydra.sweep.dir={scratch}"])
    if task.failures:
        return FAILED
    return task.status


def plan(arguments: list[str]) -> int:
    """Print what a sweep would do."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(PLAN_HELP, end="")
        return OK if arguments else USAGE
    sweep = [a for a in arguments if a not in ("-m", "--multirun")]
    with tempfile.TemporaryDirectory() as scratch:  # Hydra notes down every multirun
        extra = ["hydra/launcher=plan", f"hydra.sweep.dir={scratch}"]
        launchers = [a for a in sweep if a.startswith("hydra/launcher=")]
        if launchers and launchers[-1] != "hydra/launcher=pool":
            extra.append("hydra.launcher.cluster=true")
        sweep = [a for a in sweep if a not in launchers]
        _hydra(Task(), ["--multirun", *sweep, *extra])
    return OK


class Task:
    """What Hydra calls with a composed configuration; launchers read its flags."""

    def __init__(self) -> None:
        self.failures: list[Any] = []  # filled by launchers
        self.flags: list[str] = []  # options that jobs in other processes need as well
        self.status = OK

    def __call__(self, cfg: DictConfig) -> None:
        from omegaconf import OmegaConf

        from peftbench import data, loggers
        from peftbench.cli.processes import check_count, run_together
        from peftbench.config.build import build, logger_settings
        from peftbench.limits import check_micro_batch
        from peftbench.results.record import Status
        from peftbench.results.store import ResultsStore
        from peftbench.run import experiment
        from peftbench.sweep.jobs import outcome
        from peftbench.training.checkpoint import Saving
        from peftbench.training.world import from_environment

        if cfg.tuner.name != "none":
            raise ConfigError(
                f"tuner={cfg.tuner.name} is for sweeps, which train many times. Use `peftbench run "
                "-m`, or tuner=none for this one run."
            )
        told: list[str] = []

        def identify(dataset: DatasetSpec) -> DatasetSpec:
            return data.identify(dataset, lambda listing: told.extend(data.describe(listing)))

        spec = build(cfg, identify)
        check_micro_batch(cfg.micro_batch)
        world = from_environment()
        saving = OmegaConf.to_object(cfg.checkpoint)
        assert isinstance(saving, Saving)
        if world.alone and cfg.processes != 1:
            experiment.check(spec, cfg.device, cfg.threads)
            check_count(cfg.processes, cfg.device)
            self.status = run_together(sys.argv[1:], cfg.processes)
            return
        if not world.leads:
            experiment.assist(
                spec,
                ResultsStore(cfg.results_dir),
                device=cfg.device,
                threads=cfg.threads,
                micro_batch=cfg.micro_batch,
                saving=saving,
            )
            return
        logger = loggers.make(logger_settings(cfg), cfg.results_dir)
        store = ResultsStore(cfg.results_dir)
        if not cfg.quiet:  # a sweep does that once
            with contextlib.suppress(StoreError):  # where nothing is to be written
                store.tidy()
        if not cfg.force and experiment.settled(spec, store) is not None:
            print(printable(f"{spec}: already done (force=true runs it again)"), flush=True)
        elif not cfg.quiet:
            for line in told:
                print(printable(line), file=sys.stderr, flush=True)
        record = experiment.run(
            spec,
            store,
            device=cfg.device,
            threads=cfg.threads,
            force=cfg.force,
            progress=sys.stderr.isatty(),
            logger=logger,
            tuning=json.loads(cfg.tuning) if cfg.tuning else None,
            micro_batch=cfg.micro_batch,
            saving=saving,
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
            self.status = UNSUPPORTED
        elif not good:
            self.failures.append(record)


def _hydra(task: Task, arguments: list[str]) -> None:
    """Hand `arguments` to Hydra; its errors come out as `ConfigError` of one line."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    from peftbench.cli import quoting
    from peftbench.config import build as config

    config.register()
    arguments = quoting.paths_quoted(arguments)
    task.flags = _flags(arguments)
    arguments = _check_names(_options_first(_resolved(arguments)))
    decorate = hydra.main(
        version_base="1.3", config_path=str(config.config_dir()), config_name="config"
    )

    refusals: list[PeftbenchError] = []

    def entry(cfg: DictConfig) -> None:
        with open_dict(cfg):
            cfg.pop("hydra", None)
        try:
            task(cfg)
        except PeftbenchError as e:
            refusals.append(e)  # Hydra would add lines of its own
        except OmegaConfBaseException as e:
            refusals.append(ConfigError(_one_line(e)))

    entry.flags, entry.failures = task.flags, task.failures  # type: ignore[attr-defined]
    with _environment(HYDRA_FULL_ERROR="1"), _argv(["peftbench", *arguments]):
        try:
            decorate(entry)()
        except (HydraException, OmegaConfBaseException) as e:
            raise ConfigError(_one_line(e)) from e
        except OSError as e:
            if full_number(e) is not None:
                raise explained(e) from e
            raise ConfigError(_of_system(e, arguments)) from e
        except SystemExit as e:
            if e.code not in (None, 0):
                raise ConfigError("see `peftbench run --help`") from e
    if refusals:
        raise refusals[0]


def _of_system(error: OSError, arguments: Sequence[str]) -> str:
    """What the system refused, and the key to change where it is that of the results."""
    named = [a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("results_dir=")]
    results = os.path.abspath(named[-1] if named else "results")
    place = os.path.abspath(os.fsdecode(error.filename)) if error.filename else ""
    inside = os.path.commonpath([place, results]) in (place, results) if place else False
    advice = "Choose another results_dir." if inside else "Check its permissions and the disk."
    return f"{error.strerror or error}: {error.filename}. {advice}"


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _argv(arguments: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before


def _resolved(arguments: list[str]) -> list[str]:
    """A printed configuration shows the values in force and not where they come from."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    printing = any(a == "--cfg=job" or (a in ("--cfg", "-c") and b == "job") for a, b in pairs)
    return [*arguments, "--resolve"] if printing and "--resolve" not in arguments else arguments


def _flags(arguments: list[str]) -> list[str]:
    """Options of Hydra that the processes of a sweep need too."""
    flags = []
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option in ("--config-dir", "-cd"):
            flags += ["--config-dir", os.path.abspath(value)]
        elif option.startswith("--config-dir="):
            flags += ["--config-dir", os.path.abspath(option.partition("=")[2])]
    return flags


def _options_first(arguments: list[str]) -> list[str]:
    """Options, then overrides: Hydra's parser refuses overrides in front of an option's value."""
    options, overrides = [], []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        options.append(argument)
        if argument in VALUED_OPTIONS:
            options.extend(value for value in [next(rest, None)] if value is not None)
    return options + overrides


def _check_names(arguments: list[str]) -> list[str]:
    """Refuse unknown choices and malformed overrides before Hydra composes anything.

    Returns the arguments with globs over choices written out: Hydra's own do not see `mini/digits`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Glob
    from hydra.errors import OverrideParseException

    from peftbench.cli import quoting
    from peftbench.config.build import check_choices, choices

    skip = {i + 1 for i, a in enumerate(arguments) if a in VALUED_OPTIONS}
    overrides = [a for i, a in enumerate(arguments) if not a.startswith("-") and i not in skip]
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(
                f"{text!r} is no override. Write KEY=VALUE, for example method=lora. "
                "See `peftbench run --help`."
            )
    if _flags(arguments):
        return arguments  # names may come from another folder; Hydra knows them all
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as e:
        shown = quoting.hint(str(e.override))
        reason = "its value does not parse." if shown else _one_line(e)
        raise ConfigError(f"{e.override!r} is no valid override: {reason}{shown}") from e
    for override in parsed:
        if override.key_or_group not in GROUPS or override.is_delete():
            continue
        value = override.value()
        if isinstance(value, Glob):
            found = _filtered(override.key_or_group, value)
            if not found:
                raise ConfigError(
                    f"{override.input_line} matches nothing. Known: "
                    f"{', '.join(sorted(choices(override.key_or_group)))}."
                )
            written = f"{override.key_or_group}={','.join(found)}"
            arguments = [written if a == override.input_line else a for a in arguments]
            continue
        names = value.list if isinstance(value, ChoiceSweep) else [value]
        check_choices(
            override.key_or_group, [_text(n) for n in names if _text(n) not in ("", "null")]
        )
    return arguments


def _filtered(group: str, pattern: Any) -> list[str]:
    """Choices that a glob matches; rows of a method, such as mlp/5, only if it names them."""
    from peftbench.config.build import choices

    names = sorted(choices(group))
    if group == "method" and not any("/" in text for text in pattern.include):
        names = [name for name in names if "/" not in name]
    found: list[str] = pattern.filter(names)
    return found


def _text(element: Any) -> str:
    """The name in a parsed override; an empty text for what is no name, such as glob(...)."""
    if element is None:
        return ""
    inner = getattr(element, "text", element)
    return str(inner) if isinstance(inner, str | int | float) else ""  # method=1 is no name either


def _one_line(error: BaseException) -> str:
    """The message of a Hydra or OmegaConf error on one line, with the key it is about."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ValidationError

    from peftbench.registry import unknown_name

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in chain:
        if isinstance(link, PeftbenchError):
            return str(link)
        if isinstance(link, ConfigAttributeError | ConfigKeyError) and link.full_key:
            prefix, _, key = str(link.full_key).rpartition(".")
            parent = link.parent_node
            known = list(parent.keys()) if OmegaConf.is_dict(parent) else []
            text = str(unknown_name(f"key in {prefix}:" if prefix else "key", key, map(str, known)))
            if f"{prefix}.".startswith("tuner.space."):  # open to every key of a run
                text += f" To search over another key, put + in front: +{link.full_key}."
            return text
        if isinstance(link, ValidationError) and link.full_key:
            first = str(link).strip().splitlines()[0]
            return f"{link.full_key}: {first}."
    lines = [line.strip() for line in str(error).strip().splitlines()]
    kept = [line for line in lines if line and not line.startswith("See https://")]
    return " ".join(kept) or type(error).__name__


def _list(options: argparse.Namespace) -> int:
    from peftbench.cli import listing

    if options.long or options.format:
        told = listing.long_text(options.what, options.long, options.format or "text")
    else:
        told = listing.text(options.what, options.results_dir, options.status, options.data_dir)
    print(printable_lines(told), end="", flush=True)  # here, where a closed pipe is caught
    return OK


def _report(options: argparse.Namespace) -> int:
    from peftbench import report

    if options.published_only:
        return _report_published(options)
    if options.experiment is None and (options.published or options.incomplete):
        raise ConfigError(
            "--published and --incomplete are for the tables of a paper. Name their experiment: "
            "peftbench report EXPERIMENT. See `peftbench list tables`."
        )
    formats = () if options.no_figures else ("png", "pdf", "svg")
    made = report.build(
        options.results_dir,
        where=options.where,
        best_on_test=options.best_on_test,
        limited=options.limited,
        dirty=options.dirty,
        formats=formats,
        style=options.format,
        experiment=options.experiment,
        published=options.published,
        incomplete=options.incomplete,
        parts=report.PARTS if options.only is None else options.only,
    )
    print(printable_lines(made.text))
    for error in made.broken if options.format != "text" else ():
        print(f"peftbench: {printable(str(error))}", file=sys.stderr)
    return FAILED if made.broken else OK


def _advise(options: argparse.Namespace) -> int:
    from peftbench.cli import units
    from peftbench.report import advice
    from peftbench.results.frame import committed, load

    budget = advice.Budget(
        params=None if options.max_params is None else units.count(options.max_params),
        latency_ms=None if options.max_latency is None else units.milliseconds(options.max_latency),
        memory_bytes=None if options.max_memory is None else units.byte_count(options.max_memory),
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        runs, left_out = load(options.results_dir), list[str]()
    for warning in told:
        print(f"peftbench: {printable(str(warning.message))}", file=sys.stderr)
    if not options.dirty:
        runs, left_out = committed(runs)
    found = advice.advise(runs, budget, datasets=options.dataset, backbones=options.backbone)
    print(printable_lines(advice.to_text(found, budget)), end="", flush=True)
    for line in left_out:
        print(f"Left out: {line}.", flush=True)
    return OK if any(one.chosen for one in found) else FAILED


def _report_published(options: argparse.Namespace) -> int:
    from pathlib import Path

    from peftbench.report import papers

    if options.experiment is None:
        raise ConfigError(
            "--published-only is for the tables of a paper. Name their experiment: "
            "peftbench report EXPERIMENT --published-only. See `peftbench list tables`."
        )
    style = "csv" if options.format == "csv" else "md"
    made = papers.build_published(options.experiment, Path(options.results_dir), style=style)
    print(made.text, end="")
    if options.format == "text":
        print("\n".join(["", "Written:", *(f"  {path}" for path in made.paths)]))
    return OK


def _reproduce(options: argparse.Namespace) -> int:
    from peftbench.report.papers.reproduce import reproduce

    told = reproduce(options.table, options.results_dir, options.where, dirty=options.dirty)
    print(printable_lines(told.text), end="")
    for error in told.broken:
        print(f"peftbench: {printable(str(error))}", file=sys.stderr)
    if told.missed or told.broken:
        return FAILED
    return OK if told.judged else NOTHING


def _export(options: argparse.Namespace) -> int:
    from peftbench.export import export

    folder = export(
        options.run_id,
        options.results_dir,
        options.out,
        merged=options.merged,
        checkpoint=options.checkpoint,
    )
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(printable(f"{folder}: {names}"), flush=True)
    return OK


def _push(options: argparse.Namespace) -> int:
    from peftbench.loggers import LoggerSettings
    from peftbench.loggers.push import push

    settings = LoggerSettings(
        name="wandb",
        project=options.project,
        entity=options.entity,
        group=options.group,
        mode=options.mode,
        timeout=options.timeout,
    )
    done = push(
        options.results_dir, options.where, settings=settings, force=options.force, say=_say
    )
    total = done.sent + done.skipped + done.failed + done.left
    if not total and not done.broken:
        print(f"No such runs in {options.results_dir}. Run: peftbench run method=linear")
        return OK
    parts = [f"{done.sent} pushed", f"{done.skipped} already there"]
    parts += [f"{done.failed} failed"] if done.failed else []
    parts += [f"{done.left} not tried"] if done.left else []
    print(f"{', '.join(parts)}; {done.reports} reports pushed")
    if options.mode == "offline" and done.sent + done.reports:
        print(f"kept in {options.results_dir}/wandb; `wandb sync` uploads them")
    return OK if done.complete else FAILED


def _say(line: str) -> None:
    print(printable(line), flush=True)


def _dashboard(options: argparse.Namespace) -> int:
    from peftbench.loggers import LoggerSettings, dashboard

    settings = LoggerSettings(name="wandb", project=options.project, entity=options.entity)
    if options.dry_run:
        print(dashboard.describe(settings, options.name), end="")
    else:
        print(dashboard.create(settings, options.name))
    return OK
