"""Semantic clusters of training responses, to which the responses of any model are assigned.

Section 2.2 of the specification: vectors are scaled to length 1, projected on the leading principal
components that explain 90 % of the variance, and clustered by k-means. Clusters are fitted once, on training
responses; other responses are only assigned, to the nearest centroid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from trainkit.hub import ArtefactError, HubMixin, fingerprint, read_json, write_bytes, write_json

if TYPE_CHECKING:
    from trainkit.cards import ModelCard

    from .encoders import ResponseEncoder

__all__ = ["DifferentClustersError", "SemanticClusters", "principal_components"]

Backend = Literal["faiss", "sklearn"]
_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]

_ARRAYS = "clusters.safetensors"
_FACTS = "clusters.json"
_CHUNK = 8192
_SAMPLE = 256
"""Points for each centroid that k-means of many points begins on; FAISS's own number."""
_MANY = 1024
"""Points for each centroid above which beginning on samples is worth while."""
_PROBE = 5
"""Steps on all points after which runs are compared."""
_EXAMPLES = 20
"""Responses of a cluster that are kept to show what it is about."""


class DifferentClustersError(ValueError):
    """Vectors, labels or scores belong to other clusters, or to another encoder, than those at hand."""


def principal_components(
    vectors: npt.NDArray[np.floating[Any]], variance: float, *, normalize: bool = False
) -> tuple[_Floats, _Floats, float]:
    """The fewest leading principal components that explain a share of the variance (no whitening).

    Exact, from the eigenvectors of the covariance matrix. Time ``n d^2 + d^3``, memory ``d^2`` and a chunk.

    Args:
        vectors: ``[n, d]``.
        variance: Share of the total variance, in (0, 1].
        normalize: Take those of the vectors scaled to length 1 (a zero vector stays zero).

    Returns:
        Mean ``float32 [d]``, components ``float32 [m, d]`` (orthonormal rows, the largest entry of each
        positive), and the share that the m components explain.

    Raises:
        ValueError: ``variance`` is out of range, or all vectors are equal.
    """
    if not 0.0 < variance <= 1.0:
        raise ValueError(f"variance must be above 0 and at most 1, got {variance}")
    mean = np.zeros(vectors.shape[1])
    for _, chunk in _chunks(vectors, normalize):
        mean += chunk.sum(axis=0, dtype=np.float64) / len(vectors)
    covariance = np.zeros((vectors.shape[1],) * 2)
    for _, chunk in _chunks(vectors, normalize):
        centred = chunk - mean.astype(chunk.dtype)
        covariance += centred.T @ centred
    values, columns = np.linalg.eigh(covariance)
    values, rows = np.maximum(values[::-1], 0.0), columns.T[::-1]
    if not values[0] > np.finfo(np.float32).eps ** 2 * len(vectors):
        raise ValueError("all vectors are equal: they cannot be told apart")
    explained = np.cumsum(values) / values.sum()
    width = min(int(np.searchsorted(explained, variance)) + 1, len(values))
    components = rows[:width]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(width), largest])[:, None]
    return mean.astype(np.float32), components.astype(np.float32), float(explained[width - 1])


