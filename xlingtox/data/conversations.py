"""Conversations, and the texts into which a model's chat template turns them.

A conversation is a list of messages, each with a role and a content.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

from transformers import PreTrainedTokenizerBase

from xlingtox.text import first_line, visible

Conversation: TypeAlias = Sequence[Mapping[str, Any]]
"""A list of messages, such as `[{"role": "user", "content": "hello"}]`."""


def is_conversation(value: object) -> TypeGuard[Conversation]:
    """Return whether a value is a list of messages."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(
            isinstance(message, Mapping) and "role" in message and ("content" in message or "tool_calls" in message)
            for message in value
        )
    )


def says_something(messages: Conversation) -> bool:
    """Return whether any message has visible content."""
    contents = [message.get("content") for message in messages]
    return any(visible(content) if isinstance(content, str) else content is not None for content in contents)


def template_of(tokenizer: PreTrainedTokenizerBase | None, what: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer, after checking that it has a chat template.

    Args:
        what: the beginning of the error message, which says that these are conversations.

    Raises:
        ValueError: there is no tokenizer, or it has no chat template.
    """
    if tokenizer is None:
        raise ValueError(f"{what}, which a model's chat template turns into text: give the model's tokenizer as well")
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{what}, and the model's tokenizer has no chat template: give plain text, or set tokenizer.chat_template"
        )
    return tokenizer


def rendered_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Conversation, what: str, switches: Mapping[str, bool] | None = None
) -> str:
    """Return a conversation as the text that the assistant continues.

    The text ends with the template's generation prompt. Where the last message is the assistant's, the text ends inside
    that message, which the model continues.

    Args:
        switches: what the template is told besides, as `Chat.switches` returns it.

    Raises:
        ValueError: the template refuses the conversation; the message calls it `what`.
    """
    has_begun = messages[-1]["role"] == "assistant"
    how = {**(switches or {}), "add_generation_prompt": not has_begun, "continue_final_message": has_begun}
    return rendered(tokenizer, messages, what, **how)


def rendered_pair(
    tokenizer: PreTrainedTokenizerBase,
    pair: tuple[Conversation, Conversation, Conversation],
    what: str,
    switches: Mapping[str, bool] | None = None,
) -> tuple[str, str, str]:
    """Return a prompt and its chosen and rejected answers as texts, as the chat template writes them.

    Some templates write a prompt differently when an answer follows, for example with a block for thoughts. Then the
    prompt's text ends where the two versions begin to differ, and both answers get the rest.

    Args:
        pair: prompt, chosen and rejected, as `split_pair` gives them.
        switches: what the template is told besides, as `Chat.switches` returns it.

    Raises:
        ValueError: the template refuses a conversation; the message calls it `what`.
    """
    prompt, chosen, rejected = pair
    sides = [rendered(tokenizer, [*prompt, *side], what, **(switches or {})) for side in (chosen, rejected)]
    start = _common_start([rendered_prompt(tokenizer, prompt, what, switches), *sides])
    return start, sides[0][len(start) :], sides[1][len(start) :]


def split_pair(
    prompt: object, chosen: object, rejected: object
) -> tuple[Conversation, Conversation, Conversation] | None:
    """Return prompt, chosen and rejected as messages, or None where the sides are not conversations.

    Without a prompt, the prompt is the messages with which both sides begin. The same holds where the prompt is a text
    and the last of these messages has that content.
    """
    if not (is_conversation(chosen) and is_conversation(rejected)):
        return None
    if is_conversation(prompt):
        return prompt, chosen, rejected
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    is_shared = prompt is None or (shared > 0 and chosen[shared - 1].get("content") == prompt)
    if not is_shared:
        return None
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _common_start(texts: Sequence[str]) -> str:
    """Return the longest beginning that all texts share."""
    differences = (i for i, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1)
    return texts[0][: next(differences, min(map(len, texts)))]


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Conversation, what: str, **settings: Any) -> str:
    """Return a conversation as its chat template writes it.

    Args:
        settings: what the template is told besides.

    Raises:
        ValueError: the template refuses the conversation; the message calls it `what`.
    """
    # Tables put None under keys that a message does not have.
    filled = [{key: item for key, item in row.items() if item is not None or key == "content"} for row in messages]
    try:
        return str(tokenizer.apply_chat_template(filled, tokenize=False, **settings))
    except Exception as error:  # A template may raise anything.
        raise ValueError(f"{what} cannot be read by the model's chat template: {first_line(error)}") from error
