"""What a GPU host is given besides wheels: the model's shape with a small tokenizer, and the suite's own probe.

python -m benchmarks.gpu.extras FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from core.config import CONFIG, load_cluster, load_profile
from core.probe import probe_argv
from core.question import Question, probe_request

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def model(folder: Path) -> None:
    """Write the config.json of Qwen2.5-32B and a tokenizer of single letters: enough for random text."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = json.loads((CONFIG / "models" / "Qwen2.5-32B-Instruct.json").read_text(encoding="utf-8"))
    more = {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    _write(folder / "config.json", {**shape, **more})
    _write(folder / "tokenizer.json", tokenizer())
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": SPECIAL[2],
            "pad_token": SPECIAL[0],
            "model_max_length": 32768,
            "clean_up_tokenization_spaces": False,
        },
    )


def tokenizer() -> dict[str, object]:
    """Return a byte-level BPE without merges, of printable ASCII alone: any text is as many tokens as characters."""
    letters = ("Ġ", *map(chr, range(33, 127)))  # byte-level BPE writes a space as Ġ
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytelevel = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": word, **added} for number, word in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": bytelevel,
        "post_processor": None,
        "decoder": bytelevel,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {word: number for number, word in enumerate((*SPECIAL, *letters))},
            "merges": [],
        },
    }


def probes(folder: Path) -> None:
    """Write the argv of the probe for each node of the guide's cluster, asked for everything."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = load_cluster("spark")
    asked = Question(load_profile(cluster.profile), inventory=True, whole=True, access=True, wiring=True)
    for name, node in zip("ab", cluster.nodes, strict=True):
        _write(folder / f"probe-{name}.json", list(probe_argv(probe_request(cluster, node, asked))))


def _write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    given = Path(sys.argv[1])
    model(given / "model")
    probes(given / "probes")
