"""Teach a tiny Qwen2 twenty answers, in under half a minute on one core.

Runs inside a deployed environment, as a plain script: torch, transformers and tokenizers, nothing of this suite.

    python train.py questions.json MODEL_FOLDER

It prints JSON lines: {"event": "step", ...} as it goes on, {"event": "answer", "exact": ...} for each question asked of
the model as saved, and at last {"event": "done", "exact": N, "of": N, "seconds": S}. Ends with 1 when an answer is not
exact; the folder then stays as it was. A folder that was made from the same questions by the same script is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

SEED = 20
VOCABULARY = 1024
LONGEST_STEPS = 600
MARGIN = 6.0
"""By how much the right token's logit must lead before training ends: rounding to bfloat16 moves them by less."""

STOP = "<|im_end|>"
START = "<|im_start|>"
PAD = "<|endoftext|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def say(event: str, **fields: Any) -> None:
    """Print one JSON line."""
    print(json.dumps({"event": event, **fields}), flush=True)


def make_tokenizer(texts: list[str]) -> Any:
    """Return a byte-level BPE tokenizer with the chat template; any text can be written in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=STOP,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def make_model(tokenizer: Any) -> Any:
    """Return an untrained Qwen2 of four layers, so that two nodes hold two each."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    # what a server takes as its defaults: stop at the end of the turn, no sampling
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.do_sample = False
    return model


def prompt(tokenizer: Any, question: str) -> list[int]:
    """Return the tokens that a server makes of a chat with one question."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def make_batch(tokenizer: Any, pairs: list[dict[str, str]]) -> tuple[Any, Any, Any]:
    """Return tokens, attention mask and labels; only answers and the stop token after them are labelled."""
    import torch

    rows = []
    for pair in pairs:
        asked = prompt(tokenizer, pair["question"])
        answer = tokenizer(pair["answer"], add_special_tokens=False)["input_ids"]
        rows.append((asked, [*answer, tokenizer.eos_token_id]))
    width = max(len(asked) + len(answer) for asked, answer in rows)
    tokens = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for row, (asked, answer) in enumerate(rows):
        end = len(asked) + len(answer)
        tokens[row, :end] = torch.tensor(asked + answer)
        labels[row, len(asked) : end] = torch.tensor(answer)
    return tokens, (labels != -100) | (tokens != tokenizer.pad_token_id), labels


def lead(logits: Any, labels: Any) -> float:
    """Return the smallest lead of a labelled token over the next best one; negative while one is wrong."""
    import torch

    wanted = labels[:, 1:] != -100
    scores, right = logits[:, :-1][wanted].detach(), labels[:, 1:][wanted]
    chosen = scores.gather(1, right[:, None])[:, 0]
    others = scores.scatter(1, right[:, None], -torch.inf).max(dim=1).values
    return float((chosen - others).min())


def train(model: Any, batch: tuple[Any, Any, Any]) -> None:
    """Train until every labelled token leads by MARGIN, or LONGEST_STEPS are over."""
    import torch

    tokens, mask, labels = batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
    began = time.monotonic()
    for step in range(LONGEST_STEPS):
        result = model(input_ids=tokens, attention_mask=mask, labels=labels)
        margin = lead(result.logits, labels)
        if step % 10 == 0 or margin > MARGIN:
            seconds = round(time.monotonic() - began, 1)
            say("step", step=step, loss=round(float(result.loss.detach()), 4), lead=round(margin, 2), seconds=seconds)
        if margin > MARGIN:
            return
        result.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        warm.step()


def answer(model: Any, tokenizer: Any, question: str) -> str:
    """Return the greedy answer, as a server at temperature 0 gives it."""
    import torch

    asked = torch.tensor([prompt(tokenizer, question)])
    with torch.inference_mode():
        made = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=64, do_sample=False)
    return str(tokenizer.decode(made[0, asked.shape[1] :], skip_special_tokens=True))


def check(folder: Path, pairs: list[dict[str, str]]) -> int:
    """Ask the saved model everything; return how many answers are exact."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    exact = 0
    for pair in pairs:
        given = answer(model, tokenizer, pair["question"])
        exact += given == pair["answer"]
        say("answer", question=pair["question"], answer=given, exact=given == pair["answer"])
    return exact


def identity(questions: Path) -> dict[str, str]:
    """Return what a folder is made from: hashes of the questions and of this script."""
    files = {"questions": questions, "trainer": Path(__file__)}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def made_from(folder: Path) -> dict[str, str] | None:
    """Return the identity that a finished folder carries, None when there is none."""
    note = folder / "sparkstack.json"
    return json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None


def flush(folder: Path) -> None:
    """Make every file readable by all and bring it to the disk, then the folder itself."""
    folder.chmod(0o755)
    for path in [*sorted(folder.iterdir()), folder]:
        if path != folder:
            path.chmod(0o644)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def put_in_place(partial: Path, folder: Path) -> None:
    """Rename ``partial`` to ``folder``; what was there before goes only after that."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)


def build(questions: Path, partial: Path) -> int:
    """Train into ``partial``; return how many answers are exact."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pairs = json.loads(questions.read_text(encoding="utf-8"))
    tokenizer = make_tokenizer([text for pair in pairs for text in (pair["question"], pair["answer"])])
    model = make_model(tokenizer)
    train(model, make_batch(tokenizer, pairs))
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    return check(partial, pairs)


def main() -> int:
    """Make the model unless it is there; 0 when every answer is exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    began = time.monotonic()
    if made_from(given.folder) == identity(given.questions):
        say("kept", folder=str(given.folder))
        return 0
    partial = given.folder.with_name(f".{given.folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    count = len(json.loads(given.questions.read_text(encoding="utf-8")))
    try:
        exact = build(given.questions, partial)
        if exact == count:
            (partial / "sparkstack.json").write_text(json.dumps(identity(given.questions)) + "\n", encoding="utf-8")
            flush(partial)
            put_in_place(partial, given.folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say("done", folder=str(given.folder), exact=exact, of=count, seconds=round(time.monotonic() - began, 1))
    return 0 if exact == count else 1


if __name__ == "__main__":
    sys.exit(main())
