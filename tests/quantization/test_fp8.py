"""Linear layers in fp8: quanto's numbers, our products, bias, and their effect on the image."""

from __future__ import annotations

import copy
import re
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from benchmarks.counts import full_size
from benchmarks.loading import FLUX_DEV
from tests.conftest import GOLDEN
from tests.test_golden import CASES, FILES, distance, image
from tests.test_speed import inputs
from training.measure import load_measurer
from training.trials import RELEASED, make_trial
from uso_core.catalog.models import EMBEDDED_FILES, MODELS, get_model
from uso_core.loaders import build, encoders
from uso_core.memory.offload import Offloader
from uso_core.memory.sizes import Sizes, counts_of
from uso_core.memory.streaming import BlockStream
from uso_core.model.pipeline import USOPipeline
from uso_core.model.transformer import USOTransformer2DModel
from uso_core.quantization import fp8
from uso_core.quantization.fp8 import Float8Linear, fp8_layers, fp8_product, quantize, use_fp8
from uso_core.quantization.matrices import T5_MATRICES, TRANSFORMER_MATRICES
from uso_core.runtime.load import assemble
from uso_core.settings import Settings

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FLUX, LORA = GOLDEN / "flux.safetensors", GOLDEN / "dit_lora.safetensors"
# With every block's matrices quantized; e4m3fn itself shifts every weight by 0.026. The goldens' random weights:
# relative
# L2 of the last latents (0.049 seen). The embedded model: mean levels of 255 in its images (0.8-3.3 seen).
PRODUCTS = [partial(fp8_product, way=way) for way in fp8.WAYS] + [fp8.dequantized_product]
GOLDEN_BOUND, EMBEDDED_LEVELS = 0.06, 6
READ_OTHERWISE = 0.25  # of an answer's probability, at most, by which the measuring network reads the images otherwise


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(7)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def layer(bias: bool = True, device: str = "cpu", inputs: int = 64, outputs: int = 48) -> Float8Linear:
    return Float8Linear.of(nn.Linear(inputs, outputs, bias).to(device).requires_grad_(False))


# --- quantizing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(48, 64), (33, 20), (1, 16), (7, 1)])
@pytest.mark.parametrize("at_once", [2**21, 64, 1], ids=["whole", "some rows", "row by row"])
def test_the_numbers_are_those_of_quanto(shape, at_once, monkeypatch):
    from optimum import quanto

    monkeypatch.setattr(fp8, "ELEMENTS_AT_ONCE", at_once)
    whole = nn.Sequential(nn.Linear(shape[1], shape[0]))
    data, scale = quantize(whole[0].weight.detach().clone())
    quanto.quantize(whole, weights=quanto.qfloat8)
    quanto.freeze(whole)
    assert torch.equal(bits(data), bits(whole[0].weight._data))
    assert torch.equal(scale.flatten(), whole[0].weight._scale.flatten())
    assert (data.dtype, scale.dtype, scale.shape) == (torch.float8_e4m3fn, torch.float32, (shape[0], 1))


def test_bf16_is_quantized_in_float32():
    weight = torch.randn(16, 32).bfloat16()
    data, scale = quantize(weight)
    wide, wide_scale = quantize(weight.float())
    assert torch.equal(bits(data), bits(wide))
    assert torch.equal(scale, wide_scale)


def test_a_row_of_zeros_stays_zeros():
    weight = torch.randn(4, 16)
    weight[2] = 0
    data, scale = quantize(weight)
    restored = data.float() * scale
    assert torch.equal(restored[2], torch.zeros(16))
    assert restored.isfinite().all()


def test_each_number_is_within_a_sixteenth():
    weight = torch.randn(64, 256) * torch.logspace(-3, 3, 64)[:, None]
    data, scale = quantize(weight)
    error = (data.float() * scale - weight).abs()
    assert (error <= torch.maximum(weight.abs() / 16, scale / 1024) * 1.0001).all()


