"""Hooks of mkdocs: files outside `docs/` that its pages link to become part of the site, and the links follow them.

So one link works both on GitHub, relative to the repository, and on the site.
"""

import glob
import os

from mkdocs.structure.files import File

OUTSIDE = ("CHANGELOG.md", "results/ablation/report.html", "results/ablation/figures/*.png")


def on_files(files, config):
    """Adds the files of `OUTSIDE`, at their place in the repository."""
    root = os.path.dirname(os.path.abspath(config.config_file_path))
    for pattern in OUTSIDE:
        for path in sorted(glob.glob(os.path.join(root, pattern))):
            files.append(File.generated(config, os.path.relpath(path, root).replace(os.sep, "/"), abs_src_path=path))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points links from a top-level page at the place that their files have in the site."""
    if page.file.src_uri == "CHANGELOG.md":
        return markdown.replace("](docs/", "](")
    if "/" not in page.file.src_uri:
        return markdown.replace("](../", "](")
    return markdown
