#!/usr/bin/env bash
# Push an adapter, gate it and, if PROMOTE=yes, promote it. Works in any CI with `lora-reg` on the PATH.
#
#   ADAPTER      folder of the adapter                     BASE     its base model in the registry
#   REPOSITORY   namespace/name to push to                 TAG      tag to gate for (prod)
#   DATA         evaluation sets, separated by spaces      FORMAT   text, junit or github (text)
#   PROMOTE      yes: move the tag if the gate allows it   REPORT   file for the output of the gate
#   LORA_REG_SERVER  the registry. A trust rule of it (docs/identity.md) lets the job in: no secret is stored anywhere.
#   LORA_REG_ID_TOKEN, LORA_REG_TOKEN   GitLab's identity token of the job; or a token of the registry, without OIDC
#
# Exit status: 0 if the version may have the tag, 6 if it may not; docs/ci/README.md lists the others.
set -euo pipefail
: "${ADAPTER:?names the folder of the adapter}" "${BASE:?names its base model}" "${REPOSITORY:?names the repository to push to}"
tag=${TAG:-prod} format=${FORMAT:-text} revision=${GITHUB_SHA:-${CI_COMMIT_SHA:-}}
data=()
for set in ${DATA:-}; do data+=(--data "$set"); done

# An identity token in a variable is exchanged once, for all commands. In GitHub Actions each command requests its own.
if [ -n "${LORA_REG_ID_TOKEN:-}" ] && [ -z "${LORA_REG_TOKEN:-}" ]; then
    LORA_REG_TOKEN=$(lora-reg ci-token --quiet)
    export LORA_REG_TOKEN
fi

version=$(lora-reg push "$ADAPTER" "$REPOSITORY" --base "$BASE" --quiet ${revision:+--meta "commit=$revision"})
echo "pushed $version" >&2

status=0
lora-reg gate "$version" --for "$tag" --format "$format" ${data[@]+"${data[@]}"} > "${REPORT:-/dev/stdout}" || status=$?
[ "$status" = 0 ] || exit "$status"

if [ "${PROMOTE:-no}" = yes ]; then
    lora-reg promote "$version" "$tag" --quiet --reason "CI${revision:+ at $revision}" ${data[@]+"${data[@]}"}
fi
