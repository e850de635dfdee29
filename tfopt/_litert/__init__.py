"""LiteRT (TFLite) files: read and written through their own schema, and run."""
