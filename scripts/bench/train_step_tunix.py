"""google-tunix's side of `train_step.py`: TASK.json."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.sft import peft_trainer

sys.path.insert(0, str(Path(__file__).parent))
from turns import Turns

ENDLESS = 1_000_000


class Batches:
    """What the trainer asks for, one batch a train step: rows as they are, or traces padded to the length."""

    def __init__(self, task: dict, turns: Turns):
        self.task, self.turns = task, turns

    def __iter__(self):
        arrays = np.load(self.task[self.task["data"]])
        for number in range(ENDLESS):
            self.turns()
            tokens, mask = full(arrays, number) if self.task["data"] == "full" else ragged(arrays, number, self.task)
            self.turns.trained(mask[:, 1:].sum() if self.task["data"] == "ragged" else mask.sum())
            yield peft_trainer.TrainingInput(input_tokens=tokens, input_mask=mask)


def full(rows, number: int):
    """Every token is trained on."""
    tokens = rows[number % len(rows)]
    return tokens, np.ones(tokens.shape, np.bool_)


def ragged(arrays, number: int, task: dict):
    """The mask is True on completion tokens."""
    order = np.random.default_rng(number // 100).permutation(len(arrays["lengths"]))
    take = order[np.arange(number * task["rows"], (number + 1) * task["rows"]) % len(order)]
    at = np.arange(task["length"])
    mask = (at >= arrays["prompts"][take, None]) & (at < arrays["lengths"][take, None])
    return arrays["tokens"][take], mask


def main() -> None:
    """Trains until its input ends."""
    task = json.loads(sys.argv[1])
    config = llama.ModelConfig(
        num_layers=task["layers"],
        vocab_size=task["vocab"],
        embed_dim=task["embed"],
        hidden_dim=task["mlp"],
        num_heads=task["heads"],
        head_dim=task["head_dim"],
        num_kv_heads=task["kv_heads"],
        rope_theta=10000,
        norm_eps=1e-5,
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))

    def inputs(x):
        shape = x.input_tokens.shape
        causal = jnp.tril(jnp.ones((shape[1], shape[1]), bool))[None]
        # Padding lies behind the tokens, so causal attention never sees it.
        attention = jnp.broadcast_to(causal, (*shape, shape[1]))
        positions = jnp.broadcast_to(jnp.arange(shape[1]), shape)
        return {
            "input_tokens": x.input_tokens,
            "input_mask": x.input_mask,
            "positions": positions,
            "attention_mask": attention,
        }

    with mesh:
        model = llama.Llama3(config, rngs=nnx.Rngs(0))
        settings = peft_trainer.TrainingConfig(eval_every_n_steps=10**9, max_steps=ENDLESS, max_inflight_computations=1)
        trainer = peft_trainer.PeftTrainer(model, optax.adamw(1e-3), settings).with_gen_model_input_fn(inputs)
        if task["gated"]:
            trainer = trainer.with_loss_fn(gated)
        trainer.train(Batches(task, Turns(task["steps"])))


def gated(model, input_tokens, input_mask, positions, attention_mask):
    """Cross entropy of the half of the targets that the model is surer of, as one would write it."""
    logits, _ = model(input_tokens, positions, None, attention_mask)
    logp = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    target, valid = input_tokens[:, 1:], input_mask[:, 1:]
    nll = -jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
    sure = jax.lax.stop_gradient(jax.lax.top_k(logp, 20)[0].mean(-1))
    keep = valid & (sure >= jnp.nanmedian(jnp.where(valid, sure, jnp.nan)))
    return jnp.where(keep, nll, 0).sum() / keep.sum()


if __name__ == "__main__":
    main()
