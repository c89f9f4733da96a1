"""A hook of MkDocs that shows `tutorial.ipynb`, with the output that it holds, as the page `tutorial.md`.

It reads the notebook's JSON alone. So the site needs no Jupyter, executes nothing, and loads no script from elsewhere.
"""

from __future__ import annotations

import base64
import json
from typing import Any

NAME = "tutorial"


def to_markdown(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by the names that the Markdown has for them."""
    blocks = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
            continue
        blocks.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if "text" in output:
                blocks.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif "image/png" in output.get("data", {}):
                picture = f"{name}-{len(pictures) + 1}.png"
                pictures[picture] = base64.b64decode("".join(output["data"]["image/png"]))
                blocks.append(f"![The picture that this code draws]({picture})")
    blocks.insert(1, f"[Download the notebook]({name}.ipynb)")
    return "\n\n".join(blocks) + "\n", pictures


def on_files(files: Any, config: Any) -> Any:
    """Add the page and its pictures to the files of the site."""
    from mkdocs.structure.files import File

    text, pictures = to_markdown(json.loads(files.get_file_from_path(f"{NAME}.ipynb").content_string), NAME)
    files.append(File.generated(config, f"{NAME}.md", content=text))
    for picture, data in pictures.items():
        files.append(File.generated(config, picture, content=data))
    return files
