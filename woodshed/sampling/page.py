"""A page to listen to samples side by side: one file beside the sounds, which asks nothing of any server."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from woodshed.storage import write_text

BASE = "base"
PAGE = "index.html"
_EPOCH = re.compile(r"epoch-(\d+)")


def version_folder(epoch: int) -> str:
    """Return the name of the folder that holds an epoch's samples; epoch 0 is the base model."""
    return f"epoch-{epoch}" if epoch else BASE


def versions(folder: Path, last_epoch: int) -> dict[str, str]:
    """Return what can be heard as folder -> label: the base model first, then the epochs up to one in their order."""
    found = [int(match[1]) for path in folder.glob("epoch-*") if (match := _EPOCH.fullmatch(path.name))]
    epochs = sorted(epoch for epoch in found if epoch <= last_epoch)
    return {BASE: "base model"} | {version_folder(epoch): f"epoch {epoch}" for epoch in epochs}


def write_page(folder: Path, titles: Mapping[str, str], last_epoch: int) -> None:
    """Write the page for the samples that are there.

    Args:
        folder: with a folder for each version.
        titles: what each file is, by its name, which is the same in every version.
        last_epoch: later ones are from before the run went back to a checkpoint, and are left out.
    """
    rows: list[dict[str, object]] = [
        {
            "title": title,
            "sounds": [
                {"label": label, "source": quote(f"{version}/{name}")}
                for version, label in versions(folder, last_epoch).items()
                if (folder / version / name).is_file()
            ],
        }
        for name, title in titles.items()
    ]
    write_text(folder / PAGE, _page(rows))


def _page(rows: list[dict[str, object]]) -> str:
    # "<" cannot end the script, nor begin anything else in it.
    data = json.dumps(rows, ensure_ascii=False).replace("<", "\\u003c")
    return _TEMPLATE.replace("{{DATA}}", data).replace("{{TITLE}}", html.escape("Samples while training"))


_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{TITLE}}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
  section { border-top: 1px solid #8884; padding: 0.5rem 0 1rem; }
  figure { display: inline-block; margin: 0.5rem 1rem 0.5rem 0; }
  figcaption { min-height: 1.5em; }
  button { font: inherit; margin-right: 0.5rem; }
</style>
<h1>{{TITLE}}</h1>
<p>The same words and the same noise each time: only the adapter differs.</p>
<p><button id="blind">Listen blind</button><button id="reveal" hidden>Reveal the names</button></p>
<div id="rows"></div>
<noscript>This page needs JavaScript; the sounds lie in the folders beside it.</noscript>
<script>
  "use strict";
  const rows = {{DATA}};
  function shuffled(list) {
    const copy = list.slice();
    for (let i = copy.length - 1; i > 0; i--) {
      const j = Math.floor(Math.random() * (i + 1));
      [copy[i], copy[j]] = [copy[j], copy[i]];
    }
    return copy;
  }
  function add(parent, kind, text) {
    const made = document.createElement(kind);
    if (text) made.textContent = text;
    parent.append(made);
    return made;
  }
  function draw(blind) {
    const place = document.getElementById("rows");
    place.replaceChildren();
    for (const row of rows) {
      const section = add(place, "section");
      add(section, "h2", row.title);
      const sounds = blind ? shuffled(row.sounds) : row.sounds;
      sounds.forEach((sound, index) => {
        const figure = add(section, "figure");
        const letter = "Version " + (index + 1);
        const caption = add(figure, "figcaption", blind ? letter : sound.label);
        caption.dataset.revealed = blind ? letter + ": " + sound.label : sound.label;
        const audio = add(figure, "audio");
        audio.controls = true;
        audio.preload = "none";
        audio.setAttribute("controlslist", "nodownload");
        audio.src = sound.source;
        audio.addEventListener("play", () => {
          for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
        });
      });
    }
    document.getElementById("reveal").hidden = !blind;
    document.getElementById("blind").textContent = blind ? "Shuffle again" : "Listen blind";
  }
  document.getElementById("blind").addEventListener("click", () => draw(true));
  document.getElementById("reveal").addEventListener("click", () => {
    for (const caption of document.querySelectorAll("figcaption")) caption.textContent = caption.dataset.revealed;
    document.getElementById("reveal").hidden = true;
  });
  draw(false);
</script>
</html>
"""
