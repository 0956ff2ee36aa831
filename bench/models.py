"""Names and shapes of the parameters of real models, for benchmarks of many tensors.

    for name, shape in models.shapes("gpt2"): ...
    for name, shape in models.scaled("llama-3-8b", 2**34): ...

    resnet50     a convolutional network: 161 tensors, 107 of them of 64 to 2,048; 25,557,032 weights
    gpt2         a transformer: 148 tensors, 124,439,808 weights
    llama-3-8b   a large transformer: 291 tensors, 8,030,261,248 weights
    dlrm         a recommender, 26 tables of 4 to 3e8 rows and two networks: 42 tensors, 112,997,514,497 weights
    small        5,000 tensors of 64 weights, where all the time is overhead; made up

Parameters come in the order of the model's own `named_parameters()`; one that a model uses twice comes once. Buffers,
which nothing regularises, are left out.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

Shape = tuple[int, ...]
Parameters = list[tuple[str, Shape]]


def names() -> list[str]:
    """Return the names of the models."""
    return list(_MODELS)


def shapes(name: str) -> Parameters:
    """Return the parameters of a model."""
    return next(_sizes(name))


def scaled(name: str, limit_bytes: int, itemsize: int = 4) -> Parameters:
    """Return the parameters of a model, or of the largest smaller one like it whose weights fit in so many bytes.

    An element takes `itemsize` bytes; a gradient as large as the weights is for the caller to allow for. What becomes
    smaller is such that tensors keep their order, their ranks and about their proportions:

    - `gpt2`, `llama-3-8b`: layers are left out, the last ones first, down to a quarter of them. If that is not enough,
      all widths, the vocabulary and the positions are halved, as often as needed, and layers left out of that model.
    - `resnet50`: all channels and the classes are halved, as often as needed.
    - `dlrm`: the rows of all tables are multiplied by one factor below 1, but each table keeps a row.
    - `small`: nothing.

    Raises a ValueError if not even the smallest fits.
    """
    for parameters in _sizes(name):
        needed = itemsize * weights(parameters)
        if needed <= limit_bytes:
            return parameters
    raise ValueError(f"{name} in {limit_bytes} bytes: its smallest form has {needed}")


def weights(parameters: Parameters) -> int:
    """Return the number of weights of all parameters together."""
    return sum(math.prod(shape) for _, shape in parameters)


def _sizes(name: str) -> Iterator[Parameters]:
    """Yield a model's forms, the largest first: the model itself."""
    if name not in _MODELS:
        raise ValueError(f"no model {name!r}; there are {', '.join(_MODELS)}")
    return (list(form()) for form in _MODELS[name]())


Form = Callable[[], Iterator[tuple[str, Shape]]]


def _affine(name: str, *weight: int, bias: int) -> Iterator[tuple[str, Shape]]:
    """Yield a weight and its bias."""
    yield f"{name}.weight", weight
    yield f"{name}.bias", (bias,)


# ResNet-50 (He et al., arXiv:1512.03385) as in pytorch/vision, torchvision/models/resnet.py


def _resnet50(halvings: int) -> Iterator[tuple[str, Shape]]:
    width = 64 >> halvings
    yield "conv1.weight", (width, 3, 7, 7)
    yield from _affine("bn1", width, bias=width)
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner, outputs = width << stage, 4 * width << stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            for number, shape in enumerate([(inner, inputs, 1, 1), (inner, inner, 3, 3), (outputs, inner, 1, 1)], 1):
                yield f"{name}.conv{number}.weight", shape
                yield from _affine(f"{name}.bn{number}", shape[0], bias=shape[0])
            if block == 0:
                yield f"{name}.downsample.0.weight", (outputs, inputs, 1, 1)
                yield from _affine(f"{name}.downsample.1", outputs, bias=outputs)
            inputs = outputs
    classes = 1000 >> halvings
    yield from _affine("fc", classes, inputs, bias=classes)


def _resnet50_forms() -> Iterator[Form]:
    return (partial(_resnet50, halvings) for halvings in range(6))


# GPT-2 (Radford et al., 2019), the smallest, as GPT2LMHeadModel in huggingface/transformers,
# src/transformers/models/gpt2/modeling_gpt2.py. lm_head.weight is transformer.wte.weight itself, and so not listed. Its
# Conv1D keeps a weight as (inputs, outputs).


