"""Checks the links of built pages: python -m tests.docs.page_links PAGES [--external]

Every internal link must lead to a page and to an anchor in it. With `--external`, other
sites are asked for their pages, too. A site that cannot be reached is listed, and is no
fault; the answer that a page does not exist is one.
"""

import sys
import urllib.error
import urllib.request
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """Collects the links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag  # any has them
        values = [(name, value or "") for name, value in attrs]
        self.anchors |= {value for name, value in values if name in ("id", "name")}
        self.links |= {value for name, value in values if name in ("href", "src")}


def internal_faults(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Returns the links that lead nowhere, and the pages of each external address."""
    pages = {path: _Page(path.read_text()) for path in sorted(root.rglob("*.html"))}
    faults: list[str] = []
    external: dict[str, list[str]] = defaultdict(list)
    for path, page in pages.items():
        name = str(path.relative_to(root))
        for link in sorted(page.links):
            parts = urlsplit(link)
            anchor = unquote(parts.fragment)
            if parts.scheme in ("http", "https"):
                external[parts._replace(fragment="").geturl()].append(name)
                continue
            if parts.scheme:
                continue
            target = path
            if parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
            if not target.is_file():
                faults.append(f"{name}: {link} is no file")
            elif target in pages and anchor not in pages[target].anchors:
                faults.append(f"{name}: {link} has no such anchor")
    return faults, external


def ask(address: str) -> str:
    """Returns what is wrong with an address, or an empty string."""
    request = urllib.request.Request(address, headers={"User-Agent": "link check"})
    try:
        with urllib.request.urlopen(request, timeout=10):
            return ""
    except urllib.error.HTTPError as error:
        return f"answers {error.code}"
    except OSError as error:
        return f"not reached: {error}"


def main() -> int:
    root = Path(sys.argv[1]).resolve()
    faults, external = internal_faults(root)
    if "--external" in sys.argv:
        for address, names in sorted(external.items()):
            problem = ask(address)
            if problem:
                print(f"{address} ({', '.join(names[:3])}): {problem}")
            if problem in ("answers 404", "answers 410"):
                faults.append(f"{names[0]}: {address} does not exist")
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{len(faults)} faults; {len(external)} addresses of other sites")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
