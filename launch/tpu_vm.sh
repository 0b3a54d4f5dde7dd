#!/usr/bin/env bash
# Cloud TPU: a slice of one host or many through a queued resource, and a run on it that outlives preemptions.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/tpu_vm.sh COMMAND --zone=ZONE [OPTIONS] [-- ARGUMENTS OF nest_jax.main]

commands
  create    ask for a slice; returns at once, the slice comes when there is one
  setup     wait for it, copy this checkout to every host and install it
  run       train on all hosts and watch; sets up what is not set up, and after a preemption asks for a new slice and
            goes on in the same workdir. Ctrl-C ends the watching, not the run; the same command watches again
  status    of the slice, and of the run on every host
  logs      what the run has printed on host 0
  stop      the run finishes its step, saves and ends; `run` continues it
  delete    give the slice back

options (every command takes all of them)
  --zone=ZONE          default: $CLOUDSDK_COMPUTE_ZONE
  --project=ID         default: gcloud's own
  --name=NAME          of the slice (default: nest-jax)
  --type=TYPE          v4-16, v5litepod-16, v5p-64, v6e-16, ... (create, run)
  --runtime=VERSION    software of the hosts (default: by type)
  --spot               cheaper, may be taken away at any time (create, run)
  --internal-ip        hosts without public addresses; gcloud must then run inside their network (create, setup, run, ...)
  --create-flag=FLAG   one more flag of `gcloud compute tpus queued-resources create`; may be repeated (create, run)
  --copy=gs://B/F:DIR  setup also copies this folder to DIR below the home of every host; may be repeated (setup, run)
  --detach             start and do not watch: nothing restarts the run (run)
  --follow             keep printing (logs)
  --restarts=N         how often a run that crashes is started again; preemptions do not count (run; default 3)
  --poll=SECONDS       between two looks (setup, run; default 60)
  --yes                do not ask (delete)
  --dry-run            print the gcloud commands and call nothing

examples
  pod=(--zone=us-central2-b --type=v4-16 --spot)
  launch/tpu_vm.sh create "${pod[@]}"
  launch/tpu_vm.sh setup "${pod[@]}" --copy=gs://bucket/tensorflow_datasets:tensorflow_datasets
  launch/tpu_vm.sh run "${pod[@]}" --copy=gs://bucket/tensorflow_datasets:tensorflow_datasets -- \
    --config=configs/voc_15_1.py --workdir=gs://bucket/voc_15_1
  launch/tpu_vm.sh delete "${pod[@]}"
EOF
}

die() {
  echo "error: $*" >&2
  exit 2
}
say() { echo "$(date +%H:%M:%S) $*"; }

# --- the command line -----------------------------------------------------------------------------------------------------

verb="${1-}"
case "$verb" in
  create | setup | run | status | logs | stop | delete) shift ;;
  --help | -h | help) usage && exit 0 ;;
  '') usage >&2 && exit 2 ;;
  *) die "unknown command $verb; commands: create setup run status logs stop delete (--help shows examples)" ;;
esac
zone="${CLOUDSDK_COMPUTE_ZONE-}" project="" name=nest-jax type="" runtime="" spot="" internal="" detach="" follow="" yes="" dry=""
restarts=3 poll=60 create_flags=() copies=()
while [ $# -gt 0 ]; do
  case "$1" in
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --name=*) name="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --runtime=*) runtime="${1#*=}" ;;
    --spot) spot=yes ;;
    --internal-ip) internal=yes ;;
    --create-flag=*) create_flags+=("${1#*=}") ;;
    --copy=*) copies+=("${1#*=}") ;;
    --detach) detach=yes ;;
    --follow) follow=yes ;;
    --restarts=*) restarts="${1#*=}" ;;
    --poll=*) poll="${1#*=}" ;;
    --yes) yes=yes ;;
    --dry-run) dry=yes ;;
    --help | -h) usage && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; the arguments of nest_jax.main come after -- (--help shows examples)" ;;
  esac
  shift
