"""From a table to its runs: one config, one work directory each, and whose task 0 it starts from."""

import itertools
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from nest_jax import config as configs
from nest_jax import plugins, recipes, results, rundir, validation
from nest_jax.errors import InputError
from nest_jax.tables import catalogue
from nest_jax.tables.catalogue import Overrides, Table

FIRST_SEED = 42  # the published one; more seeds follow it


class Run(NamedTuple):
    """One call of nest_jax.main. `tasks`: how many results it ends with; `start`: the work directory whose task 0 it takes, or ""."""

    row: str
    column: str
    seed: int
    spec: str
    overrides: Overrides
    workdir: str
    config: Any
    tasks: int
    start: str = ""

    @property
    def label(self) -> str:
        return f"{self.row}, {self.column}, seed {self.seed}"


class Missing(NamedTuple):
    """Cells that cannot be run, and why: a plug-in or config that this version lacks, or parts that do not go together."""

    row: str
    column: str
    reason: str


class Plan(NamedTuple):
    """`runs`: all of the table, in the order in which they are to be run, one for each cell and seed."""

    table: Table
    workdir: str
    seeds: tuple[int, ...]
    extra: Overrides
    runs: tuple[Run, ...]
    missing: tuple[Missing, ...]


def make(table: Table, workdir: str, *, seeds: int = 1, extra: Overrides = ()) -> Plan:
    """The plan of a table.

    Args:
        workdir: holds DATASET/PROTOCOL/VARIANT/seed-N, a run each; tables share it, and the runs that they have in common.
        seeds: 42 and the following ones.
        extra: overrides for all runs. A key of a plug-in that a row does not have (NeST's epochs in a row without NeST) is left out there.

    Raises:
        InputError: seeds or `extra` that are not possible.
    """
    if seeds < 1:
        raise InputError(f"--seeds={seeds}: at least 1")
    rows = [row for row in table.rows if row.variant]
    varied = {"seed", "init_from", "extend_from", "tasks.name", "tasks.setting", "tasks.order"}
    varied |= {key for row in rows if row.variant for key, _ in row.variant.overrides}
    if wrong := [key for key, _ in extra if key in varied]:
        raise InputError(f"table {table.number}: {', '.join(wrong)}: its rows and columns or --seeds set this")
    runs: list[Run] = []
    missing: dict[tuple[str, str], Missing] = {}
    used, numbers = set(), tuple(range(FIRST_SEED, FIRST_SEED + seeds))
    for seed, column, row in itertools.product(numbers, table.columns, rows):
        assert row.variant
        spec = catalogue.spec(table.dataset, column, row.variant)
        own = (("seed", str(seed)), *row.variant.overrides, *column.overrides)
        try:
            config = _valid(configs.load(spec), own)
        except InputError as error:
            reason = str(error).splitlines()[-1].strip().partition(";")[0]  # without the choices
            missing[row.label, column.label] = Missing(row.label, column.label, reason)
            continue
        theirs = _applying(extra, config)
        config = _valid(config, theirs) if theirs else config
        used |= {key for key, _ in theirs}
        tasks = 1 if _joined(config) else len(configs.protocol(config))
        folder = f"{workdir}/{table.dataset}/{column.folder}/{row.variant.slug}/seed-{seed}"
        runs.append(Run(row.label, column.label, seed, spec, (*own, *theirs), folder, config, tasks))
    if runs and (unused := [key for key, _ in extra if key not in used]):
        raise InputError(f"--config.{unused[0]}: no row of table {table.number} has this key")
    return Plan(table, workdir, numbers, extra, tuple(runs), tuple(missing.values()))


def _valid(config: Any, overrides: Overrides) -> Any:
    configs.override(config, overrides)
    validation.validate(config)
    return config


