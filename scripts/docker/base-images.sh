#!/usr/bin/env bash
# base-images.sh DIR: makes sure that the public images which Anole builds on are in the engine.
#
# One that is neither there nor can be pulled (no registry is reachable) is replaced by a stand-in of
# the same name made out of Debian's packages (root, Debian 12). Stand-ins are kept in DIR, so that
# they need be built once only, and bear the label anole.stand-in. For trials, never for production.
set -euo pipefail

dir=$(realpath -m "${1:?a directory to keep stand-ins in}")
here=$(cd "$(dirname "$0")" && pwd)
declare -rA recipes=([python:3.11-slim]=python [redis:7]=redis [rabbitmq:3-management]=rabbitmq)
export DOCKER_BUILDKIT=0 # for plain `docker build`: works without the buildx plugin

main() {
  local image reachable=yes
  mkdir -p "$dir"
  for image in "${!recipes[@]}"; do
    if docker image inspect "$image" >/dev/null 2>&1; then
      echo "$image is there"
    elif [ $reachable = yes ] && timeout 300 docker pull -q "$image" 2>"$dir/pull.log"; then
      echo "$image pulled"
    else
      reachable=no
      stand_in "$image" "${recipes[$image]}"
    fi
  done
}

stand_in() { # IMAGE RECIPE
  local archive=$dir/$2.tar
  if [ -f "$archive" ]; then
    docker load -q -i "$archive" >/dev/null
    echo "$1 cannot be pulled; its stand-in comes from $archive"
    return
  fi
  echo "$1 cannot be pulled; making a stand-in out of Debian's packages"
  debian
  local context=$dir/$2
  rm -rf "$context"
  cp -r "$here/images/$2" "$context"
  [ "$2" != python ] || settings_of_this_machine "$context/host"
  docker build -q --label anole.stand-in=yes -t "$1" "$context" >"$dir/$2.log" 2>&1 ||
    { cat "$dir/$2.log" >&2; exit 1; }
  docker save -o "$archive.partial" "$1"
  mv "$archive.partial" "$archive"
  rm -rf "$context"
}

debian() {
  docker image inspect anole-stand-in:debian >/dev/null 2>&1 && return
  if [ ! -f "$dir/debian.tar" ]; then
    command -v debootstrap >/dev/null ||
      apt-get install -y -qq --no-install-recommends debootstrap >"$dir/apt.log" 2>&1
    local root=$dir/debian
    rm -rf "$root"
    debootstrap --variant=minbase bookworm "$root" "$(mirror)" >"$dir/debootstrap.log" ||
      { tail -20 "$dir/debootstrap.log" >&2; exit 1; }
    rm -rf "$root"/var/cache/apt/archives/*.deb
    tar -C "$root" -cf "$dir/debian.tar.partial" .
    mv "$dir/debian.tar.partial" "$dir/debian.tar"
    rm -rf "$root"
  fi
  docker import "$dir/debian.tar" anole-stand-in:debian >/dev/null
}

mirror() {
  # shellcheck disable=SC2016 # apt fills these in
  apt-get indextargets --format '$(SITE) $(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
    awk '$2 !~ /security/ { print $2; exit }'
}

# The certificates that this machine trusts beside Debian's, and pip's settings with the local folders
# of wheels that they name; local indexes stay behind, for they may be of any size.
settings_of_this_machine() { # ROOT
  local root=$1 certificates=/usr/local/share/ca-certificates folder
  mkdir -p "$root/etc" "$root$certificates"
  find "$certificates" -name '*.crt' -exec cp -t "$root$certificates" {} + 2>/dev/null || true
  local links index
  links=$(pip_setting find-links)
  index=$(pip_setting index-url)
  for folder in $links; do
    [ ! -d "${folder#file://}" ] || cp -r --parents -t "$root" "${folder#file://}"
  done
  {
    echo '[global]'
    [ -z "$links" ] || echo "find-links = $links"
    [ -z "$index" ] || echo "index-url = $index"
  } >"$root/etc/pip.conf"
}

pip_setting() { # NAME
  python3 -m pip config list 2>/dev/null |
    sed -nE "s/^[^=]*\\.$1='(.*)'\$/\\1/p" | sed 's/\\n/ /g' | tail -1
}

main