done
[ -n "$zone" ] || die "no zone: give --zone=ZONE, or set CLOUDSDK_COMPUTE_ZONE"
case "$name" in [!a-z]* | *[!a-z0-9-]* | '') die "--name=$name: a lowercase letter, then lowercase letters, digits and hyphens" ;; esac
case "$restarts" in '' | *[!0-9]*) die "--restarts=$restarts: not a whole number" ;; esac
case "$poll" in '' | *[!0-9.]*) die "--poll=$poll: not a number of seconds" ;; esac
for copy in ${copies[@]+"${copies[@]}"}; do
  case "$copy" in gs://*:?*) ;; *) die "--copy=$copy: not of the form gs://BUCKET/FOLDER:DIR" ;; esac
done
case "$verb" in create | run)
  [ -n "$type" ] || [ -n "$detach" ] || die "$verb needs --type=TYPE, such as v4-16 or v5litepod-16"
  case "${runtime:+given}$type" in
    given* | '') ;;
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) die "--type=$type: no runtime version is known for it; give --runtime=VERSION" ;;
  esac
esac
if [ "$verb" = run ]; then
  workdir="" before=""
  for word in "$@"; do
    case "$word" in --workdir=*) workdir="${word#*=}" ;; esac
    [ "$before" != --workdir ] || workdir="$word"
    before="$word"
  done
  case "$workdir" in
    gs://?*) ;;
    '') die "run needs the arguments of nest_jax.main after --, --workdir=gs://BUCKET/FOLDER among them" ;;
    *) die "--workdir=$workdir: hosts and their disks go away; name a folder on gs://" ;;
  esac
elif [ $# -gt 0 ]; then
  die "arguments after -- belong to run, not to $verb"
fi
[ -n "$dry" ] || command -v gcloud >/dev/null ||
  die "gcloud is not installed; it comes with the Google Cloud CLI (https://cloud.google.com/sdk), then: gcloud auth login"

# --- gcloud ---------------------------------------------------------------------------------------------------------------

quote() { # the words as a shell reads them
  local word separator=""
  for word in "$@"; do
    case "$word" in '' | *[!A-Za-z0-9_./:=,+@%-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;; esac
    printf '%s%s' "$separator" "$word"
    separator=" "
  done
}
exec 3>&1
call() {
  if [ -n "$dry" ]; then
    { quote "$@" && echo; } >&3
  else
    "$@" 3>&-
  fi
}
where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")
ssh_flags=()
[ -z "$internal" ] || ssh_flags+=(--internal-ip)

create_slice() {
  local flags=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime")
  [ -z "$spot" ] || flags+=(--spot)
  [ -z "$internal" ] || flags+=(--internal-ips)
  call gcloud compute tpus queued-resources create "$name" "${where[@]}" "${flags[@]}" ${create_flags[@]+"${create_flags[@]}"}
}
delete_slice() { call gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force "$@"; }

# CREATING, ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDING, SUSPENDED, FAILED, DELETING as Google has them; ABSENT; or
# UNKNOWN, where gcloud could not say.
state() {
  local told
  if told="$(call gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)" 2>"$scratch/errors")"; then
    if [ -n "$dry" ]; then echo ACTIVE; else echo "${told:-UNKNOWN}"; fi
  elif grep -qiE 'NOT_FOUND|was not found' "$scratch/errors"; then
    echo ABSENT
  else
    cat "$scratch/errors" >&2
    echo UNKNOWN
  fi
}
node_state() { call gcloud compute tpus tpu-vm describe "$name" "${where[@]}" "--format=value(state)" 2>/dev/null || true; }
remote() { # HOSTS SCRIPT
  call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} "--worker=$1" "--command=$2"
}

# --- what runs on the hosts -----------------------------------------------------------------------------------------------
# ~/nest_jax: the code and its environment. ~/nest_jax_run: pid, log and exit (the exit code) of the run, stop (the user asked for it), and
# log.before, of all earlier starts.

