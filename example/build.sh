#!/usr/bin/env bash
# Builds the example's images into example/images, from this tree and Debian packages; needs Go and apt, no registry.
# What is newer than its sources is left alone, and an image that comes out equal keeps its file.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
out=example/images
cache=.cache/debs
tool=.cache/image
mkdir -p "$out" .cache

# older FILE SOURCE...: FILE is missing, or something below SOURCE is newer.
older() {
	local file=$1
	shift
	[ ! -e "$file" ] || [ -n "$(find "$@" -newer "$file" -print -quit)" ]
}

recipe=(example/build.sh tools/image go.mod)
if older "$tool" "${recipe[@]}"; then
	go build -o "$tool" ./tools/image
	touch "$tool"
fi
if older .cache/web.built "${recipe[@]}" example/web || [ ! -e "$out/web.tar" ]; then
	go build -trimpath -ldflags '-s -w -buildid=' -o .cache/web ./example/web
	"$tool" -o "$out/web.tar" -name worknode.example/web:1 -bin .cache/web=/web -entrypoint /web -port 8080/tcp -user 10002
	touch .cache/web.built
fi
if older .cache/redis.built "${recipe[@]}" || [ ! -e "$out/redis.tar" ]; then
	"$tool" -o "$out/redis.tar" -name worknode.example/redis:1 -cache "$cache" \
		-base busybox -deb redis-server,redis-tools \
		-entrypoint redis-server -workdir /data -volume /data -port 6379/tcp -user 10001
	touch .cache/redis.built
fi