def _applying(extra: Overrides, config: Any) -> Overrides:
    """`extra` without the keys that only plug-ins of other rows have."""
    known = configs.flatten(config)
    return tuple((key, value) for key, value in extra if key in known or key.partition(".")[0] not in recipes.PICKS)


def _joined(config: Any) -> bool:
    return getattr(plugins.load("methods", config.method.name), "JOINS_TASKS", False)


# ---------------------------------------------------------------------------------------------------------------- what is shared


def task_0(config: Any) -> tuple:
    """All that the model after task 0 depends on: runs for which it is equal can share it.

    Task 0 is plain cross entropy whatever the method, so method and initialisation count only through the network, which a
    method may replace, and the hyper-parameters of task 0. Later tasks count in the disjoint setting only, where images that
    show their classes are left out.
    """
    protocol, joined = configs.protocol(config), _joined(config)
    classes = sum(protocol.tasks, ()) if joined else protocol.tasks[0]
    excluded = () if joined or protocol.setting == "overlapped" else tuple(sorted(protocol.future(0)))
    later = (
        "method.",
        "classifier_init.",
        "tasks.",
        "evaluate.",
        "log.",
        "checkpoint.",
        "train.freeze_old_classifiers",
    )
    flat = configs.flatten(config)
    kept = {key: flat[key] for key in sorted(flat) if not key.startswith(later) and key not in ("name", "init_from")}
    for key in ("train.epochs", "train.learning_rate"):
        kept[key] = kept[key][0]
    return classes, excluded, tuple(kept.items())


def with_starts(plan: Plan, chosen: Sequence[Run]) -> list[Run]:
    """The chosen runs, in order, each with the work directory whose task 0 it starts from.

    Of those that share task 0, the first trains it; unless some run of the plan, chosen or not, has it already. A run that has
    begun keeps the start that it began with.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in plan.runs:
        groups.setdefault(task_0(run.config), []).append(run)
    selected = {run.workdir for run in chosen}
    starts = {}
    for group in groups.values():
        here = [run for run in group if run.workdir in selected]
        ready = next((run for run in group if 0 in rundir.completed_tasks(run.workdir)), None)
        for run in here:
            stored, base = _stored(run), ready or here[0]
            starts[run.workdir] = stored.init_from if stored else "" if run == base else base.workdir
    return [run._replace(start=starts[run.workdir]) for run in chosen]


# ------------------------------------------------------------------------------------------------------------------- on disk


def _stored(run: Run) -> Any:
    """The config that a run began with; None before it has."""
    path = epath.Path(run.workdir) / configs.FILE
    return configs.from_json(path.read_text()) if path.exists() else None


def conflict(run: Run) -> str:
    """How the run that lies in this one's place differs from it; "" where none does."""
    stored = _stored(run)
    if stored is None:
        return ""
    wanted = configs.from_json(configs.to_json(run.config))
    with wanted.unlocked():
        wanted.init_from = stored.init_from  # the same model, wherever it was trained
        wanted.dtype = stored.dtype if wanted.dtype == "auto" else wanted.dtype
    try:
        configs.claim(wanted, run.workdir, write=False)
    except InputError as error:
        return str(error)
    return ""


def outcome(run: Run) -> dict[str, Any] | None:
    """The results of a finished run; None where it is not finished or another recipe's."""
    try:
        found = results.read(run.workdir)
    except InputError:
        return None
    return found if len(found["tasks"]) >= run.tasks and not conflict(run) else None


# ------------------------------------------------------------------------------------------------------------------ the command


def arguments(run: Run) -> list[str]:
    """The arguments of nest_jax.main."""
    overrides = [f"--config.{key}={value}" for key, value in run.overrides]
    start = [f"--config.init_from={run.start}"] if run.start else []
    return [f"--config={run.spec}", f"--workdir={run.workdir}", *overrides, *start]


def command(run: Run) -> str:
    """The same as a line for a shell."""
    return shlex.join(["python", "-m", "nest_jax.main", *arguments(run)])
