"""Shapes of real models for the benchmarks: what their sources say of them, and smaller forms that fit."""

import math
import re
from itertools import pairwise

import pytest

from bench import models

COUNTS = {
    # torchvision/models/resnet.py, ResNet50_Weights: "num_params": 25557032. 53 convolutions, each with the two of its
    # normalisation, and the last layer's two.
    "resnet50": (53 * 3 + 2, 25_557_032),
    # GPT2LMHeadModel.num_parameters(); by hand 50257 * 768 + 1024 * 768 + 12 * 7087872 + 2 * 768.
    "gpt2": (12 * 12 + 4, 124_439_808),
    # model.safetensors.index.json of meta-llama/Meta-Llama-3-8B: "total_size": 16060522496, in bfloat16.
    "llama-3-8b": (32 * 9 + 3, 16_060_522_496 // 2),
    # The tables: 113B parameters by NVIDIA/DeepLearningExamples (below); the rest is 13-512-256-128 and
    # 479-1024-1024-512-256-1, a weight and a bias each.
    "dlrm": (26 + 2 * 3 + 2 * 5, 882_774_575 * 128 + 2_368_897),
    "small": (5000, 5000 * 64),
}


def test_models() -> None:
    assert models.names() == list(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_tensors_and_weights_are_as_many_as_the_source_says(name: str) -> None:
    parameters = models.shapes(name)
    assert (len(parameters), models.weights(parameters)) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_names_are_unique_and_shapes_are_not_empty(name: str) -> None:
    parameters = models.shapes(name)
    assert len({parameter for parameter, _ in parameters}) == len(parameters)
    assert all(shape and min(shape) > 0 for _, shape in parameters)


@pytest.mark.parametrize(
    ("name", "parameter", "shape"),
    [
        ("resnet50", "conv1.weight", (64, 3, 7, 7)),
        ("resnet50", "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        ("resnet50", "layer3.5.conv2.weight", (256, 256, 3, 3)),
        ("resnet50", "layer4.2.bn3.bias", (2048,)),
        ("resnet50", "fc.weight", (1000, 2048)),
        ("gpt2", "transformer.wte.weight", (50257, 768)),
        ("gpt2", "transformer.h.11.attn.c_attn.weight", (768, 2304)),
        ("gpt2", "transformer.h.0.mlp.c_proj.weight", (3072, 768)),
        ("llama-3-8b", "model.layers.31.self_attn.k_proj.weight", (1024, 4096)),
        ("llama-3-8b", "model.layers.0.mlp.down_proj.weight", (4096, 14336)),
        ("llama-3-8b", "lm_head.weight", (128256, 4096)),
        ("dlrm", "emb_l.11.weight", (292775614, 128)),
        ("dlrm", "bot_l.0.weight", (512, 13)),
        ("dlrm", "top_l.0.weight", (1024, 479)),
        ("dlrm", "top_l.8.bias", (1,)),
        ("small", "tensor.4999", (64,)),
    ],
)
def test_a_shape(name: str, parameter: str, shape: models.Shape) -> None:
    assert dict(models.shapes(name))[parameter] == shape


def test_parameters_come_in_the_order_of_the_model() -> None:
    order = [name for name, _ in models.shapes("resnet50")]
    assert order[:4] == ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight"]
    assert order[12:16] == [f"layer1.0.downsample.{name}" for name in ("0.weight", "1.weight", "1.bias")] + [
        "layer1.1.conv1.weight"
    ]
    assert [name for name, _ in models.shapes("gpt2")][-3:] == [
        "transformer.h.11.mlp.c_proj.bias",
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
    ]


def test_the_weights_of_gpt2_that_are_tied_come_once() -> None:
    assert [shape for _, shape in models.shapes("gpt2")].count((50257, 768)) == 1


def test_the_tables_of_the_recommender_are_those_of_the_source() -> None:
    """By NVIDIA/DeepLearningExamples, DLRM_and_DCNv2/doc/DLRM.md: 113B parameters and 421 GiB, a threshold of 0."""
    tables = [shape for name, shape in models.shapes("dlrm") if name.startswith("emb_l.")]
    assert len(tables) == 26
    total = sum(rows * width for rows, width in tables)
    assert (round(total / 1e9), round(total * 4 / 2**30)) == (113, 421)
    assert sum(rows > 1e8 for rows, _ in tables) == 4


def kinds(parameters: models.Parameters) -> set[tuple[str, int]]:
    """Return what a model is made of: names without the numbers of layers, and ranks."""
    return {(re.sub(r"\.\d+\.", ".N.", name), len(shape)) for name, shape in parameters}


LIMITS = [2**k + 12345 for k in range(24, 40)]


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("name", COUNTS)
def test_a_scaled_model_fits_and_is_made_of_the_same(name: str, itemsize: int) -> None:
    whole = models.shapes(name)
    sizes = {parameter: math.prod(shape) for parameter, shape in whole}
    found = [models.scaled(name, limit, itemsize) for limit in LIMITS]
    for limit, smaller in zip(LIMITS, found, strict=True):
        assert models.weights(smaller) * itemsize <= limit
        assert kinds(smaller) == kinds(whole)
        kept = {parameter for parameter, _ in smaller}
        assert [parameter for parameter, _ in smaller] == [parameter for parameter in sizes if parameter in kept]
        assert all(min(shape) > 0 for _, shape in smaller)
        assert all(math.prod(shape) <= sizes[parameter] for parameter, shape in smaller)
        fits = models.weights(whole) * itemsize <= limit
        assert (smaller == whole) is fits
    # More room never gives a smaller model.
    assert all(models.weights(less) <= models.weights(more) for less, more in pairwise(found))


@pytest.mark.parametrize(("name", "share"), [("llama-3-8b", 0.7), ("gpt2", 0.45), ("dlrm", 0.95)])
def test_a_scaled_model_uses_the_room_that_it_has(name: str, share: float) -> None:
    whole = 4 * models.weights(models.shapes(name))
    for part in (0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05):
        assert 4 * models.weights(models.scaled(name, int(part * whole))) >= share * part * whole


def test_layers_are_left_out_before_widths_are_halved() -> None:
    """Llama in 16 GiB of float32 has fewer layers of full width; in 8 GiB all of half the width."""
    fewer = models.scaled("llama-3-8b", 2**34)
    assert fewer[0] == ("model.embed_tokens.weight", (128256, 4096))
    assert len(fewer) == 14 * 9 + 3
    halved = models.scaled("llama-3-8b", 2**33)
    assert halved[0] == ("model.embed_tokens.weight", (64128, 2048))
    assert len(halved) == 32 * 9 + 3


def test_all_tables_of_the_recommender_are_scaled_by_one_factor() -> None:
    whole, smaller = dict(models.shapes("dlrm")), dict(models.scaled("dlrm", 2**33))
    large = [name for name, shape in whole.items() if name.startswith("emb_l.") and shape[0] > 1e5]
    factors = [smaller[name][0] / whole[name][0] for name in large]
    assert max(factors) / min(factors) < 1.01
    assert all(smaller[name] == shape for name, shape in whole.items() if "emb" not in name)
    assert min(shape[0] for name, shape in smaller.items() if "emb" in name) == 1


@pytest.mark.parametrize("name", COUNTS)
def test_a_limit_that_nothing_fits_in_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} in 1000 bytes: its smallest form has \d+"):
        models.scaled(name, 1000)


def test_an_unknown_model_is_an_error() -> None:
    for call in (models.shapes, lambda name: models.scaled(name, 2**30)):
        with pytest.raises(ValueError, match="no model 'gpt3'; there are resnet50, gpt2, "):
            call("gpt3")
