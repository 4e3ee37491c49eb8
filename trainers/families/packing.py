"""Pictures as rows of tokens, as FLUX.1's transformer reads them: patches of 2x2 latent cells."""

import torch
from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w / 4, 4 C): each token is a patch of 2x2 cells."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `pack`; height and width in latent cells."""
    batch, _, depth = tokens.shape
    patches = tokens.reshape(batch, height // 2, width // 2, depth // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, depth // 4, height, width)


def positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows * columns, 3) fp32: (0, row, column) of every token, for the rotary embedding."""
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    grid = torch.cartesian_prod(row, column).float()
    return torch.cat([grid.new_zeros(len(grid), 1), grid], dim=1)
