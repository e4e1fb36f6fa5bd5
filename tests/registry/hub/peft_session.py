"""PEFT and transformers over the Hub dialect, against the same files in folders. Prints what it saw as JSON."""

import json
import sys

import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

arguments = json.loads(sys.argv[1])
base_folder, adapter_folder, adapter = arguments["base"], arguments["adapter"], arguments["repo"]
ids = torch.arange(64).reshape(2, 32) * 31 % 2048


def logits(model):
    with torch.no_grad():
        return model(input_ids=ids).logits


def base():
    return AutoModelForCausalLM.from_pretrained(base_folder)


plain = logits(base())
local = logits(PeftModel.from_pretrained(base(), adapter_folder))
remote_base = AutoModelForCausalLM.from_pretrained("default/tiny")
seen = {
    "adapter_matters": not torch.equal(plain, local),
    "by_tag": torch.equal(local, logits(PeftModel.from_pretrained(base(), adapter, revision="prod"))),
    "by_alias": torch.equal(local, logits(PeftModel.from_pretrained(base(), adapter + ".prod"))),
    "remote_base": torch.equal(plain, logits(remote_base)),
    "remote_both": torch.equal(local, logits(PeftModel.from_pretrained(remote_base, adapter, revision="v1"))),
    # The base is what the adapter's config names: an alias of the base in the registry.
    "auto": torch.equal(local, logits(AutoPeftModelForCausalLM.from_pretrained(adapter, revision="prod"))),
    "tokenizer": AutoTokenizer.from_pretrained("tiny")("select 1")["input_ids"]
    == AutoTokenizer.from_pretrained(base_folder)("select 1")["input_ids"],
}
print(json.dumps(seen))
