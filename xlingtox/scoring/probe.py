"""ProbeScorer: a probe on a model's states as judge."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from xlingtox.lm import HookedLM
from xlingtox.probe import Probe, mean_states
from xlingtox.scoring.protocol import require_scorable, well_formed


class ProbeScorer:
    """The probability that a probe gives to toxic, on the states of the model that it was fitted on.

    A text is read as by `Probe.fit`: the mean over its tokens of the last layer's residual stream. A text without
    tokens is read as an end of sequence alone.
    """

    def __init__(self, probe: Probe, judge: HookedLM, languages: Iterable[str], progress: bool = True) -> None:
        """
        Args:
            languages: in which the probe was found good, for instance by its AUC on labelled sentences of each.

        Raises:
            ValueError: the probe is of another width, or was fitted on other weights; no languages.
        """
        probe.check(judge)
        fitted, own = probe.model, judge.identity()
        if fitted is not None and fitted.fingerprint != own.fingerprint:
            raise ValueError(f"the probe was fitted on {fitted.name}, whose weights are not those of {own.name}")
        if isinstance(languages, str) or not (covered := frozenset(languages)):
            raise ValueError("say which languages the probe covers: languages=['en', ...]")
        self._probe, self._judge, self._languages, self._progress = probe, judge, covered, progress
        self._direction = probe.direction.double().numpy()
        weights = hashlib.sha256(self._direction.tobytes() + np.float64(probe.bias).tobytes()).hexdigest()[:12]
        self._revision = f"{weights} on {own.fingerprint} {own.dtype}"

    @property
    def name(self) -> str:
        return f"probe on {self._judge.name}"

    @property
    def revision(self) -> str:
        """Twelve hex digits of the probe, and of the model's weights."""
        return self._revision

    @property
    def languages(self) -> frozenset[str]:
        return self._languages

    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Raises UncoveredLanguage for a language that was not named."""
        require_scorable(self, texts, languages)
        if not texts:
            return np.zeros(0)
        tokenizer = self._judge.tokenizer
        read = [well_formed(text) for text in texts]
        ids = tokenizer(read)["input_ids"]
        read = [text if own else str(tokenizer.eos_token) for text, own in zip(read, ids, strict=True)]
        states = mean_states(self._judge, read, [self._judge.n_layers], progress=self._progress)[0]
        logits = states.double().numpy() @ self._direction + self._probe.bias
        # Of the two forms of the logistic function, the one that does not overflow.
        return np.where(logits < 0, np.exp(np.minimum(logits, 0)), 1.0) / (1 + np.exp(-np.abs(logits)))