install_script() {
  cat <<'EOF'
set -e
rm -rf ~/nest_jax/nest_jax ~/nest_jax/configs ~/nest_jax/.installed
mkdir -p ~/nest_jax
tar xzf ~/nest_jax.tar.gz -C ~/nest_jax
cd ~/nest_jax
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e ".[tpu]" "etils[epath-gcs]"
EOF
  local copy folder
  for copy in ${copies[@]+"${copies[@]}"}; do
    folder="$(quote "${copy##*:}")"
    echo "mkdir -p ~/$folder"
    echo "gcloud storage rsync --recursive $(quote "${copy%:*}") ~/$folder"
  done
  echo "touch .installed"
}

# The shell around the run is not told when the run is stopped, and so can write its exit code; it goes away when the host does.
start_script() {
  local run
  run="$(quote .venv/bin/python -m nest_jax.main --multihost "$@")"
  cat <<EOF
mkdir -p ~/nest_jax_run
cd ~/nest_jax_run
rm -f pid exit stop
if [ -f log ]; then cat log >> log.before; rm log; fi
cd ~/nest_jax
nohup setsid bash -c $(quote "$run & echo \$! > ~/nest_jax_run/pid; wait \$!; echo \$? > ~/nest_jax_run/ended; mv ~/nest_jax_run/ended ~/nest_jax_run/exit") >> ~/nest_jax_run/log 2>&1 < /dev/null &
for i in 1 2 3 4 5 6 7 8 9; do [ -s ~/nest_jax_run/pid ] || sleep 0.3; done
EOF
}

word_script() { # bare, idle, running, done, stopped, interrupted or failed CODE
  cat <<'EOF'
cd ~/nest_jax_run 2>/dev/null
# A run that has just ended has its exit code written a moment later; without one after that, the host killed it all.
if [ -s pid ]; then
  word="failed 137"
  for i in 1 2 3 4 5 6 7 8 9; do
    if [ -f exit ]; then break; fi
    if tr "\0" " " 2>/dev/null < /proc/$(cat pid)/cmdline | grep -q nest_jax; then word=running; break; fi
    sleep 0.2
  done
else word=idle; fi
if [ ! -f ~/nest_jax/.installed ]; then word=bare
elif [ -f exit ]; then
  word="failed $(cat exit)"
  if [ "$word" = "failed 0" ]; then word=done; grep -q "the same command continues" log && word=interrupted; fi
  if [ -f stop ]; then word=stopped; fi
fi
echo "nest_jax on $(hostname): $word"
EOF
}

stop_script() {
  cat <<'EOF'
touch ~/nest_jax_run/stop
if [ -f ~/nest_jax_run/exit ]; then echo "nothing runs on $(hostname)"
else kill -TERM $(cat ~/nest_jax_run/pid) && echo "told $(hostname)"; fi
EOF
}

# --- commands -------------------------------------------------------------------------------------------------------------

setup_hosts() {
  local root
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  call tar czf "$scratch/nest_jax.tar.gz" -C "$root" --exclude=__pycache__ nest_jax configs pyproject.toml README.md LICENSE || return
  call gcloud compute tpus tpu-vm scp "$scratch/nest_jax.tar.gz" "$name:" "${where[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} --worker=all || return
  remote all "$(install_script)"
}

await_slice() {
  local found last=""
  while :; do
    found="$(state)"
    case "$found" in
      ACTIVE) return ;;
      ABSENT) die "there is no slice $name in $zone; first: launch/tpu_vm.sh create" ;;
      SUSPENDED | FAILED) die "slice $name is $found; first delete it, then create it again ('run' does so by itself)" ;;
      UNKNOWN) die "gcloud could not say how slice $name is" ;;
    esac
    [ "$found" = "$last" ] || say "slice $name: $found"
    last="$found"
    sleep "$poll"
  done
}

# One word for all hosts: running, bare, wrong CODE, crashed CODE, stopped, idle, done; nothing where they do not answer.
words() {
  local lines code
  lines="$(remote all "$(word_script)" | sed -n 's/^.*nest_jax on [^:]*: //p')" || true
  said() { grep -q "^$1\$" <<<"$lines"; }
  code="$(sed -n 's/^failed //p' <<<"$lines" | head -n 1)"
  if [ -z "$lines" ]; then return; fi
  if said running; then echo running
  elif said bare; then echo bare
  elif said "failed [23]"; then echo "wrong $(sed -n 's/^failed \([23]\)$/\1/p' <<<"$lines" | head -n 1)"
  elif [ -n "$code" ]; then echo "crashed $code"
  elif said interrupted; then echo "crashed 0"
  elif said stopped; then echo stopped
  elif said idle; then echo idle
  else echo "done"; fi
}

