#!/bin/bash
# Runs workers on a machine of label.sh, for as long as the connection that started it stays; then it removes everything.
#
#   worker.sh BIN SCHEDULER PROCESSES
#
# The certificate lies beside this script. Their folder is removed at the end.
set -euo pipefail
bin=$1 url=$2 n_processes=$3
folder=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
workers='' connection=''

clean_up() {
  trap '' TERM HUP
  for process in "$connection" "$workers"; do
    if [[ -n $process ]]; then kill -TERM "$process" 2>/dev/null || true; fi
  done
  for _ in {1..100}; do
    if [[ -z $workers ]] || ! kill -0 "$workers" 2>/dev/null; then break; fi
    sleep 0.1
  done
  if [[ -n $workers ]]; then kill -KILL "$workers" 2>/dev/null || true; fi
  rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 143' TERM HUP

# No process imports from the folder that it is started in, nor through an empty or relative entry of PYTHONPATH.
export PYTHONSAFEPATH=1
IFS=: read -ra entries <<<"${PYTHONPATH:-}"
PYTHONPATH=''
for entry in "${entries[@]}"; do
  if [[ $entry == /* ]]; then PYTHONPATH+=${PYTHONPATH:+:}$entry; fi
done
export PYTHONPATH

if ((n_processes == 0)); then n_processes=$(nproc); fi
host=${url#*://}
# The address that this machine speaks to the scheduler from.
host=$(python3 -I -c '
import socket, sys
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.connect((sys.argv[1], 9))
print(probe.getsockname()[0])' "${host%:*}")
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False
export DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL=500ms
export DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL=500ms
export DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL=2s
export DASK_LOGGING__DISTRIBUTED="${DASK_LOGGING__DISTRIBUTED:-warning}"
"$bin/dask" worker "$url" --host "$host" --nworkers "$n_processes" --nthreads 1 --dashboard-address 127.0.0.1:0 \
  --death-timeout 60 --tls-ca-file "$folder/certificate.pem" --tls-cert "$folder/certificate.pem" \
  --tls-key "$folder/key.pem" </dev/null &
workers=$!
cat >/dev/null <&0 &
connection=$!
wait -n || true
