"""A convolutional network that takes whole images in.

Shape suffixes: see :mod:`danlu.batch`; of images, C channels, H rows and W columns.
"""

from __future__ import annotations

from torch import Tensor, nn

from danlu.model.fast import ACTIVATIONS
from danlu.model.norms import NormKind, OverChannels, norm
from danlu.model.values import Intake

_GRID = 7


class ConvNet(Intake):
    """Images as rows of numbers in, one vector for each out.

    Stages of ``activation(norm(convolution(x)))`` with windows of 3 × 3, between which the
    largest of each 2 × 2 is kept; then dropout, and a matrix from all pixels that are left
    to the width.

    Parameters
    ----------
    shape : tuple of int
        H, W and C of an image. Its numbers stand pixel by pixel along the rows, the
        channels of a pixel side by side, as :func:`danlu.data.image.patches` lays them.
    num_stages : int
        The last is `dim` wide, the one before it a half, all others a quarter.
    dim : int
        D.
    norm_kind : {"none", "batch", "layer", "rms"}
        ``layer`` and ``rms`` are taken over the channels of each pixel.
    activation : str
        A key of :data:`danlu.model.ops.ACTIVATIONS`.
    dropout : float
        In [0, 1).
    epsilon : float
        Guard of the norm's division; a batch norm has its own.

    Notes
    -----
    Sources: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998;
    small windows, one after another: Simonyan & Zisserman (VGG), 2015. As in torchvision's
    VGG what is left is averaged down to 7 × 7 where it is larger, so that the matrix does
    not grow with the image. The filters are drawn as by He et al., 2015.

    Raises
    ------
    ValueError
        If the stages would halve the image to nothing.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_stages: int,
        dim: int,
        *,
        norm_kind: NormKind = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        height, width, channels = shape
        halved = 2 ** (num_stages - 1)
        if min(height, width) < halved:
            raise ValueError(
                f"{num_stages} stages halve an image {num_stages - 1} times, and one of "
                f"{height} x {width} pixels has nothing left then"
            )
        self.shape = shape
        wide = [max(1, dim // 2 ** min(2, num_stages - 1 - n)) for n in range(num_stages)]
        ins = [channels, *wide[:-1]]
        self.filters = nn.ModuleList(
            _filters(i, o, bias=norm_kind == "none") for i, o in zip(ins, wide, strict=True)
        )
        norms = [norm(norm_kind, o, epsilon) for o in wide]
        alone = norm_kind in ("layer", "rms")
        self.norms = nn.ModuleList(OverChannels(each) if alone else each for each in norms)
        self.activation = ACTIVATIONS[activation]
        self.halve = nn.MaxPool2d(2)
        self.left = (min(_GRID, height // halved), min(_GRID, width // halved))
        self.grid = nn.AdaptiveAvgPool2d(self.left)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(self.left[0] * self.left[1] * dim, dim)
        nn.init.kaiming_normal_(self.out.weight, nonlinearity="linear")
        nn.init.zeros_(self.out.bias)

    def forward(self, values_UK: Tensor, id_U: Tensor | None = None) -> Tensor:  # noqa: ARG002 - all images are taken in alike
        """Return the images' vectors, shape (U, D)."""
        # The channels come last in memory, as torch's convolutions take them; no copy is made.
        x_UCHW = values_UK.view(-1, *self.shape).movedim(-1, 1)
        for stage, (filters, normed) in enumerate(zip(self.filters, self.norms, strict=True)):
            x_UCHW = self.activation(normed(filters(self.halve(x_UCHW) if stage else x_UCHW)))
        left_UM = self.dropout(self.grid(x_UCHW).flatten(1))
        out: Tensor = self.out(left_UM)
        return out

    def multiply_adds(self, id_U: Tensor) -> int:
        """Return those of taking images in."""
        height, width = self.shape[:2]
        total = self.out.weight.numel()
        for stage, filters in enumerate(self.filters):
            weights = sum(p.numel() for p in filters.parameters() if p.ndim > 1)
            total += weights * (height >> stage) * (width >> stage)
        return len(id_U) * total


def _filters(num_in: int, num_out: int, bias: bool) -> nn.Conv2d:
    filters = nn.Conv2d(num_in, num_out, 3, padding=1, bias=bias)
    nn.init.kaiming_normal_(filters.weight, nonlinearity="relu")
    if filters.bias is not None:
        nn.init.zeros_(filters.bias)
    return filters
