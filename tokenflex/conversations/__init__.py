"""Conversations about many images: encoded once, as fine as need be, read again only from where they changed."""

from tokenflex.conversations.conversation import Conversation
from tokenflex.conversations.reply import HeldMemory, Reply

__all__ = ["Conversation", "HeldMemory", "Reply"]
