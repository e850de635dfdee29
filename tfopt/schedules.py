"""Step -> learning rate."""

__all__ = []
