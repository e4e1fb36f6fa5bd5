#!/usr/bin/env bash
# Push an adapter, gate it, and promote it where PROMOTE=yes. Any CI can run this; it needs `pip install lora-reg`.
#
#   ADAPTER      the adapter's folder                      BASE     the base in the registry that it was trained on
#   REPOSITORY   namespace/name to push to                 TAG      the tag it shall have (prod)
#   DATA         evaluation sets, with spaces between      FORMAT   text, junit or github (text)
#   PROMOTE      yes: move the tag where the gate lets it  REPORT   a file for what the gate tells
#   LORA_REG_SERVER, LORA_REG_TOKEN   the registry, and a token with the role writer in the namespace
#
# Ends with 0 where the version may have the tag, with 6 where it may not; docs/ci/README.md has the others.
set -euo pipefail
: "${ADAPTER:?names the folder of the adapter}" "${BASE:?names its base}" "${REPOSITORY:?names where it goes}"
tag=${TAG:-prod} format=${FORMAT:-text} revision=${GITHUB_SHA:-${CI_COMMIT_SHA:-}}
data=()
for set in ${DATA:-}; do data+=(--data "$set"); done

version=$(lora-reg push "$ADAPTER" "$REPOSITORY" --base "$BASE" --quiet ${revision:+--meta "commit=$revision"})
echo "pushed $version" >&2

status=0
lora-reg gate "$version" --for "$tag" --format "$format" ${data[@]+"${data[@]}"} > "${REPORT:-/dev/stdout}" || status=$?
[ "$status" = 0 ] || exit "$status"

if [ "${PROMOTE:-no}" = yes ]; then
    lora-reg promote "$version" "$tag" --quiet --reason "CI${revision:+ at $revision}" ${data[@]+"${data[@]}"}
fi
