"""Links that lead nowhere are found, and those of the README lead somewhere."""

import re
from pathlib import Path

import pytest

from tests.docs.page_links import internal_faults


ROOT = Path(__file__).parents[2]


def test_links_to_missing_pages_and_anchors_are_faults(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "b.html").write_text('<h1 id="a%b">B</h1><a href="../a.html">')
    (tmp_path / "a.html").write_text(
        '<a href="part/b.html#a%25b"></a><a href="part/b.html#c"></a><a href="#"></a>'
        '<a href="c.html"></a><img src="d.png"><a href="mailto:a@b.c"></a>'
        '<a href="https://example.org/x#y"></a><a href="#z"></a>'
    )
    faults, external = internal_faults(tmp_path)
    assert faults == [
        "a.html: #z has no such anchor",
        "a.html: c.html is no file",
        "a.html: d.png is no file",
        "a.html: part/b.html#c has no such anchor",
    ]
    assert external == {"https://example.org/x": ["a.html"]}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_the_files_that_a_repository_page_links_to_exist(name):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []
