"""A callback for transformers' Trainer, and so for those of TRL, axolotl and Unsloth, that pushes to a registry."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from lora_contract.errors import RegistryError
from lora_reg.client import Client
from lora_reg.integrations import facts
from lora_reg.integrations.bases import find_base
from lora_reg.transfer.push import Pushed, push_adapter

log = logging.getLogger(__name__)


class LoraRegCallback(TrainerCallback):
    """Push the adapter at the end of training, or at each save, with the facts of the run as metadata.

        Trainer(..., callbacks=[LoraRegCallback("acme/sql-writer", tags=["candidate"])])

    The base is looked up before the first step, so that a run does not end with a push that cannot succeed. A push at a
    save that fails is logged, and training goes on; one at the end raises, and names the folder that has the adapter.

    Args:
        to: repository to push to.
        base: reference of the base; None: the one with the name, an alias or the content of what the model was loaded
            from.
        push: `end`, or `save`: at each save too. The last version is then the newest.
        tags: to set on the last version.
        message: of the versions.
        meta: more metadata.
        data: files or folders of training data by name, whose digests become metadata.
        accept_base: accept `base` even if the adapter's config names a different one.
        client: of the registry; None: as the settings of `lora-reg` say.

    `pushed` lists the results.
    """

    def __init__(
        self,
        to: str,
        *,
        base: str | None = None,
        push: Literal["end", "save"] = "end",
        tags: Sequence[str] = (),
        message: str = "",
        meta: Mapping[str, str] | None = None,
        data: Mapping[str, str | Path] | None = None,
        accept_base: bool = False,
        client: Client | None = None,
    ) -> None:
        if push not in ("end", "save"):
            raise RegistryError("usage", f"push is {push!r}; expected 'end' or 'save'.")
        self.to, self.push, self.tags, self.message = to, push, list(tags), message
        self.meta, self.accept_base = dict(meta or {}), accept_base
        self.pushed: list[Pushed] = []
        self._base = base
        self._data = dict(data or {})
        self._client = client or Client()
        self._fixed: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if not state.is_world_process_zero:
            return
        name = _base_name(kwargs.get("model"))
        if self._base is None:
            found = find_base(self._client, name)
            self._base, self.accept_base = found.reference, self.accept_base or found.by_content
        self._client.version(self._base)
        loaders = {"train": kwargs.get("train_dataloader"), "eval": kwargs.get("eval_dataloader")}
        datasets = {key: getattr(loader, "dataset", None) for key, loader in loaders.items()}
        self._fixed = facts.of_data(self._data, datasets) | facts.of_code(Path.cwd())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.push != "save" or not state.is_world_process_zero:
            return
        try:
            self._push(args, state, kwargs, tags=())
        except RegistryError as error:
            log.warning("The checkpoint of step %s was not pushed: %s", state.global_step, error)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            self._push(args, state, kwargs, tags=self.tags)

    def _push(self, args: Any, state: Any, kwargs: Mapping[str, Any], *, tags: Sequence[str]) -> None:
        """Save the adapter to a folder of its own, without what the trainer keeps beside it, and push that."""
        folder = Path(tempfile.mkdtemp(prefix="lora-reg-adapter-"))
        kwargs["model"].save_pretrained(folder)
        tokenizer = kwargs.get("processing_class") or kwargs.get("tokenizer")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        meta = facts.of_run(args, state) | facts.of_losses(state.log_history) | self._fixed | self.meta
        assert self._base is not None, "training has begun"
        try:
            pushed = push_adapter(
                self._client,
                folder,
                base=self._base,
                to=self.to,
                tags=tags,
                message=self.message or f"Trained for {state.global_step} steps",
                meta=meta,
                accept_base=self.accept_base,
            )
        except RegistryError as error:
            raise RegistryError(
                error.code, f"{error.detail} The adapter is in {folder}.", hint=error.hint, **error.facts
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
        self.pushed.append(pushed)


def _base_name(model: Any) -> str:
    """Return what the base of a PEFT model was loaded from. Raises `usage` for a model without an adapter."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        raise RegistryError(
            "usage",
            f"The model has no adapter: it is a {type(model).__name__}.",
            hint="Wrap it with peft.get_peft_model; push whole models with `push_to_hub=True`: see docs/training.md.",
        )
    name = next(iter(configs.values())).base_model_name_or_path
    return str(name or "")
