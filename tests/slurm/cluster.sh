#!/usr/bin/env bash
# A real SLURM on this machine, for the tests: munged, slurmctld, and one slurmd a node.
#
#   cluster.sh install         Debian's packages (root); nothing to do if they are there
#   cluster.sh start           configure, start, wait until every node is idle; may be repeated
#   cluster.sh stop            cancel all jobs, stop the daemons
#   cluster.sh reset           stop, and forget everything
#   cluster.sh env             lines for: eval "$(cluster.sh env)"
#   cluster.sh kill-node n2    as if its power had gone: slurmd, its jobs, and their processes
#   cluster.sh revive-node n2  start it again, and wait until it takes jobs
#   cluster.sh stop-controller   slurmctld is away: the queue does not answer, and jobs go on
#   cluster.sh start-controller  it is back
#
# It all lives in $ALPHASWEEP_SLURM_ROOT (default: alphasweep-slurm-UID in the temporary folder), and
# runs as whoever starts it, root or not: each user has one of his own. It listens on loopback only.
#
# Partitions of 4 nodes: normal (walltimes of a day, as on a cluster) and short (of two minutes),
# with 2 CPUs of each node; wide, for 64 workers; scavenge, whose jobs are requeued when urgent wants
# their node.
set -euo pipefail

ROOT=${ALPHASWEEP_SLURM_ROOT:-${TMPDIR:-/tmp}/alphasweep-slurm-$(id -u)}
PORT=${ALPHASWEEP_SLURM_PORT:-} # of slurmctld; the nodes follow. Default: free ones
# Seconds between two looks at the memory of a job: each job looks at every process there is.
POLL=${ALPHASWEEP_SLURM_POLL:-2}
NODES=4
CPUS=16 # of a node, whether they exist or not
WAIT_SECONDS=180
HOST=$(hostname -s)
export SLURM_CONF=$ROOT/etc/slurm.conf
export PATH=$PATH:/usr/sbin:/sbin

say() { echo "cluster.sh: $*" >&2; }

install_packages() {
  if command -v slurmctld slurmd sbatch munged >/dev/null; then return; fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || say "apt-get update failed; trying with the lists that are there"
  apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
}

# taken PORT: does anyone listen there?
taken() { (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# The first of five free ports, looked for from a place of the user's own: others have theirs, and
# may look for some at this moment. Below those that the system gives away.
free_ports() {
  local first=$((16817 + $(id -u) % 1499 * 10)) i=0
  while [ $i -le $NODES ]; do
    if taken $((first + i)); then
      first=$((first < 31000 ? first + 10 : 16817)) i=0
    else
      i=$((i + 1))
    fi
  done
  echo "$first"
}

configure() {
  local kB memory
  PORT=${PORT:-$(free_ports)}
  # Of what is free, not of all: a job that asks for memory must find it.
  kB=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
  memory=$((kB / 1024 * 9 / 10 / NODES))
  # Some tests count on room for one job of 3 GB on each node, and not for two.
  memory=$((memory < 3500 ? 3500 : memory > 6000 ? 6000 : memory))
  mkdir -p "$ROOT"/{etc,run,log,state,spool}
  chmod 755 "$ROOT" "$ROOT"/{etc,run,log,state,spool}
  cat >"$SLURM_CONF" <<CONF
ClusterName=alphasweep
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
# A requeued job waits for cred_expire: 120 s unless told otherwise.
AuthInfo=socket=$ROOT/run/munge.socket,cred_expire=10
StateSaveLocation=$ROOT/state
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd.%n.pid
SlurmdSpoolDir=$ROOT/spool/%n
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd.%n.log
# No cgroups and no binding, so that it runs in any container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
DefMemPerCPU=100
OverTimeLimit=0
KillWait=30
MessageTimeout=20
# Ids that no other SLURM on this machine gives: kill-node finds processes by them.
FirstJobId=$((PORT * 1000))
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
MinJobAge=600
MaxJobCount=20000
CompleteWait=0
PropagateResourceLimits=NONE
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$ROOT/log/jobs.txt
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=$POLL
JobAcctGatherParams=OverMemoryKill
NodeName=n[1-$NODES] NodeHostname=$HOST NodeAddr=127.0.0.1 Port=[$((PORT + 1))-$((PORT + NODES))] CPUs=$CPUS RealMemory=$memory State=UNKNOWN
PartitionName=normal Nodes=ALL Default=YES MaxCPUsPerNode=2 MaxTime=1-0 DefaultTime=10 PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=ALL MaxCPUsPerNode=2 MaxTime=2 DefaultTime=1 PriorityTier=10 PreemptMode=OFF
PartitionName=wide Nodes=ALL MaxTime=60 DefaultTime=10 PriorityTier=10 PreemptMode=OFF
PartitionName=scavenge Nodes=ALL MaxTime=60 DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=60 DefaultTime=10 PriorityTier=100 PreemptMode=OFF
CONF
  echo "CgroupPlugin=cgroup/v1" >"$ROOT/etc/cgroup.conf"
  if [ ! -s "$ROOT/etc/munge.key" ]; then
    (umask 077 && head -c 128 /dev/urandom >"$ROOT/etc/munge.key")
  fi
}

# alive PROGRAM PIDFILE: does the file name a process of that program which is no zombie?
alive() {
  local pid
  pid=$(cat "$2" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] &&
    ! grep -q '^State:.*Z' "/proc/$pid/status"
}

# Nodes that outlived their controller listen where the file says.
running() {
  local file
  for file in "$ROOT"/run/slurmd.*.pid; do alive slurmd "$file" && return; done
  alive slurmctld "$ROOT/run/slurmctld.pid"
}

start() {
  local i
  running || configure
  if ! alive munged "$ROOT/run/munged.pid"; then
    rm -f "$ROOT"/run/munge.socket*
    munged --force --num-threads=2 --key-file="$ROOT/etc/munge.key" \
      --socket="$ROOT/run/munge.socket" --pid-file="$ROOT/run/munged.pid" \
      --log-file="$ROOT/log/munged.log" --seed-file="$ROOT/state/munged.seed"
  fi
  alive slurmctld "$ROOT/run/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
  for i in $(seq $NODES); do start_node "n$i"; done
  for i in $(seq $NODES); do wait_for_node "n$i"; done
}

start_node() {
  mkdir -p "$ROOT/spool/$1"
  alive slurmd "$ROOT/run/slurmd.$1.pid" || slurmd -N "$1" -f "$SLURM_CONF"
}

wait_for_node() {
  local until=$((SECONDS + WAIT_SECONDS)) state=unknown
  while [ $SECONDS -lt $until ]; do
    state=$(sinfo -h -n "$1" -p normal -o %t 2>/dev/null || true)
    case $state in
    idle | mix | alloc) return ;;
    # Left over from an unclean end; a dead node is not resumed by that, it only is asked again.
    down* | drain* | drng*) scontrol update nodename="$1" state=resume 2>/dev/null || true ;;
    esac
    sleep 0.2
  done
  say "node $1 must take jobs after $WAIT_SECONDS s; it is: $state. Logs: $ROOT/log"
  grep -hE 'fatal|error' "$ROOT"/log/slurm*.log | tail -n 10 >&2 || true
  return 1
}

