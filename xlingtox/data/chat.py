"""Chat: the way in which a chat model is asked, with the ends of its turns and the marks of its thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from xlingtox.checking import checked
from xlingtox.data.conversations import Conversation, rendered, rendered_prompt, template_of

_PROBE = "xlingtox"
"""A word that no template writes by itself. It shows where a template puts a message."""

_SWITCHES = ("enable_thinking", "thinking")
"""How templates call the switch for thinking: those of Qwen and SmolLM, and those of DeepSeek and Granite."""

_MARKS = (
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
)
"""The tokens between which models of different publishers write their thoughts."""

_INSTRUCTIONS = ("system", "developer")
"""The roles of a message that comes before the conversation."""


@checked
@dataclass(frozen=True)
class Chat:
    """The way in which a chat model is asked: each plain text becomes a user's message, written by the chat template.

    Such a model was tuned on conversations. Without its template it continues a text, and often in another manner than
    its users see. Give this value, or `True`, to `HookedLM.load(chat=)`.

    Attributes:
        system: the system prompt of each conversation that has none of its own. None leaves the template's own, which
            may be none. An empty text asks for none where the template allows that.
        thinking: whether the model shall think before it answers. Thoughts are told apart from the answer. If False,
            the template is told to switch them off.

    Example:
        >>> chat = xt.data.Chat(system="Answer in one sentence.")
        >>> [message["role"] for message in chat.messages("Who are you?")]
        ['system', 'user']
        >>> str(chat)
        "chat, system 'Answer in one sentence.'"
    """

    system: str | None = None
    thinking: bool = False

    def __str__(self) -> str:
        system = "" if self.system is None else f", system {self.system!r}"
        return f"chat{system}{', thinking' if self.thinking else ''}"

    @checked
    def messages(self, prompt: str | Conversation) -> Conversation:
        """Return a prompt as messages, with the system prompt first. A conversation keeps the one that it has."""
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if self.system is None or (asked and asked[0]["role"] in _INSTRUCTIONS):
            return asked
        return [{"role": "system", "content": self.system}, *asked]

    def switches(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
        """Return what the template is told about thinking, under the names that it knows."""
        template = tokenizer.get_chat_template()
        return {name: self.thinking for name in _SWITCHES if name in template}

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError unless the tokenizer's template can write such a conversation.

        Raises:
            ValueError: there is no template; it refuses the system prompt or leaves out a message; it begins a thought
                that shall not be; or thoughts are asked for and have no marks of one token.
        """
        template_of(tokenizer, "chat= asks for messages")
        text = rendered_prompt(tokenizer, self.messages(_PROBE), "chat=: a message", self.switches(tokenizer))
        for what, content in (("user's message", _PROBE), ("system prompt", (self.system or "").strip())):
            if content not in text:
                raise ValueError(
                    f"chat=: the chat template leaves out the {what}: expected one that writes it, in "
                    "tokenizer.chat_template"
                )
        marks = ThoughtMarks.of(tokenizer)
        if self.thinking and marks is None:
            raise ValueError(
                "chat=: thinking is asked for, and the tokenizer has no token that ends a thought, such as </think>: "
                "leave thinking out"
            )
        begins_thought = marks is not None and text.count(marks.begin) > text.count(marks.end)
        if begins_thought and not self.thinking:
            raise ValueError(
                "chat=: the chat template begins a thought and has no switch for it: give "
                "chat=xt.data.Chat(thinking=True), which tells thoughts apart from answers"
            )

    def pair(self, prompt: str, chosen: str, rejected: str) -> tuple[Conversation, Conversation, Conversation]:
        """Return a preference pair of texts as messages: a user's, and two answers without blanks at their ends."""
        answers = ([{"role": "assistant", "content": side.strip()}] for side in (chosen, rejected))
        return (self.messages(prompt), *answers)  # type: ignore[return-value]


@dataclass(frozen=True)
class ThoughtMarks:
    """The two tokens between which a model writes its thoughts, before its answer.

    Attributes:
        begin, end: the marks as text.
        begin_id, end_id: their tokens.
    """

    begin: str
    end: str
    begin_id: int
    end_id: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ThoughtMarks | None:
        """Return the marks that are tokens of the tokenizer; None without any."""
        added = tokenizer.get_added_vocab()
        known = (pair for pair in _MARKS if added.keys() >= set(pair))
        return next((cls(begin, end, added[begin], added[end]) for begin, end in known), None)

    def n_thought(self, prompt: Sequence[int], new: Sequence[int]) -> int:
        """Return how many of the new tokens come before the answer: a thought and its marks.

        Where a thought does not end, there is no answer, and all tokens count.

        Args:
            prompt: the tokens before the new ones, in which the thought may begin.
        """
        ends = [place for place, token in enumerate(new) if token == self.end_id]
        if ends:
            return ends[-1] + 1
        return len(new) if self.begin_id in new or self.begins_in(prompt) else 0

    def begins_in(self, prompt: Sequence[int]) -> bool:
        """Return whether a prompt ends within a thought."""
        marks = [token for token in prompt if token in (self.begin_id, self.end_id)]
        return bool(marks) and marks[-1] == self.begin_id

    def joined(self, thought: str, answer: str | None) -> str:
        """Return a thought and its answer as one text, which `apart` takes apart; None for an answer never given."""
        return f"{self.begin}{thought}" if answer is None else f"{self.begin}{thought}{self.end}{answer}"

    def apart(self, text: str) -> tuple[str, str]:
        """Return the thought and the answer of a text that `joined` made; a text without a thought is an answer."""
        if not text.startswith(self.begin):
            return "", text
        thought, _, answer = text.removeprefix(self.begin).partition(self.end)
        return thought.strip(), answer.lstrip()


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the token with which the chat template ends an answer: one special token, or none.

    Example:
        >>> from xlingtox.data.chat import turn_ends
        >>> turn_ends(lm.tokenizer)  # the miniature has no chat template
        ()
    """
    if tokenizer.chat_template is None:
        return ()
    answered = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = rendered(tokenizer, answered, "a conversation")
    except ValueError:
        return ()
    after = tokenizer(text.rpartition(_PROBE)[2], add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return tuple([token for token in after if token in special][:1])
