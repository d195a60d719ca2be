#!/usr/bin/env bash
# compose-plugin.sh FILE: puts `docker compose` (v2), as Debian 13 has it, at FILE; works on Debian 12 too.
# It can be run by itself: FILE up, FILE down.
set -euo pipefail

file=$(realpath -m "${1:?where to put it}")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# shellcheck disable=SC2016 # apt fills these in
mirror=$(apt-get indextargets --format '$(SITE) $(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
  awk '$2 !~ /security/ { print $2; exit }')
[ -n "$mirror" ] || { echo "no Debian mirror among apt's sources: run apt-get update" >&2; exit 1; }

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] $mirror trixie main" >"$dir/sources.list"
mkdir -p "$dir/lists/partial" "$(dirname "$file")"
own=(-oDir::Etc::sourcelist="$dir/sources.list" -oDir::Etc::sourceparts=-
  -oDir::State::Lists="$dir/lists" -oDir::Cache::pkgcache= -oDir::Cache::srcpkgcache=
  -oAPT::Sandbox::User=root)
cd "$dir"
apt-get "${own[@]}" -qq update
apt-get "${own[@]}" -qq download docker-compose
dpkg --extract docker-compose_*.deb package
install -m 755 package/usr/libexec/docker/cli-plugins/docker-compose "$file"