class SemanticClusters(HubMixin):
    """k clusters of responses in the space of an encoder; made by :meth:`fit`.

    Saved as ``clusters.safetensors`` (mean, components, centroids, labels of the training responses) and
    ``clusters.json`` (encoder, settings, examples). A loaded object assigns vectors at once and texts after
    :meth:`attach`. Needs neither FAISS nor scikit-learn once it is fitted.

    Attributes:
        k: Number of clusters.
        normalize: Whether vectors are scaled to length 1 first.
        mean: ``float32 [d]``.
        components: Principal components ``float32 [m, d]``.
        centroids: ``float32 [k, m]``.
        train_labels: Clusters of the training responses ``int64 [n]``, in their order.
        encoder: What embeds texts, or None.
        encoder_name: Name for :func:`~dialogkit.diversity.load_encoder`; may be empty.
        encoder_fingerprint: The encoder's; empty where vectors were clustered without naming it.
        settings: How the clusters were fitted, for the record.
    """

    def __init__(
        self,
        *,
        mean: _Floats,
        components: _Floats,
        centroids: _Floats,
        train_labels: _Ints,
        normalize: bool,
        encoder: ResponseEncoder | None = None,
        encoder_name: str = "",
        encoder_fingerprint: str = "",
        examples: Sequence[Sequence[str]] = (),
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.mean = mean
        self.components = components
        self.centroids = centroids
        self.train_labels = train_labels
        self.normalize = normalize
        self.encoder = encoder
        self.encoder_name = encoder_name
        self.encoder_fingerprint = encoder_fingerprint
        self.settings = dict(settings or {})
        self._examples = [list(texts) for texts in examples]
        self.k = len(centroids)
        self._fingerprint = fingerprint(
            encoder_fingerprint, normalize, self.mean, self.components, self.centroids
        )

    @classmethod
    def fit(
        cls,
        data: Sequence[str] | npt.NDArray[np.floating[Any]],
        encoder: ResponseEncoder | None = None,
        *,
        k: int = 20,
        pca_variance: float = 0.9,
        normalize: bool = True,
        backend: Backend = "faiss",
        n_iter: int = 500,
        n_redo: int = 5,
        seed: int = 25,
        max_points_per_centroid: int | None = 256,
        texts: Sequence[str] | None = None,
    ) -> SemanticClusters:
        """Clusters training responses. Give each response once; the released code draws with replacement.

        Cost beyond encoding: see `principal_components`; k-means takes ``n_redo`` runs of up to ``n_iter``
        steps of ``k m`` operations for each of ``k * max_points_per_centroid`` vectors. Given vectors are not
        copied, but learning from all of them holds their n by m coordinates.

        Args:
            data: Training responses, or their vectors ``[n, d]``; n is at least k.
            encoder: What embeds them. With vectors, the encoder they came from, so that texts can be assigned
                and scores of other encoders are refused.
            k: Number of clusters; 20 in the paper.
            pca_variance: Share of the variance that the kept components explain; the authors' code: 0.9.
            normalize: Scale vectors to length 1 (a zero vector stays zero).
            backend: ``"faiss"``, as the authors, or ``"sklearn"`` (k-means++ starts, never an empty cluster).
            n_iter: Most iterations of a run.
            n_redo: Runs, of which the best is kept.
            seed: Base seed; k-means takes ``seed + 2`` as the authors' code does.
            max_points_per_centroid: Learn centroids on a random subset of this many vectors for each cluster;
                256 is FAISS's default, on which the published scores rest. None learns on all, with
                ``"faiss"`` by runs that begin on samples of such a size (ours).
            texts: The responses behind given vectors, for :meth:`examples`.

        Returns:
            The clusters, with ``encoder`` attached.

        Raises:
            TypeError: ``data`` is one string.
            ValueError: Fewer responses, or fewer distinct vectors, than clusters; texts without an encoder;
                vectors that are not ``[n, d]`` or not finite; a setting out of range.
            ImportError: The backend is not installed.
        """
        for name, value in (("k", k), ("n_iter", n_iter), ("n_redo", n_redo)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if max_points_per_centroid is not None and max_points_per_centroid < 1:
            raise ValueError(f"max_points_per_centroid must be at least 1, got {max_points_per_centroid}")
        if backend not in ("faiss", "sklearn"):
            raise ValueError(f"backend must be 'faiss' or 'sklearn', got {backend!r}")
        if len(data) < k:
            raise ValueError(f"k={k} clusters need at least {k} responses, got {len(data)}")
        vectors, given = _vectors(data, encoder)
        texts = given if texts is None else texts
        if texts is not None and len(texts) != len(vectors):
            raise ValueError(f"texts must be {len(vectors)}, one for each vector, got {len(texts)}")
        mean, components, explained = principal_components(vectors, pca_variance, normalize=normalize)
        draw, learn = _LEARNERS[backend]
        points = vectors
        if max_points_per_centroid is not None and len(vectors) > k * max_points_per_centroid:
            points = vectors[draw(len(vectors), k * max_points_per_centroid, seed + 2)]
        points = _projected(points, mean, components, normalize)
        if _distinct(points, k) < k:
            found = _distinct(_projected(vectors, mean, components, normalize), k)
            if found < k:
                raise ValueError(
                    f"k={k} clusters need at least {k} distinct responses, got {found} distinct vectors"
                )
        centroids = learn(points, k, n_iter, n_redo, seed + 2)
        clusters = cls(
            mean=mean,
            components=components,
            centroids=centroids,
            train_labels=np.empty(0, np.int64),
            normalize=normalize,
            encoder=encoder,
            encoder_name=getattr(encoder, "name", ""),
            encoder_fingerprint=encoder.fingerprint if encoder is not None else "",
            settings={
                "responses": len(vectors),
                "pca_variance": pca_variance,
                "explained_variance": explained,
                "backend": backend,
                "n_iter": n_iter,
                "n_redo": n_redo,
                "seed": seed,
                "max_points_per_centroid": max_points_per_centroid,
            },
        )
        clusters.train_labels = clusters._labels(vectors)
        if texts is not None:
            clusters._examples = _central(texts, clusters.train_labels, clusters._distances(vectors), k)
        return clusters

    @property
    def dim(self) -> int:
        """Size d of the vectors."""
        return int(self.components.shape[1])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the encoder and of all that decides the clusters; labels and scores carry it."""
        return self._fingerprint

    @property
    def train_histogram(self) -> npt.NDArray[np.float64]:
        """Shares of the clusters among the training responses, ``float64 [k]``."""
        return self.histogram(self.train_labels)

    def __repr__(self) -> str:
        return (
            f"SemanticClusters({self.k} clusters of {len(self.train_labels)} responses, "
            f"{len(self.components)} of {self.dim} dimensions)"
        )

    def attach(self, encoder: ResponseEncoder) -> SemanticClusters:
        """Names what embeds texts, after loading.

        Args:
            encoder: The encoder that the clusters were fitted with.

        Returns:
            This object.

        Raises:
            DifferentClustersError: It is another encoder, or another version of its weights.
        """
        if encoder.fingerprint != self.encoder_fingerprint:
            raise DifferentClustersError(
                f"the clusters were fitted with another encoder ({self.encoder_name or 'unnamed'}, "
                f"fingerprint {self.encoder_fingerprint[:12] or 'none'}), got {encoder.fingerprint[:12]}"
            )
        self.encoder = encoder
        return self

    def assign(self, data: Sequence[str] | npt.NDArray[np.floating[Any]]) -> _Ints:
        """The nearest cluster of each response.

        Texts are embedded in chunks, so memory does not grow with their number.

        Args:
            data: n responses, or their vectors ``[n, d]`` from the same encoder.

        Returns:
            ``int64 [n]``, in 0 .. k-1.

        Raises:
            TypeError: ``data`` is one string.
            ValueError: Texts without an encoder, or vectors that are not ``[n, d]`` or not finite.
        """
        labels = np.empty(len(data), np.int64)
        for start in range(0, len(data), _CHUNK):
            vectors = _vectors(data[start : start + _CHUNK], self.encoder)[0]
            if vectors.shape[1] != self.dim:
                raise ValueError(f"the clusters take vectors [n, {self.dim}], got {list(vectors.shape)}")
            labels[start : start + _CHUNK] = self._labels(vectors)
        return labels

    def histogram(self, labels: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Shares of the clusters among labels, empty clusters included: equation (1) of the specification.

        Args:
            labels: At least one cluster number.

        Returns:
            ``float64 [k]``, summing to 1.

        Raises:
            ValueError: There are no labels, or one is outside 0 .. k-1.
        """
        return label_counts(labels, self.k) / np.size(labels)

    def examples(self, j: int, n: int = 5) -> list[str]:
        """Distinct training responses of a cluster, the most central first.

        Args:
            j: The cluster.
            n: How many at most; up to 20 are kept.

        Raises:
            IndexError: There is no such cluster.
            ValueError: The clusters were fitted on vectors without texts.
        """
        if not 0 <= j < self.k:
            raise IndexError(f"there are clusters 0 to {self.k - 1}, got {j}")
        if not self._examples:
            raise ValueError("there are no examples: the clusters were fitted on vectors without texts")
        return self._examples[j][:n]

    def _labels(self, vectors: npt.NDArray[np.floating[Any]]) -> _Ints:
        """The nearest centroid of each vector ``[n]``, without projecting them.

        ``|P(x - mean) - c|^2`` is ``|c|^2 - 2 (x - mean) P'c`` and a part that is the same for every c. In
        float64, so that a label depends on its vector alone.
        """
        centroids = self.centroids.astype(np.float64)
        directions = self.components.astype(np.float64).T @ centroids.T
        offsets = (centroids**2).sum(axis=1) + 2.0 * self.mean.astype(np.float64) @ directions
        labels = np.empty(len(vectors), np.int64)
        for rows, chunk in _chunks(vectors, self.normalize):
            labels[rows] = (offsets - 2.0 * chunk.astype(np.float64) @ directions).argmin(axis=1)
        return labels

    def _distances(self, vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Squared distances of the training vectors to their centroids ``[n]``."""
        found = np.empty(len(vectors))
        for start in range(0, len(vectors), _CHUNK):
            rows = slice(start, start + _CHUNK)
            points = _projected(vectors[rows], self.mean, self.components, self.normalize)
            found[rows] = ((points - self.centroids[self.train_labels[rows]]) ** 2).sum(axis=1)
        return found

    def _save(self, directory: Path) -> None:
        from safetensors.numpy import save

        arrays = {
            "mean": self.mean,
            "components": np.ascontiguousarray(self.components),
            "centroids": np.ascontiguousarray(self.centroids),
            "train_labels": self.train_labels.astype(np.int32),
        }
        write_bytes(directory / _ARRAYS, save(arrays))
        facts = {
            "k": self.k,
            "normalize": self.normalize,
            "encoder": self.encoder_name,
            "encoder_fingerprint": self.encoder_fingerprint,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "train_histogram": self.train_histogram.tolist(),
            "examples": self._examples,
        }
        write_json(directory / _FACTS, facts)

    @classmethod
    def _load(cls, directory: Path) -> SemanticClusters:
        from safetensors.numpy import load_file

        facts, arrays = read_json(directory / _FACTS), load_file(directory / _ARRAYS)
        try:
            clusters = cls(
                mean=arrays["mean"],
                components=arrays["components"],
                centroids=arrays["centroids"],
                train_labels=arrays["train_labels"].astype(np.int64),
                normalize=facts["normalize"],
                encoder_name=facts["encoder"],
                encoder_fingerprint=facts["encoder_fingerprint"],
                examples=facts["examples"],
                settings=facts["settings"],
            )
        except (KeyError, TypeError) as error:
            raise ArtefactError(f"{directory / _FACTS} does not describe clusters: {error}") from error
        if clusters.fingerprint != facts["fingerprint"]:
            raise ArtefactError(f"{directory / _FACTS} was changed: it does not fit the clusters beside it")
        return clusters

    def _card(self) -> ModelCard:
        from trainkit.cards import ModelCard

        return ModelCard(
            title=f"{self.k} semantic clusters of dialogue responses",
            method="Unit vectors, principal components, k-means, as Sem-Ent clusters training responses "
            "(arXiv 2210.05725).",
            summary=f"Clusters of {len(self.train_labels)} training responses as embedded by "
            f"{self.encoder_name or 'an unnamed encoder'}. The entropy of a model's responses over them is "
            "its Sem-Ent. Scores compare only between responses to the same contexts with these clusters.",
            licence="not stated: that of the training responses, some of which are kept as examples",
            seed=self.settings.get("seed"),
            limits=("The clusters say nothing about whether a response fits its context.",),
            task="feature-extraction",
            languages=(),
            tags=("dialogue", "diversity"),
        )


def label_counts(labels: npt.ArrayLike, k: int) -> _Ints:
    """How often each of the clusters 0 .. k-1 occurs, ``int64 [k]``; see `SemanticClusters.histogram`."""
    found = np.asarray(labels)
    if found.ndim != 1 or not found.size:
        raise ValueError(f"labels must be at least one cluster number, got shape {list(found.shape)}")
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"labels must be whole numbers, got {found.dtype}")
    if found.min() < 0 or found.max() >= k:
        raise ValueError(f"labels must be 0 to {k - 1}, got {found.min()} to {found.max()}")
    return np.bincount(found, minlength=k).astype(np.int64)


def _vectors(
    data: Sequence[str] | npt.NDArray[np.floating[Any]], encoder: ResponseEncoder | None
) -> tuple[npt.NDArray[np.floating[Any]], Sequence[str] | None]:
    """Finite vectors ``[n, d]`` of texts or given ones, and the texts."""
    if isinstance(data, str):
        raise TypeError("data must be a sequence of strings or an array of vectors, got one string")
    texts = None
    if isinstance(data, np.ndarray):
        vectors = data
    else:
        if encoder is None:
            raise ValueError("texts need an encoder: name one, call attach, or give their vectors")
        vectors, texts = encoder.encode(data), data
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise ValueError(f"vectors must be floats [n, d], got {vectors.dtype} {list(vectors.shape)}")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(f"vector {int(np.argmin(finite))} holds values that are not finite")
    return vectors, texts


def _chunks(
    vectors: npt.NDArray[np.floating[Any]], normalize: bool
) -> Iterator[tuple[slice, npt.NDArray[np.floating[Any]]]]:
    """Some rows after the others, scaled to length 1 if wanted, in float32 at least."""
    for start in range(0, len(vectors), _CHUNK):
        rows = slice(start, start + _CHUNK)
        chunk = vectors[rows].astype(np.result_type(vectors, np.float32), copy=False)
        if normalize:
            norms = np.linalg.norm(chunk, axis=1, keepdims=True)
            chunk = chunk / np.where(norms > 0, norms, 1)
        yield rows, chunk


def _projected(
    vectors: npt.NDArray[np.floating[Any]], mean: _Floats, components: _Floats, normalize: bool
) -> _Floats:
    """Coordinates on the components, ``[n, m]``."""
    columns = components.astype(np.float64).T
    points = np.empty((len(vectors), len(components)), np.float32)
    for rows, chunk in _chunks(vectors, normalize):
        points[rows] = (chunk - mean.astype(np.float64)) @ columns
    return points


def _distinct(points: _Floats, enough: int) -> int:
    """How many points are different, or at least ``enough``."""
    found = len(np.unique(points[:, 0]))
    return found if found >= enough else len(np.unique(points, axis=0))


def _central(
    texts: Sequence[str], labels: _Ints, distances: npt.NDArray[np.float64], k: int
) -> list[list[str]]:
    """For each cluster its distinct texts nearest to the centroid."""
    found: list[dict[str, None]] = [{} for _ in range(k)]
    for i in np.argsort(distances, kind="stable").tolist():
        if len(found[labels[i]]) < _EXAMPLES:
            found[labels[i]][texts[i]] = None
    return [list(kept) for kept in found]


def _draw_faiss(n: int, size: int, seed: int) -> _Ints:
    """The rows that FAISS itself learns from where there are too many."""
    import faiss

    order = np.empty(n, np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), n, seed)  # type: ignore[attr-defined]
    return order[:size].astype(np.int64)


def _draw_sklearn(n: int, size: int, seed: int) -> _Ints:
    return np.sort(np.random.default_rng(seed).choice(n, size=size, replace=False))


def _kmeans_faiss(points: _Floats, k: int, n_iter: int, n_redo: int, seed: int) -> _Floats:
    if len(points) > k * _MANY:
        return _kmeans_of_many(points, k, n_iter, n_redo, seed)
    return _faiss_runs(points, k, n_iter, seed, n_redo=n_redo)[1]


def _kmeans_of_many(points: _Floats, k: int, n_iter: int, n_redo: int, seed: int) -> _Floats:
    """K-means that begins on samples, as Bradley and Fayyad (1998) do, since whole runs cost n.

    Each run starts from the best of as many on a sample. After a few steps on all points it shows which one
    leads; that one is taken to its end.
    """
    from sklearn.cluster import kmeans_plusplus

    draw = np.random.default_rng(seed)
    runs = []
    for _ in range(n_redo):
        sample = points[_draw_sklearn(len(points), k * _SAMPLE, int(draw.integers(2**31)))]
        starts = (
            kmeans_plusplus(sample, k, random_state=int(draw.integers(2**31)))[0] for _ in range(n_redo)
        )
        best = min((_faiss_runs(sample, k, n_iter, seed, start=start) for start in starts), key=itemgetter(0))
        runs.append(_faiss_runs(points, k, min(n_iter, _PROBE), seed, start=best[1]))
    return _faiss_runs(points, k, n_iter, seed, start=min(runs, key=itemgetter(0))[1])[1]


def _faiss_runs(
    points: _Floats, k: int, n_iter: int, seed: int, *, n_redo: int = 1, start: _Floats | None = None
) -> tuple[float, _Floats]:
    """The sum of squared distances that the best run ends with, and its centroids."""
    import faiss

    kmeans = faiss.Kmeans(
        points.shape[1],
        k,
        niter=n_iter,
        nredo=n_redo,
        seed=seed,
        max_points_per_centroid=len(points),
        min_points_per_centroid=1,  # otherwise FAISS complains on standard error about small sets
    )
    objective = kmeans.train(points, init_centroids=start)
    return float(objective), np.asarray(kmeans.centroids, dtype=np.float32)


def _kmeans_sklearn(points: _Floats, k: int, n_iter: int, n_redo: int, seed: int) -> _Floats:
    from sklearn.cluster import KMeans

    kmeans = KMeans(n_clusters=k, n_init=n_redo, max_iter=n_iter, random_state=seed).fit(points)
    return np.asarray(kmeans.cluster_centers_, dtype=np.float32)


_LEARNERS = {"faiss": (_draw_faiss, _kmeans_faiss), "sklearn": (_draw_sklearn, _kmeans_sklearn)}
