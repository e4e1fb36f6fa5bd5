"""What a Hub client does in a day, as a program for huggingface_hub 0.36 to 2.4. Prints what it saw as JSON."""

import contextlib
import hashlib
import json
import os
import sys
import urllib.request

import huggingface_hub
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

arguments = json.loads(sys.argv[1])
repo, api_url, resumed = arguments["repo"], arguments["api"], arguments["resumed"]
hub = HfApi()
seen = {"version": huggingface_hub.__version__}


def native(method, path, body=None):
    request = urllib.request.Request(
        f"{api_url}/api/v1/repositories/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return json.loads(response.read() or b"null")


def mark(name):
    """A request that the recording proxy will show between the others."""
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/api/mark/{name}")


def digests(folder):
    found = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            found[name] = hashlib.sha256(file.read()).hexdigest()
    return found


def snapshot(repo_id, **options):
    folder = snapshot_download(repo_id, **options)
    return {"commit": os.path.basename(folder), "files": digests(folder)}


def error(call):
    try:
        call()
    except (HfHubHTTPError, OSError) as raised:
        return type(raised).__name__
    return None


seen["by_tag"] = snapshot(repo, revision="prod")
mark("warm")
seen["warm"] = snapshot(repo, revision="prod")
mark("warm-end")
seen["by_main"] = snapshot(repo)
seen["by_number"] = snapshot(repo, revision="v1")
seen["by_commit"] = snapshot(repo, revision=seen["by_main"]["commit"])
seen["alias_tag"] = snapshot(repo + ".prod")
seen["alias_number"] = snapshot(repo + ".v1")
seen["base"] = snapshot("tiny", allow_patterns=["*.json"])
path = hf_hub_download(repo, "adapter_config.json", revision="candidate")
with open(path, "rb") as file:
    seen["one_file"] = hashlib.sha256(file.read()).hexdigest()

seen["files"] = sorted(hub.list_repo_files(repo, revision="prod"))
seen["tree"] = {item.path: [item.size, item.lfs.sha256] for item in hub.list_repo_tree(repo, recursive=True)}
seen["paths"] = [item.path for item in hub.get_paths_info(repo, ["adapter_config.json", "nope"], revision="prod")]
info = hub.model_info(repo, revision="candidate", files_metadata=True)
seen["info"] = {
    "id": info.id,
    "sha": info.sha,
    "base": info.card_data["base_model"],
    "tags": info.tags,
    "siblings": {file.rfilename: [file.size, file.lfs["sha256"]] for file in info.siblings},
    "dated": info.last_modified is not None and info.created_at is not None,
}
refs = hub.list_repo_refs(repo, include_pull_requests=True)
seen["refs"] = {
    "branches": {ref.name: ref.target_commit for ref in refs.branches},
    "tags": {ref.name: ref.target_commit for ref in refs.tags},
    "pulls": len(refs.pull_requests),
}
seen["commits"] = [[commit.commit_id, commit.title, commit.authors] for commit in hub.list_repo_commits(repo)]
seen["models"] = sorted(model.id for model in hub.list_models(author="hub", search=repo.split("/")[1]))
seen["whoami"] = hub.whoami(token="hf_" + "a" * 40)["name"]

seen["exists"] = [
    hub.repo_exists(repo),
    hub.repo_exists("hub/nothing"),
    hub.revision_exists(repo, "prod"),
    hub.revision_exists(repo, "v3"),
    hub.revision_exists(repo, "v4"),
    hub.revision_exists(repo, "feat/x"),
    hub.file_exists(repo, "adapter_config.json", revision="prod"),
    hub.file_exists(repo, "config.json", revision="prod"),
]
seen["errors"] = {
    "repository": error(lambda: hub.model_info("hub/nothing")),
    "repository_file": error(lambda: hf_hub_download("hub/nothing", "x")),
    "revision": error(lambda: hub.model_info(repo, revision="nope")),
    "revision_quoted": error(lambda: hf_hub_download(repo, "adapter_config.json", revision="prod/x")),
    "revision_alias": error(lambda: hub.model_info(repo + ".nope")),
    "entry": error(lambda: hf_hub_download(repo, "config.json", revision="prod")),
    "tree": error(lambda: list(hub.list_repo_tree(repo, path_in_repo="nope"))),
    "dataset": error(lambda: hub.dataset_info(repo)),
    "write": error(lambda: hub.create_repo("hub/new", exist_ok=True)),
}

mark("cut")
first = error(lambda: snapshot_download(resumed, allow_patterns=["notes.txt"]))
seen["resumed"] = snapshot(resumed, allow_patterns=["notes.txt"])
seen["resumed_error"] = first
mark("cut-end")

native("PUT", f"{repo}/tags/prod", {"target": "v3", "reason": "better"})
seen["moved"] = snapshot(repo, revision="prod")
native("PUT", f"{repo}/versions/v3/yank", {"reason": "loses\nthe ä in names"})
seen["yanked"] = {
    "by_tag": error(lambda: snapshot_download(repo, revision="prod")),
    "by_tag_file": error(lambda: hf_hub_download(repo, "adapter_config.json", revision="prod")),
    "by_alias": error(lambda: snapshot_download(repo + ".prod")),
    "by_number": snapshot(repo, revision="v3")["commit"],
    "by_main": snapshot(repo)["commit"],
    "refs": sorted(ref.name for ref in hub.list_repo_refs(repo).tags),
}
native("PUT", f"{repo}/tags/prod", {"target": "v1", "reason": "back"})
seen["rolled_back"] = snapshot(repo, revision="prod")["commit"]

print(json.dumps(seen))
