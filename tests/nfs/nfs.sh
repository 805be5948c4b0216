#!/usr/bin/env bash
# A real NFS on this machine, for tests: Linux's nfsd and two of its clients in a user-mode kernel.
#
#   nfs.sh install       Debian's packages (root); nothing to do if they are there
#   nfs.sh test [...]    boot the kernel, run on_nfs.py there, and power off (root); what follows
#                        goes to pytest, for instance: -k taken_over
#
# The kernel has this machine's files as its root, and one core. The exported disk is an image in
# a temporary folder. Server and clients talk over addresses that exist inside of the kernel only.
# Each client has a network, a host name and mounts of its own, as two nodes of a cluster have:
# what one has cached the other does not see. ALPHASWEEP_PYTHON says which Python runs the tests
# (default: .venv/bin/python of this checkout).
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
PYTHON=${ALPHASWEEP_PYTHON:-$HERE/../../.venv/bin/python}
export PATH=$PATH:/usr/sbin:/sbin

install_packages() {
  if command -v linux.uml exportfs mkfs.ext4 modprobe ip >/dev/null; then return; fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || echo "nfs.sh: apt-get update failed; trying with the lists that are there" >&2
  apt-get install -y -qq --no-install-recommends \
    user-mode-linux nfs-kernel-server nfs-common e2fsprogs kmod iproute2 >/dev/null
}

run_tests() {
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  truncate -s 1G "$scratch/disk"
  mkfs.ext4 -q -F -m 0 "$scratch/disk" # nothing is kept for root, so that a full disk is full
  printf '%q ' "$PYTHON" -m pytest -n0 -q -p no:cacheprovider -c "$HERE/../../pyproject.toml" \
    --rootdir="$HERE/../.." "$HERE/on_nfs.py" "$@" >"$scratch/command"
  (cd "$scratch" && linux.uml mem=3G root=/dev/root rootfstype=hostfs rootflags=/ rw quiet \
    "ubd0=$scratch/disk" "init=$HERE/nfs.sh" con=null con0=fd:0,fd:1 \
    "ALPHASWEEP_NFS_SCRATCH=$scratch" </dev/null)
  return "$(cat "$scratch/status" 2>/dev/null || echo 1)"
}

# What the kernel starts instead of an init.
inside() {
  trap 'echo o >/proc/sysrq-trigger; sleep 60' EXIT
  export HOME=/root LANG=C.UTF-8 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
  mount -t proc proc /proc
  mount -t sysfs sys /sys
  mount -t tmpfs run /run
  mkdir -p /dev/shm
  mount -t tmpfs shm /dev/shm
  mount -t tmpfs nfs /var/lib/nfs
  mkdir -p /var/lib/nfs/{v4recovery,rpc_pipefs,sm,sm.bak} /lib/modules /run/export /run/nfs4 /run/nfs3
  touch /var/lib/nfs/{etab,rmtab,state}
  mount --bind /usr/lib/uml/modules /lib/modules
  modprobe -a nfsd nfsv3 nfsv4 veth
  ip link set lo up
  mount -t nfsd nfsd /proc/fs/nfsd
  mount /dev/ubda /run/export
  rpcbind -w
  rpc.statd
  rpc.mountd
  rpc.nfsd --lease-time 10 --grace-time 10 4
  exportfs -o rw,no_root_squash,insecure,fsid=0,no_subtree_check '*:/run/export'
  client a 1
  client b 2
  local status=0
  sh -c "$(cat "$ALPHASWEEP_NFS_SCRATCH/command")" || status=$?
  echo "$status" >"$ALPHASWEEP_NFS_SCRATCH/status"
}

# client NAME NUMBER: a node; who runs a command there enters the process in /run/client-NAME
client() {
  ip netns add "$1"
  ip link add "to-$1" type veth peer name eth0 netns "$1"
  ip address add "10.77.$2.1/24" dev "to-$1"
  ip link set "to-$1" up
  ip -n "$1" address add "10.77.$2.2/24" dev eth0
  ip -n "$1" link set eth0 up
  ip -n "$1" link set lo up
  nsenter --net="/run/netns/$1" unshare --mount --uts sh -ec "
    hostname client-$1
    mount -t nfs -o vers=4.2 10.77.$2.1:/ /run/nfs4
    mount -t nfs -o vers=3,nolock 10.77.$2.1:/run/export /run/nfs3
    echo \$\$ >/run/client-$1
    exec sleep infinity" &
  until [ -s "/run/client-$1" ]; do sleep 0.1; done
}

if [ $$ -eq 1 ]; then
  inside
  exit
fi
case "${1:-}" in
install) install_packages ;;
test)
  shift
  run_tests "$@"
  ;;
*)
  sed -n '2,14s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
