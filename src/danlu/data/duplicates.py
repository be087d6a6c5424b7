"""Finding texts that are nearly the same, out of core.

MinHash signatures (Broder, 1997) are cut into bands; two texts that agree in a
whole band are candidates (locality-sensitive hashing: Indyk & Motwani, 1998),
and the share of equal hashes estimates their Jaccard similarity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from daft import DataFrame

BANDS, ROWS, NGRAM = 14, 8, 5
"""Two texts alike to 0.72 meet in some band with even odds (0.8: 93%; 0.5: 5%)."""

RELATED = 0.5
"""Estimated similarity from which two texts must stand in the same split."""

# A letter of a script written without spaces counts as a word of its own.
_UNSPACED = (
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f\x{20000}-\x{3134f}]"
)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Candidate pairs of near-duplicates.

    Attributes
    ----------
    first, second : NDArray of int64, shape (P,)
        Ids of the two texts, ``first < second``.
    similarity : NDArray of float64, shape (P,)
        Estimated Jaccard similarity of their 5-grams, in [0, 1].
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float64]

    def at_least(self, similarity: float) -> Pairs:
        """Return the pairs that are at least so similar."""
        keep = self.similarity >= similarity
        return Pairs(self.first[keep], self.second[keep], self.similarity[keep])


def find_pairs(texts: DataFrame, seed: int) -> Pairs:
    """Find the pairs of similar texts.

    Parameters
    ----------
    texts : daft.DataFrame
        With the columns ``id`` (int64, unique), ``text`` and perhaps ``label``.
    seed : int
        Seed of the hash permutations.

    Notes
    -----
    In each bucket every text is paired with the first of its label, and those
    with the first of all, so the work is linear in the size of a bucket. Texts
    of fewer than five words are one shingle each, so they are near-duplicates
    only when they are equal.
    """
    import daft
    from daft import DataType, col, lit
    from daft.functions import fill_null, length, lower, minhash, regexp_replace, strip, when

    @daft.func.batch(return_dtype=DataType.list(DataType.uint64()))
    def band_keys(signatures: daft.Series) -> Any:
        array = signatures.to_arrow()
        matrix = np.asarray(array.values).reshape(-1, BANDS * ROWS)
        return pa.array(_hash_bands(matrix).tolist(), pa.list_(pa.uint64()))

    @daft.func.batch(return_dtype=DataType.float64())
    def agreement(left: daft.Series, right: daft.Series) -> Any:
        a = np.asarray(left.to_arrow().values).reshape(-1, BANDS * ROWS)
        b = np.asarray(right.to_arrow().values).reshape(-1, BANDS * ROWS)
        return pa.array((a == b).mean(axis=1))

    words = regexp_replace(lower(col("text")), f"({_UNSPACED})", " $1 ")
    words = regexp_replace(words, r"[\s\pP\pS]+", " ")
    words = when(length(strip(words)) == lit(0), col("text")).otherwise(words)  # signs alone
    signature = minhash(words, num_hashes=BANDS * ROWS, ngram_size=NGRAM, seed=seed % 2**31 + 1)
    label = fill_null(col("label"), lit("")) if "label" in texts.column_names else lit("")
    signed = texts.select("id", label.alias("label"), signature.alias("sig")).collect()
    bands = signed.select("id", "label", band_keys(col("sig")).alias("key")).explode("key")
    of_label = bands.groupby("key", "label").agg(col("id").min().alias("head"))
    of_bucket = of_label.groupby("key").agg(col("head").min().alias("first"))
    inside = bands.join(of_label, on=["key", "label"]).select(
        col("head").alias("first"), col("id").alias("second")
    )
    between = of_label.join(of_bucket, on="key").select("first", col("head").alias("second"))
    edges = inside.concat(between).where(col("first") != col("second")).distinct()
    left = signed.select(col("id").alias("first"), col("sig").alias("sig_first"))
    right = signed.select(col("id").alias("second"), col("sig").alias("sig_second"))
    found = (
        edges.join(left, on="first")
        .join(right, on="second")
        .select(
            "first", "second", agreement(col("sig_first"), col("sig_second")).alias("similarity")
        )
        .sort(["first", "second"])
        .to_pydict()
    )
    return Pairs(
        np.asarray(found["first"], np.int64),
        np.asarray(found["second"], np.int64),
        np.asarray(found["similarity"], np.float64),
    )


def _hash_bands(matrix: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return one 64-bit key for each band of each signature, distinct between bands."""
    bands = matrix.reshape(len(matrix), BANDS, ROWS).astype(np.uint64)
    keys = np.full((len(matrix), BANDS), 14695981039346656037, np.uint64)
    keys ^= np.arange(BANDS, dtype=np.uint64)
    for row in range(ROWS):  # FNV-1a over words instead of bytes; wrap-around is meant
        keys = (keys ^ bands[:, :, row]) * np.uint64(1099511628211)
        keys ^= keys >> np.uint64(29)
    return keys


def clusters(ids: NDArray[np.int64], pairs: Pairs) -> NDArray[np.int64]:
    """Join similar texts, and texts similar to those, into clusters.

    Parameters
    ----------
    ids : NDArray of int64, shape (n,)
        Sorted.
    pairs : Pairs

    Returns
    -------
    NDArray of int64, shape (n,)
        A cluster number for each id.
    """
    return join_groups(
        len(ids), np.searchsorted(ids, pairs.first), np.searchsorted(ids, pairs.second)
    )


def join_groups(n: int, left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.int64]:
    """Return the connected component of each of `n` nodes under the edges given."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(left), dtype=bool)
    graph = coo_array((ones, (left, right)), shape=(n, n))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def later_copies(pairs: Pairs, label_of: dict[int, str | None]) -> set[int]:
    """Return the ids to drop so that no two texts of one label are near-duplicates.

    Walks the pairs in order of ids, so a text is dropped only for one that stays.
    Texts of different labels both stay: one word may turn the meaning.
    """
    dropped: set[int] = set()
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        if first not in dropped and label_of.get(first) == label_of.get(second):
            dropped.add(second)
    return dropped
