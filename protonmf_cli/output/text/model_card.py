"""The card of a model on a hub: what it is, how exact, what of, how to use it, and what it does not say."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protonmf_cli.models.prototype import PrototypeModel

METHODS = {
    "protonmf": "the classifier `{network}`, with every logit split exactly into the contributions of {prototypes} "
    "prototypes (parts of training images), a residual and a bias",
    "protopnet": "a ProtoPNet on the features of `{network}`: {prototypes} prototypes, each a patch of a training image, "
    "and one linear layer from similarities to classes",
    "fewshot": "a few-shot classifier on the frozen features of `{network}`: {prototypes} soft prototypes, and one "
    "linear layer from matches to classes",
}
TAGS = {
    "protonmf": ("interpretability", "explainability", "prototypes", "post-hoc"),
    "protopnet": ("interpretability", "explainability", "prototypes", "protopnet"),
    "fewshot": ("interpretability", "explainability", "prototypes", "few-shot"),
}
CLASSES_NAMED = 30
"""With prototypes."""


def card_tags(model: "PrototypeModel") -> tuple[str, ...]:
    """What people look for on a hub."""
    return TAGS.get(model.card.method, TAGS["protonmf"][:3])


def card_body(
    model: "PrototypeModel", facts: Mapping[str, Any], lines: Mapping[str, str], *, repository: str, licence: str | None
) -> str:
    """The card in Markdown, without front matter.

    Args:
        model: of the file.
        facts: of `inspection_facts`.
        lines: of `inspection_lines`.
        repository: ORG/NAME.
        licence: of the network, where it is known.
    """
    parts = [
        f"# {repository.partition('/')[2]}",
        _what(model, facts),
        _use(repository),
        "## What is in it\n\n| | |\n|---|---|\n" + "\n".join(_rows(model, lines)),
        _classes(model),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(model, facts)),
        _licence(model, facts, licence),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(model: "PrototypeModel", facts: Mapping[str, Any]) -> str:
    card = model.card
    text = METHODS.get(card.method, "a prototype model of `{network}`, with {prototypes} prototypes")
    said = text.format(network=card.source.short_name, prototypes=facts["prototypes"])
    same = " What it answers is what the network answers." if card.method == "protonmf" and not card.edits else ""
    return f"This is {said}.{same} Made with protonmf."


def _use(repository: str) -> str:
    return f"""## How to use it

```sh
pip install protonmf
protonmf explain img.jpg --model hub:{repository}
```

```python
import protonmf_cli

model = protonmf_cli.load("hub:{repository}")
found = model.explain("img.jpg")
print(found.name, found.logit, [(c.owner_name, c.contribution) for c in found.contributions])
```"""


def _classes(model: "PrototypeModel") -> str:
    named = [model.card.classes[c].shown for c in model.active_classes.tolist()]
    more = f", and {len(named) - CLASSES_NAMED} more" if len(named) > CLASSES_NAMED else ""
    return f"Classes with prototypes: {', '.join(named[:CLASSES_NAMED])}{more}." if named else ""


def _limits(model: "PrototypeModel", facts: Mapping[str, Any]) -> list[str]:
    """What a reader of the explanations must know."""
    found = [
        "An explanation is an exact account of what the network computes for an image. It does not say that what it "
        "computes is right, or what it would do for other images.",
        "A prototype is what several training images have in common where the network looks; the words for it are its "
        "reader's.",
    ]
    if model.evidence.kind.adds_up:
        found.append(
            "What the prototypes do not carry of a logit is the residual, a number and a map without a prototype to look at."
        )
    without = facts["classes"] - facts["classes_with_prototypes"]
    if without:
        found.append(f"{without} of {facts['classes']} classes have no prototypes; their logits are unexplained.")
    if facts["unstable"]:
        found.append(
            f"{facts['unstable']} of {facts['prototypes']} prototypes are unstable: other halves of the training images "
            "give other ones."
        )
    if not model.card.readout.spatial:
        found.append("The network is read through one row per image, so that nothing can be placed in it.")
    if facts["examples"]:
        found.append(f"The file shows {facts['examples']} crops of training images, which whoever has it can see.")
    if model.card.edits:
        found.append(f"The head was edited by hand ({len(model.card.edits)} edits): it is not the network's own.")
    return found


def _licence(model: "PrototypeModel", facts: Mapping[str, Any], licence: str | None) -> str:
    inside = "are inside the file" if facts["backbone_embedded"] else "are loaded from where they were published"
    known = f"they are licensed as {licence}" if licence else "this card does not know their licence"
    return (
        f"## Licence\n\nThe weights of `{model.card.source.short_name}` {inside}; {known}. The training images that are "
        "shown have their own."
    )


def _rows(model: "PrototypeModel", lines: Mapping[str, str]) -> list[str]:
    """Lines of a table, without folders of the machine that the model was made on."""
    names = {card.source.name: card.source.short_name for card in (model.card, *model.card.members)}
    found = []
    for topic, said in lines.items():
        text = said.partition(", e.g. ")[0] if topic == "skipped" else said
        for name, short in names.items():
            text = text.replace(name, short)
        found.append(f"| {topic} | {text.replace('|', BAR)} |")
    return found


BAR = r"\|"
"""In the cell of a table."""
