"""The command line through Hydra: names checked first, failures as one line."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from peftbench.cli.exit import FAILED, OK
from peftbench.errors import ConfigError, PeftbenchError
from peftbench.results.disk import explained, full_number

if TYPE_CHECKING:
    from omegaconf import DictConfig

# options of Hydra that take a value; `--info` takes one too, but may stand alone
OWN = ("folder", "hf")  # configurations of data sets that a user brings
OWN_RECIPE = "pictures"
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


def run_with_hydra(
    do: Callable[[DictConfig], int], arguments: Sequence[str], plans: bool = False
) -> int:
    """The exit status of what `arguments` ask for: one run, whose configuration `do` gets, or more.

    With `plans` a launcher only tells what it would do.

    Raises:
        ConfigError: what Hydra refuses, in one line.
        PeftbenchError: what `do` or a launcher refuses.
    """
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from hydra.version import setbase
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    from peftbench.cli import quoting
    from peftbench.cli.start import start
    from peftbench.sweep.launchers.handover import Handover
    from peftbench.sweep.launchers.register import register

    register()
    quoted = quoting.paths_quoted(list(arguments))
    checked = with_own_recipe(_check_names(_options_first(_resolved(quoted))))
    statuses: list[int] = []
    refusals: list[PeftbenchError] = []

    def entry(cfg: DictConfig) -> None:
        with open_dict(cfg):
            cfg.pop("hydra", None)
        try:
            statuses.append(do(cfg))
        except PeftbenchError as e:
            refusals.append(e)  # Hydra would add lines of its own
        except OmegaConfBaseException as e:
            refusals.append(ConfigError(one_line(e)))

    task = Handover(entry, tuple(flags_of(quoted)), plans)
    with _environment(HYDRA_FULL_ERROR="1"):  # Hydra has no other way not to exit by itself
        try:
            # as hydra.main does, which takes its arguments from sys.argv alone
            setbase("1.3")
            parser = get_args_parser()
            parser.prog = "peftbench"
            options = parser.parse_args(checked)
            _check_options(options)
            start(options, parser, task)
        except (HydraException, OmegaConfBaseException) as e:
            raise ConfigError(one_line(e)) from e
        except BrokenPipeError:  # whoever read the output has gone: no error of ours
            raise
        except OSError as e:
            if full_number(e) is not None:
                raise explained(e) from e
            raise ConfigError(_of_system(e, checked)) from e
        except SystemExit as e:
            if e.code not in (None, 0):
                raise ConfigError("see `peftbench run --help`") from e
    if refusals:
        raise refusals[0]
    return FAILED if task.unfinished else next((s for s in statuses if s != OK), OK)


def _check_options(options: Namespace) -> None:
    """Refuse what Hydra offers and would do badly here."""
    if options.hydra_help:  # it lists every folder beside `experiments/` first, for minutes
        raise ConfigError(
            "--hydra-help is left out. `peftbench run --help` has the options, and "
            "https://hydra.cc explains those of Hydra."
        )
    if options.experimental_rerun is not None:
        raise ConfigError(
            "--experimental-rerun would read a pickle, which can run code. "
            "Give the overrides of the run."
        )


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


def _resolved(arguments: list[str]) -> list[str]:
    """A printed configuration shows the values in force and not where they come from."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    printing = any(a == "--cfg=job" or (a in ("--cfg", "-c") and b == "job") for a, b in pairs)
    return [*arguments, "--resolve"] if printing and "--resolve" not in arguments else arguments


def flags_of(arguments: list[str]) -> list[str]:
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
    from peftbench.config.choices import check_choices
    from peftbench.config.globs import written_out

    skip = {i + 1 for i, a in enumerate(arguments) if a in VALUED_OPTIONS}
    overrides = [a for i, a in enumerate(arguments) if not a.startswith("-") and i not in skip]
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(
                f"{text!r} is no override. Write KEY=VALUE, for example method=lora. "
                "See `peftbench run --help`."
            )
    if flags_of(arguments):
        return arguments  # names may come from another folder; Hydra knows them all
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as e:
        shown = quoting.hint(str(e.override))
        reason = "its value does not parse." if shown else one_line(e)
        raise ConfigError(f"{e.override!r} is no valid override: {reason}{shown}") from e
    for override in parsed:
        if override.key_or_group not in GROUPS or override.is_delete():
            continue
        value = override.value()
        if isinstance(value, Glob):
            written = written_out(override)
            arguments = [written if a == override.input_line else a for a in arguments]
            continue
        names = value.list if isinstance(value, ChoiceSweep) else [value]
        check_choices(
            override.key_or_group, [_text(n) for n in names if _text(n) not in ("", "null")]
        )
    return arguments


def with_own_recipe(arguments: list[str]) -> list[str]:
    """Pictures that a user brings train with `OWN_RECIPE`, unless the arguments name another.

    A choice of files cannot follow the data set in Hydra, where protocols may choose it as well.
    """
    given = dict(text.partition("=")[::2] for text in arguments if "=" in text)
    if {"recipe", "protocol", "experiments"} & given.keys():
        return arguments
    datasets = given.get("dataset", "").split(",")
    return [*arguments, f"recipe={OWN_RECIPE}"] if set(datasets) <= set(OWN) else arguments


def _text(element: Any) -> str:
    """The name in a parsed override; an empty text for what is no name, such as glob(...)."""
    if element is None:
        return ""
    inner = getattr(element, "text", element)
    return str(inner) if isinstance(inner, str | int | float) else ""  # method=1 is no name either


def one_line(error: BaseException) -> str:
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
