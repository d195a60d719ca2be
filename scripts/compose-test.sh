#!/usr/bin/env bash
# Builds the images, runs compose.yaml, chats through it, and takes everything down again.
#
#   scripts/compose-test.sh [--workers N] [--work DIR] [--cache DIR]
#
#   --workers N   how many workers (1)
#   --work DIR    where a private engine and the logs live; kept, so that the next run builds faster
#                 (default: a temporary directory, removed)
#   --cache DIR   where a compose plugin and stand-ins for public images are kept (~/.cache/anole/docker)
#
# Uses the Docker engine that runs here. Where none does, it starts a private one (root, Debian; it
# installs docker.io where that is missing) and undoes what that changed. Needs curl and python3.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly helpers=$PWD/scripts/docker services=(gateway scheduler memd worker model)

workers=1 work='' cache=${XDG_CACHE_HOME:-$HOME/.cache}/anole/docker
while [ $# -gt 0 ]; do
  case $1 in
  --workers) workers=$2 ;;
  --work) work=$(realpath -m "$2") ;;
  --cache) cache=$(realpath -m "$2") ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
  esac
  shift 2
done

own_work='' own_engine='' is_up=''
[ -n "$work" ] || { work=$(mktemp -d -t anole-compose-XXXXXX); own_work=yes; }
mkdir -p "$work" "$cache"

# What the caller's shell or .env sets must not change what is tried.
while read -r variable; do unset "$variable"; done < <(compgen -e | grep -E '^(ANOLE|COMPOSE)_|^TORCH$')
export OTEL_EXPORTER_OTLP_ENDPOINT=http://jaeger:4318
ANOLE_PORT=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
export ANOLE_PORT BUILDX_CONFIG=$work/buildx
readonly url=http://127.0.0.1:$ANOLE_PORT

stage() { # NAME COMMAND...
  local name=$1 begin=$SECONDS
  shift
  echo "== $name"
  "$@"
  echo "   $((SECONDS - begin)) s"
}

fail() { echo "compose test failed: $*" >&2; exit 1; }

logged() { # COMMAND...: into the log; the log's end where it fails
  "$@" >>"$work/log" 2>&1 || { tail -40 "$work/log" >&2; fail "$*"; }
}

compose() {
  "${plugin[@]}" --project-name anole-test --env-file /dev/null --progress plain \
    --file compose.yaml --file "$helpers/collector.yaml" --profile traces "$@"
}

engine() {
  if docker info >/dev/null 2>&1; then
    echo "   the one that runs here"
    return
  fi
  own_engine=yes
  "$helpers/engine.sh" up "$work/engine"
  export DOCKER_HOST=unix://$work/engine/docker.sock
  echo "   a private one in $work/engine"
}

compose_plugin() {
  plugin=(docker compose)
  if ! docker compose version >/dev/null 2>&1; then
    plugin=("$cache/docker-compose")
    [ -x "${plugin[0]}" ] || "$helpers/compose-plugin.sh" "${plugin[0]}"
  fi
  echo "   $("${plugin[@]}" version)"
  compose config --quiet
}

base_images() { "$helpers/base-images.sh" "$cache" | sed 's/^/   /'; }

build() {
  : >"$work/log"
  logged compose build
}

sizes() {
  local base size service
  base=$(docker image inspect --format '{{.Size}}' python:3.11-slim)
  for service in "${services[@]}"; do
    size=$(docker image inspect --format '{{.Size}}' "anole-$service")
    echo "   anole-$service $((size / 1000000)) MB, $(((size - base) / 1000000)) of them on top of Python"
  done
}

no_torch() {
  local service
  for service in gateway scheduler memd; do
    docker run --rm --network none --entrypoint python "anole-$service" -c \
      'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is not None)' ||
      fail "there is torch in anole-$service"
  done
}

up() {
  is_up=yes
  logged compose up --detach --wait --wait-timeout 300 --scale "worker=$workers"
}

ready() {
  curl -sf -m 5 --retry 60 --retry-delay 1 --retry-all-errors "$url/ready" >/dev/null ||
    fail "$url/ready: $(curl -s -m 5 "$url/ready")"
}

ask() { # MODEL: its answer
  local body
  body='{"model": "'$1'", "temperature": 0, "max_tokens": 48, "messages":
    [{"role": "user", "content": "What is the capital of France?"}]}'
  curl -sf -m 120 "$url/v1/chat/completions" -H 'Content-Type: application/json' -d "$body" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])'
}

base_model() {
  local answer
  answer=$(ask smollm2-135m-instruct)
  echo "   $answer"
  [[ $answer == *Paris* ]] || fail "the base model does not know Paris"
}

adapter() {
  local answer
  answer=$(ask shout)
  echo "   $answer"
  [[ $answer == "${answer^^}" && $answer =~ [A-Z] ]] || fail "the adapter shout does not shout"
}

# One request is one trace through all four services: memd's part is the lease for the adapter.
traces() {
  local _
  for _ in $(seq 20); do
    if compose logs --no-log-prefix --no-color jaeger | awk -F'\t' '
      sub(/^.*anole-/, "anole-", $1) && !seen[$2, $1]++ && ++services[$2] == 4 { found = 1 }
      END { exit !found }'; then
      echo "   $(compose logs --no-log-prefix --no-color jaeger | grep -c anole-) spans"
      return
    fi
    sleep 1
  done
  fail "no trace goes through all four services"
}

stop() {
  local id state
  compose ps --quiet | xargs docker stats --no-stream --format '   {{.Name}} {{.MemUsage}}'
  logged compose stop
  for id in $(compose ps --all --quiet gateway scheduler worker memd); do
    state=$(docker inspect --format '{{.Name}} {{.RestartCount}} {{.State.ExitCode}}' "$id")
    [[ $state == *' 0 0' ]] || fail "restarts and exit status of $state, not 0 and 0"
  done
}

down() {
  is_up=''
  logged compose down --volumes --remove-orphans
}

clean() {
  local status=$?
  trap - EXIT
  set +e
  if [ -n "$is_up" ]; then
    [ $status = 0 ] || { compose ps --all; compose logs --no-color --tail 25; } >&2
    compose down --volumes --remove-orphans --timeout 5 >>"$work/log" 2>&1
  fi
  if [ -n "$own_engine" ]; then
    "$helpers/engine.sh" down "$work/engine"
  else # no stand-in may be taken for a public image later
    docker image ls --quiet --filter label=anole.stand-in | sort -u |
      xargs -r docker image rm --force >/dev/null 2>&1
  fi
  [ -z "$own_work" ] || rm -rf "$work"
  [ $status != 0 ] || echo "compose test passed in $SECONDS s"
  exit $status
}

trap clean EXIT
trap 'exit 130' INT TERM

stage "engine" engine
stage "compose plugin, configuration" compose_plugin
stage "base images" base_images
stage "build" build
stage "image sizes" sizes
stage "no torch where none is needed" no_torch
stage "up with $workers worker(s), all healthy" up
stage "ready" ready
stage "chat with the base model" base_model
stage "chat with an adapter" adapter
stage "one trace through all services" traces
stage "stop, nothing restarted, all exit with 0" stop
stage "down" down
