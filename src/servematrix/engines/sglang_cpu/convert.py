"""Makes a model folder from a GGUF file; run by the server's Python as `convert.py GGUF FOLDER`.

The weights are dequantised to bfloat16. The ends of a sequence, padding and the chat template are
taken from the GGUF file: transformers reads a tokenizer from it without them, or with the token
that opens a message as the one that ends it, and a server would never stop.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(source: Path, folder: Path) -> None:
    """Convert, and see that what was written can be used."""
    fields = GGUFReader(source).fields

    def said(key: str) -> Any:
        return fields[key].contents() if key in fields else None

    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    ids = {
        role: said(f"tokenizer.ggml.{key}_token_id")
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    if ids["eos"] is None:
        raise SystemExit(f"{source} does not say which token ends a sequence")
    for role, number in ids.items():
        if number is not None:
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(int(number)))
            setattr(model.config, f"{role}_token_id", int(number))
            setattr(model.generation_config, f"{role}_token_id", int(number))
    tokenizer.chat_template = said("tokenizer.chat_template") or tokenizer.chat_template
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    check(folder, int(ids["eos"]))


def check(folder: Path, eos: int) -> None:
    """Raise SystemExit unless the folder holds a tokenizer that ends and a model that computes."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id != eos:
        raise SystemExit(f"the tokenizer ends a sequence with {tokenizer.eos_token_id}, not {eos}")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokens = tokenizer("The capital of France is", return_tensors="pt").input_ids
    if not bool(torch.isfinite(model(tokens).logits).all()):
        raise SystemExit("the model's scores are not finite")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
