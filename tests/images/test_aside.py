"""Images of a request that waits."""

from __future__ import annotations

import pytest

from tests.images.files import noise
from uso_core.errors import RequestError
from uso_core.images import brought_back, open_image, set_aside
from uso_core.request import GenerationRequest


def test_a_request_that_waits_keeps_files_and_not_decoded_images(tmp_path):
    path = tmp_path / "large.png"
    noise(1000, 800).save(path)
    given, small = open_image(path), open_image(noise(16, 16))
    request = GenerationRequest(content=given, styles=(small,))
    waiting = set_aside(request)
    assert waiting == request  # by the hashes of their pixels
    assert waiting.content.image is None
    assert waiting.styles[0].image is not None
    back = brought_back(waiting)
    assert back.content.image.tobytes() == given.image.tobytes()
    noise(1000, 801).save(path)
    with pytest.raises(RequestError) as changed:
        brought_back(waiting)
    assert changed.value.key == "image_changed"
    path.unlink()
    with pytest.raises(RequestError) as gone:
        brought_back(waiting)
    assert gone.value.key == "image_not_there"


def test_a_large_image_is_set_aside_as_it_is_opened(tmp_path):
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    noise(1000, 600).save(large)
    noise(30, 20).save(small)
    kept, aside = open_image(large), open_image(large, aside=True)
    assert (aside.image, aside.size, aside.sha256, aside.path) == (None, (1000, 600), kept.sha256, large)
    assert open_image(small, aside=True).image is not None
    request = GenerationRequest(content=aside)
    again = brought_back(request).content
    assert again.image.tobytes() == kept.image.tobytes()
