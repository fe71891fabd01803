"""Samplers of ComfyUI and of packs, and which pass of several is read."""

from __future__ import annotations

import copy

from tests.comfy.workflows import (
    FORMATS,
    OUTPUTS,
    advanced,
    api,
    expected,
    node,
    notes,
    read,
    recipe,
    scope,
    values,
)
from uso_core.messages import message

INPUTS = ("model", "positive", "negative", "latent_image")


def sampled_by(kind, saved):
    """A canvas whose sampler is of another class, with its saved values."""
    nodes = recipe()
    nodes["sampler"] = [kind, {name: nodes["sampler"][1][name] for name in INPUTS}]
    data = scope(nodes)
    node(data, "sampler")["widgets_values"] = saved
    return data


SAVED = {
    "KSampler //Inspire": [777, "fixed", 28, 1, "euler", "simple", 1, "CPU", "incremental", 0],
    "KSampler (Efficient)": [777, None, 28, 1, "euler", "simple", 1, "auto", "true"],
    "KSampler Adv. (Efficient)": ["enable", 777, None, 28, 1, "euler", "simple", 0, 10000, "disable", "auto", "true"],
    "KSamplerAdvanced": ["enable", 777, "fixed", 28, 1, "euler", "simple", 0, 10000, "disable"],
    "KSamplerAdvanced //Inspire": [True, 777, "fixed", 28, 1, "euler", "simple", 0, 10000, "CPU", False, "x", 0, 0],
    "ClownsharKSampler_Beta": [0.5, "euler", "simple", 28, -1, 1, 1, 777, "fixed", "standard", True],
}


def test_samplers_of_packs():
    for kind, saved in SAVED.items():
        result = read(sampled_by(kind, saved))
        assert values(result) == expected(seed=777, steps=28), kind
        noise = ["note_sampler_value"] if kind.startswith("Clownshar") else []  # eta 0.5
        assert notes(result) == [*noise, "note_own_schedule"], kind


def test_values_that_fit_no_inputs_are_told():
    for kind, saved in (("Sampler Of Nobody", [777, "fixed", 28]), ("KSampler", ["euler", 777, 28])):
        result = read(sampled_by(kind, saved))
        assert values(result) == expected(seed=None, steps=None)
        assert message("note_values_unread", node=kind) in result.notes
        assert message("note_missing", what=message("what_seed")) in result.notes


def test_a_list_of_inputs_names_the_values_only_if_it_is_complete():
    data = sampled_by("Sampler Of Nobody", [0.5, "euler", 33])
    slots = node(data, "sampler")["inputs"]
    slots.append({"name": "seed", "type": "INT", "link": None, "widget": {"name": "seed"}})
    assert read(data).seed is None  # an older page lists only those turned into inputs
    slots.append({"name": "steps", "type": "INT", "link": None, "widget": {"name": "steps"}})
    node(data, "sampler")["widgets_values"] = [77, "randomize", 33]
    assert values(read(data)) == expected(seed=77, steps=33)


def test_an_efficient_loader_gives_prompt_size_and_lora():
    nodes = recipe() | {"all": ["Efficient Loader", {}]}
    links = {name: ("all", slot) for slot, name in enumerate(INPUTS)}
    nodes["sampler"] = ["KSampler (Efficient)", links]
    data = scope(nodes, outputs={**OUTPUTS, "Efficient Loader": ["MODEL", "CONDITIONING", "CONDITIONING", "LATENT"]})
    node(data, "sampler")["widgets_values"] = [5, None, 12, 1, "euler", "simple", 1, "auto", "true"]
    node(data, "all")["widgets_values"] = ["f", "v", -1, "uso-flux1-dit-lora-v1.safetensors", 1, 1, "a mug", "ugly",
                                           "none", "comfy", 832, 1216, 2]  # fmt: skip
    result = read(data)
    assert values(result) == expected(prompt="a mug", seed=5, steps=12, guidance=None, width=832, height=1216)
    assert {"note_no_guidance", "note_negative_prompt", "note_batch"} <= set(notes(result))
    assert "note_no_uso_lora" not in notes(result)