# --- the product ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_layer_equals_the_linear_layer_of_its_dequantized_weight(bias, device):
    quantized = layer(bias, device)
    x = torch.randn(2, 5, 64, device=device)
    expected = F.linear(x, quantized.dequantized(), quantized.bias)
    torch.testing.assert_close(quantized(x), expected, rtol=1e-5, atol=1e-5)
    half = quantized.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert distance(half, expected) < 0.04  # a GPU with fp8 rounds the activation to fp8 too


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bias_is_added(device, dtype):
    quantized = layer(device=device).to(dtype)
    x = torch.randn(3, 64, device=device, dtype=dtype)
    without = layer(False, device)
    without.weight, without.scale = quantized.weight, quantized.scale
    quantized.bias = nn.Parameter(torch.full_like(quantized.bias, 100.0))
    difference = quantized(x).float() - without(x).float()
    torch.testing.assert_close(difference, torch.full_like(difference, 100.0), rtol=0.005, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", fp8.WAYS)
@pytest.mark.parametrize("shape", [(33, 64), (2, 5, 64), (1, 64)])
def test_the_fp8_product_equals_the_linear_layer_of_rounded_activations(device, way, shape):
    if device == "cuda" and not fp8.multiplies(torch.device("cuda"), way):
        pytest.skip("this GPU does not multiply fp8 so")
    quantized = layer(device=device).to(torch.bfloat16)
    x = (torch.randn(shape, device=device) * 10).bfloat16()
    product = fp8_product(x, quantized.weight, quantized.scale, quantized.bias, way)
    exact = F.linear(x.float(), quantized.dequantized(), quantized.bias.float())
    rounded = quantize(x.reshape(-1, 64))  # the same rounding, row by row
    seen = F.linear((rounded[0].float() * rounded[1]).reshape(shape), quantized.dequantized(), quantized.bias.float())
    assert product.dtype == torch.bfloat16
    assert product.shape == exact.shape
    assert distance(product, exact) < 0.035  # 0.026 is what e4m3fn does to a random activation
    assert distance(product, seen) < 0.005  # bf16's own rounding of the result


@pytest.mark.parametrize("product", PRODUCTS)
def test_activations_may_lie_in_any_order(product):
    quantized = layer().to(torch.bfloat16)
    x = torch.randn(64, 5).bfloat16().t()
    weights = (quantized.weight, quantized.scale, quantized.bias)
    assert torch.equal(product(x, *weights), product(x.contiguous(), *weights))


@pytest.mark.parametrize("way", fp8.WAYS)
def test_activations_are_scaled_row_by_row(way):
    """A token far larger than the others does not reduce their precision, and a token of zeros gives the bias."""
    quantized = layer().to(torch.bfloat16)
    x = torch.randn(4, 64).bfloat16()
    alone = fp8_product(x, quantized.weight, quantized.scale, quantized.bias, way)
    x[1], x[2] = x[1] * 1e6, 0
    beside = fp8_product(x, quantized.weight, quantized.scale, quantized.bias, way)
    assert torch.equal(beside[[0, 3]], alone[[0, 3]])
    assert torch.equal(beside[2], quantized.bias)
    assert beside.isfinite().all()


@pytest.mark.parametrize("way", [*fp8.WAYS, None])
def test_a_device_multiplies_in_the_first_way_that_works(way, monkeypatch):
    """As on GPUs: PyTorch's row-wise product is missing on Windows and some GPUs, and older GPUs have no fp8."""
    real = torch._scaled_mm

    def scaled(*given: Any, scale_a: torch.Tensor, **others: Any) -> torch.Tensor:
        if way is None or (way == fp8.AFTERWARDS and scale_a.numel() > 1):
            raise RuntimeError("Rowwise scaling is not currently supported on your device")
        return real(*given, scale_a=scale_a, **others)

    monkeypatch.setattr(torch, "_scaled_mm", scaled)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    here = torch.device("cpu")
    monkeypatch.setattr(
        fp8, "multiplies", partial(lambda multiplies, device, way: multiplies(here, way), fp8.multiplies)
    )
    assert fp8._first_way.__wrapped__(0) == way
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert fp8._first_way.__wrapped__(0) is None
    assert fp8.fp8_way(here) is None  # a CPU's product in fp8 is slower than one in its own dtype


@pytest.mark.parametrize("broken", [lambda right: right * 1.1, lambda right: right * torch.nan, torch.zeros_like])
def test_a_product_that_gives_wrong_numbers_is_not_used(broken, monkeypatch):
    real = torch._scaled_mm
    assert fp8.multiplies(torch.device("cpu"), fp8.ROW_WISE)
    monkeypatch.setattr(torch, "_scaled_mm", lambda *given, **others: broken(real(*given, **others)))
    assert not fp8.multiplies(torch.device("cpu"), fp8.ROW_WISE)


@pytest.mark.parametrize("way", [*fp8.WAYS, None])
def test_the_layer_multiplies_as_its_device_can(way, monkeypatch):
    torch.compiler.reset()  # a device's way is taken for a constant
    monkeypatch.setattr(fp8, "fp8_way", torch.compiler.assume_constant_result(lambda device: way))
    quantized = layer().to(torch.bfloat16)
    x = torch.randn(6, 64).bfloat16()
    weights = (quantized.weight, quantized.scale, quantized.bias)
    expected = fp8.dequantized_product(x, *weights) if way is None else fp8_product(x, *weights, way)
    assert torch.equal(quantized(x), expected)
    assert torch.equal(torch.compile(quantized, backend="aot_eager", fullgraph=True)(x), expected)
    narrow = layer(inputs=24, outputs=20).to(torch.bfloat16)  # no multiples of 16
    y = torch.randn(6, 24).bfloat16()
    assert torch.equal(narrow(y), fp8.dequantized_product(y, narrow.weight, narrow.scale, narrow.bias))
    torch.compiler.reset()


def test_no_compiler_sees_the_widening_of_fp8():
    """Triton has no e4m3fn before Ada, so a compiled layer calls PyTorch's own there."""
    graphs: list[Any] = []

    def keep(graph: torch.fx.GraphModule, given: Any) -> Any:
        graphs.append(graph)
        return graph

    quantized = layer().to(torch.bfloat16)
    torch.compile(quantized, backend=aot_autograd(fw_compiler=keep), fullgraph=True)(torch.randn(6, 64).bfloat16())
    readers = [node for node in graphs[0].graph.nodes for other in node.all_input_nodes
               if other.op == "placeholder" and other.meta["val"].dtype == fp8.FP8]  # fmt: skip
    assert [node.target for node in readers] == [torch.ops.uso.widened.default]


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_products_compile_to_one_graph(product):
    quantized = layer().to(torch.bfloat16)
    arguments = (torch.randn(6, 64).bfloat16(), quantized.weight, quantized.scale, quantized.bias)
    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), product(*arguments))