def _gpt2(halvings: int, layers: int) -> Iterator[tuple[str, Shape]]:
    width = 768 >> halvings
    yield "transformer.wte.weight", (50257 >> halvings, width)
    yield "transformer.wpe.weight", (1024 >> halvings, width)
    for layer in range(layers):
        name = f"transformer.h.{layer}"
        yield from _affine(f"{name}.ln_1", width, bias=width)
        yield from _affine(f"{name}.attn.c_attn", width, 3 * width, bias=3 * width)
        yield from _affine(f"{name}.attn.c_proj", width, width, bias=width)
        yield from _affine(f"{name}.ln_2", width, bias=width)
        yield from _affine(f"{name}.mlp.c_fc", width, 4 * width, bias=4 * width)
        yield from _affine(f"{name}.mlp.c_proj", 4 * width, width, bias=width)
    yield from _affine("transformer.ln_f", width, bias=width)


# Llama 3 8B (Grattafiori et al., arXiv:2407.21783, table 3) as LlamaForCausalLM in huggingface/transformers,
# src/transformers/models/llama/modeling_llama.py. A weight is (outputs, inputs); keys and values have 8 heads of 128,
# where queries have 32; lm_head is not tied.


def _llama(halvings: int, layers: int) -> Iterator[tuple[str, Shape]]:
    width, inner, keys, vocabulary = (size >> halvings for size in (4096, 14336, 1024, 128256))
    yield "model.embed_tokens.weight", (vocabulary, width)
    for layer in range(layers):
        name = f"model.layers.{layer}"
        yield f"{name}.self_attn.q_proj.weight", (width, width)
        yield f"{name}.self_attn.k_proj.weight", (keys, width)
        yield f"{name}.self_attn.v_proj.weight", (keys, width)
        yield f"{name}.self_attn.o_proj.weight", (width, width)
        yield f"{name}.mlp.gate_proj.weight", (inner, width)
        yield f"{name}.mlp.up_proj.weight", (inner, width)
        yield f"{name}.mlp.down_proj.weight", (width, inner)
        yield f"{name}.input_layernorm.weight", (width,)
        yield f"{name}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (vocabulary, width)


def _transformer_forms(build: Callable[[int, int], Iterator[tuple[str, Shape]]], layers: int) -> Iterator[Form]:
    # A quarter of the layers: with fewer, the embeddings would outweigh them as they never do. What has a quarter of
    # them is still larger than what has all of them at half the width, so the forms get smaller one by one.
    return (partial(build, halvings, kept) for halvings in range(6) for kept in range(layers, layers // 4 - 1, -1))


# DLRM (Naumov et al., arXiv:1906.00091), its modules named as in facebookresearch/dlrm, dlrm_s_pytorch.py: a Linear at
# every second place of an MLP. Embeddings of 128 and the sizes of both MLPs are MLPerf's, bench/run_and_time.sh there.
# The upper MLP takes the lower one's 128 outputs, and the products of each two of 27 vectors.

_ROWS = (
    *(227605432, 39061, 3067956, 405283, 11, 2209, 11939, 155, 4, 977, 15, 292775614, 17296),
    *(40790948, 187188510, 590152, 12974, 109, 37, 7425, 20266, 4, 7123, 1544, 64, 130229467),
)
"""The values of each of Criteo's 26 features over the 24 days of its Terabyte click logs, none left out as too rare.

From NVIDIA/DeepLearningExamples, TensorFlow2/Recommendation/DLRM_and_DCNv2/dataloading/generate_feature_spec.py,
`criteo_t0_synthetic`; MLPerf's model has 40 million rows for each of the five largest.
"""

_VECTOR = 128
_LOWER = (13, 512, 256, _VECTOR)
_UPPER = (_VECTOR + math.comb(len(_ROWS) + 1, 2), 1024, 1024, 512, 256, 1)


def _dlrm(factor: float) -> Iterator[tuple[str, Shape]]:
    for number, rows in enumerate(_ROWS):
        yield f"emb_l.{number}.weight", (max(1, int(rows * factor)), _VECTOR)
    for name, widths in {"bot_l": _LOWER, "top_l": _UPPER}.items():
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            yield from _affine(f"{name}.{2 * number}", outputs, inputs, bias=outputs)


def _dlrm_forms() -> Iterator[Form]:
    # By a sixteenth of a power of two at a time: 95 of 100 bytes are used. At last each table has one row.
    return (partial(_dlrm, 2.0 ** (-step / 16)) for step in range(16 * 29 + 1))


def _small() -> Iterator[tuple[str, Shape]]:
    return ((f"tensor.{number}", (64,)) for number in range(5000))


_MODELS: dict[str, Callable[[], Iterator[Form]]] = {
    "resnet50": _resnet50_forms,
    "gpt2": partial(_transformer_forms, _gpt2, 12),
    "llama-3-8b": partial(_transformer_forms, _llama, 32),
    "dlrm": _dlrm_forms,
    "small": lambda: iter([_small]),
}