def stages(first, second):
    nodes = recipe()
    base = nodes["sampler"][1]
    links = {name: base[name] for name in INPUTS}
    common = {"cfg": 1, "sampler_name": "euler", "scheduler": "simple"}
    nodes["first"] = ["KSamplerAdvanced", {**links, **common, **first}]
    nodes["sampler"] = ["KSamplerAdvanced", {**links, **common, **second, "latent_image": ("first", 0)}]
    return nodes


def test_of_two_stages_the_one_from_pure_noise_counts():
    first = {"add_noise": "enable", "noise_seed": 99, "steps": 24, "start_at_step": 0, "end_at_step": 12}
    second = {"add_noise": "disable", "noise_seed": 0, "steps": 24, "start_at_step": 12, "end_at_step": 10000}
    for form in FORMATS.values():
        result = read(form(stages(first, second)))
        assert (result.seed, result.steps) == (99, 24)
        assert {"note_several_passes", "note_some_steps"} <= set(notes(result))


def test_a_sampler_that_goes_on_without_steps_of_its_own():
    nodes = stages({"add_noise": "enable", "noise_seed": 99, "steps": 24}, {})
    nodes["sampler"][0] = "ClownsharkChainsampler_Beta"
    assert (read(api(nodes)).seed, read(api(nodes)).steps) == (99, 24)


def test_split_sigmas_are_followed_to_the_first_half():
    nodes = advanced(recipe())
    nodes |= {
        "split": ["SplitSigmas", {"sigmas": ("sigmas", 0), "step": 10}],
        "silent": ["DisableNoise", {}],
        "second": ["SamplerCustomAdvanced", {**nodes["sampler"][1], "noise": ("silent", 0), "sigmas": ("split", 1),
                                             "latent_image": ("sampler", 0)}],
    }  # fmt: skip
    nodes["sampler"][1]["sigmas"] = ("split", 0)
    nodes["decode"][1]["samples"] = ("second", 0)
    result = read(api(nodes))
    assert values(result) == expected()
    assert {"note_several_passes", "note_all_steps"} <= set(notes(result))


def test_an_estimator_before_the_sampler_is_not_its_first_pass():
    """As in ComfyUI's depth templates: the latent's content does not matter to a sampler that adds all noise."""
    nodes = recipe()
    other = copy.deepcopy(nodes["sampler"])
    other[1] |= {"steps": 1, "seed": 1, "model": ("depth", 0)}
    nodes |= {
        "depth": ["UNETLoader", {"unet_name": "depth.safetensors", "weight_dtype": "default"}],
        "estimate": other,
        "map": ["VAEDecode", {"samples": ("estimate", 0), "vae": ("loader", 2)}],
        "again": ["VAEEncode", {"pixels": ("map", 0), "vae": ("loader", 2)}],
    }
    nodes["sampler"][1]["latent_image"] = ("again", 0)
    result = read(api(nodes))
    assert values(result) == expected(width=None, height=None)
    assert "note_several_passes" not in notes(result)
    nodes["sampler"][1]["denoise"] = ("strength", 0)  # who knows: it may refine
    nodes["strength"] = ["SimpleMath+", {"value": "a/2"}]
    assert read(api(nodes)).steps == 1


def test_sigmas_of_a_node_of_its_own_are_told():
    for kind in ("KarrasScheduler", "AlignYourStepsScheduler"):
        nodes = advanced(recipe()) | {"sigmas": [kind, {"steps": 20, "sigma_max": 14.6}]}
        result = read(api(nodes))
        assert values(result) == expected()
        assert message("note_scheduler", scheduler=kind) in result.notes
    assert "note_scheduler" not in notes(read(api(advanced(recipe()))))
