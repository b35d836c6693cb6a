"""The rules of a session as pure state machines; `docs/protocol.md` is their text."""