def test_the_layer_compiles_to_one_graph():
    quantized = layer()
    x = torch.randn(6, 64)
    assert torch.equal(torch.compile(quantized, backend="aot_eager", fullgraph=True)(x), quantized(x))


# --- the layer as a module --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    lambda module: module.to(torch.bfloat16), lambda module: module.to(torch.float32), lambda module: module.half(),
    lambda module: module.double(), copy.deepcopy, lambda module: module.to("cpu", torch.bfloat16),
    lambda module: module.cpu(),
], ids=["bf16", "float32", "half", "double", "deepcopy", "both", "cpu"])  # fmt: skip
def test_a_change_of_dtype_does_not_affect_the_quantized_weight(change):
    quantized = layer()
    data, scale = quantized.weight.clone(), quantized.scale.clone()
    changed = change(quantized)
    assert (changed.weight.dtype, changed.scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert torch.equal(bits(changed.weight), bits(data))
    assert torch.equal(changed.scale, scale)


@pytest.mark.parametrize("device", ["meta", *DEVICES])
def test_the_layer_moves_as_a_whole(device):
    quantized = layer().to(device)
    assert {tensor.device.type for tensor in quantized.state_dict().values()} == {device}
    empty = layer().to("meta").to_empty(device="cpu")
    assert empty.weight.dtype == torch.float8_e4m3fn


def test_the_layer_survives_a_file(tmp_path):
    quantized = layer()
    save_file(quantized.state_dict(), tmp_path / "layer.safetensors")
    again = layer()
    again.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    x = torch.randn(3, 64)
    assert torch.equal(again(x), quantized(x))


# --- which layers -----------------------------------------------------------------------------------------------------


def test_only_the_large_matrices_of_flux_are_quantized():
    with torch.device("meta"):
        model = USOTransformer2DModel(**FLUX_DEV)
    total = sum(parameter.numel() for parameter in model.parameters())
    found = use_fp8(model, TRANSFORMER_MATRICES)
    assert len(found) == 19 * 12 + 38 * 5
    in_fp8 = sum(module.weight.numel() for module in fp8_layers(model).values())
    assert in_fp8 == (19 * 24 + 38 * 12) * 3072**2  # 8.6 of 11.9 B; 3.25 B are modulation, the rest is small
    assert total == 11_901_408_320
    left = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert all("norm" in name or "embed" in name or name == "proj_out" for name in left)


def test_the_plan_counts_the_bytes_that_fp8_takes():
    """What `memory/sizes.py` derives from names alone equals the bytes after the layers are replaced."""
    parts = copy.deepcopy(full_size())
    sizes = Sizes(counts_of(parts), torch.bfloat16.itemsize)
    use_fp8(parts["transformer"], TRANSFORMER_MATRICES)
    use_fp8(parts["t5"], T5_MATRICES)
    for part, in_blocks, counted in (
        ("transformer", r"(single_)?transformer_blocks\.\d+\.(?!norm1?(_context)?\.linear)", sizes.blocks(True)),
        ("t5", r"encoder\.block\.", sizes.t5_blocks(True)),
    ):
        tensors = parts[part].state_dict().items()
        assert sum(tensor.nbytes for name, tensor in tensors if re.match(in_blocks, name)) == sum(counted)


def test_layers_that_hold_weights_are_quantized_in_place():
    model, _ = encoders.build_t5(GOLDEN / "t5", torch.float32)
    reduced, _ = encoders.build_t5(GOLDEN / "t5", torch.float32)
    use_fp8(reduced, T5_MATRICES)
    layers = fp8_layers(reduced)
    assert {name.split(".")[-1] for name in layers} == {"q", "k", "v", "o", "wi_0", "wi_1"}
    assert reduced.encoder.embed_tokens.weight is reduced.shared.weight
    tokens = torch.arange(1, 33)[None]
    ours, theirs = (one(tokens).last_hidden_state for one in (reduced, model))
    assert 0 < distance(ours, theirs) < 0.05


# --- models -----------------------------------------------------------------------------------------------------------


def transformer(path: Any = FLUX, lora: Any = LORA, dtype: torch.dtype = torch.float32) -> USOTransformer2DModel:
    return build.build_transformer(path, lora, dtype, fp8=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_lora_is_fused_before_quantizing(dtype):
    plain = build.build_transformer(FLUX, LORA, torch.float32)
    reduced = transformer(dtype=dtype)
    assert reduced.dtype == dtype
    layers = fp8_layers(reduced)
    assert len(layers) == 39
    for name, module in layers.items():
        data, scale = quantize(plain.get_submodule(name).weight)
        assert torch.equal(bits(module.weight), bits(data)), name
        assert torch.equal(module.scale, scale), name
    rest = reduced.state_dict().items()
    quantized = {f"{name}.{part}" for name in layers for part in ("weight", "scale")}
    assert all(
        torch.equal(tensor, plain.state_dict()[name].to(dtype)) for name, tensor in rest if name not in quantized
    )
    assert {type(tensor) for _, tensor in rest} == {torch.Tensor}  # none of quanto's, which bring their own product


def test_fp8_blocks_stream_and_come_on_demand():
    """Moving weights also moves the quantized ones, bit for bit."""
    model, here = transformer(), torch.device("cpu")
    given = inputs(model)
    expected = model(**given).sample
    assert torch.equal(expected, copy.deepcopy(model)(**given).sample)
    model.blocks = BlockStream(list(model.blocks), here, resident=1)
    carried = {tensor.dtype for tensor in model.blocks.carried}
    assert torch.float8_e4m3fn in carried
    assert torch.equal(model(**given).sample, expected)
    visitor = transformer()
    offloader = Offloader(here, {"transformer": visitor}, ["transformer"])
    for _ in range(2):
        offloader.use("transformer")
        assert torch.equal(visitor(**given).sample, expected)
        offloader.leave()
    assert offloader.bytes_on_device("transformer") == sum(tensor.nbytes for tensor in visitor.state_dict().values())


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_an_fp8_file_is_restored_before_it_is_quantized(scaled, tmp_path):
    stored: dict[str, torch.Tensor] = {}
    meaning: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(FLUX).items():
        factor = tensor.float().abs().amax() / 448 if scaled and tensor.dim() == 2 else torch.tensor(1.0)
        stored[name] = (tensor.float() / factor).to(torch.float8_e4m3fn)
        if scaled and tensor.dim() == 2:
            stored[name.removesuffix(".weight") + ".scale_weight"] = factor
        meaning[name] = stored[name].float() * factor
    save_file(stored, tmp_path / "stored.safetensors")
    save_file(meaning, tmp_path / "meaning.safetensors")
    ours, theirs = (transformer(tmp_path / f"{name}.safetensors").state_dict() for name in ("stored", "meaning"))
    assert all(torch.equal(bits(tensor), bits(theirs[name])) for name, tensor in ours.items())


def pipelines(folder: Any, files: dict[str, str]) -> tuple[USOPipeline, USOPipeline]:
    paths = {role: folder / name for role, name in files.items()}
    settings = Settings(device="cpu", dtype="float32")
    parts: dict[str, Any] = {"transformer": transformer(paths["transformer"], paths["lora"])}
    model = get_model("uso-tiny")
    return assemble(paths, settings, model)[0], assemble(paths, settings, model, parts)[0]


def last_latents(pipeline: USOPipeline, prompt: str, styles: list[Image.Image], side: int) -> torch.Tensor:
    after: list[torch.Tensor] = []

    def keep(pipe: USOPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        after.append(tensors["latents"])

    content = image("content_a").resize((side, side))
    pipeline(prompt, content, styles, side, side, 6, 4.0, seed=11, content_size=side, output_type="pt",
             callback_on_step_end=keep)  # fmt: skip
    return after[-1]


def test_the_reduced_model_of_the_goldens_makes_nearly_the_same_latents():
    plain, reduced = pipelines(GOLDEN, FILES)
    for case in (CASES["subject"], CASES["style_subject"]):
        styles = [image(name) for name in case["styles"]]
        ours, theirs = (last_latents(one, case["prompt"], styles, 96) for one in (reduced, plain))
        assert 0 < distance(ours, theirs) < GOLDEN_BOUND


def test_the_embedded_models_images_mean_the_same():
    both, measurer = pipelines(RELEASED, EMBEDDED_FILES), load_measurer()
    for mode, number in (("subject", 0), ("both", 2), ("both", 5), ("text", 4)):
        trial, images = make_trial(mode, number), []
        content = None if trial.content is None else Image.fromarray(trial.content)
        for one in both:
            made = one(trial.prompt, content, [Image.fromarray(style) for style in trial.styles], 128, 128, 16, 4.0,
                       seed=number, content_size=128)  # fmt: skip
            images.append(np.asarray(made.images[0]))
        assert 0 < np.abs(images[0].astype(int) - images[1]).mean() < EMBEDDED_LEVELS
        chances = measurer.log_chances(np.stack(images))
        for question in ("subject", "colour", "scene", "technique"):
            plain, reduced = np.exp(chances[question])  # between two answers that are as likely, either may win
            assert np.abs(plain - reduced).sum() / 2 < READ_OTHERWISE, (mode, number, question)


def test_the_fp8_model_uses_fp8():
    assert {name for name, model in MODELS.items() if model.quantize == "fp8"} == {"flux-dev-fp8"}


def test_quantizing_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(torch.randn(4, 16))
