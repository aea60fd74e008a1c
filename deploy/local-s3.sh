# For local.sh: an S3 server, and what the nodes need to know of it. See there.
# shellcheck shell=bash

_choose_s3() {
  if command -v radosgw >/dev/null && command -v ceph-mon >/dev/null && command -v ceph-osd >/dev/null; then
    echo radosgw
  elif "$PYTHON" -c 'import moto.server' 2>/dev/null; then
    echo moto
  else
    echo none
  fi
}

start_s3() { # and its bucket
  local kind=${S3:-$(_choose_s3)} port=$((PORT + 41))
  echo "S3: $kind"
  [ "$kind" = none ] && return
  export SHAREDLOG_ARCHIVE__URL=${S3_URL:-s3://sharedlog/archive} SHAREDLOG_ARCHIVE__ENDPOINT=http://127.0.0.1:$port
  case $kind in
    radosgw)
      export AWS_ACCESS_KEY_ID=sharedlog AWS_SECRET_ACCESS_KEY=sharedlog-local
      _start_radosgw "$port"
      ;;
    moto)
      export AWS_ACCESS_KEY_ID=sharedlog AWS_SECRET_ACCESS_KEY=sharedlog-local
      launch moto "$PYTHON" -W ignore -m moto.server --host 127.0.0.1 --port "$port"
      await moto "http://127.0.0.1:$port/"
      ;;
    http://* | https://*)
      export SHAREDLOG_ARCHIVE__ENDPOINT=$kind
      return
      ;;
    *)
      echo "S3=$kind is none of radosgw, moto, none and a URL" >&2
      exit 2
      ;;
  esac
  "$PYTHON" - "$SHAREDLOG_ARCHIVE__ENDPOINT" "${SHAREDLOG_ARCHIVE__URL#s3://}" <<'PY'
import sys

import botocore.session
from botocore.config import Config

endpoint, place = sys.argv[1:]
config = Config(s3={"addressing_style": "path"}, proxies={}, retries={"total_max_attempts": 10})
session = botocore.session.get_session()
client = session.create_client("s3", region_name="us-east-1", endpoint_url=endpoint, config=config)
client.create_bucket(Bucket=place.split("/")[0])
PY
}

_start_radosgw() { # PORT: over one monitor and one store in memory; nobody else uses them, so nobody logs in
  local port=$1 home=$dir/ceph osd
  is_up rgw && return
  # What a store in memory had is gone; a monitor that knew it would wait for it.
  rm -rf "$home"
  mkdir -p "$home/mon" "$home/osd" "$home/rgw" "$home/crash"
  : >"$home/keyring"
  cat >"$home/ceph.conf" <<CONF
[global]
  fsid = $(cat /proc/sys/kernel/random/uuid)
  mon host = [v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$((port + 2))]
  public addr = 127.0.0.1
  cluster addr = 127.0.0.1
  auth cluster required = none
  auth service required = none
  auth client required = none
  keyring = $home/keyring
  mon data = $home/mon
  osd data = $home/osd
  crash dir = $home/crash
  run dir = $home
  admin socket = $home/\$name.asok
  log file = $dir/log/\$name.log
  osd objectstore = memstore
  memstore device bytes = 4294967296
  osd crush chooseleaf type = 0
  osd pool default size = 1
  osd pool default min size = 1
  osd pool default pg num = 1
  osd pool default pg autoscale mode = off
  mon allow pool size one = true
[client.rgw]
  # It would ask for encryption, which needs the keys that nobody here has.
  ms mon client mode = crc
  rgw data = $home/rgw
  rgw frontends = beast endpoint=127.0.0.1:$port tcp_nodelay=1
CONF
  export CEPH_CONF=$home/ceph.conf
  {
    monmaptool --create --fsid "$(sed -n 's/^  fsid = //p' "$CEPH_CONF")" \
      --addv a "$(sed -n 's/^  mon host = //p' "$CEPH_CONF")" "$home/monmap"
    ceph-mon --mkfs -i a --monmap "$home/monmap"
    launch mon ceph-mon -f -i a
    osd=$(cat /proc/sys/kernel/random/uuid)
    ceph --connect-timeout 60 osd new "$osd"
    ceph-osd --mkfs -i 0 --osd-uuid "$osd"
    launch osd ceph-osd -f -i 0
    launch rgw radosgw -f -n client.rgw
  } >>"$dir/log/ceph.log" 2>&1
  await rgw "http://127.0.0.1:$port/"
  radosgw-admin -n client.rgw user create --uid=sharedlog --display-name=sharedlog \
    --access-key="$AWS_ACCESS_KEY_ID" --secret-key="$AWS_SECRET_ACCESS_KEY" >>"$dir/log/ceph.log" 2>&1
}
