#!/usr/bin/env bash
# A real Grid Engine on this machine, for the tests: sge_qmaster, and sge_execd for one node.
#
#   cluster.sh install   Debian's packages (root); nothing to do if they are there
#   cluster.sh start     configure, start, wait until the node takes jobs; may be repeated
#   cluster.sh stop      delete all jobs, stop the daemons
#   cluster.sh reset     stop, and forget everything
#   cluster.sh env       lines for: eval "$(cluster.sh env)"
#
# It all lives in $ALPHASWEEP_GRIDENGINE_ROOT (default: alphasweep-gridengine in the temporary
# folder), and runs as whoever starts it; jobs of other users need root. Hosts know one another as
# localhost, and no other host is let in; the ports themselves are bound on every interface, as
# Grid Engine has no setting for that.
#
# Queues of 16 slots in all: all.q, and short.q, where a job may run a minute. Memory (h_vmem) is
# handed out, and jobs that ask for none get none. As Debian has it, and many a site, a queue's
# shell is csh: the first line of a script counts for nothing.
set -euo pipefail

ROOT=${ALPHASWEEP_GRIDENGINE_ROOT:-${TMPDIR:-/tmp}/alphasweep-gridengine}
PORT=${ALPHASWEEP_GRIDENGINE_PORT:-16444} # of sge_qmaster; sge_execd has the next
WAIT_SECONDS=60
export SGE_ROOT=$ROOT SGE_CELL=default SGE_QMASTER_PORT=$PORT SGE_EXECD_PORT=$((PORT + 1))
BIN=/usr/lib/gridengine SHARE=/usr/share/gridengine
[ -x $SHARE/util/arch ] && export SGE_ARCH=${SGE_ARCH:-$($SHARE/util/arch)}
export PATH=$PATH:/usr/sbin:/sbin

say() { echo "cluster.sh: $*" >&2; }

install_packages() {
  local policy=/usr/sbin/policy-rc.d made=
  if command -v sge_qmaster sge_execd qsub >/dev/null; then return; fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || say "apt-get update failed; trying with the lists that are there"
  # The packages would start daemons of their own at once, which serve nobody.
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && made=$policy
  fi
  echo "gridengine-common shared/gridengineconfig boolean false" | debconf-set-selections
  # They depend on a mailer; this is one without a daemon.
  apt-get install -y -qq --no-install-recommends \
    gridengine-master gridengine-exec gridengine-client msmtp-mta >/dev/null
  rm -f $made
}

# The files that sge_qmaster reads first; what it can be told when it runs follows in `set_up`.
configure() {
  local spool="$ROOT/default/common;$ROOT/spool/qmaster" group=$((20000 + PORT % 450 * 100))
  local admin=none # what root needs none of; without it, only root's sge_execd is let in
  [ "$(id -u)" = 0 ] || admin=$(id -un)
  mkdir -p "$ROOT"/{default/common,spool/qmaster/job_scripts,spool/execd,tmp}
  chmod 1777 "$ROOT/tmp"
  ln -sfn $SHARE/util "$ROOT/util"
  ln -sfn /var/lib/gridengine/bin "$ROOT/bin"
  ln -sfn /var/lib/gridengine/utilbin "$ROOT/utilbin"
  ln -sfn /var/lib/gridengine/lib "$ROOT/lib"
  echo localhost >"$ROOT/default/common/act_qmaster"
  # Whatever this machine is called, and whatever its name resolves to.
  echo "localhost $(hostname)" >"$ROOT/default/common/host_aliases"
  cat >"$ROOT/default/common/bootstrap" <<CONF
admin_user        $admin
default_domain    none
ignore_fqdn       true
spooling_method   classic
spooling_lib      libspoolc
spooling_params   $spool
binary_path       $BIN
qmaster_spool_dir $ROOT/spool/qmaster
security_mode     none
listener_threads  2
worker_threads    2
scheduler_threads 1
CONF
  # Group ids that no other Grid Engine on this machine gives: it kills processes by them.
  sed -e "s|^execd_spool_dir .*|execd_spool_dir $ROOT/spool/execd|" \
    -e 's/^min_uid .*/min_uid 0/' -e 's/^min_gid .*/min_gid 0/' \
    -e "s/^gid_range .*/gid_range $group-$((group + 99))/" \
    -e 's/^load_report_time .*/load_report_time 00:00:05/' \
    -e 's|^mailer .*|mailer /bin/true|' \
    -e 's/flush_time=[0-9:]*/accounting_flush_time=00:00:03/' \
    $SHARE/default-configuration >"$ROOT/configuration"
  $BIN/spoolinit classic libspoolc "$spool" init
  $BIN/spooldefaults configuration "$ROOT/configuration"
  $BIN/spooldefaults complexes $SHARE/util/resources/centry
  $BIN/spooldefaults usersets $SHARE/util/resources/usersets
  $BIN/spooldefaults managers "$(id -un)"
  $BIN/spooldefaults adminhosts localhost
}

