"""Score texts with a toxicity probe on a model's hidden states."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from xlingtox.checking import checked
from xlingtox.models.hooked import HookedLM
from xlingtox.models.states import mean_states
from xlingtox.neurons.probe import Probe
from xlingtox.scoring.protocol import Described, check_scorable, named_languages
from xlingtox.text import well_formed


class ProbeScorer(Described):
    """A scorer that returns a probe's probability that a text is toxic, read from a model's hidden states.

    It needs no network and no second model. A text is read as in `Probe.fit`: the mean of the last layer's residual
    stream over the text's tokens. A text without tokens is read as one end-of-sequence token.

    The revision is twelve hex digits of the probe's SHA-256, followed by the fingerprint and dtype of the model's
    weights.

    Example:
        >>> scorer = xt.scoring.ProbeScorer(lm, probe, languages=["en"], progress=False)
        >>> insult, kind = scorer.score(["He is a fool.", "He is kind."], ["en", "en"])
        >>> bool(insult > kind)
        True
    """

    shares_batches = True

    @checked
    def __init__(self, lm: HookedLM, probe: Probe, *, languages: Iterable[str], progress: bool = True) -> None:
        """
        Args:
            lm: the model that the probe was fitted on. It must be without edits whenever it scores.
            probe: a probe on the residual stream before the final norm, as `Probe.fit` makes it.
            languages: the languages in which the probe works. Its AUC on labelled sentences of each can show that.
            progress: show a progress bar.

        Raises:
            ValueError: the probe has another width than the model, reads states after the final norm, or was fitted on
                other weights or under an edit; no languages, or unknown ones.
        """
        probe.check(lm)
        if probe.after_final_norm:
            raise ValueError("the probe reads states after the final norm, but a scorer those before it: use Probe.fit")
        fitted, identity = probe.model, lm.identity()
        if fitted is not None and fitted.fingerprint != identity.fingerprint:
            raise ValueError(f"the probe was fitted on {fitted.name}, whose weights are not those of {identity.name}")
        if fitted is not None and fitted.edit is not None:
            raise ValueError(f"the probe was fitted on {fitted}, but scores without an edit: fit one without it")
        covered = named_languages(languages, "probe")
        self._lm, self._probe, self._progress, self._fingerprint = lm, probe, progress, identity.fingerprint
        self._direction = probe.direction.double().numpy()
        weights = hashlib.sha256(self._direction.tobytes() + np.float64(probe.bias).tobytes()).hexdigest()[:12]
        super().__init__(f"probe on {lm.name}", f"{weights} on {identity.fingerprint} {identity.dtype}", covered)

    @checked
    def score(self, texts: Sequence[str], languages: Sequence[str]) -> Float[np.ndarray, "text"]:
        """Return the probability of toxic for each text, by the model as it was when the scorer was made.

        Raises:
            UncoveredLanguage: a language that was not named.
            RuntimeError: an edit or another hook is on the model, or its weights have changed. The scores would be
                those of another scorer, and a cache would keep them under this one's name.
        """
        from scipy.special import expit

        check_scorable(self, texts, languages)
        if not texts:
            return np.zeros(0)
        if self._lm.hooked:
            raise RuntimeError(
                f"{self.name}: an edit or another hook is on the scorer's model: score outside its `with` block, or "
                "give the scorer a model of its own"
            )
        if self._lm.fingerprint() != self._fingerprint:
            raise RuntimeError(
                f"{self.name}: the weights of the scorer's model have changed since: make another ProbeScorer"
            )
        readable = [well_formed(text) for text in texts]
        end, ids = str(self._lm.tokenizer.eos_token), self._lm.token_ids(readable)
        tokens = {text: row for text, row in zip(readable, ids, strict=True) if row}
        readable = [text if text in tokens else end for text in readable]
        with self._lm.knowing(tokens):
            states = mean_states(self._lm, readable, [self._lm.n_layers], progress=self._progress)[0]
        logits = states.double().numpy() @ self._direction + self._probe.bias
        return expit(logits)
