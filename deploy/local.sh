#!/usr/bin/env bash
# Three nodes, three etcd members and an S3 server on this machine, without containers:
#
#   deploy/local.sh start            data, logs and process ids are in ./sharedlog-local; --dir DIR puts them elsewhere
#   deploy/local.sh status           what runs, then `sharedlog status`; exit code 1 if something does not run
#   deploy/local.sh stop             nodes first: each hands its logs over. The data stay
#
# Needs etcd (Debian: etcd-server) and a Python with sharedlog[server]. Variables:
#
#   PYTHON   the interpreter; .venv's beside this folder, else python3
#   PORT     the first of the ports, all on 127.0.0.1: nodes at +1 to +3, their http at +11 to +13, etcd at +21 to +23 and
#            +31 to +33, S3 at +41 and, for Ceph, +42 and +43. 4100 if not set
#   S3       radosgw: Ceph's, of Debian's packages, in memory. moto: a stand-in, also in memory; two writers could both win there, which
#            none do here. An http:// or https:// URL: a server that runs, with the keys in AWS_… and the bucket in S3_URL. none: no
#            archive. Not set: radosgw if it is installed, else moto if that is, else none
#   S3_URL   s3://sharedlog/archive if not set
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
verb=${1:-}
dir=sharedlog-local
if [ "${2:-}" = --dir ] && [ -n "${3:-}" ]; then
  dir=$3
elif [ $# -gt 1 ] || ! [[ $verb =~ ^(start|stop|status)$ ]]; then
  echo "usage: ${0##*/} start|stop|status [--dir DIR]" >&2
  exit 2
fi
mkdir -p "$dir/run" "$dir/log"
dir=$(cd "$dir" && pwd)

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x "$root/.venv/bin/python" ] && PYTHON=$root/.venv/bin/python
fi
export PYTHON PYTHONPATH=$root

# What it was started with, for the other verbs.
if [ "$verb" = start ]; then
  printf 'PORT=%q\n' "${PORT:-4100}" >"$dir/run/settings"
elif [ ! -f "$dir/run/settings" ]; then
  echo "nothing was started in $dir" >&2
  exit 1
fi
# shellcheck source=/dev/null
. "$dir/run/settings"

# shellcheck source=local-processes.sh
. "$root/deploy/local-processes.sh"
# shellcheck source=local-s3.sh
. "$root/deploy/local-s3.sh"

metadata() {
  echo "etcd://127.0.0.1:$((PORT + 21)),127.0.0.1:$((PORT + 22)),127.0.0.1:$((PORT + 23))/sharedlog"
}

start_etcd() {
  local number cluster=""
  for number in 1 2 3; do
    cluster+="${cluster:+,}etcd$number=http://127.0.0.1:$((PORT + 30 + number))"
  done
  for number in 1 2 3; do
    launch "etcd$number" etcd --name "etcd$number" --data-dir "$dir/etcd$number" \
      --listen-client-urls "http://127.0.0.1:$((PORT + 20 + number))" \
      --advertise-client-urls "http://127.0.0.1:$((PORT + 20 + number))" \
      --listen-peer-urls "http://127.0.0.1:$((PORT + 30 + number))" \
      --initial-advertise-peer-urls "http://127.0.0.1:$((PORT + 30 + number))" \
      --initial-cluster "$cluster" --initial-cluster-state new --logger zap \
      --auto-compaction-mode periodic --auto-compaction-retention 1h
  done
  for number in 1 2 3; do
    await "etcd$number" "http://127.0.0.1:$((PORT + 20 + number))/health"
  done
}

start_nodes() {
  local number
  for number in 1 2 3; do
    SHAREDLOG_NODE_ID=n$number SHAREDLOG_LOCATION=local.zone-$number SHAREDLOG_DIR=$dir/n$number \
      SHAREDLOG_LISTEN=127.0.0.1:$((PORT + number)) SHAREDLOG_HTTP=127.0.0.1:$((PORT + 10 + number)) \
      SHAREDLOG_METADATA=$(metadata) launch "n$number" "$PYTHON" -P -m node
  done
  for number in 1 2 3; do
    await "n$number" "http://127.0.0.1:$((PORT + 10 + number))/readyz"
  done
}

case $verb in
  start)
    command -v etcd >/dev/null || { echo "there is no etcd; Debian has it in etcd-server" >&2; exit 1; }
    start_etcd
    start_s3
    start_nodes
    echo "sharedlog --address 127.0.0.1:$((PORT + 1)) status"
    ;;
  stop)
    end n1 n2 n3
    end rgw moto osd mon
    end etcd1 etcd2 etcd3
    ;;
  status)
    down=0
    [ -n "$(started)" ] || { echo "nothing runs"; exit 1; }
    for name in $(started); do
      if is_up "$name"; then echo "up    $name"; else echo "down  $name"; down=1; fi
    done
    for number in 1 2 3; do
      if is_up "n$number"; then
        "$PYTHON" -P -m sharedlog.cli --address "127.0.0.1:$((PORT + number))" status || down=1
        exit "$down"
      fi
    done
    exit 1
    ;;
esac
