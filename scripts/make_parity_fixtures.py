"""Makes tests/parity/fixtures: tiny random checkpoints of every family and what transformers computes with them.

    python scripts/make_parity_fixtures.py [--python python3.11] [--out tests/parity/fixtures]

Builds an environment of its own (torch's CPU build and transformers, about 1 GB) with a Python 3.11, because torch is
no dependency of mixdistill; a second run uses it again. Takes a minute after installation. The fixtures are committed,
so nobody needs to run this to test; run it again when an architecture is added (`--only NAME` makes one of them).
`--check FOLDER` there instead loads a checkpoint that mixdistill wrote and prints what transformers computes with it as
JSON: logits of tokens 0..9, and a greedy continuation. `--adapter FOLDER` first puts a PEFT adapter on it.
tests/parity runs that check where the environment exists; `--environment` makes it and does nothing else.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("torch==2.13.0", "transformers==5.23.0", "peft==0.21.2", "safetensors>=0.8", "numpy>=2.2")
OUT = Path(__file__).resolve().parents[1] / "tests" / "parity" / "fixtures"
INSIDE = "--inside"  # we are already running in that environment

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,  # shorter than our rows, so that the stretch shows
}
CHECKPOINTS = {
    "llama": {"rope_parameters": ROPE, "tie_word_embeddings": False},
    "llama_stretched": {"rope_parameters": STRETCHED, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "qwen2": {"rope_parameters": ROPE, "tie_word_embeddings": False},
    "qwen3": {"rope_parameters": {**ROPE, "rope_theta": 1e6}, "tie_word_embeddings": True, "head_dim": 16},
    # Windows shorter than our rows, so that they show.
    "mistral": {"rope_parameters": ROPE, "tie_word_embeddings": False, "sliding_window": 8},
    "qwen3_windowed": {
        "rope_parameters": ROPE,
        "head_dim": 8,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "gemma3": {
        "rope_parameters": {"full_attention": LINEAR, "sliding_attention": {**ROPE, "rope_theta": 1_000.0}},
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "final_logit_softcapping": 10.0,
    },
}
SHARDED = "qwen2"  # this one is written as several files with an index
NUM_NEW = 16
MIN_MARGIN = 1e-3  # between the two best logits of every greedy token: ties would make the comparison a coin toss


def environment(python: str) -> Path:
    """The Python of an environment with PACKAGES, made if needed."""
    found = shutil.which(python)
    if found is None:
        sys.exit(f"no {python!r} on this machine; torch {PACKAGES[0]} needs a Python 3.11: give one with --python")
    folder = Path(tempfile.gettempdir()) / "mixdistill-parity-env"
    inner = folder / "bin" / "python"
    if not inner.exists():
        subprocess.run([found, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(inner), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return inner


def make(name: str, options: dict, out: Path) -> None:
    """One checkpoint and `expected.safetensors` beside it."""
    import torch
    import transformers
    from safetensors.torch import save_file

    kind = name.split("_")[0]
    families = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral", "gemma3": "Gemma3"}
    family = families[kind]
    settings = "Gemma3Text" if kind == "gemma3" else family
    config = getattr(transformers, f"{settings}Config")(**SIZES, **options, max_position_embeddings=128)
    torch.manual_seed(list(CHECKPOINTS).index(name))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().float()
    with torch.no_grad():
        for path, value in model.named_parameters():
            noise = torch.randn(value.shape)
            if "norm" in path:
                value.copy_((0 if kind == "gemma3" else 1) + 0.2 * noise)
            elif "bias" in path:
                value.copy_(0.3 * noise)
            else:  # large enough that attention is far from uniform
                value.copy_(noise * 1.5 * value.shape[-1] ** -0.5)
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size="30KB" if name == SHARDED else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)

    tokens = torch.randint(0, SIZES["vocab_size"], (3, 40))
    lengths = torch.tensor([40, 17, 5])
    with torch.no_grad():
        states = model.model(tokens).last_hidden_state
        logits = model(tokens).logits
        pairs = [continuation(model, row[:n]) for row, n in zip(tokens, lengths, strict=True)]
        greedy, margins = zip(*pairs, strict=True)
    for row, n, tokens_after in zip(logits, lengths, greedy, strict=True):
        assert row[n - 1].argmax() == tokens_after[0]
    margin = min(margins)
    assert margin > MIN_MARGIN, f"{name}: the two best logits are {margin} apart; take another seed"
    expected = {"tokens": tokens, "lengths": lengths, "hidden": states, "logits": logits, "greedy": torch.stack(greedy)}
    save_file({key: value.contiguous() for key, value in expected.items()}, folder / "expected.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"{name}: {size // 1024} KiB, hidden std {states.std():.2f}, logits std {logits.std():.2f}, margin {margin:.4f}"
    )


def continuation(model, prompt):
    """Greedy tokens after one prompt, by transformers' own generation, and the smallest margin on the way."""
    import torch

    mask = torch.ones_like(prompt)[None]  # otherwise token 0 is taken for padding
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}
    made = model.generate(prompt[None], attention_mask=mask, max_new_tokens=NUM_NEW, **options)[0]
    best = model(made[None, :-1]).logits[0, len(prompt) - 1 :].topk(2).values
    return made[len(prompt) :].to(torch.int64), float((best[:, 0] - best[:, 1]).min())


def check(folder: Path, adapter: Path | None) -> None:
    """Prints transformers' logits and greedy tokens of a checkpoint that mixdistill wrote, and its class."""
    import torch
    import transformers

    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    kind = type(model).__name__
    if adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter)
    model = model.eval().float()
    problems = {key: sorted(map(str, value)) for key, value in info.items() if value}
    with torch.no_grad():
        logits = model(input_ids=torch.arange(10)[None]).logits[0]
        prompt = torch.arange(5)[None]
        options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": NUM_NEW, "min_new_tokens": NUM_NEW}
        made = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
    greedy = made[0, 5:].tolist()
    print(json.dumps({"class": kind, "problems": problems, "logits": logits.tolist(), "greedy": greedy}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="python3.11", help="name or path of a Python 3.11")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", choices=CHECKPOINTS, help="make this one alone")
    parser.add_argument("--environment", action="store_true", help="make the environment and print its Python")
    parser.add_argument("--check", type=Path, metavar="FOLDER")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.inside:
        python = environment(args.python)
        if args.environment:
            print(python)
            return
        sys.exit(subprocess.run([str(python), __file__, INSIDE, *sys.argv[1:]]).returncode)
    if args.check:
        check(args.check, args.adapter)
    else:
        for name in [args.only] if args.only else CHECKPOINTS:
            make(name, CHECKPOINTS[name], args.out)


if __name__ == "__main__":
    main()