set_up() {
  local memory file=$ROOT/told
  # Of what is free, not of all: a job that asks for memory must find it.
  memory=$(awk '/^MemAvailable/ { print int($2 / 1024 * 9 / 10) }' /proc/meminfo)
  qconf -sc | sed 's/^h_vmem .*/h_vmem h_vmem MEMORY <= YES YES 100M 0/' >"$file" && qconf -Mc "$file"
  qconf -ssconf | sed -e 's/^schedule_interval .*/schedule_interval 0:0:2/' \
    -e 's/^flush_\(submit\|finish\)_sec .*/flush_\1_sec 1/' \
    -e 's/^job_load_adjustments .*/job_load_adjustments NONE/' >"$file" && qconf -Msconf "$file"
  qconf -Ap $SHARE/util/resources/pe/smp
  qconf -as localhost
  cat >"$file" <<CONF
hostname          localhost
load_scaling      NONE
complex_values    slots=16,h_vmem=${memory}M
user_lists        NONE
xuser_lists       NONE
projects          NONE
xprojects         NONE
usage_scaling     NONE
report_variables  NONE
CONF
  qconf -Ae "$file"
  for queue in all.q:INFINITY short.q:0:1:0; do
    qconf -sq | sed -e "s/^qname .*/qname ${queue%%:*}/" -e "s/^h_rt .*/h_rt ${queue#*:}/" \
      -e 's/^hostlist .*/hostlist localhost/' -e 's/^slots .*/slots 16/' \
      -e 's/^load_thresholds .*/load_thresholds NONE/' -e 's/^pe_list .*/pe_list smp/' \
      -e "s|^tmpdir .*|tmpdir $ROOT/tmp|" -e 's|^shell .*|shell /bin/csh|' >"$file"
    qconf -Aq "$file"
  done
}

# alive PROGRAM PIDFILE: does the file name a process of that program which is no zombie?
alive() {
  local pid
  pid=$(cat "$2" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] &&
    ! grep -q '^State:.*Z' "/proc/$pid/status"
}

QMASTER_PID=$ROOT/spool/qmaster/qmaster.pid EXECD_PID=$ROOT/spool/execd/localhost/execd.pid

start() {
  local until=$((SECONDS + WAIT_SECONDS))
  [ -e "$ROOT/default/common/configuration" ] || configure
  alive sge_qmaster "$QMASTER_PID" || sge_qmaster
  qconf -sql 2>/dev/null | grep -q short.q || set_up >/dev/null
  alive sge_execd "$EXECD_PID" || sge_execd
  # A load of "-" says that the node has not told of itself yet.
  until qhost -h localhost | grep -q '^localhost .*[0-9]G'; do
    if [ $SECONDS -gt $until ]; then
      say "the node must take jobs after $WAIT_SECONDS s. Logs: $ROOT/spool"
      tail -n 10 "$ROOT"/spool/qmaster/messages "$ROOT"/spool/execd/localhost/messages >&2 || true
      return 1
    fi
    sleep 0.2
  done
}

stop() {
  local until=$((SECONDS + 15))
  if alive sge_qmaster "$QMASTER_PID"; then
    qdel -u '*' >/dev/null 2>&1 || true
    while [ $SECONDS -lt $until ] && [ -n "$(qstat -u '*')" ]; do sleep 0.2; done
  fi
  end sge_execd "$EXECD_PID"
  end sge_qmaster "$QMASTER_PID"
}

# end PROGRAM PIDFILE: TERM, and KILL if that does not help
end() {
  local i pid
  alive "$1" "$2" || return 0
  pid=$(cat "$2")
  kill "$pid" 2>/dev/null || true
  for i in $(seq 100); do
    alive "$1" "$2" || return 0
    sleep 0.1
  done
  say "$1 ($pid) ignored TERM: KILL"
  kill -9 "$pid" 2>/dev/null || true
}

case "${1:-} $#" in
"install 1") install_packages ;;
"start 1") start ;;
"stop 1") stop ;;
"reset 1") stop && rm -rf -- "$ROOT"/{bin,configuration,default,lib,spool,tmp,told,util,utilbin} ;;
"env 1")
  for name in SGE_ROOT SGE_CELL SGE_QMASTER_PORT SGE_EXECD_PORT SGE_ARCH; do
    echo "export $name=${!name:-}"
  done
  ;;
*)
  sed -n '2,20s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
