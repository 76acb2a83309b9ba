#!/usr/bin/env bash
# SLURM for the tests: one node, this machine, with 2 CPUs, its own folder, ports and munge key; nothing of an installed SLURM's is touched.
#   .ci/slurm.sh install       Debian's slurmctld, slurmd, the clients and munge (root)
#   .ci/slurm.sh start FOLDER  starts munged, slurmctld and slurmd; `export SLURM_CONF=FOLDER/slurm.conf` is then all that srun, sbatch ... need
#   .ci/slurm.sh stop FOLDER   ends the three and whatever jobs are left
set -euo pipefail
action=${1:?install, start or stop}
export PATH="$PATH:/usr/sbin:/sbin"

if [ "$action" = install ]; then
  missing=
  for program in slurmctld slurmd munged sbatch; do command -v "$program" >/dev/null || missing=1; done
  [ -n "$missing" ] || exit 0
  policy=/usr/sbin/policy-rc.d  # the packages must not start services of their own
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
  exit 0
fi

folder=$(realpath -m "${2:?the folder}")
export SLURM_CONF=$folder/slurm.conf

ends() {  # the process whose number is in a file, if it is still there
  local pid
  pid=$(cat "$1" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 50); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
}

stop() {
  for _ in $(seq 60); do  # of a job that is running yet the processes would outlive slurmd; one that is being requeued is cancelled after it
    timeout 10 scancel --user="$(id -u)" 2>/dev/null || break
    timeout 10 scancel --signal=KILL --user="$(id -u)" 2>/dev/null || true
    [ -n "$(timeout 10 squeue --noheader 2>/dev/null)" ] || break
    sleep 0.5
  done
  for daemon in slurmd slurmctld munged; do
    ends "$folder/$daemon.pid"
  done
}

if [ "$action" = stop ]; then
  stop
  exit 0
fi

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

mkdir -p "$folder/state" "$folder/spool"
chmod 755 "$folder"
head -c 128 /dev/urandom > "$folder/munge.key"
chmod 600 "$folder/munge.key"
node=$(hostname -s)
cat > "$SLURM_CONF" <<END
ClusterName=tests
SlurmctldHost=$node(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$(port)
SlurmdPort=$(port)
AuthType=auth/munge
# A requeued job waits as long as credentials live.
AuthInfo=socket=$folder/munge.socket,cred_expire=20
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=5,batch_sched_delay=0
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=$node Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=$node MaxTime=INFINITE State=UP PriorityTier=10
END
printf 'CgroupAutomount=no\n' > "$folder/cgroup.conf"

trap 'stop; tail -n 20 "$folder"/*.log >&2; exit 1' ERR
munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" --num-threads=2 --force 2>/dev/null
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF" -N "$node"
for _ in $(seq 100); do
  case $(sinfo --noheader --format=%T --partition=low 2>/dev/null) in
    idle*) exit 0 ;;
  esac
  sleep 0.2
done
echo "SLURM did not come up within 20 s" >&2
false