stop() {
  local until=$((SECONDS + 15))
  if alive slurmctld "$ROOT/run/slurmctld.pid"; then
    squeue -h -o %A 2>/dev/null | xargs -r scancel 2>/dev/null || true
    while [ $SECONDS -lt $until ] && [ -n "$(squeue -h 2>/dev/null)" ]; do sleep 0.2; done
  fi
  for file in "$ROOT"/run/slurmd.*.pid; do end slurmd "$file"; done
  end slurmctld "$ROOT/run/slurmctld.pid"
  end munged "$ROOT/run/munged.pid"
}

# end PROGRAM PIDFILE: TERM, and KILL if that does not help
end() {
  local i pid
  alive "$1" "$2" || return 0
  pid=$(cat "$2")
  kill "$pid" 2>/dev/null || true
  for i in $(seq 100); do
    alive "$1" "$2" || { rm -f "$2"; return 0; }
    sleep 0.1
  done
  say "$1 ($pid) ignored TERM: KILL"
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$2"
}

kill_node() {
  local jobs environ pid
  jobs=$(squeue -h -w "$1" -o %A)
  kill -9 "$(cat "$ROOT/run/slurmd.$1.pid")"
  rm -f "$ROOT/run/slurmd.$1.pid"
  for job in $jobs; do # slurmstepd outlives slurmd, and would report the end of its job
    pgrep -f "^slurmstepd: \[$job\." | xargs -r kill -9 2>/dev/null || true
  done
  for environ in /proc/[0-9]*/environ; do
    if grep -qz "^SLURMD_NODENAME=$1$" "$environ" 2>/dev/null &&
      grep -qz "^SLURM_CONF=$SLURM_CONF$" "$environ" 2>/dev/null; then
      pid=${environ#/proc/}
      kill -9 "${pid%/environ}" 2>/dev/null || true
    fi
  done
}

revive_node() {
  start_node "$1"
  wait_for_node "$1"
}

start_controller() {
  local i
  alive slurmctld "$ROOT/run/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
  for i in $(seq $NODES); do wait_for_node "n$i"; done
}

case "${1:-} $#" in
"install 1") install_packages ;;
"start 1") start ;;
"stop 1") stop ;;
"reset 1") stop && rm -rf -- "$ROOT"/{etc,run,log,state,spool} ;;
"env 1") echo "export SLURM_CONF=$SLURM_CONF" ;;
"kill-node 2") kill_node "$2" ;;
"revive-node 2") revive_node "$2" ;;
"stop-controller 1") end slurmctld "$ROOT/run/slurmctld.pid" ;;
"start-controller 1") start_controller ;;
*)
  sed -n '2,20s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
