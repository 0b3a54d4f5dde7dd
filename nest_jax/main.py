"""The command line: `python -m nest_jax.main --config=FILE[:ARG] [--workdir=DIR] [--config.KEY=VALUE ...]`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import metadata

from nest_jax import STARTED, __version__, compilation, config, interruption, memory, plugins, tasks, validation
from nest_jax.command import Parser, exit_code, split_overrides
from nest_jax.errors import InputError

EXAMPLES = """\
examples:
  python -m nest_jax.main --config=configs/shapes.py
  python -m nest_jax.main --config=configs/voc_15_1.py --config.dataset.root=/data/VOCdevkit
  python -m nest_jax.main --config=configs/voc_15_1.py:method=mib,classifier_init=background --workdir=runs/mib
  python -m nest_jax.main --config=configs/voc_15_1.py --config.train.epochs=30,10 --config.seed=1 --validate_only

A run that was stopped continues when the same command is given again. Exit codes: 0 done, 2 something in the input is
wrong, 3 training cannot go on (a loss is not finite), 130 interrupted. SIGTERM and Ctrl-C end it after the step in hand
(several processes: after the next line of the log), saved, with 0; a second one interrupts at once.
Compiled programs are kept in ~/.cache/nest_jax/xla: JAX_COMPILATION_CACHE_DIR=DIR for another place, JAX_ENABLE_COMPILATION_CACHE=0 for none.
configs: """
PROFILED, VIEWER = 3, "https://ui.perfetto.dev"


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The flags, and the overrides `("train.epochs", "6,6")` in their order.

    Raises:
        InputError: an unknown or incomplete flag.
    """
    parser = Parser(
        prog="python -m nest_jax.main",
        description="Trains a class-incremental segmenter, task after task.",
        epilog=EXAMPLES + ", ".join(config.available()),
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="config file; ARG picks plug-ins: method=mib,..."
    )
    parser.add_argument("--config.KEY", dest="key", metavar="VALUE", help="overrides one value of it")
    parser.add_argument("--workdir", metavar="DIR", help="where the run is kept (default: runs/NAME of the config)")
    parser.add_argument(
        "--validate_only", action="store_true", help="check the config, print it and its tasks, and stop"
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const=PROFILED,
        default=0,
        type=positive,
        metavar="N",
        help=f"record N steps (default: {PROFILED}) of each phase of the first task that is learnt, for {VIEWER}",
    )
    parser.add_argument(
        "--multihost",
        action="store_true",
        help="one of several processes; on Cloud TPU, Slurm and Kubernetes nothing else is needed",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 listens")
    parser.add_argument("--num_processes", type=int, metavar="N", help="elsewhere: how many there are")
    parser.add_argument("--process_id", type=int, metavar="I", help="elsewhere: which one this is, from 0")
    parser.add_argument(
        "--version", action="version", version=f"nest_jax {__version__} (jax {metadata.version('jax')})"
    )

    flags, overrides = split_overrides(arguments)
    known, unknown = parser.parse_known_args(flags)
    if unknown:
        choices = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        raise InputError("\n".join(plugins.unknown("flag", word, choices) for word in unknown))
    return known, overrides


def run(arguments: Sequence[str]) -> None:
    """What `main` does, with errors as exceptions."""
    flags, overrides = parse(arguments)
    memory.keep_freed()
    join_processes(flags)  # before anything asks JAX which process this is
    settings = config.load(flags.config)
    config.override(settings, overrides, spec=flags.config)
    compilation.keep()
    validation.validate(settings)
    if flags.validate_only:
        print(describe(settings))
        return

    import absl.flags
    import jax

    from nest_jax import train

    absl.flags.FLAGS(sys.argv[:1])  # Grain's worker processes want absl's flags parsed
    logging.basicConfig(format="%(message)s", force=True)  # some library has set up its own by now
    logging.getLogger("nest_jax").setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)
    try:
        with interruption.listening():
            workdir = flags.workdir or f"runs/{settings.name}"
            train.run(settings, workdir, profile=flags.profile, started=STARTED)
    except interruption.Stopped as stopped:
        print(f"stopped and saved ({stopped}); the same command continues", file=sys.stderr)


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def join_processes(flags: argparse.Namespace) -> None:
    """Makes this process one of several, if the flags say so.

    Raises:
        InputError: flags that do not fit together, or processes that do not find each other.
    """
    given = {name: getattr(flags, name) for name in ("coordinator", "num_processes", "process_id")}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) < len(given) and missing:
        raise InputError(f"--coordinator, --num_processes and --process_id go together; missing: {', '.join(missing)}")
    if missing and not flags.multihost:
        return
    if not missing and not 0 <= flags.process_id < flags.num_processes:
        raise InputError(
            f"--process_id={flags.process_id}: with --num_processes={flags.num_processes} it is 0 to {flags.num_processes - 1}"
        )
    import jax

    try:
        jax.distributed.initialize(flags.coordinator, flags.num_processes, flags.process_id)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--multihost: {str(error).strip().splitlines()[0]} On Cloud TPU, Slurm and Kubernetes --multihost is enough; elsewhere give every "
            "process --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error


def describe(settings: config.Config) -> str:
    """The resolved config, one line per task, the network's size and shapes, and what a training step will take."""
    from nest_jax import estimate

    shapes, protocol = validation.shape_check(settings), config.protocol(settings)
    height, width, channels = shapes["pre_logits"][1:]
    return (
        f"{config.to_json(config.resolve(settings))}"
        f"{tasks.describe(protocol)}\n"
        f"network: {shapes['parameters']:,} parameters, features {height} x {width} x {channels}, {shapes['logits'][-1]} classes at the end\n"
        f"{estimate.told(settings, protocol)}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return exit_code(run, arguments, interrupted="interrupted; the same command continues from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
