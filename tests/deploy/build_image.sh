#!/usr/bin/env bash
# Build the image for real and let it pass the demo as a user without rights: `make test-deploy`. As root; needs buildah,
# and 25 GB of disk (CUDA). Without BASE a base is made by debootstrap (needs that too), so no registry of images is reached.
#
#   BASE=python:3.12-slim-bookworm ACCELERATOR=cpu WORK=/var/tmp/image tests/deploy/build_image.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
work=${WORK:-$(mktemp -d /var/tmp/layerwatch-image.XXXXXX)}
mkdir -p "$work"
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT
buildah=(buildah --root "$work/storage" --runroot "$work/run")
for tool in buildah $([ -n "${BASE:-}" ] || echo debootstrap); do
  command -v "$tool" > /dev/null || { echo "needs $tool: apt-get install $tool" >&2; exit 2; }
done

if [ -z "${BASE:-}" ]; then
  BASE=localhost/layerwatch-base
  if ! "${buildah[@]}" inspect "$BASE" > /dev/null 2>&1; then
    [ -d "$work/rootfs/usr" ] ||
      debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/rootfs"
    container=$("${buildah[@]}" from scratch)
    "${buildah[@]}" add -q "$container" "$work/rootfs" /
    "${buildah[@]}" commit -q "$container" "$BASE"
    "${buildah[@]}" rm "$container" > /dev/null
  fi
fi

# a mirror with a certificate of its own is reached with the certificates of this machine
"${buildah[@]}" bud --isolation chroot --format docker -f deploy/Dockerfile -t layerwatch:test \
  --build-arg BASE="$BASE" --build-arg ACCELERATOR="${ACCELERATOR:-cuda}" \
  ${PIP_INDEX_URL:+--build-arg PIP_INDEX_URL="$PIP_INDEX_URL"} ${TORCH_INDEX:+--build-arg TORCH_INDEX="$TORCH_INDEX"} \
  ${TORCH_HASHES:+--build-arg TORCH_HASHES="$TORCH_HASHES"} \
  --build-arg PIP_CERT=/host-certs/ca-certificates.crt --volume /etc/ssl/certs:/host-certs:ro .

container=$("${buildah[@]}" from layerwatch:test)
trap '"${buildah[@]}" rm "$container" > /dev/null; [ -n "${WORK:-}" ] || rm -rf "$work"' EXIT
user=$("${buildah[@]}" inspect --format '{{.OCIv1.Config.User}}' layerwatch:test)
[ "$user" = 10001:10001 ] || { echo "runs as $user" >&2; exit 1; }
as_user() { "${buildah[@]}" run --isolation chroot --user "$user" "$container" -- "$@"; }

! as_user touch /opt/layerwatch/x 2> /dev/null || { echo "the user can write its own program" >&2; exit 1; }
! as_user test -e /opt/layerwatch/bin/pip || { echo "pip is in the image" >&2; exit 1; }
as_user grep -q '"name": "torch"' /usr/share/doc/layerwatch/layerwatch.cdx.json || { echo "no bill of materials" >&2; exit 1; }
status=0; as_user layerwatch check-config -c /nonexistent || status=$?
[ "$status" = 78 ] || { echo "check-config exits $status, not 78" >&2; exit 1; }
as_user layerwatch demo --headless
echo "image: $("${buildah[@]}" images --format '{{.Size}}' layerwatch:test); demo passed as $user"
