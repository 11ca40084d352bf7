"""Known shapes, each a function that returns a DecoderConfig; vary one with `dataclasses.replace`."""

from mixdistill.students.config import DecoderConfig, RopeScaling


def tiny(vocab_size: int) -> DecoderConfig:
    """For tests and laptops: 2 layers of width 64, a Llama in miniature."""
    return DecoderConfig(vocab_size=vocab_size, embed=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=192, unroll=2)


def small(vocab_size: int) -> DecoderConfig:
    """5 million parameters and 512 a vocabulary entry: trains for hours on a laptop, minutes on an accelerator."""
    return DecoderConfig(
        vocab_size=vocab_size, embed=256, layers=6, heads=4, kv_heads=2, head_dim=64, mlp=768, tied=False
    )


def chain(vocab_size: int) -> DecoderConfig:
    """The student of the chain world: 2 layers of width 64, short rotary wavelengths, GELU, untied."""
    return DecoderConfig(
        vocab_size=vocab_size,
        embed=64,
        layers=2,
        heads=4,
        kv_heads=4,
        head_dim=16,
        mlp=256,
        mlp_kind="gelu",
        rope_base=100.0,
        unroll=2,
    )


def walk(vocab_size: int) -> DecoderConfig:
    """The student of the walk world: no position encoding but a convolution over three tokens, so that length is free
    and "the token before" is local; ReLU, untied."""
    return DecoderConfig(
        vocab_size=vocab_size,
        embed=64,
        layers=2,
        heads=4,
        kv_heads=4,
        head_dim=16,
        mlp=256,
        mlp_kind="relu",
        rope_base=None,
        conv_width=3,
        unroll=2,
    )


def qwen3_0_6b() -> DecoderConfig:
    """Qwen3-0.6B (arXiv:2505.09388): 596 million parameters, tied."""
    return _qwen3(embed=1024, mlp=3072)


def qwen3_1_7b() -> DecoderConfig:
    """Qwen3-1.7B (arXiv:2505.09388): 1.72 billion parameters, tied."""
    return _qwen3(embed=2048, mlp=6144)


def qwen3_8b() -> DecoderConfig:
    """Qwen3-8B (arXiv:2505.09388): 8.19 billion parameters, untied."""
    return _qwen3(embed=4096, mlp=12_288, layers=36, heads=32, tied=False)


def _qwen3(*, embed: int, mlp: int, layers: int = 28, heads: int = 16, tied: bool = True) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=151_936,
        embed=embed,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        mlp=mlp,
        rope_base=1_000_000.0,
        qk_norm=True,
        tied=tied,
        dtype="bfloat16",
        remat="dots",
    )


def llama3_2_1b() -> DecoderConfig:
    """Llama-3.2-1B (arXiv:2407.21783): 1.24 billion parameters, tied, stretched rotary wavelengths."""
    return DecoderConfig(
        vocab_size=128_256,
        embed=2048,
        layers=16,
        heads=32,
        kv_heads=8,
        head_dim=64,
        mlp=8192,
        rope_base=500_000.0,
        rope_scaling=RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192),
        tied=True,
        norm_eps=1e-5,
        dtype="bfloat16",
        remat="dots",
    )


def llama3_1_8b() -> DecoderConfig:
    """Llama-3.1-8B (arXiv:2407.21783): 8.03 billion parameters, untied."""
    return DecoderConfig(
        vocab_size=128_256,
        embed=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        mlp=14_336,
        rope_base=500_000.0,
        rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192),
        norm_eps=1e-5,
        dtype="bfloat16",
        remat="dots",
    )
