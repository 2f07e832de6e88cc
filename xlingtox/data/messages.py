"""Conversations, lists of messages with a role and a content, and the texts that a chat template makes of them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

from transformers import PreTrainedTokenizerBase

from xlingtox.text import visible

Conversation: TypeAlias = Sequence[Mapping[str, Any]]
"""Messages, as `[{"role": "user", "content": "hello"}]`."""


def is_conversation(value: object) -> TypeGuard[Conversation]:
    """Whether a value is a list of messages, and not a text."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(
            isinstance(message, Mapping) and "role" in message and ("content" in message or "tool_calls" in message)
            for message in value
        )
    )


def says_something(messages: Conversation) -> bool:
    """Whether any message has something to see in it."""
    contents = [message.get("content") for message in messages]
    return any(visible(content) if isinstance(content, str) else content is not None for content in contents)


def template_of(tokenizer: PreTrainedTokenizerBase | None, what: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer if it has a chat template.

    Args:
        what: the conversations, in words, for the message.

    Raises:
        ValueError: there is no tokenizer, or it has no template.
    """
    if tokenizer is None:
        raise ValueError(f"{what}, which a model's chat template turns into text: give the model's tokenizer as well")
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{what}, and the model's tokenizer has no chat template: give plain text, or set tokenizer.chat_template"
        )
    return tokenizer


def rendered_prompt(tokenizer: PreTrainedTokenizerBase, messages: Conversation, what: str) -> str:
    """Return a conversation as the text after which the assistant writes.

    The template's generation prompt stands at the end. Where the last message is the assistant's, the model goes on
    with that message instead.

    Raises:
        ValueError: the template refuses the conversation; the message calls it `what`.
    """
    begun = messages[-1]["role"] == "assistant"
    return _rendered(tokenizer, messages, what, add_generation_prompt=not begun, continue_final_message=begun)


def rendered_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, chosen: Conversation, rejected: Conversation, what: str
) -> tuple[str, str, str]:
    """Return the texts of a prompt and of what the template puts behind it for either side.

    Some templates write a prompt otherwise once an answer follows (a block for thoughts, say): then the prompt's text
    ends where they differ, and the rest belongs to both sides.

    Raises:
        ValueError: as `rendered_prompt`.
    """
    sides = [_rendered(tokenizer, [*prompt, *side], what) for side in (chosen, rejected)]
    start = _common_start([rendered_prompt(tokenizer, prompt, what), *sides])
    return start, sides[0][len(start) :], sides[1][len(start) :]


def split_pair(
    prompt: object, chosen: object, rejected: object
) -> tuple[Conversation, Conversation, Conversation] | None:
    """Return prompt, chosen and rejected as messages; None where they are not a pair of conversations.

    Where no prompt is given, or one as text that the shared messages end with, it is what both sides begin with.
    """
    if not (is_conversation(chosen) and is_conversation(rejected)):
        return None
    if is_conversation(prompt):
        return prompt, chosen, rejected
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    named = prompt is None or (shared > 0 and chosen[shared - 1].get("content") == prompt)
    if not named:
        return None
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _common_start(texts: Sequence[str]) -> str:
    differ = (i for i, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1)
    return texts[0][: next(differ, min(map(len, texts)))]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Conversation, what: str, **how: Any) -> str:
    # Tables fill the keys that a message does not have with None.
    said = [{key: item for key, item in row.items() if item is not None or key == "content"} for row in messages]
    try:
        return str(tokenizer.apply_chat_template(said, tokenize=False, **how))
    except Exception as error:  # as varied as what a template may call
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{what} cannot be read by the model's chat template: {first}") from error
