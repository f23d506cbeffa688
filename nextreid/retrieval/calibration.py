"""What a score means: the probability that two samples show one identity, and the thresholds of chosen error rates."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nextreid._files import read_json, user_path, write_json
from nextreid._names import unknown
from nextreid._schema import choice, listed, mapping, number, optional, table, text, whole

from .calibration_fit import (
    FALSE_ALARM_RATES,
    FALSE_MATCH_RATES,
    Pairs,
    detection_rates,
    fit_isotonic,
    fit_platt,
    log_loss,
    reliability,
    split_identities,
    thresholds,
)

CALIBRATION = "calibration.json"
_logger = logging.getLogger(__name__)
_FORMAT = 1
_OUTSIDE = 0.02  # share of scores outside the calibrated range that is drift


@dataclass(frozen=True)
class Threshold:
    """The lowest score at which pairs of different identities pass no more often than wanted.

    Attributes:
        false_match_rate: Wanted share of pairs of different identities that pass.
        score: Pairs at this score and above pass; None where the pairs are too few to tell.
        low: Lower end of its 95 % interval over identities.
        high: Upper end.
        true_match_rate: Share of pairs of one identity that pass.
    """

    false_match_rate: float
    score: float | None
    low: float | None = None
    high: float | None = None
    true_match_rate: float | None = None


@dataclass(frozen=True)
class Curve:
    """What scores mean for one set of modalities.

    Attributes:
        method: ``"isotonic"`` or ``"platt"``, whichever has the lower log loss on identities that it was not fitted on.
        scores: ``(n,)`` ascending; between them the log odds are a straight line, beyond them constant.
        probabilities: ``(n,)`` that a pair shows one identity, where one pair of two does; never falling.
        log_losses: Held-out log loss in nats by method; chance is 0.693.
        ece: Expected calibration error on held-out identities.
        reliability: Rows of mean predicted probability, share of pairs of one identity, and number of pairs, held out.
        thresholds: By false match rate.
        detection: Rows of false alarm rate, threshold, and the rate at which queries of an identity in the gallery are
            detected and identified (open set); the threshold is None where the queries are too few to tell.
        low: Lowest score of the pairs that it was fitted on.
        high: Highest one.
        identities: Number of identities.
        same: Number of pairs of one identity.
        different: Number of pairs of two.
    """

    method: str
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    log_losses: Mapping[str, float]
    ece: float
    reliability: tuple[tuple[float, float, int], ...]
    thresholds: tuple[Threshold, ...]
    detection: tuple[tuple[float, float | None, float | None], ...]
    low: float
    high: float
    identities: int
    same: int
    different: int

    def odds(self, scores: np.ndarray) -> np.ndarray:
        """How much likelier scores are for one identity than for two: their likelihood ratio."""
        known = np.asarray(self.probabilities)
        return np.exp(np.interp(np.asarray(scores, np.float64), self.scores, np.log(known) - np.log1p(-known)))


@dataclass(frozen=True)
class Calibration:
    """What the scores of one model mean, by the modalities that query and gallery entry show.

    Attributes:
        curves: By what is shown: ``"rgb+nir+tir"`` where both sides show the same, else ``"tir>rgb+nir"``.
        about: Model, digest of its weights, dataset, split, protocol, and what else was recorded.

    Example:
        >>> calibration = Calibration.read("runs/x/last")  # doctest: +SKIP
        >>> calibration.probability(0.71, ("rgb", "tir"))  # doctest: +SKIP
        0.93
    """

    curves: Mapping[str, Curve]
    about: Mapping[str, Any] = field(default_factory=dict)

    def curve(self, query: Sequence[str] | None = None, gallery: Sequence[str] | None = None) -> Curve:
        """The curve for what query and gallery entry show.

        Args:
            query: Modalities of the query; None for all.
            gallery: Those of the entry; None for the query's.

        Raises:
            KeyError: If these were not calibrated; names those that were.
        """
        if query is None:
            return next(iter(self.curves.values()))
        name = shown_name(query, query if gallery is None else gallery)
        if name not in self.curves:
            hint = "; --cross (cross=True) calibrates every set against every other" if ">" in name else ""
            raise KeyError(unknown("calibrated set of modalities", name, self.curves) + hint)
        return self.curves[name]

    def probability(
        self,
        scores: Any,
        query: Sequence[str] | None = None,
        gallery: Sequence[str] | None = None,
        *,
        prior: float = 0.5,
    ) -> np.ndarray:
        """The probability that pairs show one identity.

        Args:
            scores: Cosines of any shape.
            query: Modalities of the query; None for all.
            gallery: Those of the entry; None for the query's.
            prior: How likely that is before the score is known; 0.5 where nothing is.

        Returns:
            As many probabilities.

        Raises:
            KeyError: As `curve`.
            ValueError: If the prior does not lie between 0 and 1.
        """
        if not 0 < prior < 1:
            raise ValueError(f"prior must lie between 0 and 1, got {prior}")
        odds = self.curve(query, gallery).odds(np.asarray(scores)) * prior / (1 - prior)
        return odds / (1 + odds)

    def identify(self, odds: Any, enrolled: float = 0.5) -> np.ndarray:
        """The probability of each identity of a gallery, given what its best score says.

        The query shows one of the n identities with probability `enrolled`, each as likely as the others before its
        score is known, or none of them: identity i has ``odds_i enrolled / n``, nobody ``1 - enrolled``, and all are
        divided by their sum. So the same score means less in a larger gallery.

        Args:
            odds: ``(n,)`` likelihood ratios of each identity's best entry, see `Curve.odds`.
            enrolled: Probability that the query's identity is in the gallery at all.

        Returns:
            ``(n,)`` probabilities; what lacks to 1 is that of nobody.

        Raises:
            ValueError: If `enrolled` does not lie between 0 and 1.
        """
        if not 0 < enrolled < 1:
            raise ValueError(f"enrolled must lie between 0 and 1, got {enrolled}")
        weights = np.asarray(odds, np.float64) * (enrolled / max(1, np.size(odds)))
        return weights / (weights.sum() + 1 - enrolled)

    def threshold(
        self, false_match_rate: float, query: Sequence[str] | None = None, gallery: Sequence[str] | None = None
    ) -> float:
        """The score at which pairs of different identities pass no more often than wanted.

        Raises:
            KeyError: As `curve`.
            ValueError: If the rate was not calibrated, or there were too few pairs to tell.
        """
        found = {each.false_match_rate: each for each in self.curve(query, gallery).thresholds}
        if false_match_rate not in found:
            raise ValueError(
                f"false match rate {false_match_rate} has no threshold; there are: {', '.join(map(str, found))}"
            )
        score = found[false_match_rate].score
        if score is None:
            raise ValueError(
                f"the calibration has too few pairs of two identities for a false match rate of {false_match_rate}"
            )
        return score

    def drift(self, scores: Any, query: Sequence[str] | None = None, gallery: Sequence[str] | None = None) -> float:
        """The share of scores outside the calibrated range; above 2 %, a warning says so."""
        curve, values = self.curve(query, gallery), np.asarray(scores, np.float64)
        share = float(((values < curve.low) | (values > curve.high)).mean()) if values.size else 0.0
        if share > _OUTSIDE:
            _logger.warning(
                "%.0f %% of the scores lie outside the calibrated range of %.3f to %.3f: probabilities and thresholds "
                "do not hold for these images; calibrate on some like them",
                100 * share,
                curve.low,
                curve.high,
            )
        return share

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``calibration.json`` into a checkpoint or gallery folder, whole; return the file."""
        file = user_path(folder) / CALIBRATION
        curves = {name: asdict(curve) for name, curve in self.curves.items()}
        write_json(file, {"version": _FORMAT, "about": dict(self.about), "curves": curves})
        return file

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "Calibration":
        """Read the ``calibration.json`` of a folder.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged, or of a newer version.
        """
        file = user_path(folder)
        file = file / CALIBRATION if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"no {file}: 'nextreid calibrate' makes it")
        value = read_json(file)
        if isinstance(value, Mapping) and isinstance(version := value.get("version"), int) and version > _FORMAT:
            raise ValueError(f"{file} is of version {version}, written by a newer nextreid; this one reads {_FORMAT}")
        found = _FILE(f"{file}: ", value)
        curves = {}
        for name, given in found["curves"].items():
            if len(given["scores"]) != len(given["probabilities"]):
                raise ValueError(f"{file}: curve {name} has not one probability for each score")
            for what in ("scores", "probabilities"):
                if any(b < a for a, b in zip(given[what], given[what][1:], strict=False)):
                    raise ValueError(f"{file}: the {what} of curve {name} fall")
            curves[name] = Curve(**{**given, "thresholds": tuple(Threshold(**each) for each in given["thresholds"])})
        return cls(curves, found["about"])


