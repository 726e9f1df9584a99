"""`protonmf name`: words for prototypes by towers whose vectors are known, kept as captions and taken away again."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

import pages
import protonmf_cli
import small_networks
import toys
from protonmf_cli.errors import InputError, ModelFileError, UsageError
from protonmf_cli.files.images.reader import crop_of_jpeg, encode_jpeg
from protonmf_cli.files.store import decision_digest, load_model, save_model
from protonmf_cli.jobs import naming
from protonmf_cli.models.card.names import NameFacts, PrototypeName
from protonmf_cli.pipelines.naming import cut_patch
from protonmf_cli.pipelines.protopnet.analyses import global_strips
from toys import run

NAME = PrototypeName(word="a", score=0.5, second="b", margin=0.1, share=0.5, patches=5)
COLOURS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 1.0, 0.1), "blue": (0.1, 0.1, 1.0), "grey": (1.0, 1.0, 1.0)}


class ColourTowers:
    """Pictures as their mean colour without its grey, words as colours: what a patch is called can be seen."""

    name, digest = "open_clip:colours", "c0ffee"

    def __init__(self, scale: float = 100.0) -> None:
        self.scale = scale
        self.seen: list[tuple[int, ...]] = []
        self.sentences: tuple[str, ...] = ()

    def see(self, patches: Sequence[Tensor]) -> Tensor:
        self.seen += [tuple(patch.shape) for patch in patches]
        return normalize(torch.stack([patch.float().mean(dim=(1, 2)) for patch in patches]), dim=1)

    def read(self, sentences: Sequence[str]) -> Tensor:
        self.sentences = tuple(sentences)
        words = [sentence.split()[-1].rstrip(".") for sentence in sentences]
        return normalize(torch.tensor([COLOURS[word] for word in words]), dim=1)


def named(model: Path, words: Sequence[str] = tuple(COLOURS), **more) -> naming.Naming:
    return naming.name(model, words, more.pop("tower", ColourTowers()), **more)


def by_hand(file: Path, prototype: int, words: Sequence[str]) -> dict[str, float]:
    """Mean cosine of each word with the mean colours of the squares around a prototype's patches."""
    model = load_model(file)[0]
    found = []
    for n in model.examples.of(prototype):
        picture = crop_of_jpeg(model.examples.picture(n), 3).double()
        left, top, right, bottom = model.examples.box[n].tolist()
        side = max(right - left, bottom - top, 32)
        y = min(max((top + bottom - side) // 2, 0), 64 - side)
        x = min(max((left + right - side) // 2, 0), 64 - side)
        colour = picture[:, y : y + side, x : x + side].mean(dim=(1, 2))
        found.append(
            [
                float(np.dot(colour.numpy(), COLOURS[w]) / float(colour.norm()) / np.linalg.norm(COLOURS[w]))
                for w in words
            ]
        )
    return dict(zip(words, np.mean(found, axis=0), strict=True))


def test_the_best_word_and_its_figures_are_what_a_hand_finds(converted):
    found, words = named(converted, min_margin=0.0), list(COLOURS)
    assert [fit.prototype_id for fit in found.fits] == found.model.parts == list(range(8)) and found.path is None
    for fit in found.fits:
        cosines = by_hand(converted, fit.prototype_id, words)
        best, second = sorted(words, key=cosines.get, reverse=True)[:2]
        near = fit.nearest
        assert (near.word, near.second, near.patches) == (best, second, len(found.model.examples.of(fit.prototype_id)))
        assert near.score == pytest.approx(cosines[best], abs=1e-5)
        assert near.margin == pytest.approx(cosines[best] - cosines[second], abs=1e-5)
        total = sum(math.exp(100 * (value - cosines[best])) for value in cosines.values())
        assert near.share == pytest.approx(1 / total, rel=1e-2)
        assert fit.named


def planted(source: Path, target: Path, flat: int) -> list[str]:
    """A model whose patches show a colour inside their boxes and another one around; those of one prototype are flat."""
    model, weights = load_model(source)
    examples, colours, jpegs, spans = model.examples, list(COLOURS)[:3], [], []
    for j in examples.prototype.tolist():
        pixels = np.full((64, 64, 3), 128, dtype=np.uint8)
        pixels[:] = np.array(COLOURS[colours[(j + 1) % 3]]) * 250
        pixels[8:56, 8:56] = np.array(COLOURS[colours[j % 3]]) * 200 if j != flat else 128
        jpegs.append(encode_jpeg(torch.from_numpy(pixels).permute(2, 0, 1)))
        start = sum(map(len, jpegs[:-1]))
        spans.append((start, start + len(jpegs[-1])))
    blob = torch.frombuffer(bytearray(b"".join(jpegs)), dtype=torch.uint8)
    boxes = torch.tensor([[16, 16, 48, 48]] * len(jpegs))
    shown = replace(examples, jpeg=blob, crop=torch.tensor(spans), box=boxes)
    save_model(target, replace(model, examples=shown), weights)
    return [colours[j % 3] for j in model.parts]


def test_planted_colours_inside_boxes_are_the_names_and_a_flat_patch_has_none(converted, tmp_path):
    truth = planted(converted, tmp_path / "planted.safetensors", flat=2)
    found = named(tmp_path / "planted.safetensors", ["red", "green", "blue"])
    for fit, word in zip(found.fits, truth, strict=True):
        assert fit.named == (fit.prototype_id != 2)
        assert not fit.named or fit.nearest.word == word
        assert fit.prototype_id != 2 or fit.nearest.margin < 1e-3
    assert "2" not in found.facts.prototypes and len(found.facts.prototypes) == len(truth) - 1


def test_edits_of_a_model_in_memory_are_kept(converted, toy, tmp_path):
    edited = protonmf_cli.load(converted).scale("red things", {1: 0.0})
    named(edited, min_margin=0.0, output=tmp_path / "named.safetensors")
    found = protonmf_cli.load(tmp_path / "named.safetensors")
    assert found.model.card.edits and found.model.card.names is not None
    assert found.explain(toy.image(0)).logit == pytest.approx(edited.explain(toy.image(0)).logit, abs=1e-4)


def test_only_words_with_a_margin_are_names(converted):
    all_margins = [fit.nearest.margin for fit in named(converted).fits]
    middle = sorted(all_margins)[len(all_margins) // 2]
    found = named(converted, min_margin=middle)
    assert [fit.named for fit in found.fits] == [margin >= middle for margin in all_margins]
    assert sorted(found.facts.prototypes) == sorted(str(f.prototype_id) for f in found.fits if f.named)
    assert not named(converted, min_margin=2.0).facts.prototypes
    usual = named(converted, tower=ColourTowers(scale=50.0)).facts.min_margin
    assert usual == pytest.approx(math.log(3) / 50)


def test_a_word_is_read_in_its_sentence(converted):
    towers = ColourTowers()
    named(converted, tower=towers, template="a thing that is {word}.")
    assert towers.sentences[:2] == ("a thing that is red.", "a thing that is green.")
    assert all(channels == 3 and 32 <= height <= 64 and height == width for channels, height, width in towers.seen)
    with pytest.raises(UsageError, match=r"has no \{word\} where a word goes"):
        named(converted, template="a photo")


def test_patches_are_squares_inside_the_picture():
    picture = torch.arange(100 * 80).reshape(1, 100, 80)
    for box, expected in {
        (0, 0, 80, 100): (100, 80),
        (0, 0, 10, 10): (32, 32),
        (70, 90, 80, 100): (32, 32),
        (10, 20, 70, 30): (60, 60),
    }.items():
        cut = cut_patch(picture, box)
        assert tuple(cut.shape[1:]) == expected
        for x, y in ((box[0], box[1]), (box[2] - 1, box[3] - 1)):
            assert int(picture[0, y, x]) in cut


# -- kept with the file --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_names(converted, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("named") / "named.safetensors"
    found = named(converted, min_margin=0.001, output=target)
    assert found.path == target and found.facts.prototypes
    return target


def test_names_are_kept_and_change_no_number(converted, with_names, toy):
    before, after = load_model(converted)[0], load_model(with_names)[0]
    assert decision_digest(before) == decision_digest(after)
    assert before.card.names is None and "names" not in before.card.as_json()
    names = after.card.names
    assert (names.tower, names.weights, names.template, names.words) == (
        "open_clip:colours", "c0ffee", "a photo of a {word}", 4,
    )  # fmt: skip
    assert names.vocabulary == hashlib.sha256(b"red\ngreen\nblue\ngrey\n").hexdigest()
    again = with_names.parent / "again.safetensors"
    save_model(again, after, load_model(with_names)[1])
    assert again.read_bytes() == with_names.read_bytes()
    one, other = (run("explain", toy.image(1), "--model", file, "--json") for file in (converted, with_names))
    one, other = json.loads(one[1]), json.loads(other[1])
    assert (one["logit"], one["residual"]) == (other["logit"], other["residual"])
    captions = [c.pop("caption", "") for c in other["contributions"]]
    assert any(captions) and other.pop("named_by").startswith("named by open_clip:colours")
    assert one["contributions"] == other["contributions"]


def test_captions_are_shown_with_their_source(with_names, toy, tmp_path):
    names = load_model(with_names)[0].card.names
    key, name = next(iter(names.prototypes.items()))
    caption = f"“{name.word}” {name.score:.2f}"
    model = load_model(with_names)[0]
    owner = model.card.classes[int(model.owner[int(key)])].label
    code, out, err = run("inspect", with_names, "--class", owner)
    assert code == 0, err
    assert f"prototype {model.number(int(key))} ({caption})" in out
    assert "named by open_clip:colours" in " ".join(out.split())
    index = model.card.classes.index(next(c for c in model.card.classes if c.label == owner))
    code, out, err = run("explain", toy.image(index), "--model", with_names, "--class", owner, "--top", 50)
    assert code == 0, err
    assert f"({caption})" in out and "named by open_clip:colours" in " ".join(out.split())


def test_a_page_shows_captions_with_their_source(browser, converted, toy, tmp_path):
    hostile = "<b>neck</b>"
    found = naming.name(converted, [hostile, "green"], TwoWords(), output=tmp_path / "named.safetensors")
    code, _, err = run("report", "--images", toy.image(1), "--model", found.path, "-o", tmp_path / "page.html")
    assert code == 0, err
    caption = f"(“{hostile}” 1.00)"
    with pages.opened(browser, tmp_path / "page.html") as page:
        assert "named by open_clip:two" in page.inner_text("#about")
        assert caption in page.locator("article.part").first.inner_text()
        page.evaluate("location.hash = '#gallery?open=1'")
        page.wait_for_selector("#shelf .prototype h4")
        assert caption in page.locator("#shelf .prototype h4").first.inner_text()


class TwoWords:
    """Towers to which every patch is the first word."""

    name, digest, scale = "open_clip:two", "2", 100.0

    def see(self, patches):
        return torch.tensor([[1.0, 0.0]]).expand(len(patches), 2)

    def read(self, sentences):
        return torch.eye(2)


def test_an_unnamed_file_has_no_captions(converted, toy):
    for words in (("inspect", converted, "--class", toys.LABELS[0]), ("explain", toy.image(0), "--model", converted)):
        assert "“" not in run(*words)[1] and "named by" not in run(*words)[1]


def test_edits_keep_names_and_new_prototypes_have_none(with_names, toy, tmp_path):
    target = tmp_path / "edited.safetensors"
    code, _, err = run("intervene", toy.image(0), "--zero", "1", "--model", with_names, "-o", target)
    assert code == 0, err
    assert load_model(target)[0].card.names == load_model(with_names)[0].card.names


def test_names_are_taken_away(converted, with_names, tmp_path):
    target = tmp_path / "bare.safetensors"
    code, out, err = run("name", with_names, "--drop", "-o", target, "--json")
    assert code == 0, err
    assert json.loads(out)["dropped"] == len(load_model(with_names)[0].card.names.prototypes)
    assert target.read_bytes() == converted.read_bytes()
    code, _, err = run("name", target, "--drop", "-o", tmp_path / "x.safetensors")
    assert (code, "holds no names" in err) == (3, True)
    code, _, err = run("name", with_names, "--drop")
    assert (code, "--drop wants -o FILE" in err) == (2, True)
    code, _, err = run("name", with_names, "--drop", "--tower", "x", "-o", tmp_path / "x.safetensors")
    assert (code, "leave out --tower" in err) == (2, True)
    words = ("--template", "a {word}", "-o", tmp_path / "x.safetensors")
    code, _, err = run("name", with_names, "--drop", *words)
    assert (code, "leave out --template" in err) == (2, True)


# -- open_clip -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> Path:
    """A small CLIP with drawn weights, in a folder as open_clip keeps models."""
    return small_networks.clip_folder(tmp_path_factory.mktemp("tower"))


@pytest.fixture
def words(tmp_path) -> Path:
    file = tmp_path / "words.txt"
    file.write_text("red\ngreen\n\nblue\ngrey\n", encoding="utf-8")
    return file


def by_open_clip(file: Path, tower: Path, words: Sequence[str], template: str) -> Tensor:
    """(P, V) mean cosines by open_clip's own functions alone."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tower}")
    tokens = open_clip.get_tokenizer("tiny-clip")([template.format(word=word) for word in words])
    stored, found = load_model(file)[0], []
    with torch.no_grad():
        texts = model.eval().encode_text(tokens, normalize=True)
        for j in stored.parts:
            pictures = []
            for n in stored.examples.of(j):
                picture = crop_of_jpeg(stored.examples.picture(n), 3)
                patch = cut_patch(picture, stored.examples.box[n].tolist())
                pictures.append(transform(Image.fromarray(patch.permute(1, 2, 0).contiguous().numpy())))
            found.append((model.encode_image(torch.stack(pictures), normalize=True) @ texts.T).mean(dim=0))
    return torch.stack(found)


def test_towers_of_a_folder_are_those_of_open_clip(converted, tower, words, tmp_path):
    target = tmp_path / "named.safetensors"
    code, out, err = run(
        "name", converted, "--vocabulary", words, "--tower", tower, "--min-margin", 0, "-o", target, "--json"
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["schema"] == "protonmf.names/1" and report["output"] == str(target)
    assert report["source"]["tower"] == f"open_clip:local-dir:{tower}" and len(report["source"]["weights_sha256"]) == 64
    expected = by_open_clip(converted, tower, list(COLOURS), "a photo of a {word}")
    for row, cosines in zip(report["prototypes"], expected, strict=True):
        best, second = cosines.topk(2).indices.tolist()
        assert row["name"] == row["nearest"]["word"] == list(COLOURS)[best]
        assert row["nearest"]["score"] == pytest.approx(float(cosines[best]), abs=2e-3)
        assert row["nearest"]["margin"] == pytest.approx(float(cosines[best] - cosines[second]), abs=2e-3)
    code, out, err = run("name", converted, "--vocabulary", words, "--tower", f"open_clip:local-dir:{tower}")
    assert code == 0 and ("have a name" in out or "has a name" in out)
    assert not list(tmp_path.glob(".*"))


def test_weights_of_an_architecture_are_given_in_a_file(converted, tower, words, tmp_path):
    small_networks.clip(tmp_path)
    named_by = ("--tower", "open_clip:tiny-clip", "--weights", tower / "open_clip_pytorch_model.bin")
    code, out, err = run("name", converted, "--vocabulary", words, *named_by, "--json")
    assert code == 0, err
    code, other, _ = run("name", converted, "--vocabulary", words, "--tower", tower, "--json")
    assert json.loads(out)["source"]["weights_sha256"] == json.loads(other)["source"]["weights_sha256"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty; it wants a word on each line"),
        (b"\n  \n", "is empty; it wants a word on each line"),
        (b"red\n", "holds one word alone, 'red'"),
        (b"red\nred\n", "holds one word alone, 'red'"),
        (b"red\nr\xf6t\n", "is not UTF-8 text (line 2)"),
        (b"red\nb\x1b[31mlue\n", "which is no word"),
    ],
)  # fmt: skip
def test_bad_vocabularies(converted, tower, tmp_path, content, sentence):
    (tmp_path / "words.txt").write_bytes(content)
    target = tmp_path / "x.safetensors"
    code, _, err = run("name", converted, "--vocabulary", tmp_path / "words.txt", "--tower", tower, "-o", target)
    assert (code, sentence in " ".join(err.split())) == (3, True), err
    assert not target.exists()


def test_repeated_words_count_once_and_say_so(converted, tower, tmp_path):
    (tmp_path / "words.txt").write_text("red\nblue\nred\n")
    code, out, err = run("name", converted, "--vocabulary", tmp_path / "words.txt", "--tower", tower, "--json")
    assert code == 0 and "1 repeated word of the vocabulary count" in " ".join(err.split())
    assert json.loads(out)["source"]["words"] == 2


def test_what_is_missing_is_named(converted, tower, words, tmp_path, monkeypatch):
    target = tmp_path / "x.safetensors"
    for given, code, sentence in (
        (("--tower", tower), 2, "give --vocabulary FILE and --tower NAME"),
        (("--vocabulary", words), 2, "give --vocabulary FILE and --tower NAME"),
        (("--vocabulary", tmp_path / "no.txt", "--tower", tower), 3, "no.txt cannot be read"),
        (("--vocabulary", words, "--tower", tmp_path), 2, "is neither open_clip:ARCHITECTURE:TAG nor a folder"),
        (("--vocabulary", words, "--tower", "open_clip:RN99:openai"), 2, "no network called 'RN99'"),
        (("--vocabulary", words, "--tower", "open_clip:RN50"), 2, "or give --weights FILE"),
        (("--vocabulary", words, "--tower", "open_clip:RN50:openai", "--offline"), 3, "are not on this machine"),
    ):
        found, _, err = run("name", converted, *given, "-o", target)
        assert (found, sentence in " ".join(err.split())) == (code, True), err
    assert not target.exists()
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    found, _, err = run("name", converted, "--vocabulary", words, "--tower", tower)
    assert found == 2 and "pip install 'protonmf[open_clip]'" in err


def test_a_folder_without_weights_is_refused(converted, tower, words, tmp_path):
    (tmp_path / "open_clip_config.json").write_bytes((tower / "open_clip_config.json").read_bytes())
    code, _, err = run("name", converted, "--vocabulary", words, "--tower", tmp_path)
    assert code == 3 and "weights" in err


def test_outputs_are_not_replaced_and_not_the_model(converted, tower, words, tmp_path):
    given = ("--vocabulary", words, "--tower", tower)
    code, _, err = run("name", converted, *given, "-o", converted)
    assert code == 2 and "must not be the model" in err
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"mine")
    code, _, err = run("name", converted, *given, "-o", target)
    assert code == 3 and "--force" in err and target.read_bytes() == b"mine"
    assert run("name", converted, *given, "-o", target, "--force")[0] == 0
    assert load_model(target)[0].card.names is not None


def test_a_model_without_patches_is_refused(converted, tmp_path):
    model, weights = load_model(converted)
    examples = model.examples
    bare = replace(
        examples, prototype=examples.prototype[:0], score=examples.score[:0], box=examples.box[:0],
        map=examples.map[:0], crop=examples.crop[:0], jpeg=examples.jpeg[:0], sources=(),
    )  # fmt: skip
    save_model(tmp_path / "bare.safetensors", replace(model, examples=bare), weights)
    with pytest.raises(ModelFileError, match="holds no training patches, so there is nothing to name"):
        named(tmp_path / "bare.safetensors")


def test_damaged_towers_are_refused(converted):
    class Bad(ColourTowers):
        def see(self, patches):
            return super().see(patches) * math.nan

    with pytest.raises(InputError, match="no finite number"):
        named(converted, tower=Bad())


@pytest.mark.parametrize(
    ("prototypes", "sentence"),
    [
        ({"99": NAME}, "there is no prototype '99', which it names"),
        ({"-1": NAME}, "there is no prototype '-1', which it names"),
        ({"0": replace(NAME, word="a\x1b[2J")}, "the name of prototype 0 cannot be shown"),
        ({"0": {"word": 5}}, "prototypes.0"),
    ],
)  # fmt: skip
def test_names_that_fit_no_model_are_refused(converted, tmp_path, prototypes, sentence):
    model, weights = load_model(converted)
    facts = NameFacts(
        tower="x", weights="x", template="{word}", vocabulary="x", words=2, min_margin=0.0, prototypes=prototypes
    )
    save_model(tmp_path / "x.safetensors", replace(model, card=replace(model.card, names=facts)), weights)
    code, _, err = run("inspect", tmp_path / "x.safetensors")
    assert (code, sentence in " ".join(err.split())) == (3, True), err


def test_names_stand_in_galleries(converted):
    model = named(converted, min_margin=0.0).model
    strips, _ = global_strips(model, 0)
    assert [strip.words[0] for strip in strips] == [model.caption(j) for j in model.own(0)]
    assert all("“" in strip.words[0] for strip in strips)
