"""Rivals that factorise rows: CRAFT and ICE (scikit-learn), and overcomplete's NMF and semi-NMF."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from importlib import import_module
from types import ModuleType

import matplotlib as mpl
import torch
from sklearn.decomposition import NMF
from torch import Tensor

from .features import Images, Network, drawn_rows, first_of_each
from .measures import Dictionary, Explainer

SWEEPS, CHANGE, AT_ONCE = 50, 1e-3, 2048
MOST_ROWS = 10_000
"""Rows that a dictionary of all classes is fitted on, drawn with the seed."""
CLIPPED = "rows clipped at zero"


def signed(images: Images) -> bool:
    """Whether rows have negative numbers."""
    return bool((images.rows[:8] < 0).any())


def summed(encode: Callable[[Tensor], Tensor], images: Images, rows_at_once: int = 8192) -> Tensor:
    """(N, K) codes of rows, added up over the places of each image."""
    count, places, width = images.rows.shape
    at_once = max(1, rows_at_once // places)
    parts = [encode(rows.reshape(-1, width)).reshape(len(rows), places, -1) for rows in images.rows.split(at_once)]
    return torch.cat([part.sum(dim=1) for part in parts]).float()


def codes_from_products(products: Tensor, gram: Tensor) -> Tensor:
    """(N, K) codes >= 0 of least squares of rows on atoms, from rows . atoms (N, K) and atoms . atoms (K, K).

    Coordinate descent, all rows at once, until no sweep changes a code by more than `CHANGE` of its atom's largest.
    """
    wanted = products.mT.contiguous()
    codes = torch.zeros_like(wanted)
    size = gram.diagonal().clamp_min(1e-12)
    for _ in range(SWEEPS):
        before = codes.clone()
        for k in range(len(gram)):
            codes[k] = (codes[k] + (wanted[k] - gram[k] @ codes) / size[k]).clamp_min_(0)
        if float((codes - before).abs().amax(dim=1).div(codes.amax(dim=1).clamp_min(1e-12)).max()) <= CHANGE:
            break
    return codes.mT


class NonNegative:
    """Codes >= 0 of images in several dictionaries; the rows are passed over once for all of them."""

    def __init__(self, atoms: Mapping[int, Tensor], clip: bool) -> None:
        self.atoms, self.clip = atoms, clip
        self.kept: tuple[Images, Mapping[int, Tensor]] | None = None

    def codes(self, which: int, images: Images) -> Tensor:
        """(N, K) codes in one of the dictionaries, summed over places."""
        if self.kept is None or self.kept[0] is not images:
            self.kept = images, self._all(images)
        return self.kept[1][which]

    def _all(self, images: Images) -> dict[int, Tensor]:
        stacked = torch.cat(list(self.atoms.values()))
        sizes = [len(each) for each in self.atoms.values()]
        places = images.rows.shape[1]
        found: dict[int, list[Tensor]] = {which: [] for which in self.atoms}
        for rows in images.rows.split(max(1, AT_ONCE // places)):
            flat = rows.flatten(0, 1)
            products = (flat.clamp_min(0) if self.clip else flat) @ stacked.mT
            for (which, atoms), own in zip(self.atoms.items(), products.split(sizes, dim=1), strict=True):
                codes = codes_from_products(own.contiguous(), atoms @ atoms.mT)
                found[which].append(codes.reshape(len(rows), places, -1).sum(dim=1))
        return {which: torch.cat(parts) for which, parts in found.items()}


def linear(network: Network, atoms: Tensor, encode: Callable[[Images], Tensor]) -> Dictionary:
    """Concepts whose rebuilt rows the network's own head reads: logits = V (codes . atoms) + offset."""
    return Dictionary(atoms=atoms, weights=network.vectors @ atoms.mT, offset=network.offset, encode=encode)


def shared(network: Network, dictionary: Dictionary, said: str = "") -> Explainer:
    """One dictionary for all classes."""
    return Explainer(by_class=dict.fromkeys(network.classes, dictionary), said=said)


def said_of(network: Network, *more: str) -> str:
    """What is clipped, and more."""
    return "; ".join([*([CLIPPED] if signed(network.train) else []), *(each for each in more if each)])


