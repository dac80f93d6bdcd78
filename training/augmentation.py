"""Augmentation multiplicity: several altered copies of a record, whose mean gradient is clipped."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..targets.errors import NotApplicable
from ..targets.technique import Technique


class Augmentation(Technique):
    """Copies of an image, each shifted and perhaps mirrored at random (De et al. 2022, arXiv:2204.13650).

    A record still adds one gradient, the mean over its copies, clipped as before: what is accounted does not change.
    """

    copies: int = Field(4, ge=1, le=256, description="of each record in each step")
    shift: int = Field(
        1, ge=0, le=64, description="pixels that a copy is moved at most, along each axis; its border is repeated"
    )
    mirror: bool = Field(False, description="half of the copies, by lot, are mirrored left to right")

    def copied(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """float32 [n, copies, channels, height, width] of images [n, channels, height, width].

        Args:
            draws: on the CPU.

        Raises:
            NotApplicable: the records are no images.
        """
        if x.dim() != 4:
            raise NotApplicable(
                "Copies are shifted and mirrored, which is for images [channels, height, width], and a record here has "
                f"the shape {list(x.shape[1:])}: leave out the defense's augmentation."
            )
        n, (height, width) = len(x), x.shape[2:]
        offsets = torch.randint(2 * self.shift + 1, (2, n, self.copies, 1), generator=draws)
        rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
        if self.mirror:
            mirrored = torch.rand(n, self.copies, 1, generator=draws) < 0.5
            columns = torch.where(mirrored, columns.flip(-1), columns)
        rows, columns = rows.to(x.device)[..., None], columns.to(x.device)[..., None, :]
        wide = F.pad(x, [self.shift] * 4, mode="replicate").permute(0, 2, 3, 1)
        image = torch.arange(n, device=x.device)[:, None, None, None]
        return wide[image, rows, columns].permute(0, 1, 4, 2, 3)
