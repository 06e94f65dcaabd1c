"""What is read of a stored model without loading it."""

import json

from pipelines.loading import stored_guidance


def test_guidance_of_a_pipeline(tmp_path):
    usual = 2.0, 0.0
    assert stored_guidance(tmp_path) == usual == stored_guidance("owner/name")
    index = tmp_path / "model_index.json"
    for content, expected in [
        ({"guidance_scale": 3, "pag_scale": 1.5}, (3, 1.5)),
        ({"pag_scale": 1}, (2.0, 1)),
        ({"guidance_scale": 0.0}, (0.0, 0.0)),
        ({"guidance_scale": "much"}, usual),
        ([], usual),
    ]:
        index.write_text(json.dumps(content))
        assert stored_guidance(tmp_path) == expected
    index.write_text("{")
    assert stored_guidance(tmp_path) == usual