# CRAFT (Fel et al. 2023, CVPR) and ICE (Zhang et al. 2021)


@lru_cache(maxsize=1)
def fitted_classes(network: Network, prototypes: int, seed: int) -> dict[int, NMF]:
    """Class -> scikit-learn's NMF of its rows, called as craft-xai 0.0.3 and ICE's reducer call it."""
    found = {}
    for c in network.classes:
        rows = network.train.rows[network.train.labels == c].flatten(0, 1).clamp_min(0)
        found[c] = NMF(n_components=prototypes, random_state=seed).fit(rows.numpy())
    return found


@lru_cache(maxsize=1)
def craft(network: Network, prototypes: int, seed: int) -> Explainer:
    """CRAFT or ICE: each class's own concepts W; its logit is h(U W), h the head and U >= 0 the codes of the rows.

    Readings: the rows before pooling stand where CRAFT has the activations of crops (ICE factorises rows as here).
    Both papers rebuild one class at a time, so every class's logit comes from its own W. The last layer is linear, so
    ICE's linear approximation of h is h itself, and a concept's importance is its contribution.
    """
    reducers = fitted_classes(network, prototypes, seed)
    return of_classes(network, {c: torch.from_numpy(found.components_) for c, found in reducers.items()}, "")


def of_classes(network: Network, atoms: Mapping[int, Tensor], said: str) -> Explainer:
    """Each class's own concepts (p, D) >= 0, whose codes are found class by class."""
    coder = NonNegative(atoms, clip=True)
    by_class = {c: linear(network, own, partial(coder.codes, c)) for c, own in atoms.items()}
    return Explainer(by_class=by_class, said=said_of(network, said))


@lru_cache(maxsize=1)
def united(network: Network, explainer: Explainer) -> Explainer:
    """The concepts of all classes in one dictionary, whose codes are found together: more than the papers do."""
    return of_all(network, explainer.atoms, clip=True, said=explainer.said)


def of_all(network: Network, atoms: Tensor, *, clip: bool, said: str) -> Explainer:
    """One dictionary (K, D), whose codes >= 0 are those of least squares."""
    coder = NonNegative({0: atoms}, clip=clip)
    return shared(network, linear(network, atoms, partial(coder.codes, 0)), said)


def least_squares(network: Network, explainer: Explainer) -> Explainer:
    """One dictionary with a head of its own: least squares of the network's logits on the codes of training images, 20
    of each class."""
    known = next(iter(explainer.by_class.values()))
    train = network.train.of(first_of_each(network.train.labels, 20))
    codes = known.encode(train).double()
    design = torch.cat([codes, torch.ones(len(codes), 1, dtype=codes.dtype)], dim=1)
    fitted = torch.linalg.lstsq(design, train.logits.double(), driver="gelsd").solution.float()
    dictionary = Dictionary(atoms=known.atoms, weights=fitted[:-1].mT, offset=fitted[-1], encode=known.encode)
    return shared(network, dictionary, explainer.said)


# overcomplete (Fel et al. 2025): one dictionary for all classes


def import_overcomplete(module: str) -> ModuleType:
    """One of its modules; version 0.3 asks for what older versions of matplotlib had.

    Raises:
        ImportError: it is not installed.
    """
    mpl.cm.get_cmap = mpl.colormaps.get_cmap
    return import_module(f"overcomplete.{module}")


def overcomplete(network: Network, prototypes: int, seed: int, kind: str) -> Explainer:
    """NMF (its HALS, which starts from NNDSVDa) or semi-NMF (its multiplicative updates, random start).

    As many concepts as all classes have prototypes; the library's own options but 100 iterations. Codes are those of
    its `encode`, the least squares for fixed concepts, but exact instead of after 300 iterations.
    """
    optimization = import_overcomplete("optimization")
    rows, semi = drawn_rows(network.train, MOST_ROWS, seed), kind == "SemiNMF"
    torch.manual_seed(seed)
    model = getattr(optimization, kind)(prototypes * len(network.classes))
    model.fit(rows if semi else rows.clamp_min(0), max_iter=100)

    atoms = model.get_dictionary().detach().float()
    return of_all(network, atoms, clip=not semi, said="" if semi else said_of(network))
