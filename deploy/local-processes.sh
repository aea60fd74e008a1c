# For local.sh: processes by name, each with a file run/NAME.pid. It has the process's id and the moment of its start, so that
# an id that was given to another process meanwhile is never taken for ours.
# shellcheck shell=bash

_began() { # PID: when it began, in ticks since boot; fails if there is no such process
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # The name, in brackets, may have blanks in it.
  read -ra stat <<<"${stat##*) }"
  [ "${stat[0]}" != Z ] && echo "${stat[19]}"
}

is_up() { # NAME
  local pid began
  read -r pid began 2>/dev/null <"$dir/run/$1.pid" && [ "$(_began "$pid")" = "$began" ]
}

started() { # names of all that was started
  local file
  for file in "$dir"/run/*.pid; do
    [ -e "$file" ] && basename "$file" .pid
  done
}

note_pid() { # NAME PID
  echo "$2 $(_began "$2")" >"$dir/run/$1.pid"
}

launch() { # NAME COMMAND...: in the background, unless it runs; what it says is in log/NAME.log
  local name=$1
  shift
  is_up "$name" && return
  setsid "$@" </dev/null >>"$dir/log/$name.log" 2>&1 &
  note_pid "$name" $! || { echo "$name ended at once: $dir/log/$name.log says why" >&2; exit 1; }
}

await() { # NAME URL: until it answers 200, for up to two minutes
  local pid
  read -r pid _ <"$dir/run/$1.pid"
  "$PYTHON" - "$pid" "$2" <<'PY' || { echo "$1 does not answer at $2: see $dir/log/$1.log" >&2; exit 1; }
import sys
import time
import urllib.request
from pathlib import Path

process = Path("/proc", sys.argv[1], "stat")
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
until_s = time.monotonic() + 120
while True:
    try:
        opener.open(sys.argv[2], timeout=2)
        break
    except OSError:
        ended = not process.exists() or process.read_text().rpartition(")")[2].split()[0] == "Z"
        if ended or time.monotonic() > until_s:
            sys.exit(1)
        time.sleep(0.1)
PY
}

end() { # NAME...: SIGTERM to all of them at once, and SIGKILL to what is left after half a minute
  local name pid tries
  for name in "$@"; do
    is_up "$name" && read -r pid _ <"$dir/run/$name.pid" && kill "$pid"
  done
  for name in "$@"; do
    for ((tries = 0; tries < 300; tries++)); do
      is_up "$name" || break
      sleep 0.1
    done
    is_up "$name" && read -r pid _ <"$dir/run/$name.pid" && kill -KILL "$pid"
    rm -f "$dir/run/$name.pid"
  done
}
