"""What a Hub client writes in a day, as a program for huggingface_hub 0.26 to 2.x. Prints what it saw as JSON.

Each call is tried, and its outcome noted: `ok`, or the name of the error.
"""

import json
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, snapshot_download

arguments = json.loads(sys.argv[1])
repo, folder, dataset = arguments["repo"], Path(arguments["folder"]), arguments["dataset"]
hub = HfApi()
seen = {"version": huggingface_hub.__version__}
calls = {}


def call(name, function):
    try:
        result = function()
    except Exception as error:  # noqa: BLE001, the outcome is what is asked for
        calls[name] = f"{type(error).__name__}: {str(error)[-300:]}"
        return None
    calls[name] = "ok"
    return result


call("create_repo", lambda: hub.create_repo(repo))
call("create_repo exist_ok", lambda: hub.create_repo(repo, exist_ok=True, private=False))
call("repo_info", lambda: hub.repo_info(repo))
call("upload_file", lambda: hub.upload_file(path_or_fileobj=b"# Card\n", path_in_repo="README.md", repo_id=repo))
call("card", lambda: ModelCard("---\nlibrary_name: peft\n---\n# A card").push_to_hub(repo))
done = call("upload_folder", lambda: hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Weights"))
seen["commit"] = done and done.oid
call(
    "create_commit",
    lambda: hub.create_commit(
        repo,
        [CommitOperationAdd("notes.md", b"one"), CommitOperationAdd("more.md", b"two")],
        commit_message="Notes",
        parent_commit=done.oid,
    ),
)
call("delete", lambda: hub.create_commit(repo, [CommitOperationDelete("more.md")], commit_message="Less"))
call("delete_file", lambda: hub.delete_file("notes.md", repo))
call("create_tag", lambda: hub.create_tag(repo, tag="candidate", revision=done.oid))
call("create_branch", lambda: hub.create_branch(repo, branch="wild"))
call(
    "commit to branch",
    lambda: hub.upload_file(path_or_fileobj=b"w", path_in_repo="w.md", repo_id=repo, revision="wild"),
)
call("delete_branch", lambda: hub.delete_branch(repo, branch="wild"))
call("list_models", lambda: hub.list_models(filter="base_model:adapter:default/tiny"))
call("create dataset", lambda: hub.create_repo(dataset, repo_type="dataset"))
call(
    "upload dataset",
    lambda: hub.upload_file(
        path_or_fileobj=b'{"text": "x"}\n', path_in_repo="data.jsonl", repo_id=dataset, repo_type="dataset"
    ),
)
call("list_datasets", lambda: list(hub.list_datasets(author="hub")))
call("snapshot dataset", lambda: snapshot_download(dataset, repo_type="dataset"))
call("delete_repo", lambda: hub.delete_repo(dataset, repo_type="dataset"))
call("delete_tag", lambda: hub.delete_tag(repo, tag="candidate"))
seen["files"] = sorted(hub.list_repo_files(repo, revision=seen["commit"] or "main"))
seen["calls"] = calls
print(json.dumps(seen))
