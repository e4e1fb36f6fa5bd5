"""The child of a base resize: streams the files that change into the blob store; the others are the base's own."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lora_contract.errors import RegistryError
from lora_contract.fingerprint import INDEX, build_fingerprint
from lora_contract.recipe import ResizeBaseRecipe
from lora_contract.vocabulary import resized_config
from lora_registry.blobs.keys import new_life
from lora_registry.blobs.protocols import Chunk, Stored
from lora_registry.processes.child import ChildReporter
from lora_registry.runtime.faults import fault_point
from lora_registry.worker.children import files
from lora_registry.worker.children.derive import DerivedFiles, DeriveInput, report_body
from lora_registry.worker.children.merge import store_json


def resize(data: DeriveInput, reporter: ChildReporter) -> DerivedFiles:
    """Resize the vocabulary of a base. Raises RegistryError as `plan_vocabulary` does."""
    from lora_kernels.resizing.vocabulary import (
        VocabularyFile,
        plan_vocabulary,
        resized_index,
        stream_vocabulary,
        vocabulary_report,
    )

    recipe = data.recipe
    if not isinstance(recipe, ResizeBaseRecipe):
        raise RegistryError("internal", f"A recipe of {recipe.operation} does not resize a base.")
    blobs, base = files.blobs(), data.base
    verification = files.Verification(blobs, base)
    read = files.reader(blobs, base)
    with files.blaming_the_store(blobs, base), files.opened(blobs, base) as source:
        fingerprint = build_fingerprint({path: (file.size, file.digest) for path, file in base.items()}, read)
        plan = plan_vocabulary(fingerprint, recipe.vocab, recipe.rows)
        changed = {file.file: file for file in plan.files}

        def pieces(file: VocabularyFile) -> Iterator[Chunk]:
            done = 0
            for view, origin in stream_vocabulary(plan, file, source):
                place = None if origin is None else (base[origin[0]].where, origin[1])
                yield view if place is None else Stored(view, *place)
                done += len(view)
                fault_point("resize.piece")
                reporter.progress(file.file, done=done, total=file.size, unit="bytes")
            verification.finish()

        made = []
        for path, stored in base.items():
            if path in changed:
                where, size = blobs.put_unknown(pieces(changed[path]), life=new_life())
                made.append(files.ResultFile.made(path, size, where))
            elif path == INDEX:
                made.append(store_json(blobs, path, resized_index(json.loads(read(path, 0, stored.size)), plan)))
            elif path == "config.json":
                config = resized_config(json.loads(read(path, 0, stored.size)), plan.rows, plan.vocabulary)
                made.append(store_json(blobs, path, config))
            elif path.lower() != "readme.md":
                made.append(files.ResultFile(path, stored.size, stored.digest))
    return DerivedFiles(tuple(made), report_body(vocabulary_report(plan)))
