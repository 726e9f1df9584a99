"""What the script of a page works on of an audit. js/data.js says what each value is, under the same names."""

from collections.abc import Mapping
from typing import Any

from protonmf_cli.models.audit import Candidate, Need, Pasted, Share, Transplant
from protonmf_cli.models.page import AuditPart
from protonmf_cli.output.page.pictures import Pictures


def audit_data(part: AuditPart | None, place: Mapping[int, int], pictures: Pictures) -> dict[str, Any] | None:
    """The ranking, and of the prototypes that are shown with pictures what was pasted.

    Args:
        part: of the report.
        place: number of each prototype on the page.
        pictures: takes what is shown.
    """
    if part is None:
        return None
    audit = part.audit
    groups = audit.groups or {}
    return {
        "images": audit.images,
        "accuracy": audit.accuracy,
        "groups": [[name, images, accuracy] for name, (images, accuracy) in groups.items()],
        "notes": list(audit.notes),
        "data": list(part.data),
        "ranked": [_candidate(candidate, part, place, pictures) for candidate in audit.candidates],
    }


def _candidate(candidate: Candidate, part: AuditPart, place: Mapping[int, int], pictures: Pictures) -> dict[str, Any]:
    regions = part.regions.get(candidate.prototype_id)
    found: dict[str, Any] = {
        "j": place[candidate.prototype_id],
        "score": round(candidate.score, 4),
        "shortcut": candidate.is_shortcut,
        "reason": candidate.reason,
        "transplant": candidate.transplant and _transplant(candidate.transplant),
        "need": candidate.need and _need(candidate.need),
        "outside": candidate.outside,
        "signs": [sign.words for sign in candidate.signs],
    }
    if regions is None:
        return found
    chosen = candidate.pasted[: pictures.detail.pairs]
    return found | {"regions": [list(each) for each in regions], "pasted": [_pasted(one, pictures) for one in chosen]}


def _transplant(transplant: Transplant) -> dict[str, Any]:
    return {
        "flips": _share(transplant.flips),
        "elsewhere": _share(transplant.elsewhere),
        "siblings": _share(transplant.siblings),
        "left": _share(transplant.left),
        "recoloured": _share(transplant.recoloured),
        "recolouredLeft": _share(transplant.recoloured_left),
        "byColours": transplant.by_colours,
    }


def _share(share: Share) -> list[float]:
    return [share.hits, share.trials, round(share.low, 4), round(share.high, 4)]


def _need(need: Need) -> dict[str, Any]:
    return {
        "own": _pair(need.own),
        "probability": _pair(need.probability),
        "everything": _pair(need.everything),
        "images": need.images,
        "worst": need.worst_group and _pair(need.worst_group),
    }


def _pair(pair: tuple[float, float]) -> list[float]:
    return [round(value, 4) for value in pair]


def _pasted(pasted: Pasted, pictures: Pictures) -> dict[str, Any]:
    return {
        "path": pasted.path,
        "target": pasted.target,
        "before": pasted.before,
        "after": pasted.after,
        "pictures": [pictures.pasted(pasted.host), pictures.pasted(pasted.changed)],
    }