def shown_name(query: Sequence[str], gallery: Sequence[str]) -> str:
    """What a query and an entry show, in one word: ``"rgb+tir"``, or ``"tir>rgb"`` where they differ."""
    query = (query,) if isinstance(query, str) else query
    gallery = (gallery,) if isinstance(gallery, str) else gallery
    return "+".join(query) if tuple(query) == tuple(gallery) else f"{'+'.join(query)}>{'+'.join(gallery)}"


def fit_curve(pairs: Pairs, *, draws: int = 200, seed: int = 0) -> Curve:
    """Fit a curve to pairs of samples.

    Both fits weigh all pairs of one identity as much as all pairs of two, so that the probabilities are those of a
    prior of one half whatever the numbers. Which fit is better, the calibration error and the reliability rows are
    measured on identities that the fit did not see: half of them, once each way. No probability is nearer to 0 or 1
    than so many identities can tell.

    Args:
        pairs: Scores of queries and gallery entries.
        draws: Bootstrap draws of identities for the intervals.
        seed: Of the halves and the draws.

    Raises:
        ValueError: If there are fewer than four identities with a pair, or no pair of two identities.
    """
    parts = split_identities(pairs, seed)
    fits = {"isotonic": fit_isotonic, "platt": fit_platt}
    held_out: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in fits}
    for name, fit in fits.items():
        for fitted, tested in (parts, parts[::-1]):
            scores, same = tested.flat()
            known = fit(*fitted.flat(), *fitted.bounds())
            held_out[name].append((np.interp(scores, *known), same))
    losses = {}
    for name, found in held_out.items():
        losses[name] = float(np.mean([log_loss(log_odds, same) for log_odds, same in found]))
    best = min(losses, key=lambda name: losses[name])
    log_odds, same = (np.concatenate(part) for part in zip(*held_out[best], strict=True))
    ece, rows = reliability(1 / (1 + np.exp(-log_odds)), same)
    scores, flat_same = pairs.flat()
    points, values = fits[best](scores, flat_same, *pairs.bounds())
    return Curve(
        method=best,
        scores=tuple(points.tolist()),
        probabilities=tuple((1 / (1 + np.exp(-values))).tolist()),
        log_losses=losses,
        ece=ece,
        reliability=rows,
        thresholds=tuple(Threshold(*each) for each in thresholds(pairs, FALSE_MATCH_RATES, draws, seed)),
        detection=detection_rates(pairs, FALSE_ALARM_RATES),
        low=float(scores.min()),
        high=float(scores.max()),
        identities=pairs.identities,
        same=int(flat_same.sum()),
        different=int((~flat_same).sum()),
    )