show_run() {
  echo "# make the slice if there is none any more, and set it up:"
  state >/dev/null
  setup_hosts
  echo "# start:"
  remote all "$(start_script "$@")"
  [ -z "$detach" ] || return 0
  echo "# every $poll s, until the run is done:"
  state >/dev/null
  words
  echo "# after a preemption, before setting up and starting again:"
  delete_slice --quiet
  create_slice
}

# Every look finds out what is the case and does the next thing, so that this may itself be ended and begun again at any time.
run() {
  local found="" last="" word="" before="" ours="" active="" started="" crashes=0
  while :; do
    last="$found" found="$(state)"
    [ "$found" = "$last" ] || say "slice $name: $found"
    case "$found" in
      ACTIVE) active=yes ours="" ;;
      ABSENT)
        [ -n "$ours" ] || die "there is no slice $name in $zone; first: launch/tpu_vm.sh create"
        create_slice || say "it could not be asked for; trying again"
        ;;
      FAILED) [ -n "$active" ] || die "slice $name could not be made; gcloud compute tpus queued-resources describe $name --zone=$zone says why" ;;
      UNKNOWN) [ -n "$last" ] || die "gcloud could not say how slice $name is" ;;
    esac
    case "$found" in SUSPENDED | FAILED)
      [ -n "$type" ] || die "slice $name is $found; to ask for a new one, run needs --type=TYPE"
      say "preempted: asking for a new slice; the run goes on in $workdir"
      ours=yes active="" word="" crashes=0
      delete_slice --quiet || say "it could not be deleted; trying again"
      ;;
    esac
    if [ "$found" = ACTIVE ]; then
      before="$word" word="$(words)"
      [ "$word" = "$before" ] || say "run: ${word:-no answer}"
      case "$word" in
        '') case "$(node_state)" in PREEMPTED | TERMINATED) say "the hosts were preempted; waiting for the slice to be taken back" ;; esac ;;
        running)
          started=yes
          [ -z "$detach" ] || return 0
          ;;
        bare)
          say "setting up"
          setup_hosts && continue
          crashed "setting up failed" 1
          ;;
        *)
          # What hosts say before this command has started or seen the run is of an earlier one.
          if [ -n "$started" ]; then
            case "$word" in
              done) return 0 ;;
              stopped) say "stopped as asked; the same command continues" && return 0 ;;
              wrong*) give_up "the run ended with code ${word#wrong }" "${word#wrong }" ;;
              crashed*) crashed "the run ended with code ${word#crashed }" "${word#crashed }" ;;
            esac
          fi
          say "starting on all hosts"
          remote all "$(start_script "$@")" || say "not all hosts could be told"
          started=yes
          ;;
      esac
    fi
    sleep "$poll"
  done
}
crashed() { # WHAT CODE
  crashes=$((crashes + 1))
  [ "$crashes" -le "$restarts" ] || give_up "$@"
  say "$1; trying again ($crashes of $restarts)"
}
give_up() { # WHAT CODE
  remote 0 "tail -n 30 ~/nest_jax_run/log" >&2 || true
  echo "error: $1; above are the last lines that it printed on host 0" >&2
  if [ "$2" = 0 ]; then exit 1; else exit "$2"; fi
}

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
case "$verb" in
  create) create_slice ;;
  setup) await_slice && setup_hosts ;;
  run) if [ -n "$dry" ]; then show_run "$@"; else run "$@"; fi ;;
  status)
    found="$(state)"
    [ -n "$dry" ] || echo "slice $name: $found"
    [ "$found" != ACTIVE ] || remote all "$(word_script)"
    ;;
  logs) remote 0 "tail -n 100 ${follow:+-F }~/nest_jax_run/log" ;;
  stop) remote all "$(stop_script)" ;;
  delete) delete_slice ${yes:+--quiet} ;;
esac
