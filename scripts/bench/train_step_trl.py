"""TRL's side of `train_step.py`: TASK.json."""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
}

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

sys.path.insert(0, str(Path(__file__).parent))
from turns import Turns

ENDLESS = 100_000


class Turn(TrainerCallback):
    """Torch on a CPU has done a step when it says so."""

    def __init__(self, turns: Turns):
        self.turns = turns

    def on_step_begin(self, *args, **kwargs):
        self.turns()


class Counting(SFTTrainer):
    """Says how many targets were trained on."""

    turns: Turns

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.turns.trained(float((inputs["labels"][:, 1:] != -100).sum()))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class Gated(Counting):
    """Cross entropy of the half of the targets that the model is surer of, as one would write it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")[:, 1:]
        valid = labels != -100
        self.turns.trained(float(valid.sum()))
        logp = torch.log_softmax(model(**inputs).logits[:, :-1].float(), -1)
        nll = -logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        sure = logp.detach().topk(20, -1)[0].mean(-1)
        keep = valid & (sure >= sure[valid].median())
        return (nll * keep).sum() / keep.sum()


def dataset(task: dict) -> datasets.Dataset:
    """Token ids; on ragged traces the loss is on the completion."""
    arrays = np.load(task[task["data"]])
    if task["data"] == "full":
        return datasets.Dataset.from_dict({"input_ids": arrays.reshape(-1, task["length"]).tolist()})
    ends, prompts = arrays["lengths"].tolist(), arrays["prompts"].tolist()
    rows = [row[:end].tolist() for row, end in zip(arrays["tokens"], ends, strict=True)]
    labels = [[-100] * prompt + row[prompt:] for row, prompt in zip(rows, prompts, strict=True)]
    return datasets.Dataset.from_dict({"input_ids": rows, "labels": labels})


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Only its padding token is used."""
    words = {"<pad>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, vocab)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def main() -> None:
    """Trains until its input ends."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=task["vocab"],
        hidden_size=task["embed"],
        intermediate_size=task["mlp"],
        num_hidden_layers=task["layers"],
        num_attention_heads=task["heads"],
        num_key_value_heads=task["kv_heads"],
        head_dim=task["head_dim"],
        max_position_embeddings=task["length"],
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    turns = Turns(task["steps"])
    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(
            output_dir=out,
            per_device_train_batch_size=task["rows"],
            max_steps=ENDLESS,
            max_length=task["length"],
            report_to=[],
            save_strategy="no",
            logging_steps=20,
            use_cpu=True,
            bf16=False,
            learning_rate=1e-3,
            gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        make = Gated if task["gated"] else Counting
        trainer = make(
            LlamaForCausalLM(config),
            args=settings,
            train_dataset=dataset(task),
            processing_class=tokenizer(task["vocab"]),
            callbacks=[Turn(turns)],
        )
        trainer.turns = turns
        trainer.train()


if __name__ == "__main__":
    main()
