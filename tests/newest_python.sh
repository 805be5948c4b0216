#!/usr/bin/env bash
# The newest Python for the tests: Debian testing's, in a folder of its own (root).
#
#   newest_python.sh install         unpack it; nothing to do if it is there
#   newest_python.sh run COMMAND...  in this checkout, in a fresh copy of its files: `python` is the
#                                    newest, in an environment of its own with the extra `test`
#
# It all lives in $ALPHASWEEP_NEWEST_ROOT (default: alphasweep-newest-python in the temporary folder).
set -euo pipefail

ROOT=${ALPHASWEEP_NEWEST_ROOT:-${TMPDIR:-/tmp}/alphasweep-newest-python}
PYTHON=python3.14
HERE=$(cd "$(dirname "$0")/.." && pwd)

install_python() {
  if [ -x "$ROOT/usr/bin/$PYTHON" ]; then return; fi
  export DEBIAN_FRONTEND=noninteractive
  command -v mmdebstrap >/dev/null || {
    apt-get update -qq || echo "newest_python.sh: apt-get update failed; trying the lists that are there" >&2
    apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
  }
  rm -rf "$ROOT.new"
  # A mirror that is behind is as good: what is unpacked is signed all the same.
  mmdebstrap --quiet --variant=apt --include="$PYTHON,$PYTHON-venv,ca-certificates,procps,git" \
    --aptopt='Acquire::Check-Valid-Until "false"' testing "$ROOT.new"
  mv "$ROOT.new" "$ROOT"
}

run() {
  # The names and certificates of this machine's network; its mounts end with this shell.
  cp /etc/resolv.conf "$ROOT/etc/resolv.conf"
  cp /etc/ssl/certs/ca-certificates.crt "$ROOT/etc/ssl/certs/"
  rm -rf "$ROOT/alphasweep"
  git clone -q "$HERE" "$ROOT/alphasweep"
  mount --types proc proc "$ROOT/proc"
  mount --rbind /dev "$ROOT/dev"
  mount --types sysfs sys "$ROOT/sys"
  mount --types tmpfs tmp "$ROOT/tmp"
  env -u PIP_FIND_LINKS -u TMPDIR PATH=/opt/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root chroot "$ROOT" \
    bash -euo pipefail -c "cd /alphasweep && $PYTHON -m venv --clear /opt/venv && pip install -q -e '.[test]' && \"\$@\"" \
    bash "$@"
}

case "${1:-} ${2:-}" in
"install ") install_python ;;
"run "?*)
  shift
  unshare --mount "$0" inside "$@"
  ;;
"inside "?*)
  shift
  run "$@"
  ;;
*)
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
