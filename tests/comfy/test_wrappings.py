"""Where workflows come wrapped: histories, queues, images' texts, and encodings."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.comfy.workflows import api, expected, notes, read, recipe, scope, values
from uso_core.comfy import import_workflow, workflow_in_exif, workflow_in_png_text
from uso_core.errors import RequestError
from uso_core.images import webp_texts
from uso_core.messages import message

RAN, CANVAS = api(recipe(prompt="what ran")), scope(recipe(prompt="on the canvas"))
RUN = [3, "id", RAN, {"extra_pnginfo": {"workflow": CANVAS}}, ["save"]]
WRAPPED = {
    "history": {"id": {"prompt": RUN, "outputs": {}, "status": {}}},
    "one run of it": {"prompt": RUN, "outputs": {}, "status": {"status_str": "success"}},
    "the run itself": RUN,
    "queue": {"queue_running": [RUN], "queue_pending": []},
    "sent to /prompt": {"client_id": "x", "prompt": RAN, "extra_data": {"extra_pnginfo": {"workflow": CANVAS}}},
    "texts of an image": {"prompt": json.dumps(RAN), "workflow": json.dumps(CANVAS)},
    "texts, parsed": {"workflow": CANVAS, "prompt": RAN},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_what_ran_comes_before_the_canvas(how):
    assert values(read(WRAPPED[how])) == expected(prompt="what ran")


def test_of_several_runs_the_last_is_read_and_told():
    later = [4, "later", api(recipe(prompt="later")), {}, []]
    result = read({"id": {"prompt": RUN, "outputs": {}}, "later": {"prompt": later, "outputs": {}}})
    assert result.prompt == "later"
    assert message("note_several_runs", count=2) in result.notes


def test_a_prompt_that_cannot_be_read_leaves_the_canvas():
    for broken in ("{broken", "{}", json.dumps({"1": {"class_type": "LoadImage", "inputs": {}}})):
        info = {"prompt": broken, "workflow": json.dumps(CANVAS)}
        assert import_workflow(workflow_in_png_text(info)).prompt == "on the canvas"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_every_unicode_encoding(encoding):
    text = json.dumps(api(recipe(prompt="Füchse 🦊")), ensure_ascii=False)
    assert import_workflow(text.encode(encoding)).prompt == "Füchse 🦊"
    assert import_workflow("\ufeff" + text).prompt == "Füchse 🦊"


def test_another_encoding_is_refused_rather_than_guessed():
    text = json.dumps(api(recipe(prompt="Füchse")), ensure_ascii=False)
    with pytest.raises(RequestError) as refused:
        import_workflow(text.encode("latin-1"))
    assert refused.value.key == "workflow_no_json"


def test_a_webp_as_comfyui_writes_it(tmp_path):
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = f"prompt:{json.dumps(RAN)}", f"workflow:{json.dumps(CANVAS)}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    result = import_workflow(workflow_in_exif(webp_texts(tmp_path / "a.webp")))
    assert values(result) == expected(prompt="what ran")
    assert notes(result) == ["note_own_schedule"]
    whole = (tmp_path / "a.webp").read_bytes()
    for damaged in (whole[:200], whole[:40], b"RIFF", b"", whole.replace(b"MM\0*", b"MM\1*")):
        (tmp_path / "b.webp").write_bytes(damaged)
        assert workflow_in_exif(webp_texts(tmp_path / "b.webp")) is None


@pytest.mark.parametrize(("text", "reason"), [
    ('{\n"1": {"class_type": "KSampler",}}', "json_comma"), ('{\n"1": {"class_type": "KSampler"', "json_ends"),
    ('{\n// the sampler\n"1": {}}', "json_comment"),
])  # fmt: skip
def test_a_fault_in_the_json_is_told_by_its_place(text, reason):
    with pytest.raises(RequestError) as refused:
        import_workflow(text)
    told = refused.value.values
    assert (refused.value.key, told["line"], told["reason"]) == ("workflow_json_wrong", 2, message(reason))
