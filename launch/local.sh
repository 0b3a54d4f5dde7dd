#!/usr/bin/env bash
# One process on this machine, with all of its devices or some of them. A crashed run is started again and continues.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/local.sh [OPTIONS] -- ARGUMENTS OF nest_jax.main

  --devices=0,1     these GPUs only (default: every device that JAX finds)
  --cpu_devices=N   N simulated devices on the CPU
  --restarts=N      how often a crashed run is started again (default 3)
  --dry-run         print the command and run nothing

Ctrl-C or SIGTERM: the run finishes its step, saves and ends; the same command continues it. PYTHON names the
interpreter (default: python).

examples:
  launch/local.sh -- --config=configs/shapes.py
  launch/local.sh --devices=0 -- --config=configs/voc_15_1.py --config.dataset.root=/data/VOCdevkit --workdir=runs/voc
  nohup launch/local.sh -- --config=configs/voc_15_1.py --workdir=runs/voc > voc.log 2>&1 &
EOF
}

die() {
  echo "error: $*" >&2
  exit 2
}

devices="" cpu_devices="" restarts=3 dry=""
while [ $# -gt 0 ]; do
  case "$1" in
    --devices=*) devices="${1#*=}" ;;
    --cpu_devices=*) cpu_devices="${1#*=}" ;;
    --restarts=*) restarts="${1#*=}" ;;
    --dry-run) dry=yes ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; the arguments of nest_jax.main come after -- (--help shows examples)" ;;
  esac
  shift
done
[ $# -gt 0 ] || die "nothing to run: give the arguments of nest_jax.main after -- (--help shows examples)"
[ -z "$devices" ] || [ -z "$cpu_devices" ] || die "--devices and --cpu_devices exclude each other"
case "$restarts" in '' | *[!0-9]*) die "--restarts=$restarts: not a whole number" ;; esac
case "$cpu_devices" in *[!0-9]*) die "--cpu_devices=$cpu_devices: not a whole number" ;; esac

python="${PYTHON:-python}"
command=("$python" -m nest_jax.main "$@")
[ -z "$devices" ] || command=(env "CUDA_VISIBLE_DEVICES=$devices" "${command[@]}")
if [ -n "$cpu_devices" ]; then
  flags="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$cpu_devices"
  command=(env JAX_PLATFORMS=cpu "XLA_FLAGS=$flags" "${command[@]}")
fi
if [ -n "$dry" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
command -v "$python" >/dev/null || die "$python: no such interpreter; activate the environment, or name one: PYTHON=/path/to/python"

signals=0 child=""
pass_on() {
  signals=$((signals + 1))
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}
trap pass_on INT TERM

# In a session of its own a terminal's Ctrl-C does not reach the run, and so comes to it once: a second one would end it at once.
command -v setsid >/dev/null && command=(setsid "${command[@]}")
for ((attempt = 0; ; attempt++)); do
  "${command[@]}" &
  child=$!
  while :; do
    seen=$signals code=0
    wait "$child" || code=$?
    [ "$signals" != "$seen" ] || break # a signal ends `wait`, not the run
  done
  # Done, wrong input, not finite, interrupted: starting again would not help. Anything else is a crash or a kill.
  case "$code" in 0 | 2 | 3 | 130) exit "$code" ;; esac
  if [ "$signals" -gt 0 ] || [ "$attempt" -ge "$restarts" ]; then
    echo "the run ended with code $code; the same command continues it" >&2
    exit "$code"
  fi
  echo "the run ended with code $code; starting again ($((attempt + 1)) of $restarts)" >&2
done
