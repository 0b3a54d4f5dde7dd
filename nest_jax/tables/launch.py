"""Runs a plan: one process per run, so that each has the device's memory for itself; a failure does not stop the others."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from nest_jax import rundir
from nest_jax.command import INTERRUPTED
from nest_jax.errors import InputError
from nest_jax.tables import plan as plans
from nest_jax.tables import report
from nest_jax.tables.plan import Plan, Run

FAILED = 3  # exit code
PATIENCE = 120.0  # seconds for a run to finish its step and save


def dry(plan: Plan, runs: Sequence[Run]) -> str:
    """The commands, one per run, each after the one that it depends on. The lines between them are comments to a shell."""
    numbers = {run.workdir: number for number, run in enumerate(runs, start=1)}
    lines = []
    for run in runs:
        remark = ""
        if plans.outcome(run):
            remark = " (done)"
        elif run.start in numbers:
            remark = f" (once {numbers[run.start]} has finished task 0)"
        lines += [f"# {numbers[run.workdir]} of {len(runs)}: {run.label}{remark}", plans.command(run)]
    return "\n".join(lines) + "\n" + "".join(f"# {line}\n" for line in left_out(plan))


def left_out(plan: Plan) -> list[str]:
    """A line for every cell that cannot be run."""
    return [f"table {plan.table.number}, {one.row}, {one.column}: not possible: {one.reason}" for one in plan.missing]


def run_all(plan: Plan, runs: Sequence[Run]) -> int:
    """Runs what is not done, in order, and writes the table after each; returns the exit code.

    Two of these at the same time, on one work directory, do no harm: a run that another process works on is refused by its
    lock, counts as failed here, and is filled in by the next call.

    Raises:
        InputError: a work directory holds a run of another recipe. Nothing has been started.
    """
    if conflicts := [found for run in runs if (found := plans.conflict(run))]:
        raise InputError("\n".join(conflicts))
    waiting = [run for run in runs if not plans.outcome(run)]
    _say(f"table {plan.table.number} on {plan.table.dataset}: {len(runs)} runs, {len(runs) - len(waiting)} done")
    for line in left_out(plan):
        _say(line)
    path = report.write(plan)
    failed, took = [], []
    for number, run in enumerate(waiting, start=1):
        left = f", about {_clock(sum(took) / len(took) * (len(waiting) - number + 1))} left" if took else ""
        _say(f"run {number} of {len(waiting)}: {run.label}{left}")
        _say(f"  {plans.command(run)}")
        if run.start and 0 not in rundir.completed_tasks(run.start):
            failed.append((run, f"task 0 of {run.start}, which it starts from, is not there"))
            continue
        began = time.monotonic()
        try:
            code, last = _call(plans.arguments(run))
        except KeyboardInterrupt:
            code, last = INTERRUPTED, ""
        if code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
            report.write(plan)
            _say("interrupted; the same command continues from the last checkpoint of this run")
            return INTERRUPTED
        if code == 0 and plans.outcome(run):
            took.append(time.monotonic() - began)
        else:
            failed.append((run, f"exit code {code}: {last}" if code else "it was stopped before its last task"))
        path = report.write(plan)
    _say(f"\n{path.read_text()}")
    for run, reason in failed:
        _say(f"failed: {run.label}: {reason}\n  again: {plans.command(run)}")
    _say(f"written: {path}, and .csv and .json beside it")
    return FAILED if failed else 0


def _call(arguments: Sequence[str]) -> tuple[int, str]:
    """Exit code of nest_jax.main in a process of its own, and the last thing that it said on standard error, which is passed on.

    Raises:
        KeyboardInterrupt: after the process has ended.
    """
    command = [sys.executable, "-m", "nest_jax.main", *arguments]
    last = ""
    # In a session of its own it does not hear a terminal's Ctrl-C, which would come twice, and a second one does not let it save.
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                sys.stderr.write(line)
                sys.stderr.flush()
                # An error's message may have several lines; the first, which names it, is the one to repeat.
                if line.strip() and not last.startswith(("error: ", "training stopped: ")):
                    last = line.strip()
            return process.wait(), last
        except KeyboardInterrupt:
            _end(process)
            sys.stderr.write(process.stderr.read())  # where it stopped
            raise


def _end(process: subprocess.Popen) -> None:
    """Ends a run: the first signal makes it save and stop, the second stops it at once. Its checkpoints are whole in any case."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C is passed on
            process.wait(PATIENCE)
            return


def _clock(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _say(text: str) -> None:
    print(text, flush=True)
