#!/usr/bin/env bash
# Several processes on this machine that train together, as the hosts of a cluster do.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/multiprocess.sh [OPTIONS] -- ARGUMENTS OF nest_jax.main

  --processes=N     how many (default 2)
  --gpus=0,1,2,3    these GPUs, dealt out in equal shares
  --cpu_devices=N   N simulated CPU devices for each process
  --port=PORT       where process 0 listens, on 127.0.0.1 (default: a free one)
  --logs=DIR        what the other processes print goes to DIR/process-I.log (default: a new temporary folder)
  --grace=SECONDS   when one process fails, the others get so long to end by themselves (default 30)
  --dry-run         print the commands and run nothing

Process 0 prints here. When one fails, all end, with its exit code. Ctrl-C or SIGTERM: the run finishes its step, saves
and ends; the same command continues it. PYTHON names the interpreter (default: python).

examples:
  launch/multiprocess.sh --processes=2 --cpu_devices=2 -- --config=configs/shapes.py --workdir=runs/two
  launch/multiprocess.sh --processes=8 --gpus=0,1,2,3,4,5,6,7 -- --config=configs/voc_15_1.py
EOF
}

die() {
  echo "error: $*" >&2
  exit 2
}

processes=2 gpus="" cpu_devices="" port="" logs="" grace=30 dry=""
while [ $# -gt 0 ]; do
  case "$1" in
    --processes=*) processes="${1#*=}" ;;
    --gpus=*) gpus="${1#*=}" ;;
    --cpu_devices=*) cpu_devices="${1#*=}" ;;
    --port=*) port="${1#*=}" ;;
    --logs=*) logs="${1#*=}" ;;
    --grace=*) grace="${1#*=}" ;;
    --dry-run) dry=yes ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; the arguments of nest_jax.main come after -- (--help shows examples)" ;;
  esac
  shift
done
[ $# -gt 0 ] || die "nothing to run: give the arguments of nest_jax.main after -- (--help shows examples)"
case "$processes" in '' | 0 | *[!0-9]*) die "--processes=$processes: not a whole number above 0" ;; esac
case "$cpu_devices" in *[!0-9]*) die "--cpu_devices=$cpu_devices: not a whole number" ;; esac
case "$grace" in '' | *[!0-9]*) die "--grace=$grace: not a whole number" ;; esac
[ -z "$gpus" ] || [ -z "$cpu_devices" ] || die "--gpus and --cpu_devices exclude each other"
gpu_list=()
[ -z "$gpus" ] || IFS=, read -r -a gpu_list <<<"$gpus"
share=$((${#gpu_list[@]} / processes))
[ $((share * processes)) -eq ${#gpu_list[@]} ] || die "--gpus=$gpus: ${#gpu_list[@]} GPUs cannot be dealt out to $processes processes in equal shares"

python="${PYTHON:-python}"
if [ -n "$dry" ]; then
  port="${port:-PORT}"
else
  command -v "$python" >/dev/null || die "$python: no such interpreter; activate the environment, or name one: PYTHON=/path/to/python"
  [ -n "$port" ] || port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
  logs="${logs:-$(mktemp -d)}"
  mkdir -p "$logs"
fi

# Sets `command` to that of process $1.
command_of() {
  command=("$python" -m nest_jax.main --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$1" "${@:2}")
  if [ -n "$gpus" ]; then
    local mine
    mine="$(IFS=,; echo "${gpu_list[*]:$1 * share:share}")"
    command=(env "CUDA_VISIBLE_DEVICES=$mine" "${command[@]}")
  elif [ -n "$cpu_devices" ]; then
    local flags="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$cpu_devices"
    command=(env JAX_PLATFORMS=cpu "XLA_FLAGS=$flags" "${command[@]}")
  fi
}

if [ -n "$dry" ]; then
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$@"
    printf '%q ' "${command[@]}"
    echo
  done
  exit 0
fi

children=() alive=()
send() { # to the processes that are left
  local i
  for i in ${alive[@]+"${alive[@]}"}; do kill "-$1" "${children[i]}" 2>/dev/null || true; done
}
trap 'send TERM' INT TERM
# In a session of its own a terminal's Ctrl-C does not reach a process, and so comes to it once: a second one would end it at once.
detached=()
command -v setsid >/dev/null && detached=(setsid)
for ((i = 0; i < processes; i++)); do
  command_of "$i" "$@"
  if [ "$i" = 0 ]; then
    ${detached[@]+"${detached[@]}"} "${command[@]}" &
  else
    ${detached[@]+"${detached[@]}"} "${command[@]}" >"$logs/process-$i.log" 2>&1 &
  fi
  children+=("$!")
  alive+=("$i")
done
[ "$processes" = 1 ] || echo "processes 1 to $((processes - 1)) print to $logs/process-*.log" >&2

failed="" waited=0 # waited: in fifths of a second since the first failure
while [ ${#alive[@]} -gt 0 ]; do
  sleep 0.2
  left=()
  for i in "${alive[@]}"; do
    if kill -0 "${children[i]}" 2>/dev/null; then
      left+=("$i")
      continue
    fi
    code=0
    wait "${children[i]}" || code=$?
    if [ "$code" != 0 ] && [ -z "$failed" ]; then
      failed=$code
      echo "process $i ended with code $code; ending the others" >&2
      [ "$i" = 0 ] || tail -n 20 "$logs/process-$i.log" >&2
    fi
  done
  alive=(${left[@]+"${left[@]}"})
  if [ -n "$failed" ]; then
    waited=$((waited + 1))
    [ "$waited" != $((5 * grace + 1)) ] || send TERM
    [ "$waited" != $((10 * grace + 1)) ] || send KILL
  fi
done
exit "${failed:-0}"
