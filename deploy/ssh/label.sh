#!/bin/bash
# Labels an archive on a handful of machines that ssh reaches:
#
#   deploy/ssh/label.sh alpha,beta:8,user@gamma SOURCE TABLE --model BUNDLE
#
# Name the machines first, each with its number of worker processes (default: one for each core). Then give the arguments of
# `emotion-batch label`; with extract or retry before them, those of that command. The scheduler and the command run on this
# machine, the workers on the others. ssh must need no password. The archive, the table and the folder of `emotion-batch` must be
# at the same paths everywhere (EMOTION_BATCH_BIN names another folder). The machines reach each other at ports that are chosen at
# random. Options of ssh stand in its own configuration (EMOTION_BATCH_SSH_CONFIG names another file).
#
# The exit code is that of the command. When the command has ended, or was stopped or killed, workers and scheduler end too. The
# same call then continues with the rest.
# shellcheck disable=SC2329 # traps call them
set -euo pipefail

if (($# < 2)); then
  echo "usage: label.sh HOST[:PROCESSES],... [extract | label | retry] ARGUMENT..." >&2
  exit 2
fi
IFS=, read -ra hosts <<<"$1"
shift
case "$1" in
  extract | label | retry) command=("$@") ;;
  *) command=(label "$@") ;;
esac
for program in emotion-batch dask openssl python3 scp setpriv ssh; do
  if ! command -v "$program" >/dev/null; then
    echo "label.sh: $program is not on PATH; install it" >&2
    exit 2
  fi
done
# No process imports from the folder that it is started in, nor through an empty or relative entry of PYTHONPATH.
export PYTHONSAFEPATH=1
IFS=: read -ra entries <<<"${PYTHONPATH:-}"
PYTHONPATH=''
for entry in "${entries[@]}"; do
  if [[ $entry == /* ]]; then PYTHONPATH+=${PYTHONPATH:+:}$entry; fi
done
export PYTHONPATH

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
bin=${EMOTION_BATCH_BIN:-$(dirname "$(command -v emotion-batch)")}
options=(-o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=30)
if [[ -n ${EMOTION_BATCH_SSH_CONFIG:-} ]]; then options+=(-F "$EMOTION_BATCH_SSH_CONFIG"); fi
# The kernel ends these processes with this script, also if the script is killed.
tied=(setpriv --pdeathsig TERM --)

folder=$(mktemp --directory)
driver='' scheduler='' connections=()

is_running() { kill -0 "$1" 2>/dev/null; }

end() {
  if [[ -z $1 ]] || ! is_running "$1"; then return; fi
  kill -TERM "$1" 2>/dev/null || true
  for _ in {1..100}; do
    if ! is_running "$1"; then return; fi
    sleep 0.1
  done
  kill -KILL "$1" 2>/dev/null || true
}

clean_up() {
  trap '' TERM INT HUP
  end "$driver"
  # The workers of a machine end with its connection.
  for connection in "${connections[@]}"; do end "$connection"; done
  end "$scheduler"
  rm -rf "$folder"
}

stop() {
  if [[ -z $driver ]]; then exit "$2"; fi
  kill "-$1" "$driver" 2>/dev/null || true
}

trap clean_up EXIT
trap 'stop TERM 143' TERM HUP
trap 'stop INT 130' INT

# Anyone who reaches a scheduler without TLS can run code as this user, here and on all the machines.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=emotion-batch" \
  -addext "keyUsage=critical,digitalSignature,keyCertSign" \
  -keyout "$folder/key.pem" -out "$folder/certificate.pem" 2>"$folder/openssl.log" ||
  { cat "$folder/openssl.log" >&2; exit 1; }
cp "$here/worker.sh" "$folder"
chmod 600 "$folder"/*
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
export DASK_DISTRIBUTED__COMM__TLS__CA_FILE="$folder/certificate.pem"
for part in SCHEDULER CLIENT; do
  export "DASK_DISTRIBUTED__COMM__TLS__${part}__CERT=$folder/certificate.pem"
  export "DASK_DISTRIBUTED__COMM__TLS__${part}__KEY=$folder/key.pem"
done
export DASK_LOGGING__DISTRIBUTED="${DASK_LOGGING__DISTRIBUTED:-warning}"
# The dashboard has no TLS, so it listens on loopback only.
export DASK_DISTRIBUTED__DASHBOARD__LINK="http://127.0.0.1:{port}/status"

# The address that this machine speaks to the first of the others from.
first=$(ssh "${options[@]}" -G "${hosts[0]%%:*}" | sed -n 's/^hostname //p')
address=$(python3 -I -c '
import socket, sys
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.connect((sys.argv[1], 9))
print(probe.getsockname()[0])' "$first")
"${tied[@]}" dask scheduler --protocol tls --host "$address" --port 0 --dashboard-address 127.0.0.1:0 \
  --scheduler-file "$folder/scheduler.json" &
scheduler=$!
until [[ -s $folder/scheduler.json ]]; do
  if ! is_running "$scheduler"; then exit 1; fi
  sleep 0.2
done
url=$(python3 -I -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$folder/scheduler.json")

# Nothing is written into it. When it ends, a machine knows that its connection has ended.
mkfifo "$folder/held"
exec 3<>"$folder/held"
for host in "${hosts[@]}"; do
  n_processes=0
  if [[ $host == *:* ]]; then n_processes=${host##*:}; fi
  host=${host%%:*}
  # Only that user can read what mktemp makes.
  if ! there=$(ssh "${options[@]}" "$host" mktemp -d /tmp/emotion-batch-XXXXXX); then
    echo "label.sh: $host: ssh cannot reach it without a password (see above); try \`ssh $host true\`" >&2
    exit 2
  fi
  scp -q -p "${options[@]}" "$folder"/{key.pem,certificate.pem,worker.sh} "$host:$there"
  "${tied[@]}" ssh "${options[@]}" "$host" bash "$there/worker.sh" "$(printf %q "$bin")" "$url" "$n_processes" <&3 &
  connections+=($!)
done

"${tied[@]}" emotion-batch "${command[@]}" --scheduler "$url" 3<&- &
driver=$!
code=0
while is_running "$driver"; do
  # A signal ends the wait, but not the command.
  code=0
  wait "$driver" || code=$?
done
exit "$code"
