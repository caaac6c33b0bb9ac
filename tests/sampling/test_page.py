"""The page to listen to samples: sound as a document, and in a real browser where there is one."""

import json
import re
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from woodshed.sampling.page import set_aside_later, write_page
from woodshed.sampling.waveform import write_sound

VERSIONS = {"base": "base model", "epoch-2": "epoch 2", "epoch-10": "epoch 10"}
SONGS = {"1-a-song.wav": "a <b>song</b> & {{DATA}}", "2-größe.flac": "größe"}
SECONDS = 2.0


@pytest.fixture
def folder(tmp_path):
    """Samples of two songs in three versions, and their page; the first song falls silent after half of it."""
    for number, version in enumerate(VERSIONS):
        for name in SONGS:
            time = torch.arange(round(48_000 * SECONDS)) / 48_000
            wave = 0.3 * torch.sin(2 * torch.pi * 220 * (number + 1) * time)
            write_sound(tmp_path / "a run" / version / name, wave.expand(2, -1))
    write_page(tmp_path / "a run", SONGS, 10, about="a run & more", belongs=Path.is_file)
    return tmp_path / "a run"


class Document(HTMLParser):
    """Every tag with its attributes, and what stands between the tags."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "br", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def read(folder):
    text = (folder / "index.html").read_text(encoding="utf-8")
    return text, Document(text)


def test_the_document_is_whole_and_asks_nothing_of_any_server(folder):
    text, document = read(folder)
    assert not document.open
    assert not re.search(r"https?:|//\w|<link|@import|url\(", text.replace("// Play", "").replace("// somebody", ""))
    assert not [tag for tag, given in document.tags if {"src", "href", "srcset", "action"} & set(given)]
    assert ("html", {"lang": "en"}) in document.tags
    assert document.texts["title"] == document.texts["h1"] == ["Samples while training"]


def test_every_version_of_every_song_is_there_and_its_file_exists(folder):
    _, document = read(folder)
    songs = json.loads(document.texts["script"][0])
    assert [song["title"] for song in songs] == list(SONGS.values())
    for song in songs:
        assert [sound["label"] for sound in song["sounds"]] == list(VERSIONS.values())
        assert all((folder / unquote(sound["source"])).is_file() for sound in song["sounds"])
        assert all(sound["source"].isascii() for sound in song["sounds"])


def test_the_script_closes_what_it_opens_and_finds_what_it_looks_for(folder):
    text, document = read(folder)
    script = document.texts["script"][1]
    without_text = re.sub(r'"[^"\n]*"|//[^\n]*', "", script)
    for one, other in ("()", "[]", "{}"):
        assert without_text.count(one) == without_text.count(other)
    asked = re.findall(r'getElementById\("([^"]+)"\)', script)
    assert set(asked) <= {given.get("id") for _, given in document.tags}
    assert "{{" not in text.replace("{{DATA}}", "", 1)  # but for the one in a song's title


@pytest.mark.parametrize("title", ["</script><script>alert(1)", "<!--<script>", "\u2028'\"\\"])
def test_a_title_can_be_anything_and_stays_text(tmp_path, title):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "1-x.wav").touch()
    write_page(tmp_path, {"1-x.wav": title}, 0, about="</p><script>alert(2)</script>", belongs=Path.is_file)
    text, document = read(tmp_path)
    assert len(document.texts["script"]) == 2
    assert json.loads(document.texts["script"][0])[0]["title"] == title
    assert "alert(2)</script>" not in text


def test_only_files_that_belong_and_epochs_up_to_the_last_are_listed_in_order(tmp_path):
    for version in ("base", "epoch-2", "epoch-10", "epoch-30", "epoch-2-superseded-1", "epoch-x"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "1-x.wav").touch()
    write_page(tmp_path, {"1-x.wav": "x", "2-y.wav": "gone"}, 10, about="", belongs=Path.is_file)
    (song,) = json.loads(read(tmp_path)[1].texts["script"][0])
    assert [sound["label"] for sound in song["sounds"]] == ["base model", "epoch 2", "epoch 10"]
    write_page(tmp_path, {"1-x.wav": "x"}, 10, about="", belongs=lambda path: path.parent.name != "epoch-2")
    (song,) = json.loads(read(tmp_path)[1].texts["script"][0])
    assert [sound["label"] for sound in song["sounds"]] == ["base model", "epoch 10"]


def test_what_was_made_after_the_place_where_a_run_continues_is_set_aside_and_nothing_is_lost(tmp_path):
    for version in ("base", "epoch-2", "epoch-3", "epoch-10", "epoch-10-superseded-1"):
        (tmp_path / version).mkdir()
    renamed = set_aside_later(tmp_path, 2)
    assert [path.name for path in renamed] == ["epoch-10-superseded-2", "epoch-3-superseded-1"]
    assert len(list(tmp_path.iterdir())) == 5
    assert set_aside_later(tmp_path, 2) == []


# In a real browser ---------------------------------------------------------------------------------------------------


def load_driver():
    spec = spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DRIVER = load_driver()
needs_browser = pytest.mark.skipif(DRIVER.find_browser() is None, reason="there is no Chromium or Chrome on the PATH")


@pytest.fixture
def browser(folder, tmp_path):
    with DRIVER.Browser(DRIVER.find_browser(), tmp_path / "profile") as opened:
        opened.open(folder / "index.html")
        yield opened
        assert not opened.complaints
        # The browser draws its own player with pictures that it holds itself.
        outside = [url for url in opened.requests if not url.startswith(("file:", "about:", "data:image/"))]
        assert outside == []


PLAYED = """new Promise((done, fail) => {
  const audio = document.querySelectorAll("audio")[%d];
  const until = Date.now() + 20000;
  audio.play().catch(fail);
  (function look() {
    if (audio.currentTime > %f) done(audio.currentTime);
    else if (Date.now() > until) fail(new Error("it stands at " + audio.currentTime));
    else setTimeout(look, 20);
  })();
})"""
LABELS = "[...document.querySelectorAll('label span')].map(span => span.textContent)"
SOURCES = "[...document.querySelectorAll('audio')].map(audio => decodeURI(audio.src))"


def click(browser, text):
    browser.run(f"[...document.querySelectorAll('button')].find(b => b.textContent === {json.dumps(text)}).click()")


@needs_browser
@pytest.mark.slow
def test_the_sounds_play_from_a_file_address_one_at_a_time(browser, folder):
    assert browser.run(PLAYED % (0, 0.2)) > 0.2
    assert browser.run("document.querySelector('audio').duration") == pytest.approx(SECONDS, abs=0.01)
    browser.run(PLAYED % (1, 0.1))
    assert browser.run("[...document.querySelectorAll('audio')].map(audio => audio.paused)") == [True, False]
    assert browser.run(SOURCES)[0] == (folder / "base" / "1-a-song.wav").as_uri().replace("%20", " ")
    assert len([url for url in browser.requests if url.endswith((".wav", ".flac"))]) >= 2


@needs_browser
@pytest.mark.slow
def test_another_version_goes_on_where_the_one_before_it_stands(browser):
    browser.run(PLAYED % (0, 0.5))
    browser.run("document.querySelectorAll('input')[2].click()")
    browser.run("new Promise(done => document.querySelector('audio').addEventListener('seeked', done, {once: true}))")
    assert browser.run(SOURCES)[0].endswith("epoch-10/1-a-song.wav")
    assert browser.run("document.querySelector('audio').currentTime") >= 0.5
    assert browser.run("document.querySelector('audio').paused") is False
    browser.run("document.querySelectorAll('input')[4].click()")
    browser.run("new Promise(done => setTimeout(done, 200))")
    assert browser.run("document.querySelectorAll('audio')[1].paused") is True  # what did not play stays silent
    assert browser.spoken("Audio")[0] == f"{SONGS['1-a-song.wav']}, epoch 10"


@needs_browser
@pytest.mark.slow
def test_blind_names_nothing_until_it_is_revealed_and_the_favourite_is_counted(browser):
    assert browser.run(LABELS) == list(VERSIONS.values()) * 2
    seen = set()
    for _ in range(80):  # by chance, one version never comes first in one of 10^14 runs
        if len(seen) == len(VERSIONS):
            break
        click(browser, "Shuffle again" if seen else "Listen blind")
        assert browser.run(LABELS) == ["A", "B", "C"] * 2
        assert "epoch" not in browser.run("document.body.innerText")
        seen.add(browser.run(SOURCES)[0])
    assert len(seen) == len(VERSIONS)  # every version comes first at times
    click(browser, "I like this one best")
    first = browser.run(SOURCES)[0].split("/")[-2]
    click(browser, "Reveal the names")
    assert browser.run(LABELS)[0] == f"A = {VERSIONS[first]}"
    assert browser.run("document.getElementById('verdict').textContent") == f"You liked best: {VERSIONS[first]} (1)"
    click(browser, "Show in order")
    assert browser.run(LABELS) == list(VERSIONS.values()) * 2


@needs_browser
@pytest.mark.slow
def test_everything_has_a_name_for_who_cannot_see_and_a_contrast_for_who_can(browser):
    assert browser.spoken("radio") == list(VERSIONS.values()) * 2
    assert browser.spoken("button")[:1] == ["Listen blind"]
    assert browser.spoken("heading") == ["Samples while training", *SONGS.values()]
    pages = set()
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        pages.add(browser.run("getComputedStyle(document.body).backgroundColor"))
        for ink, paper in (("ink", "page"), ("quiet", "page"), ("ink", "card"), ("on-accent", "accent")):
            assert contrast(*(browser.run(COLOUR % name) for name in (ink, paper))) > 4.5
    assert len(pages) == 2


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 1200])
def test_no_width_makes_the_page_scroll_sideways(browser, width):
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    assert browser.run("document.documentElement.scrollWidth") <= width


@needs_browser
@pytest.mark.slow
def test_a_sound_that_is_gone_is_said_to_be(folder, tmp_path):
    (folder / "epoch-2" / "1-a-song.wav").unlink()
    with DRIVER.Browser(DRIVER.find_browser(), tmp_path / "profile") as opened:
        opened.open(folder / "index.html")
        opened.run("document.querySelectorAll('input')[1].click()")
        opened.run(
            "new Promise(done => { (function look() { document.querySelector('[role=alert]').textContent "
            "? done() : setTimeout(look, 20); })(); })"
        )
        assert "its file is gone" in opened.run("document.body.innerText")


COLOUR = """(() => {
  const dot = document.createElement("i");
  dot.style.color = "var(--%s)";
  document.body.append(dot);
  const found = getComputedStyle(dot).color.match(/\\d+/g).map(Number);
  dot.remove();
  return found;
})()"""


def contrast(one, other):
    """Return the contrast of two colours as WCAG 2 defines it."""

    def luminance(colour):
        shares = [value / 255 for value in colour]
        red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
