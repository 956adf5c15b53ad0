"""What each matrix has become: how far it turned, and the spectrum of its change.

Of a low-rank branch this is read through its factors; of a weight that trained itself (full fine-tuning, FT‡) from
the two matrices, before and after. Taught in 05.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import measure
from .adapters import Adapters
from .sites import ARCHITECTURES, find_sites, matrix_of

Measured = tuple[str, str, float]   # site, name, value
KEPT = 64                           # singular values


def site_measures(adapters: Adapters) -> list[Measured]:
    """Of every matrix that could change: cosine to its start; norm, ranks and spectrum of its change."""
    out: list[Measured] = []
    for name, branch in adapters.items():
        pretrained = adapters.owner(name).pretrained_of(name).float()
        if branch.drift is not None:
            delta = branch.delta().float()
            sigma, cosine = torch.linalg.svdvals(delta), measure.cosine(pretrained, pretrained + delta)
        else:
            left, right = branch.factors()
            sigma = measure.singular_values(left, right)
            cosine = measure.cosine_update(pretrained, left, right)
        out += [*_shared(name, cosine, sigma), (name, "rank", float(branch.r))]
    for name, (W, left, right) in adapters.rule.own_updates().items():
        out += [*_shared(name, measure.cosine_update(W, left, right), measure.singular_values(left, right)),
                (name, "rank", float(left.shape[1]))]
    for name, before, after in trained_weights(adapters):
        out += _shared(name, measure.cosine(before, after), torch.linalg.svdvals(after - before))
    return out


def trained_weights(adapters: Adapters) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(site, W before, W after), both (d, k) in float32, of the matrices of a known architecture that train whole."""
    if not adapters.base_names or getattr(adapters.model.config, "model_type", None) not in ARCHITECTURES:
        return
    still = adapters.rule.still_sites()
    for site in find_sites(adapters.model):
        weight = f"{site.path}.weight"
        if weight in adapters.base_names and site not in still:
            pair = matrix_of(adapters.model, site, adapters.start_of(weight)), matrix_of(adapters.model, site)
            before, after = (w.float() for w in pair)
            yield site.name, before, after


def _shared(name: str, cosine: float, sigma: Tensor) -> list[Measured]:
    spectrum = [(name, f"sigma.{i}", float(value)) for i, value in enumerate(sigma[:KEPT])]
    return [(name, "cosine", cosine), (name, "effective_rank", measure.effective_rank(sigma)),
            (name, "norm", float(sigma.square().sum().sqrt())), *spectrum]
