#!/usr/bin/env bash
# A Docker engine of its own, for a machine where none runs (root, Debian); leaves nothing behind.
#
#   engine.sh up DIR      start it, with everything it keeps in DIR; listens at DIR/docker.sock
#   engine.sh down DIR    end it, and undo what it did to the machine's network and mounts
set -euo pipefail

command=${1:?up or down}
dir=$(realpath -m "${2:?a directory}")
readonly command dir
readonly before=$dir/before socket=unix://$dir/docker.sock
readonly leftovers=(/run/docker /run/containerd /etc/docker/key.json)
readonly addresses='172\.30\.' # of --bip and --default-address-pool below

docker_() { docker --host "$socket" "$@"; }

install_engine() {
  command -v dockerd >/dev/null && command -v iptables >/dev/null && return
  local packages=(docker.io iptables)
  apt-get update -qq
  ! apt-cache show docker-cli >/dev/null 2>&1 || packages+=(docker-cli) # apart since Debian 13
  echo "no Docker engine here: installing ${packages[*]}" >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${packages[@]}" >"$dir/apt.log" 2>&1 || { cat "$dir/apt.log" >&2; exit 1; }
}

remember() {
  mkdir -p "$before"
  sysctl -n net.ipv4.ip_forward >"$before/ip_forward"
  ls /sys/class/net >"$before/links"
  for table in filter nat; do iptables -t "$table" -S >"$before/$table"; done
  ls -d "${leftovers[@]}" >"$before/files" 2>/dev/null || true
}

up() {
  [ "$(id -u)" = 0 ] || { echo "starting an engine needs root" >&2; exit 1; }
  mkdir -p "$dir"
  install_engine
  remember
  # A session of its own, so that an interrupt from the terminal cannot end it before its containers.
  setsid nohup dockerd --host "$socket" --pidfile "$dir/docker.pid" \
    --data-root "$dir/data" --exec-root "$dir/exec" \
    --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$(cgroup)" \
    --bip 172.30.255.1/24 --default-address-pool base=172.30.0.0/17,size=24 \
    >"$dir/dockerd.log" 2>&1 </dev/null &
  for _ in $(seq 150); do
    docker_ version >/dev/null 2>&1 && return
    sleep 0.2
  done
  echo "the engine did not start:" >&2
  tail -20 "$dir/dockerd.log" >&2
  exit 1
}

cgroup() { echo "anole-$(echo "$dir" | cksum | cut -d' ' -f1)"; }

# What iptables lists now and did not list before, as far as it is an engine's.
added() { # TABLE PREFIX
  iptables -t "$1" -S | grep -vxFf "$before/$1" | grep -E "^$2 .*(DOCKER|docker0|br-|$addresses)" || true
}

restore_network() {
  local table rule chain
  for table in filter nat; do
    added "$table" -A | grep -v '^-A DOCKER' | while read -r rule; do
      eval "iptables -t $table -D ${rule#-A }"
    done
    added "$table" -N | while read -r _ chain; do iptables -t "$table" -F "$chain"; done
    added "$table" -N | while read -r _ chain; do iptables -t "$table" -X "$chain"; done
    grep '^-P' "$before/$table" | while read -r rule; do eval "iptables -t $table $rule"; done
  done
  grep -qx docker0 "$before/links" || ip link delete docker0 2>/dev/null || true
  sysctl -q -w "net.ipv4.ip_forward=$(cat "$before/ip_forward")"
}

down() {
  [ -f "$dir/docker.pid" ] || return 0
  local pid
  pid=$(cat "$dir/docker.pid")
  docker_ ps -aq | xargs -r docker --host "$socket" rm -fv >/dev/null
  docker_ network prune -f >/dev/null
  kill "$pid"
  for _ in $(seq 150); do [ -e "/proc/$pid" ] || break; sleep 0.2; done
  awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount
  find /sys/fs/cgroup -depth -type d -path "*/$(cgroup)*" -exec rmdir {} + 2>/dev/null || true
  restore_network
  printf '%s\n' "${leftovers[@]}" | grep -vxFf "$before/files" | xargs -r rm -rf
  rm -rf "$before" "$dir/exec" "$dir/docker.pid" "$dir/docker.sock"
}

case $command in
up) up ;;
down) down ;;
*) echo "engine.sh up|down DIR" >&2; exit 2 ;;
esac
