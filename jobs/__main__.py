"""The command line: ``sdxl JOB ...``, the same as ``python -m jobs JOB ...``.

Settings are resolved as defaults < ``--recipe FILE`` < flags and handed to the job's ``run``. The
last line on stdout is the summary as one line of JSON; all else goes to stderr. Exit codes: 0 all
rows fine; 3 finished, some rows failed; 2 refused before any work; 1 the job failed;
130 interrupted.

Only here is the command line read, logging configured and stdout written to.
"""

import argparse
import contextlib
import dataclasses
import difflib
import importlib.metadata
import inspect
import itertools
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import tyro

from jobs.registry import JOBS, Job
from sdxl_core.contract.config import options, read_recipe, suggest, to_toml
from sdxl_core.contract.errors import (
    ConfigError,
    ResourceError,
    SchemaError,
    SdxlError,
    WeightsError,
)

EXIT_JOB_FAILED, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 2, 130

# What was asked for cannot be; these are raised before anything has been produced.
_REFUSALS = (ConfigError, SchemaError, ResourceError, WeightsError)

_Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
_RECIPE_HELP = "TOML file with settings; flags win over it"
_PRINT_CONFIG_HELP = "print the resolved settings as TOML and stop"
_PLAN_HELP = "say what would be done and stop"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. ``arguments``: the process's own if None."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _configure_logging()
    try:
        with _sigterm_as_interrupt():
            return _dispatch(arguments)
    except SdxlError as error:
        print(f"sdxl: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_REFUSED if isinstance(error, _REFUSALS) else EXIT_JOB_FAILED
    except KeyboardInterrupt:
        print("sdxl: interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as stop:  # tyro and argparse, which have said why; or Ray on SIGTERM
        if stop.code == signal.SIGTERM:
            return EXIT_INTERRUPTED
        return stop.code if isinstance(stop.code, int) else EXIT_JOB_FAILED


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else EXIT_REFUSED
    if arguments[0] == "--version":
        print(importlib.metadata.version("sdxl-ray"))
        return 0
    name, job = arguments[0], _find_job(arguments[0])
    call = _parse(name, job, arguments[1:])
    if call.print_config:
        print(to_toml(call.config), end="")
        return 0
    if getattr(call, "plan", False):
        plan = job.load().plan(call.config)
        print(plan.describe(), plan.to_json(), sep="\n", flush=True)
        return 0
    summary = job.load().run(call.config)
    print(summary.to_json(), flush=True)
    return int(summary.exit_code)


def _overview() -> str:
    width = max(map(len, JOBS))
    jobs = "\n".join(f"  {name:{width}}  {job.help}" for name, job in JOBS.items())
    return f"usage: sdxl JOB [-h] ...\n\njobs:\n{jobs}\n\n`sdxl JOB --help` lists a job's options."


def _find_job(name: str) -> Job:
    if name in JOBS:
        return JOBS[name]
    likely = difflib.get_close_matches(name, JOBS, n=1)
    hint = f"; did you mean {likely[0]}?" if likely else "."
    raise ConfigError(f"{name}: there is no such job{hint} The jobs are: {', '.join(JOBS)}")


def _parse(name: str, job: Job, arguments: list[str]) -> Any:
    """The call: ``.config``, ``.print_config`` and, if the job has one, ``.plan``."""
    config_type = job.load_config()
    _check_flags(name, job, config_type, arguments)
    call_fields: list[Any] = [
        ("config", Annotated[config_type, tyro.conf.arg(name="")]),
        ("recipe", Annotated[str | None, tyro.conf.arg(help=_RECIPE_HELP, metavar="FILE")], None),
        ("print_config", Annotated[_Flag, tyro.conf.arg(help=_PRINT_CONFIG_HELP)], False),
    ]
    if job.has_plan:
        call_fields.append(("plan", Annotated[_Flag, tyro.conf.arg(help=_PLAN_HELP)], False))
    call_type = dataclasses.make_dataclass("Call", call_fields)
    recipe = _recipe_of(name, arguments)
    return tyro.cli(
        call_type,
        args=arguments,
        default=None if recipe is None else call_type(config=_draft(config_type, recipe)),
        prog=f"sdxl {name}",
        description=inspect.getdoc(config_type),
        config=(tyro.conf.AvoidSubcommands,),
    )


def _check_flags(name: str, job: Job, config_type: type[Any], arguments: list[str]) -> None:
    """Refuses unknown flags, with a suggestion also where only the last part of a name is close."""
    known = ["help", "recipe", "print-config", *(["plan"] if job.has_plan else [])]
    for option in options(config_type):
        table, _, leaf = option.name.replace("_", "-").rpartition(".")
        prefix = f"{table}." if table else ""
        known += [prefix + leaf, *([f"{prefix}no-{leaf}"] if option.type == "bool" else [])]
    for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
        flag = argument.partition("=")[0].replace("_", "-").removeprefix("--")
        if argument.startswith("--") and flag not in known:
            likely = suggest(flag, known)
            hint = f"did you mean --{likely}? " if likely else ""
            raise ConfigError(f"--{flag}: unknown flag; {hint}`sdxl {name} --help` lists all")


def _recipe_of(name: str, arguments: list[str]) -> str | None:
    """The file of ``--recipe``, which must be read before the flags can be."""
    parser = argparse.ArgumentParser(prog=f"sdxl {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    recipe: str | None = parser.parse_known_args(arguments)[0].recipe
    return recipe


def _draft(config_type: type[Any], recipe: str) -> Any:
    """What the recipe and the defaults set, for the flags to complete.

    It is made without ``__init__``: a recipe may leave required fields to the command line, and the
    class checks itself once the flags are in.
    """
    values, draft = read_recipe(config_type, recipe), object.__new__(config_type)
    for field in dataclasses.fields(config_type):
        value = values.get(field.name, field.default)
        if field.name not in values and field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        object.__setattr__(
            draft, field.name, tyro.MISSING if value is dataclasses.MISSING else value
        )
    return draft


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A cluster that takes a machine back sends SIGTERM: it ends a job as Ctrl-C does."""

    def interrupt(_signum: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _configure_logging() -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=form, datefmt="%H:%M:%S")
    for package in ("sdxl_core", "cluster", "jobs"):
        logging.getLogger(package).setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
