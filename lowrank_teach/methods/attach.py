"""What a rule may put on a model besides low-rank branches: modules of its own, or a library's.

Bottleneck adapters, AdaLoRA and prompts use these hooks; a rule that only has branches leaves all of them alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..sites import Site

if TYPE_CHECKING:
    from ..adapters import Adapters


class Attachments:
    """The hooks; every default is that of a rule which puts on nothing but branches."""

    adapters: Adapters

    def attach(self, model: nn.Module, sites: list[Site]) -> list[str]:
        """Put modules on the model, after the branches; names of their parameters, all of which train.

        Nothing is refused here any more: what cannot be done is refused in `check`.
        """
        return []

    def detach(self, model: nn.Module) -> None:
        """Take off what `attach` put on: the model's modules are what they were."""

    def merge(self) -> None:
        """Write what the attached modules have learned into W.

        Raises:
            RuntimeError: it is no change of W.
        """

    def restore(self) -> None:
        """Give W back what `merge` changed, exactly."""

    def site_ranks(self) -> dict[str, int]:
        """Site -> directions that are in use."""
        return {name: branch.r for name, branch in self.adapters.items()}

    def own_updates(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Site -> pretrained W (d, k), left (d, R), right (R, k): attached modules make W + left right of it."""
        return {}

    def still_sites(self) -> list[Site]:
        """Matrices inside a listed parameter that never move (k, where a fused layer trains for q and v only)."""
        return []
