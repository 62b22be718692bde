"""How alike queries and images are: dot products; an image that is a set of tokens counts by its best."""

from torch import Tensor


def similarity(queries: Tensor, gallery: Tensor) -> Tensor:
    """Every query (N, D) with every image (M, D) or (M, T, D): dot products (N, M), of the best token where T.

    Cosines where both sides have unit length.

    >>> similarity(torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.6, 0.8], [0.8, 0.6]]])).tolist()
    [[0.800000011920929]]
    """
    scores = queries @ gallery.flatten(0, -2).T  # (N, M) or (N, M * T)
    return scores if gallery.ndim == 2 else scores.unflatten(1, gallery.shape[:2]).amax(-1)


def own_similarity(queries: Tensor, images: Tensor) -> Tensor:
    """Every query (N, D) with its own K images (N, K, D) or (N, K, T, D): dot products (N, K), of the best token.

    >>> own_similarity(torch.eye(2), torch.ones(2, 3, 2)).shape
    torch.Size([2, 3])
    """
    scores = (images.flatten(1, -2) @ queries[:, :, None])[..., 0]  # (N, K) or (N, K * T)
    return scores if images.ndim == 3 else scores.unflatten(1, images.shape[1:3]).amax(-1)
