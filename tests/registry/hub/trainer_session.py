"""Trainer, PEFT, transformers and datasets push to the registry, unmodified. Prints what it saw as JSON."""

import json
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from lora_reg import Client
from lora_reg.integrations import LoraRegCallback

arguments = json.loads(sys.argv[1])
work, stem = Path(arguments["work"]), arguments["stem"]
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained("tiny")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
ids = torch.arange(64).reshape(4, 16) * 31 % 2048
rows = [{"input_ids": row, "labels": row} for row in ids]


def model(base="Some.Org/Tiny-Llama"):
    """The base is loaded by an alias, as users load what they know from the Hub."""
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj"]))


def train(name, callbacks=None, base="Some.Org/Tiny-Llama", **options):
    trainer = Trainer(
        model=model(base),
        args=TrainingArguments(
            output_dir=str(work / name), max_steps=4, save_steps=2, logging_steps=1, per_device_train_batch_size=2,
            report_to=[], use_cpu=True, learning_rate=1e-2, disable_tqdm=True, **options,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=callbacks,
    )  # fmt: skip
    trainer.train()
    return trainer


def logits(adapted):
    with torch.no_grad():
        return adapted.eval()(input_ids=ids).logits


def same(adapted, repo, **options):
    base = AutoModelForCausalLM.from_pretrained("tiny")
    return torch.equal(logits(adapted), logits(PeftModel.from_pretrained(base, repo, **options)))


seen = {}
for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
    repo = f"{stem}-{strategy.replace('_', '-')}"
    hub = {"push_to_hub": True, "hub_model_id": repo, "hub_strategy": strategy, "hub_always_push": True}
    trainer = train(strategy, **hub)
    trainer.push_to_hub()
    seen[strategy] = same(trainer.model, repo)

adapted = trainer.model
repo = f"{stem}-by-hand"
tokenizer.push_to_hub(repo)
adapted.push_to_hub(repo)
seen["by_hand"] = same(adapted, repo)
seen["tokenizer"] = AutoTokenizer.from_pretrained(repo)("select 1")["input_ids"] == tokenizer("select 1")["input_ids"]

merged = adapted.merge_and_unload()
merged.push_to_hub(f"{stem}-merged")
tokenizer.push_to_hub(f"{stem}-merged")
seen["merged"] = torch.equal(logits(merged), logits(AutoModelForCausalLM.from_pretrained(f"{stem}-merged")))

seen["dataset"] = load_dataset(arguments["dataset"], split="train")["text"][:2]

client = Client(arguments["server"], namespace="hub")
options = {"client": client, "meta": {"owner": "me"}, "data": {"train": arguments["data"]}}
callback = LoraRegCallback(f"{stem}-callback", push="save", tags=["candidate"], **options)
trained = train("callback", [callback])
seen["callback"] = same(trained.model, f"{stem}-callback", revision="candidate")
seen["callback_versions"] = [pushed.result.version.number for pushed in callback.pushed]
# A copy of the base under a name that nobody registered: found by its content.
callback = LoraRegCallback(f"{stem}-content", **options)
train("content", [callback], base=arguments["copy"])
seen["content"] = callback.pushed[0].result.version.base.name
print(json.dumps(seen))
