"""ProbeScorer: a probe on a model's states as judge."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from xlingtox.checking import checked
from xlingtox.models.hooked import HookedLM
from xlingtox.models.states import mean_states
from xlingtox.neurons.probe import Probe
from xlingtox.scoring.protocol import Described, check_scorable, named_languages
from xlingtox.text import well_formed


class ProbeScorer(Described):
    """The probability that a probe gives to toxic, on the states of the model that it was fitted on.

    A text is read as by `Probe.fit`: the mean over its tokens of the last layer's residual stream. A text without
    tokens is read as an end of sequence alone. The revision is twelve hex digits of the probe, and of the model's
    weights.
    """

    @checked
    def __init__(self, lm: HookedLM, probe: Probe, *, languages: Iterable[str], progress: bool = True) -> None:
        """
        Args:
            languages: in which the probe was found good, for instance by its AUC on labelled sentences of each.

        Raises:
            ValueError: the probe is of another width, reads states after the final norm, or was fitted on other weights
                or under an edit; no languages, or unknown ones.
        """
        probe.check(lm)
        if probe.after_final_norm:
            raise ValueError("the probe reads states after the final norm, a scorer those before it: use Probe.fit")
        fitted, own = probe.model, lm.identity()
        if fitted is not None and fitted.fingerprint != own.fingerprint:
            raise ValueError(f"the probe was fitted on {fitted.name}, whose weights are not those of {own.name}")
        if fitted is not None and fitted.edit is not None:
            raise ValueError(f"the probe was fitted on {fitted}, and scores without an edit: fit one without it")
        covered = named_languages(languages, "probe")
        self._lm, self._probe, self._progress, self._read = lm, probe, progress, own
        self._direction = probe.direction.double().numpy()
        weights = hashlib.sha256(self._direction.tobytes() + np.float64(probe.bias).tobytes()).hexdigest()[:12]
        super().__init__(f"probe on {lm.name}", f"{weights} on {own.fingerprint} {own.dtype}", covered)

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Scores by the model as it was given.

        Raises:
            UncoveredLanguage: a language that was not named.
            RuntimeError: an edit or another hook stands on the model, or its weights have changed: the scores would be
                another judge's, and a cache would keep them as this one's.
        """
        check_scorable(self, texts, languages)
        if not texts:
            return np.zeros(0)
        if self._lm.hooked:
            raise RuntimeError(
                f"{self.name}: an edit or another hook stands on the judge: score outside its `with` block, or give "
                "the judge a model of its own"
            )
        if self._lm.fingerprint() != self._read.fingerprint:
            raise RuntimeError(f"{self.name}: the judge's weights have changed since: make another ProbeScorer")
        read = [well_formed(text) for text in texts]
        end, ids = str(self._lm.tokenizer.eos_token), self._lm.token_ids(read)
        read = [text if tokens else end for text, tokens in zip(read, ids, strict=True)]
        states = mean_states(self._lm, read, [self._lm.n_layers], progress=self._progress)[0]
        logits = states.double().numpy() @ self._direction + self._probe.bias
        return expit(logits)
