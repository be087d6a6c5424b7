"""Softmax over a catalogue too large to be computed, from a sample of it.

Shape suffixes: see :mod:`danlu.batch`; S here is the drawn ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Proposal:
    """The distribution that ids are drawn from, independently and with replacement.

    Attributes
    ----------
    cumulative_V : NDArray of float64, shape (V,)
        Its distribution function over the ids; the last is 1.
    log_probability_V : Tensor of float32, shape (V,)
        Minus infinity for ids that are never drawn.
    """

    cumulative_V: NDArray[np.float64]
    log_probability_V: Tensor

    @classmethod
    def of(cls, weight_V: NDArray[np.floating | np.integer]) -> Proposal:
        """Return the distribution in proportion to weights.

        Parameters
        ----------
        weight_V : NDArray, shape (V,)
            Not negative, and not all 0. Counts to the power of 0.75 are a usual choice
            (Mikolov et al., 2013).

        Raises
        ------
        ValueError
            If they are.

        Examples
        --------
        >>> proposal = Proposal.of(np.array([0, 3, 1]))
        >>> proposal.cumulative_V.tolist()
        [0.0, 0.75, 1.0]
        """
        weight = np.asarray(weight_V, np.float64)
        if not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
            raise ValueError("weights must be finite, not negative, and not all 0")
        cumulative = weight.cumsum() / weight.sum()
        # Rounding must neither leave a gap behind the last weight nor fill it with a 0's id.
        cumulative[np.flatnonzero(weight)[-1] :] = 1.0
        with np.errstate(divide="ignore"):
            log_probability = np.log(weight / weight.sum())
        return cls(cumulative, torch.from_numpy(log_probability.astype(np.float32)))

    @classmethod
    def uniform(cls, vocab_size: int, first: int = 0) -> Proposal:
        """Return the one that draws all ids from `first` on alike."""
        weight = np.ones(vocab_size)
        weight[:first] = 0.0
        return cls.of(weight)

    def draw(self, n: int, generator: np.random.Generator) -> Tensor:
        """Return n ids, int64 of shape (n,)."""
        drawn = self.cumulative_V.searchsorted(generator.random(n), side="right")
        return torch.from_numpy(drawn.astype(np.int64))


def sampled_softmax(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_M: Tensor,
    num_negatives: int,
    generator: np.random.Generator,
    proposal: Proposal | None = None,
) -> Tensor:
    """Return the summed cross-entropy of targets against a sample of the vocabulary.

    Parameters
    ----------
    hidden_MD : Tensor, shape (M, D)
    weight_VD : Tensor, shape (V, D)
        Of which only the rows of targets and drawn ids are read.
    bias_V : Tensor, shape (V,), optional
    target_M : Tensor of int64, shape (M,)
    num_negatives : int
        Ids drawn, one sample for all positions; positive.
    generator : numpy Generator
    proposal : Proposal, optional
        Uniform over the vocabulary if not given. Ids that it never draws are, as negatives,
        no part of the softmax.

    Returns
    -------
    Tensor of float32, shape ()
        In nats.

    Notes
    -----
    The softmax's denominator is the target's own term, which is known, and the sum over all
    others, which importance sampling estimates without bias (Bengio & Senécal, "Adaptive
    Importance Sampling", 2008): each drawn term is divided by the sample's size and the
    probability q of drawing it, that is, log(S q) is taken from its logit, and a draw of the
    target counts 0. The target's logit is left as it is: it is there with certainty, and
    correcting it as well, as is often done, biases the gradient (Khrylchenko et al.,
    "Correcting the LogQ Correction", 2025). The logarithm of an unbiased estimate is still a
    little too small, by about half its relative variance; the loss tends to the full one as
    the sample grows.
    """
    if num_negatives < 1:
        raise ValueError(f"num_negatives must be positive, not {num_negatives}")
    proposal = proposal or Proposal.uniform(len(weight_VD))
    drawn_S = proposal.draw(num_negatives, generator).to(target_M.device)
    log_expected_S = proposal.log_probability_V.to(target_M.device)[drawn_S]
    log_expected_S = log_expected_S + float(np.log(num_negatives))
    hidden_MD, target_MD = hidden_MD.float(), weight_VD[target_M].float()
    logit_M = (hidden_MD * target_MD).sum(1)
    logit_MS = hidden_MD @ weight_VD[drawn_S].float().T
    if bias_V is not None:
        logit_M = logit_M + bias_V[target_M].float()
        logit_MS = logit_MS + bias_V[drawn_S].float()
    logit_MS = logit_MS - log_expected_S
    logit_MS = logit_MS.masked_fill(drawn_S == target_M[:, None], float("-inf"))
    # The difference is softplus(log of the others' sum - the target's logit), which neither
    # overflows nor cancels.
    return F.softplus(torch.logsumexp(logit_MS, 1) - logit_M).sum()