_share, _score = number(0, 1), number(-1.01, 1.01)
_count = whole(0, 2**53)
_row = listed(optional(number(-1.01, 2**53)), 3, 3, "three numbers")
_THRESHOLD = table(
    {
        "false_match_rate": _share,
        **dict.fromkeys(("score", "low", "high"), optional(_score)),
        "true_match_rate": optional(_share),
    },
    required=("false_match_rate", "score"),
)
_CURVE = {
    "method": choice("isotonic", "platt"),
    "scores": listed(_score, 1, 100_000, "ascending scores"),
    "probabilities": listed(number(1e-12, 1 - 1e-12), 1, 100_000, "probabilities above 0 and below 1"),
    "log_losses": mapping(number(0, 1e3)),
    "ece": _share,
    "reliability": listed(_row, 0, 100, "rows of three numbers"),
    "thresholds": listed(_THRESHOLD, 0, 20, "a list of thresholds"),
    "detection": listed(_row, 0, 20, "rows of three numbers"),
    **dict.fromkeys(("low", "high"), _score),
    **dict.fromkeys(("identities", "same", "different"), _count),
}
_FILE = table(
    {
        "version": whole(1, _FORMAT),
        "about": mapping(optional(text())),
        "curves": mapping(table(_CURVE, "field", required=tuple(_CURVE))),
    },
    "key",
    required=("version", "curves"),
)
